"""evals/labeling_page.py: the page in headless Chromium, labeled by keyboard; its keys, its names, its saved csv."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from evals.annotation.label_csv import Asked, format_table, read_labels
from evals.annotation.page import as_json, label_keys, write_page
from tests.chromium import Tab, running_browser

HOSTILE = ("<script>document.title='hacked'</script>", "naïve \"dog\"\n'line' 🐶", "=SUM(A1)", "{{script}}&amp;")


def asked(number: int, suggestion: str | None) -> Asked:
    name = [f"image {number}.png", f"<img src=x onerror=alert({number})>.png", f"'\"\n🐈{number}</script>.png"][
        number % 3
    ]
    return Asked(f"unlabeled/{name}", "0" * 64, suggestion, 2 - number / 50, 0.5, None)


def query(classes: Sequence[str], count: int) -> list[Asked]:
    return [asked(number, classes[number * len(classes) // count]) for number in range(count)]


def picture(path: str) -> Image.Image:
    return Image.new("RGB", (20, 30) if "image" in path else (200, 80), (10 * len(path) % 256, 80, 120))


@pytest.fixture
def page(tmp_path: Path):
    """Writes a page and returns its path."""

    def write(items: Sequence[Asked], classes: Sequence[str]) -> Path:
        write_page(tmp_path / "label.html", items, classes, picture, cycle=3, key=storage_key(tmp_path))
        return tmp_path / "label.html"

    return write


def storage_key(folder: Path) -> str:
    """All pages from files share one storage; each test has a key of its own in it."""
    return f"ccal-labels-{folder.name}"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with running_browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def open_tab(browser: Any) -> Iterator[Any]:
    """Opens a page in the browser that these tests share."""
    tabs: list[Tab] = []

    def start(path: Path, *, before: str = "") -> Tab:
        tabs.append(Tab(browser, path, before=before))
        return tabs[-1]

    yield start
    for tab in tabs:
        tab.close()


@pytest.fixture
def keys() -> Any:
    return pytest.importorskip("selenium.webdriver", reason="needs selenium, see requirements-dev.txt").Keys


def test_twenty_images_are_labeled_by_keyboard_with_the_browser_closed_in_between(page, keys, tmp_path):
    classes = ["cat", "dog"]
    items = query(classes, 20)
    path = page(items, classes)
    with running_browser(tmp_path / "profile") as driver:
        tab = Tab(driver, path)
        assert tab.text("count") == "0 of 20 labeled"
        tab.press(keys.ENTER, "2", "o", keys.ENTER, "1")  # suggestions, other classes, none of them
        tab.press(keys.ARROW_RIGHT, "o", keys.ARROW_LEFT, keys.ARROW_LEFT, "2")
        assert tab.labels()[:8] == ["cat", "dog", "other", "cat", "cat", "dog", "other", ""]
        tab.press("1", "u", keys.ARROW_RIGHT, "1", "u")  # two slips, taken back
        assert tab.labels()[:8] == ["cat", "dog", "other", "cat", "cat", "dog", "other", ""]
        assert tab.current() == 7 and tab.text("count") == "7 of 20 labeled"
        assert not tab.complaints()

    with running_browser(tmp_path / "profile") as driver:
        tab = Tab(driver, path)
        assert tab.text("count") == "7 of 20 labeled" and tab.current() == 7
        assert tab.labels()[:8] == ["cat", "dog", "other", "cat", "cat", "dog", "other", ""]
        tab.press("f")
        assert tab.shown() == list(range(7, 20))
        tab.press(*[keys.ENTER] * 13)
        assert tab.text("count") == "20 of 20 labeled" and tab.shown() == []
        assert tab.text("empty").startswith("Every image has a label.")
        assert tab.text("saved") == "Every image has a label. Save the csv (S)."
        tab.press("s")
        saved = tab.saved("labels_cycle_3.csv")
        assert "Saved as labels_cycle_3.csv" in tab.text("saved") and "--partial" not in tab.text("saved")
        assert not tab.complaints()

    expected = ["cat", "dog", "other", "cat", "cat", "dog", "other", *["cat"] * 3, *["dog"] * 10]
    assert saved.read_bytes().decode() == format_table(items, expected)
    labels = read_labels(saved, [item.path for item in items], classes)
    assert list(labels.values()) == [None if label == "other" else label for label in expected]


def test_hostile_names_are_shown_as_text_and_come_back(page, open_tab, keys):
    items = query(HOSTILE, 12)
    tab = open_tab(page(items, HOSTILE))
    tab.press("1", "2", "3", "4", *[keys.ENTER] * 8)
    assert tab.driver.title == "Cycle 3: 12 images to label"
    shown = tab.driver.execute_script("return [...document.querySelectorAll('#choices bdi')].map((b) => b.textContent)")
    assert shown == [*HOSTILE, "other: none of these"]
    assert tab.driver.execute_script("return document.getElementById('path').textContent") == items[11].path
    tab.press("s")
    labels = read_labels(tab.saved("labels_cycle_3.csv"), [item.path for item in items], HOSTILE)
    assert list(labels.values()) == [*HOSTILE, *[item.suggestion for item in items[4:]]]
    assert not tab.complaints()
    assert {address.split(":")[0] for address in tab.requests()} - {"chrome", "chrome-untrusted"} <= {
        "file",
        "data",
        "blob",
    }


def test_the_policy_stops_what_is_not_the_page_s_own(page, open_tab):
    tab = open_tab(page(query(["cat"], 2), ["cat"]))
    tab.driver.execute_script(
        "const script = document.createElement('script'); script.textContent = 'document.title = 1';"
        "document.body.append(script); const image = document.createElement('img'); image.src = 'file:///x.png';"
        "document.body.append(image)"
    )
    refused = " ".join(entry["message"] for entry in tab.complaints())
    assert tab.driver.title == "Cycle 3: 2 images to label"
    assert "script-src" in refused and "img-src" in refused


def test_without_storage_the_page_says_so_and_still_saves(page, open_tab, keys):
    broken = "Object.defineProperty(window, 'localStorage', { get() { throw new Error('denied'); } })"
    tab = open_tab(page(query(["cat", "dog"], 4), ["cat", "dog"]), before=broken)
    assert "save the csv before you close the tab" in tab.text("storage")
    tab.press("1")
    assert not tab.driver.find_element("id", "saved").is_displayed()
    tab.press("s")
    assert "3 of 4 images have no label" in tab.text("saved")
    text = tab.saved("labels_cycle_3.csv").read_text(encoding="utf-8-sig")
    assert text.splitlines()[1].endswith(",cat") and text.splitlines()[-1].endswith(",")


def test_with_storage_no_notice_is_shown(page, open_tab):
    tab = open_tab(page(query(["cat"], 2), ["cat"]))
    assert not tab.driver.find_element("id", "storage").is_displayed()


@pytest.mark.parametrize(
    "kept", ["nonsense", "{}", '{"labels": [1]}', '{"labels": [7, "x"], "history": [[9, 9]], "current": -1}']
)
def test_what_another_program_left_in_the_storage_does_no_harm(page, open_tab, kept, tmp_path):
    path = page(query(["cat"], 2), ["cat"])
    tab = open_tab(path, before=f"localStorage.setItem({json.dumps(storage_key(tmp_path))}, {json.dumps(kept)})")
    tab.press("1", "o")
    assert tab.labels() == ["cat", "other"] and not tab.complaints()


def test_arrows_move_by_rows_and_to_both_ends(page, open_tab, keys):
    tab = open_tab(page(query(["cat", "dog"], 40), ["cat", "dog"]))
    tops = tab.driver.execute_script("return [...document.querySelectorAll('.card')].map((c) => c.offsetTop)")
    columns = tops.count(tops[0])
    assert 3 <= columns <= 12
    tab.press(keys.ARROW_RIGHT, keys.ARROW_DOWN)
    assert tab.current() == 1 + columns
    tab.press(keys.ARROW_UP, keys.ARROW_UP)
    assert tab.current() == 1
    tab.press(keys.END, keys.ARROW_RIGHT)
    assert tab.current() == 39
    tab.press(keys.HOME, keys.ARROW_LEFT)
    assert tab.current() == 0
    assert tab.text("count") == "0 of 40 labeled"


def test_keys_with_ctrl_are_the_browser_s_but_for_undo(page, open_tab, keys):
    from selenium.webdriver import ActionChains

    tab = open_tab(page(query(["cat", "dog"], 4), ["cat", "dog"]))
    ActionChains(tab.driver).key_down(keys.CONTROL).send_keys("1").key_up(keys.CONTROL).perform()
    assert tab.text("count") == "0 of 4 labeled"
    tab.press("1")
    ActionChains(tab.driver).key_down(keys.CONTROL).send_keys("z").key_up(keys.CONTROL).perform()
    assert tab.text("count") == "0 of 4 labeled" and tab.current() == 0


def test_the_mouse_does_the_same_and_the_keyboard_goes_on_from_there(page, open_tab, keys):
    tab = open_tab(page(query(["cat", "dog"], 6), ["cat", "dog"]))
    tab.driver.find_element("id", "image-3").click()
    tab.driver.find_element("css selector", "#choices button[data-label='0']").click()
    tab.press(keys.ENTER)  # accepts the suggestion of the next image; it does not press the button again
    assert tab.labels() == ["", "", "", "cat", "dog", ""]
    tab.driver.find_element("id", "undo").click()
    assert tab.labels()[4] == "" and tab.current() == 4
    tab.press(keys.DELETE)
    assert tab.text("count") == "1 of 6 labeled"


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_its_window_and_is_read_in_light_and_dark(page, open_tab, width, scheme):
    classes = ["cat", "a class with a very long name indeed, longer than a narrow screen is wide", *HOSTILE]
    tab = open_tab(page(query(classes, 24), classes))
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    tab.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    tab.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    tab.press("1", "o", "2")
    assert tab.driver.execute_script("return document.documentElement.scrollWidth") <= width
    for name, place in (
        ("h1", "header"),
        ("#count", "header"),
        (".card.done .small", ".card.done"),
        ("#scores", "aside"),
    ):
        assert contrast(tab, name, place) >= 4.5, name
    # The image to label is not hidden behind the bar or the panel.
    box = tab.driver.execute_script(
        "const box = document.querySelector(\".card[aria-selected='true']\").getBoundingClientRect();"
        "return [box.left + box.width / 2, box.top + box.height / 2]"
    )
    there = tab.driver.execute_script("return document.elementFromPoint(...arguments).closest('.card')?.id", *box)
    assert there == f"image-{tab.current()}"


def contrast(tab: Tab, text: str, ground: str) -> float:
    """Contrast ratio (WCAG) of a text's colour and the ground behind it."""
    script = (
        "return [getComputedStyle(document.querySelector(arguments[0])).color,"
        "getComputedStyle(document.querySelector(arguments[1])).backgroundColor]"
    )
    values = []
    for colour in tab.driver.execute_script(script, text, ground):
        channels = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        values.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(values) + 0.05) / (min(values) + 0.05)


def test_every_image_and_control_has_a_name_for_a_screen_reader(page, open_tab):
    tab = open_tab(page(query(["cat", "dog"], 4), ["cat", "dog"]))
    tab.press("1")
    names = tab.driver.execute_script(
        "return [...document.querySelectorAll('.card')].map((card) => card.getAttribute('aria-label'))"
    )
    assert names[0] == "unlabeled/image 0.png, suggested cat, label cat"
    assert names[3] == "unlabeled/image 3.png, suggested dog, no label"
    assert [card.get_attribute("tabindex") for card in tab.driver.find_elements("css selector", ".card")].count(
        "0"
    ) == 1
    assert tab.text("said") == "unlabeled/image 0.png: cat. 1 of 4 labeled"
    roles = {box.aria_role for box in tab.driver.find_elements("css selector", "#images, .group, .card")}
    assert roles == {"listbox", "group", "option"}


# Without a browser


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
    assert len({*keys[:31]}) == 31 and not {*"oufs", ""} & {*keys[:31]}
    assert keys[31:] == [""] * 9


def test_json_in_the_page_cannot_end_its_element():
    text = as_json({"</script><!--": "&<>\u2028"})
    assert not {"<", ">", "&", "\u2028"} & set(text)
    assert json.loads(text) == {"</script><!--": "&<>\u2028"}


def test_the_page_names_no_address(page):
    text = page(query(HOSTILE, 6), HOSTILE).read_text()
    markup = re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.DOTALL)
    markup = re.sub(r"sha256-[\w+/=]*", "", markup)  # base64 has slashes
    assert not re.search(r"https?:|//\w|url\(|@import|\ssrc=|\son\w+=", markup)
    assert "{{" not in markup


def test_images_are_small_exact_or_larger_as_jpeg(page):
    text = page([asked(0, "cat"), asked(1, "cat")], ["cat"]).read_text()
    content = json.loads(re.search(r'id="query">(.*?)</script>', text)[1])
    assert [item["image"][:16] for item in content["items"]] == ["data:image/png;b", "data:image/jpeg;"]
    assert content["groups"] == [{"title": "Suggested: cat", "start": 0, "count": 2}]


def test_without_suggestions_there_is_one_group_and_enter_says_why(page, open_tab, keys):
    items = [asked(number, None) for number in range(3)]
    tab = open_tab(page(items, ["cat"]))
    tab.press(keys.ENTER)
    assert tab.text("said") == "There is no suggestion for this image; press the key of its class."
    assert tab.labels() == ["", "", ""]
    assert tab.driver.find_element("css selector", "h2").text == "No suggestion (3)"
