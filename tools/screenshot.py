"""Takes the picture of a page of ``tesserec report`` or ``tesserec sids report``, with an item of its tree shown.

python -m tools.screenshot runs/demo/report.html docs/report.png
python -m tools.screenshot runs/sids.html docs/sids.png --at tiling --height 1250
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

WIDTH = 1280


def main(arguments: list[str] | None = None) -> None:
    """Open the page in chromium, show an item of its tree, and write the picture."""
    parser = argparse.ArgumentParser(prog="python -m tools.screenshot", description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path, help="a page that `tesserec report` or `tesserec sids report` wrote")
    parser.add_argument("picture", type=Path, help="PNG to write")
    parser.add_argument("--at", default="", help="id of the section to show; the top by default")
    parser.add_argument("--height", type=int, default=860, help="pixels, of a width of 1280")
    chosen = parser.parse_args(arguments)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": chosen.height}, reduced_motion="reduce")
        page.goto(chosen.page.resolve().as_uri())
        page.locator("#tree summary").first.click()
        page.locator("#tree .item:visible").first.click()
        page.mouse.move(0, 0)  # what is under the mouse looks different
        page.evaluate("at => at ? document.getElementById(at).scrollIntoView() : window.scrollTo(0, 0)", chosen.at)
        page.screenshot(path=str(chosen.picture))
        browser.close()


if __name__ == "__main__":
    main()
