"""Headless Chromium for tests of pages: a browser, and a page in it that is driven by keys."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@contextlib.contextmanager
def running_browser(profile: Path) -> Iterator[Any]:
    """Headless Chromium; the tests are skipped where it, its driver or selenium is absent."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, see requirements-dev.txt")
    if not (CHROMIUM.is_file() and DRIVER.is_file()):
        pytest.skip(f"needs {CHROMIUM} and {DRIVER}")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for word in [*QUIET, f"--user-data-dir={profile}", "--window-size=1280,900"]:
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


class Tab:
    """A page in a browser.

    Args:
        driver: The browser.
        path: Of the page.
        before: A script that runs before the page's own.
    """

    def __init__(self, driver: Any, path: Path, *, before: str = "") -> None:
        self.driver = driver
        self.downloads = path.parent / "downloads"
        self.downloads.mkdir(exist_ok=True)
        where = {"behavior": "allow", "downloadPath": str(self.downloads)}
        driver.execute_cdp_cmd("Browser.setDownloadBehavior", where)
        self.script = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": before})["identifier"]
        for kind in ("browser", "performance"):
            driver.get_log(kind)  # of the page before
        driver.get(path.as_uri())

    def close(self) -> None:
        """Leaves the browser as it was."""
        self.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", {"identifier": self.script})
        self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        self.driver.get("about:blank")

    def press(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        for key in keys:
            ActionChains(self.driver, duration=0).send_keys(key).perform()

    def text(self, name: str) -> str:
        return self.driver.find_element("id", name).text

    def labels(self) -> list[str]:
        """What each card says, in the order of the page."""
        return self.driver.execute_script(
            "return [...document.querySelectorAll('.card .mark')].map((mark) => mark.textContent.slice(2))"
        )

    def current(self) -> int:
        [card] = self.driver.find_elements("css selector", ".card[aria-selected='true']")
        return int(card.get_attribute("id").removeprefix("image-"))

    def shown(self) -> list[int]:
        cards = self.driver.find_elements("css selector", ".card:not([hidden])")
        return [int(card.get_attribute("id").removeprefix("image-")) for card in cards]

    def saved(self, name: str) -> Path:
        """The downloaded file, once it is there."""
        for _ in range(100):
            if (self.downloads / name).is_file():
                return self.downloads / name
            time.sleep(0.05)
        raise AssertionError(f"{name} was not saved; there is {list(self.downloads.iterdir())}")

    def complaints(self) -> list[Any]:
        """Errors of scripts and refusals of the policy."""
        return self.driver.get_log("browser")

    def requests(self) -> list[str]:
        """Addresses that the page asked for."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
