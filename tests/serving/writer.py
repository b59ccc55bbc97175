"""A process that writes events to a store until it is killed, and notes those that were acknowledged.

``python -m tests.serving.writer ADDRESS HOME NAMESPACE NOTES THREADS``; "-" as address is SQLite. A line of NOTES is
"sent ID" before a write and "kept ID" after it. The notes are the system's as soon as they are written: they outlive
the process.
"""

import os
import sys
import threading
import uuid
from pathlib import Path

from tests.serving.kept import event

from tesserec.errors import StoreError
from tesserec.serving.open_store import open_store


def main():
    address, home, namespace, notes, num_threads = sys.argv[1:]
    notebook = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    store = open_store(None if address == "-" else address, Path(home), namespace)
    os.write(1, b"ready\n")

    def write():
        while True:
            one = event(uuid.uuid4().hex, user=f"u{uuid.uuid4().int % 50}")
            os.write(notebook, f"sent {one.event_id}\n".encode())
            try:
                store.add_events([one]).result()
            except StoreError:
                continue
            os.write(notebook, f"kept {one.event_id}\n".encode())

    for _ in range(int(num_threads)):
        threading.Thread(target=write).start()


if __name__ == "__main__":
    main()
