"""evals/annotation/page.py: the page's content, and in headless Chromium its keys, its names and its saved csv."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from evals.annotation.label_csv import QueriedImage, format_row, format_table, read_labels, row_without_label
from evals.annotation.page import as_json, label_keys, render_page
from evals.annotation.queries import AnnotationQuery
from tests.chromium import Tab, running_browser

HOSTILE = ["<script>document.title='hacked'</script>", "naïve \"dog\"\n'line' 🐶", "=SUM(A1)", "{{script}}&amp;"]


def image(number: int, suggestion: str | None) -> QueriedImage:
    names = (f"image {number}.png", f"<img src=x onerror=alert({number})>.png", f"'\"\n🐈{number}</script>.png")
    return QueriedImage(f"unlabeled/{names[number % 3]}", "0" * 64, suggestion, 2 - number / 50, 0.5, None)


def thumbnail(path: str) -> Image.Image:
    size = (20, 30) if "image" in path else (200, 80)
    return Image.new("RGB", size, (10 * len(path) % 256, 80, 120))


def query(folder: Path, class_names: Sequence[str], count: int, *, suggests: bool = True) -> AnnotationQuery:
    """Images with the classes' suggestions in turn."""
    names = [class_names[number * len(class_names) // count] if suggests else None for number in range(count)]
    images = [image(number, name) for number, name in enumerate(names)]
    return AnnotationQuery(folder / "cycle_3", 3, "", list(class_names), "ccal", {}, 1.0, images)


def page(query: AnnotationQuery, **more: Any) -> str:
    return render_page(query, thumbnail, **{"images_folder": query.folder.parent / "mine", "examples": {}} | more)


def content(query: AnnotationQuery, **more: Any) -> dict[str, Any]:
    """What the page hands to its script."""
    return json.loads(re.search(r'id="query">(.*?)</script>', page(query, **more), re.DOTALL)[1])


def write(query: AnnotationQuery, **more: Any) -> Path:
    query.folder.mkdir(exist_ok=True)
    query.page.write_text(page(query, **more))
    return query.page


# What the page holds


@pytest.mark.parametrize(
    ("classes", "keys"),
    [
        (["cat", "dog"], ["1", "2"]),
        (["0", "1", "7"], ["0", "1", "7"]),
        (["7", "cat", "1", "dog"], ["7", "2", "1", "3"]),
        (["b", "B", "o", "U", "s", "z"], ["b", "1", "2", "3", "4", "5"]),
    ],
)
def test_keys_of_classes(classes, keys):
    assert label_keys(classes) == keys


def test_keys_run_out_after_thirty_classes():
    keys = label_keys([f"class {number}" for number in range(40)])
    assert "".join(keys) == "123456789abcdeghijklmnpqrtvwxy" and keys[30:] == [""] * 10


def test_json_in_the_page_cannot_end_its_element():
    text = as_json({"</script><!--": "&<>\u2028"})
    assert not {"<", ">", "&", "\u2028"} & set(text)
    assert json.loads(text) == {"</script><!--": "&<>\u2028"}


def test_the_page_loads_nothing_and_leaves_no_place_open(tmp_path):
    text = page(query(tmp_path, HOSTILE, 6), worth=HOSTILE[0])
    markup = re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.DOTALL)
    markup = re.sub(r"sha256-[\w+/=]*", "", markup)  # base64 has slashes
    assert not re.search(r"https?:|//\w|url\(|@import|\ssrc=|\son\w+=", markup)
    assert "{{" not in markup


def test_images_are_small_and_exact_or_larger_and_webp(tmp_path):
    asked = query(tmp_path, ["cat", "dog"], 4)
    found = content(asked)
    kinds = [(item["image"].split(";")[0], item["small"]) for item in found["items"]]
    small, large = ("data:image/png", True), ("data:image/webp", False)
    assert kinds == [small, large, large, small]
    assert found["groups"] == [{"title": "Suggested: cat", "count": 2}, {"title": "Suggested: dog", "count": 2}]
    assert found["key"] == asked.storage_key


def test_links_lead_from_the_page_to_the_files(tmp_path):
    paths = ["unlabeled/a#b?c%20.png", "unlabeled/ü:\"'<.png", "labeled/cat/\udcff.png"]
    images = [QueriedImage(path, "0" * 64, None, None, None, None) for path in paths[:2]]
    asked = AnnotationQuery(tmp_path / "runs/query/cycle_3", 3, "", ["cat", "dog"], "random", {}, 1.0, images)
    found = content(asked, images_folder=tmp_path / "mine", examples={"cat": paths[2:]})
    up = "../../../mine/"
    expected = ["unlabeled/a%23b%3Fc%2520.png", "unlabeled/%C3%BC%3A%22%27%3C.png"]
    assert [item["link"] for item in found["items"]] == [up + link for link in expected]
    assert [[shown["link"] for shown in entry["examples"]] for entry in found["classes"]] == [
        [f"{up}labeled/cat/%FF.png"],
        [],
    ]


# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with running_browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Opens a query's page in the browser that these tests share."""
    tabs: list[Tab] = []

    def start(names: Sequence[str], count: int, *, before: str = "", suggests: bool = True, **more: Any) -> Tab:
        tabs.append(Tab(browser, write(query(tmp_path, names, count, suggests=suggests), **more), before=before))
        return tabs[-1]

    yield start
    for tab in tabs:
        tab.close()


@pytest.fixture
def keys() -> Any:
    return pytest.importorskip("selenium.webdriver", reason="needs selenium, see requirements-dev.txt").Keys


def test_a_query_is_labeled_by_keyboard_with_the_browser_closed_in_between(keys, tmp_path):
    asked = query(tmp_path, ["cat", "dog"], 20)
    path = write(asked)
    with running_browser(tmp_path / "profile") as driver:
        tab = Tab(driver, path)
        assert tab.text("count") == "0 of 20 labeled"
        tab.press(keys.ENTER, "2", "o", keys.ENTER, "1")  # suggestions, another class, none of them
        tab.press(keys.ARROW_RIGHT, "o", keys.ARROW_LEFT, keys.ARROW_LEFT, "2")
        assert tab.labels()[:8] == ["cat", "dog", "other", "cat", "cat", "dog", "other", ""]
        tab.press("1", "u", keys.ARROW_RIGHT, "1", "u")  # two slips, taken back
        assert tab.labels()[:8] == ["cat", "dog", "other", "cat", "cat", "dog", "other", ""]
        assert tab.current() == 7 and not tab.complaints()
    with running_browser(tmp_path / "profile") as driver:
        tab = Tab(driver, path)
        assert tab.text("count") == "7 of 20 labeled" and tab.current() == 7
        assert tab.labels()[:8] == ["cat", "dog", "other", "cat", "cat", "dog", "other", ""]
        tab.press("f")
        assert tab.shown() == list(range(7, 20))
        tab.press(*[keys.ENTER] * 13)
        assert tab.text("count") == "20 of 20 labeled" and tab.shown() == []
        assert tab.text("empty") and tab.text("message").startswith("Every image has a label.")
        tab.press("s")
        saved = tab.saved("labels_cycle_3.csv")
        assert "Saved as labels_cycle_3.csv" in tab.text("message") and "--partial" not in tab.text("message")
        assert not tab.complaints()
    labels = ["cat", "dog", "other", "cat", "cat", "dog", "other", *["cat"] * 3, *["dog"] * 10]
    rows = [row_without_label(item) + format_row([label]) + "\r\n" for item, label in zip(asked.images, labels)]
    assert saved.read_bytes().decode() == format_table([]) + "".join(rows)
    found = read_labels(saved, asked.paths, asked.class_names)
    assert list(found.values()) == [None if label == "other" else label for label in labels]


def test_hostile_names_are_shown_as_text_and_come_back(open_page, keys, tmp_path):
    tab = open_page(HOSTILE, 12)
    tab.press("1", "2", "3", "4", *[keys.ENTER] * 8)
    assert tab.driver.title == "Cycle 3: 12 images to label"
    shown = tab.driver.execute_script("return [...document.querySelectorAll('#choices bdi')].map((b) => b.textContent)")
    assert shown == [*HOSTILE, "other: none of these"]
    tab.press("s", keys.ARROW_LEFT)
    asked = query(tmp_path, HOSTILE, 12)
    assert tab.driver.execute_script("return document.getElementById('path').textContent") == asked.paths[11]
    labels = read_labels(tab.saved("labels_cycle_3.csv"), asked.paths, HOSTILE)
    assert list(labels.values()) == [*HOSTILE, *[item.suggestion for item in asked.images[4:]]]
    assert not tab.complaints()
    schemes = {address.split(":")[0] for address in tab.requests()}
    assert schemes - {"chrome", "chrome-untrusted"} <= {"file", "data", "blob"}
    tab.driver.execute_script(
        "const script = document.createElement('script'); script.textContent = 'document.title = 1';"
        "document.body.append(script); const image = document.createElement('img'); image.src = 'file:///x.png';"
        "document.body.append(image)"
    )
    refused = " ".join(entry["message"] for entry in tab.complaints())
    assert "script-src" in refused and "img-src" in refused and tab.driver.title != "1"


def test_without_storage_the_page_warns_and_still_saves(open_page):
    broken = "Object.defineProperty(window, 'localStorage', { get() { throw new Error('denied'); } })"
    tab = open_page(["cat", "dog"], 4, before=broken)
    assert "save the csv before you close the tab" in " ".join(tab.text("storage").split())
    tab.press("1", "s")
    assert "3 of 4 images have no label" in tab.text("message")
    text = tab.saved("labels_cycle_3.csv").read_text(encoding="utf-8-sig")
    assert text.splitlines()[1].endswith(",cat") and text.splitlines()[-1].endswith(",")


@pytest.mark.parametrize(
    "kept", ["nonsense", "{}", '{"labels": [1]}', '{"labels": [7, "x"], "history": [[9, 9]], "current": -1}']
)
def test_foreign_content_of_the_storage_does_no_harm(open_page, kept, tmp_path):
    key = query(tmp_path, ["cat"], 2).storage_key
    tab = open_page(["cat"], 2, before=f"localStorage.setItem({json.dumps(key)}, {json.dumps(kept)})")
    assert not tab.driver.find_element("id", "storage").is_displayed()
    tab.press("1", "o")
    assert tab.labels() == ["cat", "other"] and not tab.complaints()


def test_moving_and_what_the_mouse_and_other_keys_do(open_page, keys):
    from selenium.webdriver import ActionChains

    tab = open_page(["cat", "dog"], 40)
    tops = tab.driver.execute_script("return [...document.querySelectorAll('.card')].map((c) => c.offsetTop)")
    columns = tops.count(tops[0])
    assert 3 <= columns <= 12
    expected = [(keys.ARROW_RIGHT, 1), (keys.ARROW_DOWN, 1 + columns), (keys.ARROW_UP, 1), (keys.ARROW_UP, 1)]
    expected += [(keys.END, 39), (keys.ARROW_RIGHT, 39), (keys.HOME, 0), (keys.ARROW_LEFT, 0)]
    for key, image in expected:
        tab.press(key)
        assert tab.current() == image
    for key in ("1", "z"):  # keys with Ctrl are the browser's, except undo
        ActionChains(tab.driver).key_down(keys.CONTROL).send_keys(key).key_up(keys.CONTROL).perform()
        assert tab.text("count") == "0 of 40 labeled"
        tab.press("1")  # the first image, so that there is something to undo
    tab.driver.find_element("id", "image-19").click()
    tab.driver.find_element("css selector", "#choices button[data-label='1']").click()
    tab.press(keys.ENTER)  # accepts the suggestion of the next image; it does not press the button again
    assert tab.labels()[19:21] == ["dog", "dog"]
    tab.driver.find_element("id", "undo").click()
    assert tab.labels()[20] == "" and tab.current() == 20
    tab.press(keys.ARROW_LEFT, keys.DELETE)
    assert tab.text("count") == "1 of 40 labeled" and tab.current() == 19


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_fits_its_window(open_page, keys, width):
    tab = open_page(["cat", "a class with a very long name indeed, longer than a narrow screen is wide", *HOSTILE], 24)
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    tab.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    tab.press("1", "o", "2")
    for dialog in ("z", "?"):
        tab.press(dialog)
        shown = "const dialog = document.querySelector('dialog[open]'); return [dialog.scrollWidth, dialog.offsetWidth]"
        assert max(tab.driver.execute_script(shown)) <= width
        tab.press(keys.ESCAPE)
    assert tab.driver.execute_script("return document.documentElement.scrollWidth") <= width
    if width == 400:  # wide and high enough for a finger
        sizes = "[...document.querySelectorAll('button, select, input, summary')].map((e) => e.getBoundingClientRect())"
        boxes = [box for box in tab.driver.execute_script(f"return {sizes}") if box["width"]]
        assert len(boxes) > 10 and min(min(box["width"], box["height"]) for box in boxes) >= 44
    # The image to label is not hidden behind the bar or the panel.
    box = tab.driver.execute_script(
        "const box = document.querySelector(\".card[aria-selected='true']\").getBoundingClientRect();"
        "return [box.left + box.width / 2, box.top + box.height / 2]"
    )
    seen = tab.driver.execute_script("return document.elementFromPoint(...arguments).closest('.card')?.id", *box)
    assert seen == f"image-{tab.current()}"


def test_what_a_screen_reader_is_told_with_and_without_suggestions(open_page, keys):
    tab = open_page(["cat", "dog"], 4)
    tab.press("1")
    cards = tab.driver.find_elements("css selector", ".card")
    names = [card.get_attribute("aria-label").removeprefix("unlabeled/image ") for card in cards]
    assert (names[0], names[3]) == ("0.png, suggested cat, label cat", "3.png, suggested dog, no label")
    assert [card.get_attribute("tabindex") for card in cards].count("0") == 1
    assert tab.text("announcement") == "unlabeled/image 0.png: cat. 1 of 4 labeled"
    roles = {box.aria_role for box in tab.driver.find_elements("css selector", "#images, .group, .card")}
    assert roles == {"listbox", "group", "option"}
    tab = open_page(["cat"], 3, suggests=False)
    tab.press(keys.ENTER)
    assert tab.text("message").startswith("There is no suggestion") and tab.labels() == ["", "", ""]
    assert tab.driver.find_element("css selector", "h2").text == "No suggestion (3)"


@pytest.mark.parametrize("width", [1280, 400])
def test_messages_are_in_sight_and_one_key_too_many_labels_nothing(open_page, keys, width):
    tab = open_page(["cat", "dog"], 60)
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    tab.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    tab.press(*[keys.ENTER] * 60, "o", "2", keys.ENTER, keys.DELETE)
    assert tab.labels() == ["cat"] * 30 + ["dog"] * 30

    def in_sight(words: str) -> bool:
        message = tab.driver.find_element("id", "message")
        box = tab.driver.execute_script("return arguments[0].getBoundingClientRect()", message)
        at = [box["left"] + 5, box["top"] + 5]
        seen = tab.driver.execute_script("return document.elementFromPoint(...arguments)", *at)
        return words in message.text and box["bottom"] < 800 and seen == message

    assert in_sight("Every image has a label.")
    tab.press("s")
    assert in_sight("Saved as labels_cycle_3.csv")
    tab.driver.refresh()
    tab.press("o")
    assert tab.labels() == ["cat"] * 30 + ["dog"] * 30 and in_sight("Every image has a label.")
    tab.press(keys.BACKSPACE)
    assert tab.current() == 59
    tab.press("1", "o")  # what one goes back to can be labeled, again once
    assert tab.labels()[58:] == ["dog", "cat"]


def test_space_skips_backspace_goes_back_and_the_end_leads_to_what_was_skipped(open_page, keys):
    tab = open_page(["cat", "dog"], 6)
    tab.press("1", " ", "2", keys.BACKSPACE, keys.BACKSPACE, keys.BACKSPACE)
    assert tab.current() == 0 and tab.labels() == ["cat", "", "dog", "", "", ""]
    tab.press("2", " ", "1", "o", "o")  # 0, 2, 3, 4
    assert tab.labels() == ["dog", "", "cat", "other", "other", ""] and tab.current() == 5
    tab.press("o")
    assert tab.current() == 1 and "the first without a label" in tab.text("message")
    tab.press("1", "2")  # the last one without a label, and a key too many
    assert tab.labels() == ["dog", "cat", "cat", "other", "other", "other"]
    tab.press(keys.BACKSPACE)
    assert tab.current() == 1


def test_a_range_and_the_rest_of_a_group_are_labeled_and_undone_in_one_step(open_page, keys):
    from selenium.webdriver import ActionChains

    tab = open_page(["cat", "dog"], 12)
    held = ActionChains(tab.driver).key_down(keys.SHIFT)

    def shift_click(image: int) -> None:
        held.click(tab.driver.find_element("id", f"image-{image}")).key_up(keys.SHIFT).perform()
        held.reset_actions()
        held.key_down(keys.SHIFT)

    tab.press("2", keys.ARROW_RIGHT)
    shift_click(5)
    chosen = tab.driver.find_elements("css selector", ".card[aria-selected='true']")
    assert [card.get_attribute("id") for card in chosen] == ["image-2", "image-3", "image-4", "image-5"]
    assert tab.text("label").startswith("4 images are selected")
    tab.press("o")
    assert tab.labels() == ["dog", "", *["other"] * 4, *[""] * 6] and tab.current() == 6
    shift_click(4)  # backwards, over labels that are there
    tab.press(keys.ENTER)
    assert tab.labels()[2:8] == ["other", "other", "cat", "cat", "dog", ""]
    tab.press("u")
    assert tab.labels() == ["dog", "", *["other"] * 4, *[""] * 6]
    tab.press("f", keys.HOME)  # 1 and 6 to 11 are shown: what is hidden is no part of the range
    shift_click(7)
    tab.press("2")
    assert tab.labels() == ["dog", "dog", *["other"] * 4, "dog", "dog", *[""] * 4]
    tab.press("u", "f")
    shift_click(9)
    tab.press(keys.ESCAPE, "1")
    assert tab.labels() == ["dog", "", *["other"] * 4, *[""] * 3, "cat", "", ""]
    first, second = tab.driver.find_elements("css selector", ".rest")
    assert (first.text, second.text) == ("Rest of this group: other (1)", "Rest of this group: other (5)")
    second.click()
    assert tab.labels()[6:] == ["other", "other", "other", "cat", "other", "other"] and not second.is_displayed()
    assert tab.current() == 1 and "5 images: other" in tab.text("message")
    tab.press("u")
    assert tab.labels()[6:] == ["", "", "", "cat", "", ""] and not tab.complaints()


def test_counts_filters_and_finding_a_name(open_page, keys):
    from selenium.webdriver.support.select import Select

    tab = open_page(["cat", "dog"], 8)
    tab.press("1", "2", "o", keys.ENTER, "1")  # suggested: four cats, then four dogs
    choices = [button.text for button in tab.driver.find_elements("css selector", "#choices button")]
    assert choices == ["1 cat 3", "2 dog 1", "o other: none of these 1"]
    shown = Select(tab.driver.find_element("id", "filter"))
    expected = {"Unlabeled (3)": [5, 6, 7], "Not as suggested (3)": [1, 2, 4]}
    expected |= {"Labeled cat (3)": [0, 3, 4], "Labeled dog (1)": [1], "Labeled other (1)": [2]}
    assert [option.text for option in shown.options] == ["All (8)", *expected]
    for word, images in expected.items():
        shown.select_by_visible_text(word)
        assert tab.shown() == images
    tab.press("1")  # the only one: now it is labeled cat, and none is left to show
    assert tab.labels()[2] == "cat" and tab.shown() == [] and "last image shown" in tab.text("message")
    tab.press("/", *"IMAGE", keys.ENTER)  # images 0, 3 and 6 are named so; the filter would hide them
    assert tab.shown() == list(range(8)) and tab.current() == 3 and tab.text("message").startswith("3 names match")
    tab.press(keys.ENTER)
    assert tab.current() == 6
    tab.press(keys.ENTER, *" 6")
    assert tab.current() == 6 and tab.text("count") == "5 of 8 labeled"
    tab.press("x")
    assert tab.text("message") == "No name matches."
    tab.press(keys.ESCAPE, "o")  # a label again
    assert tab.labels()[6] == "other" and not tab.complaints()


def test_full_size_examples_and_what_is_shown_on_demand(open_page, keys, tmp_path):
    examples = {"cat": [f"labeled/cat/{number}.jpg" for number in range(6)]}
    tab = open_page(["cat", "dog"], 4, examples=examples, worth="32 of 100 <b>were</b> targets")
    full, find = tab.driver.find_element("id", "full"), tab.driver.find_element
    assert tab.text("worth") == "32 of 100 <b>were</b> targets"
    tab.press("z")
    assert full.is_displayed() and tab.text("full-path") == "unlabeled/image 0.png"
    assert find("id", "file").get_attribute("href") == (tmp_path / "mine/unlabeled/image 0.png").as_uri()
    tab.press(keys.ENTER, "2", " ", keys.BACKSPACE)  # the keys label what is shown
    assert tab.labels() == ["cat", "dog", "", ""] and "alert(2)" not in tab.text("full-path")
    assert tab.current() == 2 and full.is_displayed() and tab.text("full-label") == "suggested: dog"
    tab.press(keys.ESCAPE, "o")
    assert not full.is_displayed() and tab.labels() == ["cat", "dog", "other", ""]
    find("id", "enlarge").click()
    find("id", "full-image").click()
    assert not full.is_displayed()
    shown = tab.driver.find_elements("css selector", ".row button")
    assert len(shown) == 6
    shown[4].click()
    tab.press("1", keys.ARROW_LEFT, "s")  # an example is no image to label
    assert tab.text("full-path") == "labeled/cat/4.jpg" and tab.labels()[3] == "" and tab.current() == 3
    tab.press("z", "?")
    assert "takes the suggestion" in tab.text("help") and not full.is_displayed()
    tab.press("1", keys.ESCAPE)
    assert tab.labels()[3] == "" and not find("id", "help").is_displayed()
    score = find("css selector", "#image-3 .small")
    assert not score.is_displayed()
    find("css selector", "#scores summary").click()
    assert score.text == "score 1.940" and "semantic 0.500" in tab.text("scores")
    tab.press(keys.ENTER)  # is for the image, not for what was clicked
    assert tab.labels()[3] == "dog"
    tab.press("u", "z", "2")  # the last one: nothing is left to show in full size
    assert not full.is_displayed() and tab.text("count") == "4 of 4 labeled" and not tab.complaints()
