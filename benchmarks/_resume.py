"""What a long harness keeps between runs: a JSON table that counts for one commit only."""

import json
from pathlib import Path
from typing import Any

from benchmarks._record import commit

__all__ = ["keep", "kept"]


def kept(path: Path) -> dict[str, Any]:
    """What an earlier run of this commit kept at ``path``; nothing where there is none, or of another commit."""
    if not path.is_file():
        return {}
    table: dict[str, Any] = json.loads(path.read_text())
    return table if table.pop("commit") == commit() else {}


def keep(path: Path, table: dict[str, Any]) -> None:
    """Replace what is kept at ``path``; a stop in between leaves the old table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps({**table, "commit": commit()}))
    part.replace(path)
