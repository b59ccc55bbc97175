"""Data: from a table of events to a leak-checked split."""

import polars as pl

from tesserec.data import SplitConfig, k_core, read_events, split

events = pl.DataFrame(
    {
        "user_id": ["ann", "ann", "ann", "bob", "bob", "bob", "cleo", "cleo", "cleo", "cleo"],
        "item_id": ["tea", "cup", "jam", "tea", "cup", "jam", "cup", "tea", "jam", "spoon"],
        "timestamp": [10, 20, 30, 11, 21, 31, 12, 22, 32, 42],
    }
)
interactions = k_core(read_events(events), min_user_events=2, min_item_events=2)
print(f"{len(interactions)} events of {len(interactions.users)} users and {len(interactions.items)} items")

# Every protocol checks for leaks by itself: training that knows a target is an error, not a better figure.
parts = split(interactions, SplitConfig(protocol="last_out"))
histories = parts.test.requests.history.as_ragged()
for row in range(len(parts.test)):
    history = interactions.items.to_ids(histories[row])
    [target] = interactions.items.to_ids(parts.test.relevant[row])
    print(f"after {' and '.join(map(str, history))}, what next? {target}")
print(parts.report)
