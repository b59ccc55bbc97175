"""Downloads: once, checked ever after, and refused by name when they are not what they were."""

import hashlib
import logging
import zipfile
from pathlib import Path

import polars as pl
import pytest

from tesserec.data.interactions import read_events
from tesserec.data.sources.files import catalog_for, choose, fetch, local, member, notice, records
from tesserec.errors import DataError


def test_a_file_is_downloaded_once_and_its_checksum_recorded(server, cache, caplog):
    (server.folder / "a.txt").write_text("hello")
    path = fetch(f"{server.url}a.txt", None, "place/2")
    assert path == cache / "place" / "2" / "a.txt"
    assert path.read_text() == "hello"
    expected = hashlib.sha256(b"hello").hexdigest()
    assert path.with_name("a.txt.sha256").read_text() == f"{expected}  a.txt\n"
    assert f"downloading {server.url}a.txt to {path}" in caplog.text
    (server.folder / "a.txt").write_text("changed")
    assert fetch(f"{server.url}a.txt", None, "place/2").read_text() == "hello"
    assert server.paths == ["/a.txt"]
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.txt", "a.txt.sha256"]


def test_a_file_that_changed_since_is_refused(server, cache):
    (server.folder / "a.txt").write_text("hello")
    path = fetch(f"{server.url}a.txt", None, "p")
    path.write_text("hullo")
    message = r"a\.txt has SHA-256 [0-9a-f]{64}, at its download it was 2cf24dba.*: delete it to download it again"
    with pytest.raises(DataError, match=message):
        fetch(f"{server.url}a.txt", None, "p")
    path.unlink()
    assert fetch(f"{server.url}a.txt", None, "p").read_text() == "hello"


def test_a_file_without_its_checksum_is_downloaded_again(server, cache):
    (server.folder / "a.txt").write_text("whole")
    path = fetch(f"{server.url}a.txt", None, "p")
    path.write_text("cut")
    path.with_name("a.txt.sha256").unlink()
    assert fetch(f"{server.url}a.txt", None, "p").read_text() == "whole"


def test_downloads_that_fail_leave_nothing(server, cache):
    with pytest.raises(DataError, match=r"cannot download http://127.*none\.txt: HTTP Error 404.*; get it by hand and"):
        fetch(f"{server.url}none.txt", None, "p")
    with pytest.raises(DataError, match=r"cannot download http://127\.0\.0\.1:9/a: .*refused"):
        fetch("http://127.0.0.1:9/a", None, "p")
    with pytest.raises(DataError, match=r"the download of .*broken broke off after 10 of 1000 bytes: try again"):
        fetch(f"{server.url}broken", None, "p")
    assert list((cache / "p").iterdir()) == []


def test_a_folder_of_ones_own_is_used_as_it_is(server, tmp_path):
    (tmp_path / "a.txt").write_text("mine")
    assert fetch(f"{server.url}a.txt", tmp_path, "p") == tmp_path / "a.txt"
    assert fetch(f"{server.url}a.txt", str(tmp_path), "p") == tmp_path / "a.txt"
    message = r"no b\.txt in .*: put it there \(from http://127.*b\.txt\), or give no folder to download it"
    with pytest.raises(DataError, match=message):
        fetch(f"{server.url}b.txt", tmp_path, "p")
    assert server.paths == []


def test_the_cache_is_in_the_home_folder_unless_said(server, tmp_path, monkeypatch):
    monkeypatch.delenv("TESSEREC_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    (server.folder / "a.txt").write_text("x")
    assert fetch(f"{server.url}a.txt", None, "p") == tmp_path / ".cache" / "tesserec" / "p" / "a.txt"


def test_members_of_a_zip_or_of_an_unpacked_folder(server, tmp_path):
    with zipfile.ZipFile(server.folder / "s.zip", "w") as archive:
        archive.writestr("s/a.txt", "zipped")
    assert member(f"{server.url}s.zip", None, "p", "s/a.txt") == b"zipped"
    with pytest.raises(DataError, match=r"s\.zip is damaged or holds no s/b\.txt \(.*\): delete it and get it again"):
        member(f"{server.url}s.zip", None, "p", "s/b.txt")
    assert member(f"{server.url}s.zip", server.folder, "p", "s/a.txt") == b"zipped"
    own = tmp_path / "own" / "s"
    own.mkdir(parents=True)
    (own / "a.txt").write_text("unpacked")
    assert member(f"{server.url}s.zip", tmp_path / "own", "p", "s/a.txt") == b"unpacked"
    (tmp_path / "own" / "s.zip").write_text("no zip")
    with pytest.raises(DataError, match=r"s\.zip is damaged or holds no s/c\.txt \(File is not a zip file\)"):
        member(f"{server.url}s.zip", tmp_path / "own", "p", "s/c.txt")


def test_records_are_json_or_literals(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert list(records(path)) == [{"a": 1}, {"a": 2}]
    path.write_text("{u'a': 'it\\'s'}\n{'a'\n")
    lines = records(path, literal=True)
    assert next(lines) == {"a": "it's"}
    with pytest.raises(DataError, match=r"a\.json, line 2: not one object a line \(.*\): get the file again"):
        next(lines)
    path.write_text("x")
    with pytest.raises(DataError, match=r"a\.json, line 1: not one object a line"):
        next(records(path))


def test_files_to_be_had_by_hand(tmp_path):
    (tmp_path / "a.csv").write_text("")
    assert local(tmp_path, "a.csv", "https://page") == tmp_path / "a.csv"
    assert local(str(tmp_path), "a.csv", "https://page") == Path(tmp_path) / "a.csv"
    with pytest.raises(
        DataError, match=r"no b\.csv in .*: get it from https://page \(it cannot be downloaded for you\)"
    ):
        local(tmp_path, "b.csv", "https://page")
    with pytest.raises(DataError, match=r"no b\.csv in None: get it from https://page"):
        local(None, "b.csv", "https://page")


def test_names_and_notices(caplog):
    assert choose("src", "b", ("a", "b")) == "b"
    with pytest.raises(DataError, match=r"src has no data set 'c': choose one of a, b"):
        choose("src", "c", ("a", "b"))
    with caplog.at_level(logging.WARNING):
        notice("Set", "its terms")
    assert caplog.messages == ["Set: its terms"]


def test_the_catalog_of_a_log_has_its_items_only():
    events = read_events(pl.DataFrame({"user_id": [1, 1], "item_id": ["b", "a"], "timestamp": [1, 2]}))
    items = pl.DataFrame({"item_id": ["c", "b", "b"], "title": ["C", "first", "second"]})
    catalog = catalog_for(events, items)
    assert catalog.items.ids.to_pylist() == ["a", "b"]
    assert catalog.frame["title"].to_list() == [None, "first"]
