"""Records for the tests of stores, and the stores that they run on."""

from tesserec.errors import StoreError
from tesserec.serving.records import Event, Impression


def event(number, user="ann", **changes):
    """Event ``e<number>`` of item ``i<number>``, at that second where it is a number."""
    time = 0.0 if isinstance(number, str) else float(number)
    fields = {"event_id": f"e{number}", "user_id": user, "item_id": f"i{number}", "kind": "view", "time": time}
    return Event(**{**fields, **changes})


def impression(number, user="ann"):
    """Answer ``r<number>`` at that second: two items."""
    return Impression(
        *(f"r{number}", float(number), user, "home", ("a", "b"), (0.5, -1.25), None, "v1", "c1", 3, "dense", "live"),
    )


def ids(events):
    return [event.event_id for event in events]


def fill(store, text):
    """Ids of events with ``text()`` that were acknowledged before the first that was refused, and the refusal."""
    kept = []
    for number in range(100_000):
        try:
            store.add_events([event(number, session=text())]).result()
        except StoreError as error:
            return kept, str(error)
        kept.append(f"e{number}")
    raise AssertionError("the disk was never full")
