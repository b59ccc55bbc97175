"""``import tesserec`` is lazy, and its names are there."""

import subprocess
import sys

import pytest

import tesserec


def test_every_public_name_exists_and_is_sorted() -> None:
    assert tesserec.__all__ == sorted(tesserec.__all__)
    assert dir(tesserec) == tesserec.__all__
    for name in tesserec.__all__:
        assert getattr(tesserec, name) is not None
    assert {*tesserec._HOMES, "__version__"} == set(tesserec.__all__)


def test_unknown_names_are_errors() -> None:
    with pytest.raises(AttributeError, match="module 'tesserec' has no attribute 'Recomender'"):
        _ = tesserec.Recomender


def test_importing_is_lazy() -> None:
    code = "import sys, tesserec; print(sorted({'torch', 'polars', 'numpy', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
