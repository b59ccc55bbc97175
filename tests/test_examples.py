"""Every example runs and shows what it is there to show; quickstart.py is run by ``make docs``."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

SHOWN = {
    "data": "after cup and tea, what next? jam\n",
    "embedders": "CooccurrenceSVD (3775, 64) \n    WHITE HANGING HEART T-LIGHT HOLDER",
    "semantic_ids": "100.0% unique",
    "decoding": "best: [[2, 4, 1], [5, 2, 1]]\n",
    "language_model": "tensor([3, 0])\n[[2, 0], [0, 1], [1, 1]]\n",
    "retrievers": "GREEN REGENCY TEACUP AND SAUCER",
    "evaluation": "num_requests=1168",
}


@pytest.mark.parametrize("name", SHOWN)
def test_an_example_runs(name, capsys):
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert SHOWN[name] in capsys.readouterr().out


def test_no_example_is_left_out():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SHOWN, "quickstart"}
