"""Events, catalogs and splits: from files of any kind to the types that stages exchange."""

from tesserec.data.catalog import ITEM_COLUMNS, align_catalog, catalog_of, read_catalog
from tesserec.data.interactions import EVENT_COLUMNS, k_core, read_events
from tesserec.data.leaks import check_leaks
from tesserec.data.requests import history_requests, requests_before, user_requests
from tesserec.data.split_files import export_split, load_split
from tesserec.data.splits import Split, SplitConfig, SplitReport, split

__all__ = [
    "EVENT_COLUMNS",
    "ITEM_COLUMNS",
    "Split",
    "SplitConfig",
    "SplitReport",
    "align_catalog",
    "catalog_of",
    "check_leaks",
    "export_split",
    "history_requests",
    "k_core",
    "load_split",
    "read_catalog",
    "read_events",
    "requests_before",
    "split",
    "user_requests",
]
