"""Takes the picture of the report page: ``python -m tools.screenshot runs/demo/report.html docs/report.png``."""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

WIDTH, HEIGHT = 1280, 860


def main(arguments: list[str] | None = None) -> None:
    """Open the page in chromium, show an item of its tree, and write the picture."""
    parser = argparse.ArgumentParser(prog="python -m tools.screenshot", description=__doc__)
    parser.add_argument("page", type=Path, help="a page that `tesserec report` wrote")
    parser.add_argument("picture", type=Path, help="PNG to write")
    parser.add_argument("--at", default="", help="id of the section to show; the top by default")
    chosen = parser.parse_args(arguments)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, reduced_motion="reduce")
        page.goto(chosen.page.resolve().as_uri())
        page.locator("#tree summary").first.click()
        page.locator("#tree .item:visible").first.click()
        page.evaluate("at => at ? document.getElementById(at).scrollIntoView() : window.scrollTo(0, 0)", chosen.at)
        page.screenshot(path=str(chosen.picture))
        browser.close()


if __name__ == "__main__":
    main()
