"""docs/cookbook.md is run, block by block, against a live service, and its answers are those shown."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.serving.connected import service_at
from tests.serving.served_shop import bundle

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cookbook.md"
ANYTHING = "…"
MISSING = [tool for tool in ("bash", "curl", "jq") if shutil.which(tool) is None]


@dataclass(frozen=True)
class Block:
    """Commands, and what they print: JSON values in which ``…`` is anything."""

    line: int
    commands: str
    printed: list[Any] | None


def values(text: str) -> list[Any]:
    """The JSON values in a text, one after the other."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        value, at = decoder.raw_decode(text, at)
        found.append(value)
    return found


def blocks(text: str) -> Iterator[Block]:
    """The ``sh`` blocks of a page, each with the ``json`` block right below it."""
    for match in re.finditer(r"^```sh\n(.*?)^```\n(?:```json\n(.*?)^```\n)?", text, re.M | re.S):
        line = text.count("\n", 0, match.start()) + 1
        yield Block(line, match[1], None if match[2] is None else values(match[2]))


def differences(wanted: Any, found: Any, where: str = "$") -> list[str]:
    """What a page promises and an answer does not hold; fields that the page does not name may be there."""
    if wanted == ANYTHING:
        return []
    if isinstance(wanted, dict) and isinstance(found, dict):
        absent = [f"{where}.{key} is missing" for key in wanted if key not in found]
        return absent + [
            d for key in wanted if key in found for d in differences(wanted[key], found[key], f"{where}.{key}")
        ]
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        pairs = enumerate(zip(wanted, found, strict=True))
        return [d for i, (one, other) in pairs for d in differences(one, other, f"{where}[{i}]")]
    return (
        []
        if wanted == found and type(wanted) is type(found)
        else [f"{where}: {wanted!r} in the page, {found!r} in fact"]
    )


@pytest.mark.skipif(bool(MISSING), reason=f"not on the PATH: {', '.join(MISSING)}")
def test_every_block_prints_what_the_page_shows(tmp_path: Path) -> None:
    found = list(blocks(PAGE.read_text(encoding="utf-8")))
    assert len(found) == PAGE.read_text(encoding="utf-8").count("```sh\n") > 10
    command = shutil.which("tesserec", path=str(Path(sys.executable).parent))
    assert command is not None, "the command is installed beside the interpreter"
    with service_at(tmp_path / "home", bundle("mosaic")) as service:
        environment = {
            **os.environ,
            "URL": service.url,
            "TESSEREC_HOME": str(tmp_path / "home"),
            "PATH": f"{Path(command).parent}{os.pathsep}{os.environ['PATH']}",
        }
        for block in found:
            script = f"set -e -o pipefail\n{block.commands}"
            done = subprocess.run(
                ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"line {block.line}: {done.stdout}{done.stderr}"
            if block.printed is not None:
                last = values(done.stdout)[-len(block.printed) :]
                assert differences(block.printed, last) == [], f"line {block.line}: {done.stdout}"


@pytest.mark.parametrize(
    ("wanted", "found", "said"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, []),
        ({"a": "…"}, {"a": [1]}, []),
        ({"a": "…"}, {}, ["$.a is missing"]),
        ([1, {"b": 2}], [1, {"b": 3}], ["$[1].b: 2 in the page, 3 in fact"]),
        ([1], [1, 2], ["$: [1] in the page, [1, 2] in fact"]),
        (1, True, ["$: 1 in the page, True in fact"]),
    ],
)
def test_what_differs_is_named(wanted: Any, found: Any, said: list[str]) -> None:
    assert differences(wanted, found) == said
