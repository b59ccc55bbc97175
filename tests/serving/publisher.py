"""A program that publishes, rolls back, starts canaries and prunes without end, in a child that tests kill.

    publisher.py NAMESPACE BUNDLE BUNDLE …

For each line on standard input a child begins; its process id is printed, and the exit status once it is dead.
"""

import os
import random
import sys
from pathlib import Path

from tesserec.errors import ServiceError
from tesserec.serving.versions import Versions


def work(folder: Path, bundles: list[Path]) -> None:
    """Everything that changes the versions of a namespace, in random order."""
    rng = random.Random()
    versions = Versions(folder)
    while True:
        try:
            action = rng.randrange(5)
            if action < 2:
                versions.publish(rng.choice(bundles))
            elif action == 2:
                versions.rollback()
            elif action == 3:
                versions.canary(rng.choice(versions.ids()), 0.5)
            else:
                versions.prune(keep=0)
        except ServiceError:
            continue  # nothing to roll back to, or the canary is live


for _line in sys.stdin:
    child = os.fork()
    if child == 0:
        work(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]])
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
