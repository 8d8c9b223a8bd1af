"""Pages in a real browser: headless Chromium. Screenshots are kept in ``test-output/``."""

import base64
import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

OUTPUT = ROOT / "test-output"
NARROW_PX, WIDE_PX = 360, 1280
BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = "needs chromium and chromedriver (Debian: apt install chromium chromium-driver)"
ABSENT = not (BROWSER and DRIVER)
REQUIRED = bool(os.environ.get("VGG_EXPORT_REQUIRE_BROWSER"))  # .ci/run sets it
needed = pytest.mark.skipif(ABSENT and not REQUIRED, reason=MISSING)


class Page:
    """A tab, with what it logged and where it sent requests."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str, width: int = WIDE_PX, **media: str) -> None:
        self.requests()
        self.complaints()
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get(url)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def js(self, code: str, *arguments: object) -> Any:
        return self.driver.execute_script(code, *arguments)

    def wait(self, condition: Callable[[], object], seconds: float = 120) -> None:
        # a page that renews itself may replace an element between finding and reading it
        renewed = (StaleElementReferenceException,)
        WebDriverWait(self.driver, seconds, 0.05, renewed).until(lambda _: condition())

    def upload(self, path: Path) -> None:
        self.one("#file").send_keys(str(path))
        self.wait(lambda: self.one("#status").text)
        self.wait(lambda: self.one("body").get_attribute("aria-busy") == "false")

    def log(self, kind: str) -> list[dict[str, Any]]:
        return list(self.driver.get_log(kind))  # type: ignore[no-untyped-call]

    def complaints(self) -> list[str]:
        """Errors and warnings of the console since the last call: exceptions, refused resources, policy
        violations."""
        return [entry["message"] for entry in self.log("browser")]

    def requests(self) -> list[str]:
        """Addresses asked for since the last call, without data and blob."""
        found = []
        for entry in self.log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(message["params"]["request"]["url"])
        return [url for url in found if not url.startswith(("data:", "blob:"))]

    def picture(self, name: str) -> None:
        """Keep the whole page as a PNG."""
        OUTPUT.mkdir(exist_ok=True)
        shot = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True}
        )
        (OUTPUT / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def opened(profile: Path) -> Iterator[Page]:
    """A tab of a new browser. ``profile``: an empty folder for it."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={profile}",
        "about:blank",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    try:
        driver.get("about:blank")  # ends what the browser's own first page loads
        yield Page(driver)
    finally:
        driver.quit()


def overflowing(page: Page) -> list[str]:
    return page.js(  # type: ignore[no-any-return]
        "return [...document.querySelectorAll('body *')].filter(n => n.getClientRects().length &&"
        " !n.closest('.history') &&"
        " n.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(n =>"
        " n.outerHTML.slice(0, 90))"
    )


CONTRAST = """
const linear = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
const luminance = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
const rgb = text => text.match(/[\\d.]+/g).map(Number);
const behind = node => {
  for (let n = node; n; n = n.parentElement) {
    const c = rgb(getComputedStyle(n).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c;
  }
  return [255, 255, 255];
};
const bad = [];
let seen = 0;
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
  if (!text || ['SCRIPT', 'STYLE'].includes(node.tagName)) continue;
  if (!node.getClientRects().length || node.closest(':disabled')) continue;
  const style = getComputedStyle(node);
  const ink = rgb(node.namespaceURI.endsWith('svg') ? style.fill : style.color);
  const grounds = [behind(node)];
  if (node.closest('.bars')) grounds.push(rgb(getComputedStyle(document.querySelector('.bars rect')).fill));
  for (const ground of grounds) {
    seen++;
    const [a, b] = [luminance(ink), luminance(ground)].sort((x, y) => y - x);
    const found = (a + .05) / (b + .05);
    if (found < 4.5) bad.push(node.tagName + ' ' + text.slice(0, 40) + ' ' + found.toFixed(2));
  }
}
return [seen, bad];
"""
