"""Chromium, for looking at the page for people as a person does. It asks nobody but the page."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service as Driver
from selenium.webdriver.common.by import By

from tests.servers.service import until

OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)


class Browser:
    """One tab of a browser."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str, width: int = 1280, height: int = 900, **media: str) -> None:
        """Go to an address with a window of this size, and see all of what is logged from here on."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get("about:blank")
        self.complaints()
        self.requests()
        self.driver.get(url)

    def run(self, script: str, *arguments: object) -> Any:
        """What a script in the page returns."""
        return self.driver.execute_script(script, *arguments)

    def text(self, selector: str) -> str:
        """The text of an element as it is in the document, with plain spaces."""
        return str(self.run("return document.querySelector(arguments[0]).textContent", selector)).replace("\xa0", " ")

    def tile(self, title: str) -> tuple[str, str]:
        """The figure of a tile and what stands below it; two empty texts where it is not shown."""
        script = """
            const tile = [...document.querySelectorAll(".tile:not([hidden])")].find((each) => each.firstChild.textContent === arguments[0]);
            return ["figure", "detail"].map((part) => tile?.querySelector(`.${part}`).textContent ?? "");
        """  # noqa: E501
        figure, detail = (each.replace("\xa0", " ") for each in self.run(script, title))
        return figure, detail

    def rows(self, title: str) -> list[list[str]]:
        """The rows of a table that is shown."""
        script = """
            const found = [...document.querySelectorAll("section:not([hidden])")].find((each) => each.querySelector("h2").textContent === arguments[0]);
            return [...(found?.querySelectorAll("tbody tr") ?? [])].map((row) => [...row.children].map((cell) => cell.textContent));
        """  # noqa: E501
        return [[cell.replace("\xa0", " ") for cell in row] for row in self.run(script, title)]

    def attention(self) -> list[str]:
        """What somebody should look at."""
        found = self.run("return [...document.querySelectorAll('#attention li')].map((each) => each.textContent)")
        return [text.replace("\xa0", " ") for text in found]

    def until(self, holds: Callable[[], object]) -> None:
        """Wait until a condition holds, or fail and say what the page shows."""
        try:
            until(holds)
        except AssertionError as error:
            raise AssertionError(self.driver.find_element(By.TAG_NAME, "body").text) from error

    def until_live(self) -> None:
        """Wait for the first numbers."""
        self.until(lambda: self.text("#status") == "Live")

    def complaints(self) -> list[str]:
        """What the browser has complained of since it was asked last."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """What the browser has asked for since it was asked last."""
        messages = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        return [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]

    def focused(self) -> str:
        """What has the focus: its id, else its text."""
        return str(self.run("return document.activeElement.id || document.activeElement.textContent"))


@contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """A browser with a profile of its own, until the block ends."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("chromium or chromedriver is missing: run make servers")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for option in (*OPTIONS, f"--user-data-dir={folder}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # Given the path of the driver, selenium looks for none and downloads none.
    environment = {**os.environ, "SE_OFFLINE": "true", "SE_AVOID_STATS": "true"}
    driver = webdriver.Chrome(options=options, service=Driver(chromedriver, env=environment))
    try:
        driver.set_page_load_timeout(30)
        driver.set_script_timeout(30)
        yield Browser(driver)
    finally:
        driver.quit()
