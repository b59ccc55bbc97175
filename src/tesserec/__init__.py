"""tesserec: from an interaction log and a catalog to a generative recommender.

The names below are imported when they are first used, so that ``import tesserec`` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tesserec.bundle import Bundle
    from tesserec.data.catalog import read_catalog
    from tesserec.data.interactions import k_core, read_events
    from tesserec.data.splits import SplitConfig, split
    from tesserec.errors import TesserecError
    from tesserec.evaluation.evaluate import compare, evaluate
    from tesserec.evaluation.judge import judge
    from tesserec.evaluation.report import Report
    from tesserec.recipe import Recipe, read_recipe
    from tesserec.recommender import Recommender

__all__ = [
    "Bundle",
    "Recipe",
    "Recommender",
    "Report",
    "SplitConfig",
    "TesserecError",
    "__version__",
    "compare",
    "evaluate",
    "judge",
    "k_core",
    "read_catalog",
    "read_events",
    "read_recipe",
    "split",
]

__version__ = "0.1.0.dev0"

_HOMES = {
    "Bundle": "tesserec.bundle",
    "Recipe": "tesserec.recipe",
    "Recommender": "tesserec.recommender",
    "Report": "tesserec.evaluation.report",
    "SplitConfig": "tesserec.data.splits",
    "TesserecError": "tesserec.errors",
    "compare": "tesserec.evaluation.evaluate",
    "evaluate": "tesserec.evaluation.evaluate",
    "judge": "tesserec.evaluation.judge",
    "k_core": "tesserec.data.interactions",
    "read_catalog": "tesserec.data.catalog",
    "read_events": "tesserec.data.interactions",
    "read_recipe": "tesserec.recipe",
    "split": "tesserec.data.splits",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
