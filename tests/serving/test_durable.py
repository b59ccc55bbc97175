"""Files that are whole, and locks between processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tesserec.serving.durable import copy_file, locked, try_lock, write_text

HOLD = """
import sys
from pathlib import Path
from tesserec.serving.durable import locked
with locked(Path(sys.argv[1]), shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_text_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "one")
    before = (tmp_path / "a").open()
    write_text(tmp_path / "a", "two")
    assert before.read() == "one", "who has it open reads the old one to the end"
    before.close()
    assert (tmp_path / "a").read_text() == "two"
    assert os.listdir(tmp_path) == ["a"]


def test_a_text_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "one")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a", "\ud800")
    assert (tmp_path / "a").read_text() == "one"
    assert os.listdir(tmp_path) == ["a"]


def test_files_are_copied_with_their_folders(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\0x")
    copy_file(tmp_path / "a", tmp_path / "b" / "c" / "d")
    assert (tmp_path / "b" / "c" / "d").read_bytes() == b"\0x"


def test_locks_hold_between_threads_and_processes_and_die_with_them(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with try_lock(lock) as first, try_lock(lock) as second:
        assert (first, second) == (True, False)
    with locked(lock, shared=True), locked(lock, shared=True), try_lock(lock) as free:
        assert not free
    command = [sys.executable, "-c", HOLD, str(lock), "alone"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with try_lock(lock) as free:
            assert not free
        other.kill()
        other.wait()
        with try_lock(lock) as free:
            assert free
