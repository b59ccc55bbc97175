"""A process that writes, or the server it writes to, is killed at random points: nothing acknowledged is lost.

The same code with two kills runs in the tests of every day.
"""

import random
import signal
import subprocess
import sys
import time

import pytest
from tests.serving.ledger import compare, read_notes
from tests.serving.servers import PostgresServer, RedisServer

from tesserec.serving.open_store import open_store

NUM_KILLS, NUM_THREADS, LONGEST_S = 30, 8, 0.5


class Shop:
    """A store, the server under it if it has one, and a process that writes to it."""

    def __init__(self, kind, folder):
        self.server = {"sqlite": lambda: None, "postgres": PostgresServer, "redis": RedisServer}[kind]()
        self.folder, self.notes = folder, folder / "notes"
        if self.server:
            self.server.start()

    def write_until_killed(self, chance, kill_server):
        """One life of the writer. Where the server is killed, the writer goes on for a moment and is killed too."""
        address = self.server.url if self.server else "-"
        words = [address, self.folder, "shop", self.notes, NUM_THREADS]
        command = [sys.executable, "-m", "tests.serving.writer", *map(str, words)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(chance.uniform(0, LONGEST_S))
            if kill_server:
                self.server.signal(signal.SIGKILL)
                self.server.start()
                time.sleep(chance.uniform(0, LONGEST_S))
            writer.send_signal(signal.SIGKILL)
            assert writer.wait(60) == -signal.SIGKILL

    def verdict(self):
        """What the store has, against what the writers noted."""
        store = open_store(self.server.url if self.server else None, self.folder, "shop")
        try:
            sent, acknowledged = read_notes(self.notes)
            return compare(sent, acknowledged, store)
        finally:
            store.close()

    def close(self):
        if self.server:
            self.server.remove()


def killed(kind, folder, num_kills):
    """The verdict after so many kills; each second one, where there is a server, is that of the server."""
    chance = random.Random(0)
    shop = Shop(kind, folder)
    try:
        for number in range(num_kills):
            shop.write_until_killed(chance, kill_server=shop.server is not None and number % 2 == 1)
            verdict = shop.verdict()
            assert (verdict.lost, verdict.duplicated, verdict.strange) == ((), (), ())
        print(f"{kind}: {num_kills} kills, {verdict.acknowledged:,} acknowledged, none lost, none twice")
        return verdict
    finally:
        shop.close()


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_a_few_kills_lose_nothing(kind, tmp_path):
    assert killed(kind, tmp_path, 2).acknowledged > 0


@pytest.mark.prove
@pytest.mark.parametrize("kind", ["sqlite", "postgres", "redis"])
def test_thirty_kills_lose_nothing(kind, tmp_path):
    assert killed(kind, tmp_path, NUM_KILLS).acknowledged > NUM_KILLS
