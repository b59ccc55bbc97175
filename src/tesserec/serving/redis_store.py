"""The store in Redis: keys with the prefix ``{tesserec:<namespace>}:``, for a shop that keeps all of it in memory.

Writes are one script call a group, which Redis runs as a whole and has on disk (``appendfsync always``) before it
answers. A server that does not work so is refused. A write that failed because the answer did not come may still have
been kept: sent again, it is kept once. Redis itself ends when its disk is full.

Keys: sequence (counter), events (sequence → JSON), log (sequences), ids (event id → sequence), user:<id> (numbers by
time), users, items and revisions, impressions, shown:<id> and response_ids, audit, deleted, imports, revision, salt.
"""

from __future__ import annotations

import json
import math
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tesserec.errors import StoreError
from tesserec.serving import sql_store
from tesserec.serving.backup_file import COLUMNS, last_sequence, opened_backup, write_backup
from tesserec.serving.group_commit import GroupCommit, Unavailable
from tesserec.serving.records import Audit, Event, Impression, Item, Revised, StoredEvent, UserData
from tesserec.serving.redis_script import APPLY
from tesserec.serving.sql_statements import check_version
from tesserec.serving.sql_store import in_chunks
from tesserec.serving.store_rows import (
    SCHEMA,
    audit_of,
    audit_row,
    digest,
    event_of,
    event_row,
    impression_of,
    impression_row,
    item_of,
    item_row,
)

__all__ = ["RedisStore"]

ROWS_AT_ONCE = 5_000

DURABLE = {"appendonly": "yes", "appendfsync": "always", "no-appendfsync-on-rewrite": "no"}
"""Settings without which an acknowledged write may be lost."""


@dataclass(frozen=True, slots=True)
class _Write:
    """The arguments of a part of the script's work, and what its answer means."""

    kind: str
    things: Sequence[Any]
    row: Callable[[Any], Iterable[Any]]
    meaning: Callable[[Any], Any]

    def arguments(self) -> list[Any]:
        return [self.kind, len(self.things), *chain.from_iterable(map(self.row, self.things))]


class RedisStore:
    """The state of one namespace on the Redis server that the ``redis://`` address names; see ``Store``.

    Raises ``StoreError`` where the server does not answer within ``timeout_s``, does not put every write on disk before
    it answers, may throw keys away, or holds data of a newer version.
    """

    def __init__(self, url: str, namespace: str, timeout_s: float = 5.0) -> None:
        self._prefix = f"{{tesserec:{namespace}}}:"
        self._name = f"Redis at {urlsplit(url).hostname or urlsplit(url).path}, namespace {namespace}"
        never = Retry(NoBackoff(), 0)  # the group commit tries again, and knows what for
        self._redis: Any = redis.Redis.from_url(
            url, decode_responses=True, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=never
        )
        with self._told():
            self._check_server()
            self._redis.set(self._key("schema"), SCHEMA, nx=True)
            self._redis.set(self._key("salt"), secrets.token_hex(16), nx=True)
            check_version(int(self._redis.get(self._key("schema"))), self._name)
            self._salt = self._redis.get(self._key("salt"))
        self._to_scrub = False
        self._writing = threading.Lock()
        self._group: GroupCommit[_Write] = GroupCommit(f"commit {self._name}", self._commit, self._scrub)

    def add_events(self, events: Sequence[Event]) -> Future[list[bool]]:
        """For each event whether its ``event_id`` is new."""
        return self._submit("events", events, self._event, lambda new: [flag == "1" for flag in new])

    def put_items(self, items: Sequence[Item]) -> Future[int]:
        """The revision that has these items."""
        return self._submit("items", items, lambda item: (_text(item.item_id), json.dumps(item_row(item, 0)[2:])), int)

    def add_impressions(self, impressions: Sequence[Impression]) -> Future[None]:
        """Keep answers, each ``response_id`` once; those to a deleted user without his id."""
        return self._submit("impressions", impressions, self._impression, lambda count: None)

    def add_audit(self, entry: Audit) -> Future[None]:
        """Keep an administrator's action."""
        return self._submit("audit", [entry], lambda entry: [json.dumps(audit_row(entry))], lambda length: None)

    def delete_user(self, user_id: str) -> Future[int]:
        """How many events and impressions went; the append-only file is written anew without them."""
        return self._submit("delete", [user_id], lambda user: (user, digest(self._salt, user)), int)

    def import_events(self, source: str, events: Iterator[Sequence[Event]]) -> int:
        """How many were new. Events of deleted users stay out: a history that is read again brings nobody back."""
        with self._told():
            if self._redis.hexists(self._key("imports"), source):
                return 0
        num_new = 0
        for chunk in in_chunks(chain.from_iterable(events), sql_store.IMPORTED_AT_ONCE):
            num_new += self._submit("import", chunk, self._event, lambda new: new.count("1")).result()
        self._submit("imported", [source], lambda source: [source], int).result()
        return num_new

    def history(self, user_id: str, limit: int) -> list[Event]:
        """The last events of a user by (time, sequence), oldest first."""
        if limit == 0:
            return []
        with self._told():
            numbers = self._redis.zrevrange(self._key("user:") + user_id, 0, limit - 1)
            return [event_of(row) for row in reversed(self._contents("events", numbers))]

    def events_after(self, sequence: int, limit: int) -> list[StoredEvent]:
        """Events in order of arrival."""
        with self._told():
            numbers = self._redis.zrangebyscore(self._key("log"), f"({sequence}", "+inf", start=0, num=limit)
            found = self._redis.hmget(self._key("events"), numbers) if numbers else []
        pairs = zip(numbers, found, strict=True)
        return [StoredEvent(int(number), event_of(json.loads(content))) for number, content in pairs if content]

    def items_after(self, revision: int) -> list[Revised]:
        """Items changed since, by (revision, id)."""
        with self._told(), self._redis.pipeline(transaction=True) as both:
            both.zrangebyscore(self._key("revisions"), f"({revision}", "+inf", withscores=True)
            both.hgetall(self._key("items"))
            changed, contents = both.execute()
        return [item_of((int(number), item_id, *json.loads(contents[item_id]))) for item_id, number in changed]

    def revision(self) -> int:
        """The table revision."""
        with self._told():
            return int(self._redis.get(self._key("revision")) or 0)

    def user(self, user_id: str) -> UserData | None:
        """Everything of a user."""
        with self._told():
            numbers = self._redis.zrange(self._key("user:") + user_id, 0, -1)
            events = tuple(map(event_of, self._contents("events", numbers)))
        impressions = tuple(self.impressions_of(user_id, -math.inf))
        return UserData(user_id, events, impressions) if events or impressions else None

    def users(self, prefix: str, limit: int) -> list[str]:
        """Ids that begin with ``prefix``; those of users with events."""
        with self._told():
            found = self._redis.zrangebylex(self._key("users"), f"[{prefix}", "+", start=0, num=limit)
        return [user_id for user_id in found if user_id.startswith(prefix)]

    def impressions_of(self, user_id: str, since: float) -> list[Impression]:
        """Answers to a user since then, oldest first."""
        with self._told():
            numbers = self._redis.zrangebyscore(self._key("shown:") + user_id, since, "+inf")
            return [impression_of(row) for row in self._contents("impressions", numbers)]

    def is_deleted(self, user_id: str) -> bool:
        """Whether the user is deleted and sent nothing since."""
        with self._told():
            return bool(self._redis.sismember(self._key("deleted"), digest(self._salt, user_id)))

    def audit(self, limit: int) -> list[Audit]:
        """The last entries, latest first."""
        with self._told():
            entries = self._redis.lrange(self._key("audit"), -limit, -1) if limit else []
        return [audit_of(json.loads(entry)) for entry in reversed(entries)]

    def counts(self) -> dict[str, int]:
        """Entries a kind."""
        with self._told(), self._redis.pipeline(transaction=True) as all_four:
            all_four.hlen(self._key("events")).zcard(self._key("users"))
            all_four.hlen(self._key("items")).hlen(self._key("impressions"))
            return dict(zip(("events", "users", "items", "impressions"), all_four.execute(), strict=True))

    def check(self) -> None:
        """A counter grows by one, and the server is asked again whether it puts that on disk."""
        self._submit("check", [], lambda nothing: [], int).result()
        with self._told():
            self._check_server()

    def backup(self, destination: Path) -> None:
        """A copy as of now as a SQLite file, that any store can be restored from; writes wait meanwhile."""
        with self._writing, self._told():
            last = int(self._redis.get(self._key("sequence")) or 0)
            write_backup(destination, ((table, self._all_rows(table)) for table in COLUMNS), last)

    def restore(self, backup: Path) -> None:
        """Fill this store, which has to be empty, from a backup; raises ``StoreError`` where it is not empty."""
        if any(self.counts().values()):
            raise StoreError(f"{self._name} has something in it already: restore into an empty one")
        with opened_backup(backup, str(backup)) as source, self._writing, self._told():
            for table, columns in COLUMNS.items():
                for rows in in_chunks(source.execute(f"SELECT {columns} FROM {table}"), ROWS_AT_ONCE):
                    with self._redis.pipeline(transaction=True) as together:
                        for row in rows:
                            self._put_row(together, table, row)
                        together.execute()
            self._redis.set(self._key("sequence"), last_sequence(source))
            self._salt = self._redis.get(self._key("salt"))

    def watch_commits(self, committed: Callable[[int, float], None]) -> None:
        """Tell of each durable transaction."""
        self._group.watch(committed)

    def close(self) -> None:
        """Write what was accepted, then let go."""
        self._group.close()
        self._redis.close()

    def _submit(
        self, kind: str, things: Sequence[Any], row: Callable[[Any], Iterable[Any]], meaning: Callable[[Any], Any]
    ) -> Future[Any]:
        return self._group.submit(_Write(kind, things, row, meaning))

    def _commit(self, writes: Sequence[_Write]) -> list[Any]:
        with self._told(), self._writing:
            arguments = list(chain.from_iterable(write.arguments() for write in writes))
            answers = self._redis.eval(APPLY, 1, self._prefix, *arguments)
        self._to_scrub = self._to_scrub or any(write.kind == "delete" for write in writes)
        return [write.meaning(answer) for write, answer in zip(writes, answers, strict=True)]

    def _scrub(self) -> bool:
        """What was deleted is in the append-only file until that is written anew."""
        if self._to_scrub:
            try:
                self._redis.bgrewriteaof()
            except redis.RedisError:  # it is being written already
                return False
            self._to_scrub = False
        return True

    def _check_server(self) -> None:
        for setting, needed in DURABLE.items():
            found = self._redis.config_get(setting).get(setting)
            if found != needed:
                raise StoreError(
                    f"{self._name}: {setting} is {found}, so that what it acknowledges can be lost: set it to {needed}"
                )
        policy = self._redis.config_get("maxmemory-policy")["maxmemory-policy"]
        if policy != "noeviction":
            raise StoreError(f"{self._name}: maxmemory-policy is {policy}, which throws data away: set noeviction")

    def _event(self, event: Event) -> tuple[Any, ...]:
        row = event_row(event)
        event_id, user_id = _text(event.event_id), _text(event.user_id)
        _text(event.item_id)
        _text(event.kind)
        return event_id, user_id, _time(event.time), digest(self._salt, user_id), json.dumps(row, ensure_ascii=False)

    def _impression(self, impression: Impression) -> tuple[Any, ...]:
        response_id, time, user, content = impression_row(impression)
        known = "" if user is None else digest(self._salt, _text(user))
        rows = [json.dumps((response_id, time, whose, content), ensure_ascii=False) for whose in (user, None)]
        return _text(response_id), "" if user is None else f"={user}", _time(time), known, *rows

    def _contents(self, hash_name: str, numbers: Sequence[str]) -> list[Any]:
        """What is kept under numbers; those that were deleted meanwhile are left out."""
        found = self._redis.hmget(self._key(hash_name), [int(number) for number in numbers]) if numbers else []
        return [json.loads(content) for content in found if content]

    def _all_rows(self, table: str) -> Iterator[Sequence[Any]]:
        """The rows of a table of a backup."""
        if table == "meta":
            yield from (("schema", str(SCHEMA)), ("salt", self._salt))
            for name in ("revision", "check"):
                yield name, self._redis.get(self._key(name)) or "0"
        elif table == "events":
            numbers = (number for number, _ in self._redis.zscan_iter(self._key("log"), count=ROWS_AT_ONCE))
            for chunk in in_chunks(numbers, ROWS_AT_ONCE):
                found = self._redis.hmget(self._key("events"), chunk)
                yield from ((int(number), *json.loads(content)) for number, content in zip(chunk, found, strict=True))
        elif table == "items":
            revisions = dict(self._redis.zrange(self._key("revisions"), 0, -1, withscores=True))
            for item_id, content in self._redis.hscan_iter(self._key("items"), count=ROWS_AT_ONCE):
                yield int(revisions[item_id]), item_id, *json.loads(content)
        elif table == "impressions":
            for number, content in self._redis.hscan_iter(self._key("impressions"), count=ROWS_AT_ONCE):
                yield int(number), *json.loads(content)
        elif table == "audit":
            for number, entry in enumerate(self._redis.lrange(self._key("audit"), 0, -1)):
                yield number + 1, *json.loads(entry)
        else:
            yield from self._plain_rows(table)

    def _plain_rows(self, table: str) -> Iterator[Sequence[Any]]:
        if table == "users":
            yield from ((user,) for user, _ in self._redis.zscan_iter(self._key("users"), count=ROWS_AT_ONCE))
        elif table == "deleted":
            yield from ((known,) for known in self._redis.sscan_iter(self._key("deleted"), count=ROWS_AT_ONCE))
        else:
            assert table == "imports", table
            yield from ((source, 1) for source in self._redis.hkeys(self._key("imports")))

    def _put_row(self, together: Any, table: str, row: Sequence[Any]) -> None:
        """Queue what a row of a backup is in Redis."""
        if table == "meta":
            together.set(self._key(row[0]), row[1])
        elif table == "events":
            number, event = row[0], event_of(tuple(row[1:]))
            together.hset(self._key("ids"), event.event_id, number)
            together.hset(self._key("events"), number, json.dumps(row[1:], ensure_ascii=False))
            together.zadd(self._key("log"), {str(number): number})
            together.zadd(self._key("user:") + event.user_id, {f"{number:016d}": event.time})
        elif table == "users":
            together.zadd(self._key("users"), {row[0]: 0})
        elif table == "items":
            together.hset(self._key("items"), row[1], json.dumps(row[2:]))
            together.zadd(self._key("revisions"), {row[1]: row[0]})
        elif table == "impressions":
            number, response_id, time, user, _ = row
            together.hset(self._key("response_ids"), response_id, number)
            together.hset(self._key("impressions"), number, json.dumps(row[1:], ensure_ascii=False))
            together.set(self._key("number"), number)
            if user is not None:
                together.zadd(self._key("shown:") + user, {f"{number:016d}": time})
        elif table == "audit":
            together.rpush(self._key("audit"), json.dumps(row[1:]))
        elif table == "deleted":
            together.sadd(self._key("deleted"), row[0])
        elif row[1]:
            together.hset(self._key("imports"), row[0], "1")

    def _key(self, name: str) -> str:
        return self._prefix + name

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Failures of the server as ``StoreError``; ``Unavailable`` where it would say the same of any other write."""
        try:
            yield
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise Unavailable(
                f"{self._name} does not answer ({error}): nothing was acknowledged; the next write connects again"
            ) from error
        except (redis.RedisError, UnicodeError, ValueError) as error:
            raise StoreError(f"{self._name}: {error}: nothing was kept") from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _time(value: float) -> str:
    if math.isnan(value):
        raise ValueError("a time that is not a number")
    return repr(float(value))
