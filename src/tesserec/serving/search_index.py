"""``SearchIndex``: full text search over titles and texts, kept current item by item, in SQLite's FTS5.

Words are found in all their forms (Porter stems, English), without accents and case. All words of a query must occur;
where no item has them all, any will do. The last word may be unfinished. Order is by BM25, the title counting twice.
"""

from __future__ import annotations

import re
import sqlite3
import threading
import unicodedata
from collections.abc import Iterable
from contextlib import closing

from torch import Tensor

__all__ = ["SearchIndex"]

_TABLE = (
    "CREATE VIRTUAL TABLE items USING fts5(title, body, "
    "tokenize = 'porter unicode61 remove_diacritics 2', prefix = '2 3')"
)
_FIND = "SELECT rowid, bm25(items, 2.0, 1.0) AS rank FROM items WHERE items MATCH ? ORDER BY rank, rowid"
_WORD = re.compile(r"[^\W_]+")
_MAX_WORDS = 32


class SearchIndex:
    """Items by their dense index; changes are found by the next search. Thread-safe."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect(":memory:", check_same_thread=False)
        self._lock = threading.Lock()
        self._connection.execute(_TABLE)

    def put(self, items: Iterable[tuple[int, str, str]]) -> None:
        """Add items, or replace what they were: (index, title, text)."""
        rows = ((index, _plain(title), _plain(text)) for index, title, text in items)
        self._change("REPLACE INTO items(rowid, title, body) VALUES (?, ?, ?)", rows)

    def remove(self, indices: Iterable[int]) -> None:
        """Forget items; those that are not there are ignored."""
        self._change("DELETE FROM items WHERE rowid = ?", ((index,) for index in indices))

    def search(self, words: str, limit: int, mask: Tensor) -> list[tuple[int, float]]:
        """The best ``limit`` items of ``mask`` (bool [N]) for any text, as (index, score), best first.

        Scores are above 0 and higher is better; equal ones are in the order of indices. Indices beyond the mask are
        not found.
        """
        terms = _terms(words)
        if not terms or limit < 1:
            return []
        found = self._found(" AND ".join(terms), limit, mask)
        return found if found or len(terms) == 1 else self._found(" OR ".join(terms), limit, mask)

    def close(self) -> None:
        """Let go of the memory."""
        with self._lock:
            self._connection.close()

    def _change(self, statement: str, rows: Iterable[tuple[object, ...]]) -> None:
        with self._lock, self._connection:
            self._connection.executemany(statement, rows)

    def _found(self, query: str, limit: int, mask: Tensor) -> list[tuple[int, float]]:
        allowed = mask.numpy()
        found: list[tuple[int, float]] = []
        with self._lock, closing(self._connection.execute(_FIND, (query,))) as rows:
            for index, rank in rows:
                if index < len(allowed) and allowed[index]:
                    found.append((index, -rank))
                    if len(found) == limit:
                        break
        return found


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _terms(words: str) -> list[str]:
    """The words as FTS5 strings, distinct; letters and digits only, so that nothing in them is syntax."""
    found = _WORD.findall(_plain(words))[:_MAX_WORDS]
    if not found:
        return []
    unfinished = bool(re.search(r"[^\W_]$", _plain(words)))
    last = f'"{found[-1]}"*' if unfinished else f'"{found[-1]}"'
    return list(dict.fromkeys([*(f'"{word}"' for word in found[:-1]), last]))
