"""Namespaces of domains: round trip, no tuple of two domains alike, one domain changes nothing."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.errors import DataError, VersionMismatchError
from tesserec.semantic_ids import add_items, build_semantic_ids
from tesserec.semantic_ids.namespaces import Namespaces, rows_of_domains, take_items
from tesserec.types import SemanticIds

LAYOUTS = ("front", "ranges")


@st.composite
def catalogs(draw):
    """A table a domain, each of codebooks of its own, and the domain of each item."""
    num_domains, levels = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    domain_N = torch.tensor(draw(st.lists(st.integers(0, num_domains - 1), min_size=1, max_size=20)))
    collisions = draw(st.sampled_from(["digit", "bucket"]))
    seed = draw(st.integers(0, 1000))
    generator = torch.Generator().manual_seed(seed)
    tables = []
    for domain, revision in enumerate(draw(st.lists(st.integers(0, 5), min_size=num_domains, max_size=num_domains))):
        sizes = torch.randint(1, 5, (levels,), generator=generator).tolist()
        num_items = int((domain_N == domain).sum())
        codes_NL = torch.stack([torch.randint(size, (num_items,), generator=generator) for size in sizes], 1)
        table = build_semantic_ids(codes_NL, sizes, f"domain {domain}", collisions)
        tables.append(dataclasses.replace(table, table_revision=revision))
    return tables, domain_N


@settings(max_examples=60)
@given(catalogs(), st.sampled_from(LAYOUTS))
def test_round_trip_and_no_tuple_of_two_domains(catalog, layout):
    tables, domain_N = catalog
    namespaces = Namespaces.of(tables, layout)
    joined = namespaces.join(tables, domain_N)
    back, found_N = namespaces.split(joined)
    assert torch.equal(found_N, domain_N)
    for table, again in zip(tables, back, strict=True):
        assert torch.equal(again.codes_NL, table.codes_NL)
        assert again.codebook_sizes == table.codebook_sizes
        assert again.codebook_version == table.codebook_version
        assert again.table_revision == joined.table_revision >= table.table_revision
        assert again.has_digit == table.has_digit
    assert joined.table_revision == sum(table.table_revision for table in tables)
    rejoined = namespaces.join(back, domain_N, since=joined.table_revision)
    assert torch.equal(rejoined.codes_NL, joined.codes_NL)
    assert rejoined.table_revision == joined.table_revision
    assert rejoined.codebook_version == joined.codebook_version
    tuples = [set(map(tuple, joined.codes_NL[domain_N == d].tolist())) for d in range(len(tables))]
    assert sum(map(len, tuples)) == len(set().union(*tuples))
    assert torch.equal(namespaces.domains(joined.codes_NL[:, :1]), domain_N)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_domain_has_the_same_table_but_for_its_version(layout):
    table = build_semantic_ids(torch.tensor([[0, 1], [0, 1], [1, 0]]), (2, 3), "f")
    namespaces = Namespaces.of([table], layout)
    joined = namespaces.join([table], torch.zeros(3).long())
    assert torch.equal(joined.codes_NL, table.codes_NL)
    assert joined.codebook_sizes == table.codebook_sizes
    assert joined.table_revision == table.table_revision
    assert joined.codebook_version != table.codebook_version


def shop():
    """Two domains of one codebook: the same tuple is in both."""
    whole = build_semantic_ids(torch.tensor([[0, 1], [0, 1], [1, 2], [1, 0]]), (2, 3), "f")
    domain_N = torch.tensor([0, 1, 1, 0])
    return [take_items(whole, own) for own in rows_of_domains(domain_N, 2)], domain_N


def test_the_layouts_by_hand():
    tables, domain_N = shop()
    front = Namespaces.of(tables, "front").join(tables, domain_N)
    assert front.codes_NL.tolist() == [[0, 0, 1, 0], [1, 0, 1, 1], [1, 1, 2, 0], [0, 1, 0, 0]]
    assert front.codebook_sizes == (2, 2, 3, 16)
    ranges = Namespaces.of(tables, "ranges").join(tables, domain_N)
    assert ranges.codes_NL.tolist() == [[0, 1, 0], [2, 4, 1], [3, 5, 0], [1, 0, 0]]
    assert ranges.codebook_sizes == (4, 6, 16)
    assert ranges.codebook_version != front.codebook_version


@pytest.mark.parametrize("layout", LAYOUTS)
def test_later_items_join_their_domain(layout):
    tables, domain_N = shop()
    namespaces = Namespaces.of(tables, layout)
    joined = namespaces.join(tables, domain_N)
    grown = add_items(joined, namespaces.recode(torch.tensor([[0, 1], [1, 1]]), torch.tensor([1, 0])))
    assert grown.codebook_version == joined.codebook_version
    assert grown.table_revision == joined.table_revision + 1
    back, domain_N = namespaces.split(grown)
    assert domain_N.tolist() == [0, 1, 1, 0, 1, 0]
    assert back[1].codes_NL.tolist() == [[0, 1, 1], [1, 2, 0], [0, 1, 0]]
    assert [t.table_revision for t in back] == [1, 1]
    more = [add_items(tables[0], torch.tensor([[1, 1]])), tables[1]]
    assert namespaces.join(more, torch.tensor([0, 1, 1, 0, 0])).table_revision == 1


def test_every_change_of_a_domain_is_a_revision_of_all():
    tables, domain_N = shop()
    namespaces = Namespaces.of(tables)
    new, of_domain = torch.tensor([[1, 1]]), [torch.tensor([0]), torch.tensor([1])]
    joined = add_items(namespaces.join(tables, domain_N), namespaces.recode(new, of_domain[0]))
    parts, domain_N = namespaces.split(joined)
    assert [joined.table_revision, *(part.table_revision for part in parts)] == [1, 1, 1]
    for change, domain in enumerate((1, 0, 1), 1):
        parts[domain] = add_items(parts[domain], new)
        domain_N = torch.cat([domain_N, of_domain[domain]])
        again = namespaces.join(parts, domain_N, since=joined.table_revision)
        assert again.table_revision == 1 + change
    with pytest.raises(DataError, match="the table of domain 0 has revision 2, before 3: give the revision of the"):
        namespaces.join(parts, domain_N, since=3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_does_not_fit_is_refused(layout):
    tables, domain_N = shop()
    namespaces = Namespaces.of(tables, layout)
    other = build_semantic_ids(torch.tensor([[0, 1], [0, 1]]), (2, 3), "another")
    with pytest.raises(
        VersionMismatchError, match=f"the table of domain 1 has codebook version {other.codebook_version}"
    ):
        namespaces.join([tables[0], other], domain_N)
    with pytest.raises(VersionMismatchError, match=f"the table has codebook version {other.codebook_version}, these"):
        namespaces.split(other)
    with pytest.raises(DataError, match="1 tables for 2 domains"):
        namespaces.join(tables[:1], domain_N)
    with pytest.raises(DataError, match="domain 0 has 3 items, its table 2"):
        namespaces.join(tables, torch.tensor([0, 1, 1, 0, 0]))
    with pytest.raises(DataError, match="domains reach from 0 to 2: legal: 0 to 1"):
        namespaces.join(tables, torch.tensor([0, 1, 2, 0]))
    with pytest.raises(DataError, match="tables of equally many levels"):
        Namespaces.of([tables[0], SemanticIds(torch.zeros(1, 2).long(), (2, 3), "x")], layout)
    with pytest.raises(DataError, match=r"given \[\]"):
        Namespaces.of([], layout)
    with pytest.raises(DataError, match=r"level 1 has codes in \[3, 3\], legal: \[0, 2\]"):
        namespaces.recode(torch.tensor([[0, 3]]), torch.tensor([1]))
