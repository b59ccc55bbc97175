"""Whether a store kept what it acknowledged, once."""

from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """What a comparison of notes with a store came to."""

    acknowledged: int
    lost: tuple[str, ...]
    """Acknowledged, and not there."""
    duplicated: tuple[str, ...]
    """There more than once."""
    strange: tuple[str, ...]
    """There, and never sent."""


def all_events(store):
    """Every event of a store, in order of arrival."""
    sequence = 0
    while page := store.events_after(sequence, 10_000):
        for stored in page:
            assert stored.sequence > sequence
            sequence = stored.sequence
            yield stored.event


def read_notes(path):
    """(ids that were sent, ids that were acknowledged), of lines "sent ID" and "kept ID"."""
    sent, kept = set(), set()
    for line in path.read_text().splitlines():
        word, event_id = line.split()
        (sent if word == "sent" else kept).add(event_id)
    return sent, kept


def compare(sent, acknowledged, store):
    """The verdict on a store. Every event has to be in its user's history too."""
    there = Counter()
    users = Counter()
    for event in all_events(store):
        there[event.event_id] += 1
        users[event.user_id] += 1
    for user, count in users.items():
        history = store.history(user, 10**6)
        there.update(event.event_id for event in history)
        assert len(history) == count
    return Verdict(
        len(acknowledged),
        tuple(sorted(set(acknowledged) - set(there))),
        tuple(sorted(event_id for event_id, count in there.items() if count != 2)),
        tuple(sorted(set(there) - set(sent))),
    )
