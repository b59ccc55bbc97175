"""Takes the pictures of the service's page in docs/images, from a real service over copies of bundles.

python -m tools.service_screenshots runs/demo/bundle --before runs/older/bundle --user 17841
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import Page, sync_playwright

from tesserec.serving.client import Client

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "images"
WIDTH = 1280
WARM_UP = 40
"""Recommendations before the page of health is taken, so that it has something to show."""


@contextmanager
def serving(bundle: Path, before: Path | None) -> Iterator[str]:
    """The address of a service in a process of its own, with ``bundle`` live; ``before`` was live earlier."""
    with tempfile.TemporaryDirectory(prefix="screenshots_") as folder:
        home = Path(folder) / "home"
        first = shutil.copytree(before or bundle, Path(folder) / "first")
        command = [sys.executable, "-m", "tesserec", "serve", str(first), "--home", str(home), "--port", "0"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stderr is not None
                url = next(line["url"] for line in map(_line, process.stderr) if line.get("message") == "ready")
                if before is not None:
                    publish = [sys.executable, "-m", "tesserec", "service", "publish", str(bundle), "--force"]
                    version = subprocess.check_output([*publish, "--home", str(home)], text=True)
                    wait_for(url, version.strip())
                yield str(url)
            finally:
                process.terminate()


def _line(text: str) -> Mapping[str, str]:
    return dict(json.loads(text)) if text.startswith("{") else {}


def wait_for(url: str, version: str) -> None:
    """Wait until this version answers."""
    with Client(url) as client:
        while client.search("a", 1).model_version != version:
            pass


def take(page: Page, url: str, user: str) -> None:
    """All the pictures."""
    page.goto(f"{url}/?{urlencode({'user': user, 'explain': 1, 'k': 6})}")
    page.evaluate("() => document.getElementById('answer').scrollIntoView()")
    page.mouse.move(0, 0)
    page.screenshot(path=FOLDER / "service_recommend.png")
    for name, address in {
        "browse": f"{url}/browse",
        "compare": f"{url}/compare?{urlencode({'user': user})}",
        "search": f"{url}/search?{urlencode({'q': 'red lamp'})}",
        "health": f"{url}/status",
    }.items():
        page.goto(address)
        page.screenshot(path=FOLDER / f"service_{name}.png")


def main(arguments: list[str] | None = None) -> None:
    """Start the service, open its page in chromium, and write the pictures."""
    parser = argparse.ArgumentParser(prog="python -m tools.service_screenshots", description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, help="the bundle that answers; it is not changed")
    parser.add_argument("--before", type=Path, help="another one, to compare with")
    parser.add_argument("--user", default="17841", help="whose recommendations are shown")
    chosen = parser.parse_args(arguments)
    FOLDER.mkdir(exist_ok=True)
    with serving(chosen.bundle, chosen.before) as url, sync_playwright() as playwright:
        with Client(url) as client:
            for user in client.users(limit=WARM_UP):
                client.recommend(user)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 900}, reduced_motion="reduce")
        take(page, url, chosen.user)
        browser.close()


if __name__ == "__main__":
    main()
