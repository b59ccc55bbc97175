"""Files appear when they are complete, or not at all, and what cannot be written is refused before."""

from pathlib import Path

import pytest

from tesserec.errors import DataError
from tesserec.files import check_file, check_parent, completed


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    with completed(tmp_path / "new" / "page.html") as part:
        part.write_text("half")
        assert [path.name for path in (tmp_path / "new").iterdir()] == [".page.html.part"]
    assert [(path.name, path.read_text()) for path in (tmp_path / "new").iterdir()] == [("page.html", "half")]


def interrupted(path: Path) -> None:
    with completed(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt


def test_what_was_there_stays_where_writing_fails(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("earlier")
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "page.html")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("page.html", "earlier")]


def test_a_folder_is_not_written_over(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder: give the file to write"), completed(tmp_path):
        pytest.fail("nothing is begun")
    assert list(tmp_path.iterdir()) == []


def test_a_place_where_nothing_can_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("mine")
    (tmp_path / "away").symlink_to(tmp_path / "nowhere")
    for check in (check_file, check_parent):
        check(tmp_path / "new" / "page.html")
        for place in ("items.csv/x", "items.csv/new/page.html"):
            with pytest.raises(DataError, match=rf"{place} cannot be written, as .*/items.csv is not a folder: choose"):
                check(tmp_path / place)
        with pytest.raises(DataError, match="away is not a folder"):
            check(tmp_path / "away" / "x")
        with pytest.raises(DataError, match=r"/proc/x8/y cannot be written, as nothing can be made in /proc \(No such"):
            check(Path("/proc/x8/y"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["away", "items.csv"]
