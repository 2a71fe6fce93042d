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


def thumbnail(image: QueriedImage) -> Image.Image:
    size = (20, 30) if "image" in image.path else (200, 80)
    return Image.new("RGB", size, (10 * len(image.path) % 256, 80, 120))


def query(folder: Path, class_names: Sequence[str], count: int, *, suggests: bool = True) -> AnnotationQuery:
    """Images with the classes' suggestions in turn."""
    names = [class_names[number * len(class_names) // count] if suggests else None for number in range(count)]
    images = [image(number, name) for number, name in enumerate(names)]
    return AnnotationQuery(folder / "cycle_3", 3, "", list(class_names), "ccal", {}, 1.0, images)


def write(query: AnnotationQuery) -> Path:
    query.folder.mkdir(exist_ok=True)
    query.page.write_text(render_page(query, thumbnail))
    return query.page


# What the page holds


@pytest.mark.parametrize(
    ("classes", "keys"),
    [
        (["cat", "dog"], ["1", "2"]),
        (["0", "1", "7"], ["0", "1", "7"]),
        (["7", "cat", "1", "dog"], ["7", "2", "1", "3"]),
        (["b", "B", "o", "U", "s"], ["b", "1", "2", "3", "4"]),
    ],
)
def test_keys_of_classes(classes, keys):
    assert label_keys(classes) == keys


def test_keys_run_out_after_thirty_one_classes():
    keys = label_keys([f"class {number}" for number in range(40)])
    assert "".join(keys) == "123456789abcdeghijklmnpqrtvwxyz" and keys[31:] == [""] * 9


def test_json_in_the_page_cannot_end_its_element():
    text = as_json({"</script><!--": "&<>\u2028"})
    assert not {"<", ">", "&", "\u2028"} & set(text)
    assert json.loads(text) == {"</script><!--": "&<>\u2028"}


def test_the_page_loads_nothing_and_leaves_no_place_open(tmp_path):
    text = render_page(query(tmp_path, HOSTILE, 6), thumbnail)
    markup = re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.DOTALL)
    markup = re.sub(r"sha256-[\w+/=]*", "", markup)  # base64 has slashes
    assert not re.search(r"https?:|//\w|url\(|@import|\ssrc=|\son\w+=", markup)
    assert "{{" not in markup


def test_images_are_small_and_exact_or_larger_and_jpeg(tmp_path):
    asked = query(tmp_path, ["cat", "dog"], 4)
    content = json.loads(re.search(r'id="query">(.*?)</script>', render_page(asked, thumbnail), re.DOTALL)[1])
    kinds = [(item["image"].split(";")[0], item["small"]) for item in content["items"]]
    small, large = ("data:image/png", True), ("data:image/jpeg", False)
    assert kinds == [small, large, large, small]
    assert content["groups"] == [{"title": "Suggested: cat", "count": 2}, {"title": "Suggested: dog", "count": 2}]
    assert content["key"] == asked.storage_key


# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with running_browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Opens a query's page in the browser that these tests share."""
    tabs: list[Tab] = []

    def start(class_names: Sequence[str], count: int, *, before: str = "", suggests: bool = True) -> Tab:
        tabs.append(Tab(browser, write(query(tmp_path, class_names, count, suggests=suggests)), before=before))
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
        assert tab.text("empty") and tab.text("saved").startswith("Every image has a label.")
        tab.press("s")
        saved = tab.saved("labels_cycle_3.csv")
        assert "Saved as labels_cycle_3.csv" in tab.text("saved") and "--partial" not in tab.text("saved")
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
    tab.press("s")
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
    assert "3 of 4 images have no label" in tab.text("saved")
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
    assert tab.text("count") == "1 of 40 labeled"


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_fits_its_window(open_page, width):
    tab = open_page(["cat", "a class with a very long name indeed, longer than a narrow screen is wide", *HOSTILE], 24)
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    tab.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    tab.press("1", "o", "2")
    assert tab.driver.execute_script("return document.documentElement.scrollWidth") <= width
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
    assert tab.text("announcement").startswith("There is no suggestion") and tab.labels() == ["", "", ""]
    assert tab.driver.find_element("css selector", "h2").text == "No suggestion (3)"
