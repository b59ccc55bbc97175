"""What a person sees on standard error: warnings beside bars, and of a fit where there is no terminal."""

import io
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

import shop
from tesserec.terminal import StandardError, bars


def shown(written: str) -> list[str]:
    """The lines that a terminal shows after ``written``: lines are erased (2K) and gone up (1A), as bars do."""
    lines, row = [""], 0
    for code in re.findall(r"\x1b\[[?\d;]*[a-zA-Z]|[\r\n]|[^\x1b\r\n]+", written):
        if code == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif code == "\x1b[1A":
            row -= 1
        elif code == "\x1b[2K":
            lines[row] = ""
        elif code[0] not in "\x1b\r":
            lines[row] += code
    return [line.rstrip() for line in lines]


def test_what_is_said_beside_bars_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if it were a terminal
    monkeypatch.setattr(sys, "stderr", screen)
    logger = logging.Logger("mine")
    logger.addHandler(StandardError())
    with bars() as progress:
        progress("embeddings", 1, 1)
        progress("RQ-VAE", 50, 100)
        progress("last", 1, 2)
        logger.warning("warning: a level has collapsed")
        progress("RQ-VAE", 100, 100)
    lines = shown(screen.getvalue())
    assert lines.count("warning: a level has collapsed") == 1
    assert [line.split()[0] for line in lines if line] == ["warning:", "embeddings", "RQ-VAE", "last"]


def test_a_fit_warns_of_collapsed_levels_without_a_terminal(tmp_path: Path) -> None:
    shop.events().write_csv(tmp_path / "events.csv")
    shop.items().write_csv(tmp_path / "items.csv")
    (tmp_path / "r.toml").write_text("""
[data]
events = "events.csv"
items = "items.csv"
positive_kinds = ["purchase"]
[embedder]
class = "tesserec.embedders.tfidf_svd:TfidfSVD"
num_features = 8
[semantic_ids]
class = "tesserec.semantic_ids.rq_vae:RQVAE"
num_levels = 2
codebook_size = 4
hidden_sizes = [8]
num_latents = 4
training = { num_steps = 3, batch_size = 16, collapse_share = 1.0 }
""")
    command = [sys.executable, "-m", "tesserec", "sids", "fit", tmp_path / "r.toml", "--out", tmp_path / "s"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    warning, place = done.stderr.splitlines()
    assert warning.startswith("warning: RQ-VAE: level 1 has collapsed: perplexity ")
    assert place == f"Semantic IDs: {tmp_path / 's'}"
