"""Namespaces of domains: no code tuple of one domain is one of another.

Paper: NEO, https://arxiv.org/abs/2603.17533 (a quantizer for each item type); MBGR, https://arxiv.org/abs/2604.02684
    (business-aware ids)
Adds: a code of the domain in front of the tuple, or ranges of codes that no two domains share at any level.
Differs: MBGR tells domains apart by an encoder over the codes, a part of its model; here the table itself does.
Checked: tests/semantic_ids/test_namespaces.py (round trips; no tuple of two domains alike; one domain changes nothing).

The tables may be of one codebook, used by all domains, or of one a domain. Later items: ``add_items(joined,
namespaces.recode(codes_ML, domain_M))``.

Dimensions: N items · M later items · L levels.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from tesserec.errors import DataError, VersionMismatchError
from tesserec.semantic_ids.table import content_codes, table_version
from tesserec.types import SemanticIds

__all__ = ["Layout", "Namespaces", "rows_of_domains", "take_items"]

Layout = Literal["front", "ranges"]
"""A level of its own for the domain, before all others; or codes moved up by those of the domains before, a level."""


@dataclass(frozen=True)
class Namespaces:
    """How the tuples of several domains are told apart; its version stands for those of all of them."""

    sizes: tuple[tuple[int, ...], ...]
    """The codebook sizes of each domain, digit included."""
    versions: tuple[str, ...]
    """The codebook version of each domain."""
    has_digit: bool
    layout: Layout = "front"

    @classmethod
    def of(cls, tables: Sequence[SemanticIds], layout: Layout = "front") -> "Namespaces":
        """Namespaces of the domains that ``tables`` are of, in that order.

        Raises ``DataError`` for no table, and for tables of different levels.
        """
        kinds = {(table.num_levels, table.has_digit) for table in tables}
        if len(kinds) != 1:
            shown = sorted((levels, "digit" if digit else "no digit") for levels, digit in kinds)
            raise DataError(f"domains need tables of equally many levels, with or without a digit: given {shown}")
        sizes = tuple(table.codebook_sizes for table in tables)
        return cls(sizes, tuple(table.codebook_version for table in tables), tables[0].has_digit, layout)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Sizes of the joined table; a single domain needs no code in front."""
        largest = tuple(max(column) for column in zip(*self.sizes, strict=True))
        if self._in_front:
            return (len(self.sizes), *largest)
        summed = tuple(sum(column) for column in zip(*self.sizes, strict=True))
        return (*summed[:-1], largest[-1]) if self.has_digit else summed

    @property
    def codebook_version(self) -> str:
        """The version of the joined table."""
        named = hashlib.sha256(repr((self.layout, self.sizes, self.versions)).encode()).hexdigest()
        return table_version(named, self.codebook_sizes, self.has_digit)

    def join(self, tables: Sequence[SemanticIds], domain_N: Tensor, since: int = 0) -> SemanticIds:
        """One table of all N items, whose domains are ``domain_N``; ``tables`` hold each domain's items in that order.

        The revision is ``since``, that of the joined table which ``tables`` were split from, plus the changes of each
        domain since then; of tables that were never joined, it is the sum of theirs. Raises ``VersionMismatchError``
        for a table of another codebook, ``DataError`` for one older than ``since`` or of another number of items.
        """
        rows = rows_of_domains(domain_N, len(self.sizes))
        if len(tables) != len(self.sizes):
            raise DataError(f"{len(tables)} tables for {len(self.sizes)} domains: give one a domain")
        joined_NL = torch.zeros(len(domain_N), len(self.codebook_sizes), dtype=torch.int64)
        for domain, (table, own) in enumerate(zip(tables, rows, strict=True)):
            if table.codebook_version != self.versions[domain]:
                raise VersionMismatchError(
                    f"the table of domain {domain} has codebook version {table.codebook_version}, expected "
                    f"{self.versions[domain]}: join tables of the codebooks that the namespaces were made of"
                )
            if len(table) != len(own):
                raise DataError(f"domain {domain} has {len(own)} items, its table {len(table)}: give one tuple an item")
            if table.table_revision < since:
                raise DataError(
                    f"the table of domain {domain} has revision {table.table_revision}, before {since}: give the "
                    "revision of the joined table that all tables were split from"
                )
            joined_NL[own] = self._moved(table.codes_NL, domain, 1)
        revision = since + sum(table.table_revision - since for table in tables)
        return SemanticIds(joined_NL, self.codebook_sizes, self.codebook_version, revision, self.has_digit)

    def recode(self, codes_ML: Tensor, domain_M: Tensor) -> Tensor:
        """Codes of later items under the namespaces, given those of their domain's codebooks (without digit).

        Raises ``DataError`` for domains that do not exist and for codes beyond the domain's codebooks.
        """
        rows = rows_of_domains(domain_M, len(self.sizes))
        levels = len(self.codebook_sizes) - int(self.has_digit)
        recoded_ML = torch.zeros(len(codes_ML), levels, dtype=torch.int64)
        for domain, own in enumerate(rows):
            sizes = self.sizes[domain][:-1] if self.has_digit else self.sizes[domain]
            checked = SemanticIds(codes_ML[own], sizes, self.versions[domain])
            recoded_ML[own] = self._moved(checked.codes_NL, domain, 1)
        return recoded_ML

    def domains(self, codes_NL: Tensor) -> Tensor:
        """The domain of each tuple or prefix of a joined table, [N] int64, from its first code."""
        if len(self.sizes) == 1:
            return torch.zeros(len(codes_NL), dtype=torch.int64)
        if self._in_front:
            return codes_NL[:, 0].long()
        ends = torch.tensor(list(accumulate(sizes[0] for sizes in self.sizes)))
        return torch.bucketize(codes_NL[:, 0].contiguous(), ends, right=True)

    def split(self, joined: SemanticIds) -> tuple[list[SemanticIds], Tensor]:
        """The inverse of ``join``: the table of each domain, and the domain of each item.

        Each has the joined revision, since a joined table does not know in which domain it was changed; ``join`` takes
        it as ``since``. Raises ``VersionMismatchError`` for a table that these namespaces did not make.
        """
        if joined.codebook_version != self.codebook_version:
            raise VersionMismatchError(
                f"the table has codebook version {joined.codebook_version}, these namespaces make "
                f"{self.codebook_version}: use the namespaces that it was joined with"
            )
        domain_N = self.domains(content_codes(joined))
        tables = [
            SemanticIds(
                self._moved(joined.codes_NL[own], domain, -1),
                self.sizes[domain],
                self.versions[domain],
                joined.table_revision,
                self.has_digit,
            )
            for domain, own in enumerate(rows_of_domains(domain_N, len(self.sizes)))
        ]
        return tables, domain_N

    @property
    def _in_front(self) -> bool:
        return self.layout == "front" and len(self.sizes) > 1

    def _moved(self, codes_NL: Tensor, domain: int, sign: Literal[1, -1]) -> Tensor:
        """Codes of one domain into (1) or out of (−1) its namespace; a digit, if there, stays as it is."""
        if self._in_front:
            front_N1 = torch.full((len(codes_NL), 1), domain)
            return torch.cat([front_N1, codes_NL.long()], 1) if sign == 1 else codes_NL[:, 1:]
        before = torch.tensor([sum(column[:domain]) for column in zip(*self.sizes, strict=True)])
        if self.has_digit:
            before[-1] = 0
        return codes_NL + sign * before[: codes_NL.shape[1]]


def rows_of_domains(domain_N: Tensor, num_domains: int) -> list[Tensor]:
    """The items of each domain, ascending; to cut a table of all domains into those that ``join`` takes.

    Raises ``DataError`` for a domain that does not exist.
    """
    if len(domain_N) and not 0 <= int(domain_N.min()) <= int(domain_N.max()) < num_domains:
        raise DataError(
            f"domains reach from {int(domain_N.min())} to {int(domain_N.max())}: legal: 0 to {num_domains - 1}"
        )
    return [(domain_N == domain).nonzero().squeeze(1) for domain in range(num_domains)]


def take_items(semantic_ids: SemanticIds, items: Tensor) -> SemanticIds:
    """The tuples of some items, of the same version and revision: one domain's part of a table of all domains."""
    return dataclasses.replace(semantic_ids, codes_NL=semantic_ids.codes_NL[items])
