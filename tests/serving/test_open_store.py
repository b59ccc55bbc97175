import pytest
from tests.serving.kept import event

from tesserec.errors import StoreError
from tesserec.serving.open_store import check_namespace, open_store, restore_backup, state_file


@pytest.mark.parametrize("name", ["", "Shop", "../x", "a/b", "-a", "a" * 41, "a\n", "ä", "."])
def test_names_that_are_none_for_a_namespace(name, tmp_path):
    with pytest.raises(StoreError, match="is no name for a namespace: give 1 to 40 of a-z"):
        open_store(None, tmp_path, name)
    assert not list(tmp_path.iterdir())


def test_names_for_namespaces():
    for name in ("default", "0", "shop_2-eu", "a" * 40):
        check_namespace(name)


def test_an_address_that_is_forgotten_or_new_begins_no_second_store(backup, tmp_path):
    """Asked before any server: none listens at that address."""
    home = tmp_path / "first"
    elsewhere = "postgresql://127.0.0.1:1/none"
    with pytest.raises(StoreError, match="'shop' are kept in SQLite, not in PostgreSQL: leave the address of a store"):
        open_store(elsewhere, home, "shop")
    word = home / "namespaces" / "shop" / "store"
    word.write_text("Redis\n")
    for attempt in (open_store, lambda *of: restore_backup(backup, *of[1:], url=of[0])):
        with pytest.raises(StoreError, match="kept in Redis, not in SQLite: give the address of that Redis store"):
            attempt(None, home, "shop")
    word.unlink()
    open_store(None, home, "shop").close()
    assert word.read_text() == "SQLite\n"


def test_a_store_that_cannot_be_opened_is_not_where_the_events_are(tmp_path):
    with pytest.raises(StoreError):
        open_store("redis://127.0.0.1:1/0", tmp_path, "shop")
    open_store(None, tmp_path, "shop").close()


def test_other_addresses_are_refused(tmp_path):
    with pytest.raises(StoreError, match="no store has an address like mysql://"):
        open_store("mysql://localhost", tmp_path, "shop")


@pytest.fixture
def backup(tmp_path):
    """A backup of a store with an event, an answer pending deletion, and what follows it is not in."""
    store = open_store(None, tmp_path / "first", "shop")
    store.add_events([event(1), event(2, user="bob")]).result()
    store.delete_user("bob").result()
    store.backup(tmp_path / "backups" / "monday.sqlite")
    store.add_events([event(3)]).result()
    store.close()
    return tmp_path / "backups" / "monday.sqlite"


def test_a_backup_is_restored_into_a_new_home(backup, tmp_path):
    restore_backup(backup, tmp_path / "second", "other")
    store = open_store(None, tmp_path / "second", "other")
    assert store.history("ann", 10) == [event(1)]
    assert store.is_deleted("bob")
    store.add_events([event(4)]).result()
    assert [stored.sequence for stored in store.events_after(0, 10)] == [1, 3]
    store.close()
    assert [file.name for file in backup.parent.iterdir()] == ["monday.sqlite"]


@pytest.mark.parametrize("end", ["", "-wal"])
def test_a_store_that_is_there_is_not_replaced(backup, tmp_path, end):
    target = state_file(tmp_path / "second", "shop")
    target.parent.mkdir(parents=True)
    target.with_name(target.name + end).write_text("mine")
    with pytest.raises(StoreError, match=f"state.sqlite{end} is there already: move it away first"):
        restore_backup(backup, tmp_path / "second", "shop")
    assert target.with_name(target.name + end).read_text() == "mine"


def test_a_damaged_backup_is_refused_and_nothing_is_left_of_it(backup, tmp_path):
    content = bytearray(backup.read_bytes())
    content[5000:9000] = bytes(4000)
    backup.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"):
        restore_backup(backup, tmp_path / "second", "shop")
    assert not list(state_file(tmp_path / "second", "shop").parent.iterdir())


def test_a_backup_that_is_not_there_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"missing.sqlite: .*No such file"):
        restore_backup(tmp_path / "missing.sqlite", tmp_path, "shop")
