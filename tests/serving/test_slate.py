"""What is shown of candidates: rules by hand, exact propensities, and what holds whatever the rules are."""

import math
from collections import Counter

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.bundle import Content
from tesserec.errors import DataError
from tesserec.rerankers.systematic_sampling import inclusion_probabilities
from tesserec.serving.schemas import RecommendRequest
from tesserec.serving.slate import Move, Taken, arrange
from tesserec.serving.snapshot import CatalogSnapshot
from tesserec.types import PAD, Candidates, Catalog, ItemEmbeddings, SemanticIds, Vocabulary

NUM_ITEMS, NUM_FITTED = 12, 8
CODES = SemanticIds(torch.tensor([[i // 4, i % 4] for i in range(NUM_ITEMS)]), (3, 4), "planted")


IDS = [f"i{i}" for i in range(NUM_ITEMS)]
FRAME = pl.DataFrame(
    {
        "item_id": IDS,
        "category": ["mugs" if i % 3 == 0 else "bags" for i in range(NUM_ITEMS)],
        "price": [None if i == 5 else float(i) for i in range(NUM_ITEMS)],
    }
)
ITEMS = CatalogSnapshot.of(Catalog(Vocabulary.of(IDS), FRAME), NUM_FITTED)
"""Twelve items; i8 … i11 are cold; every third is a mug; prices ascend, and that of i5 is missing."""


def listed(*scores):
    """Candidates of (item, score), best first, and PAD at the end."""
    pairs = [*scores, (PAD, -math.inf)]
    return Candidates(torch.tensor([[i for i, _ in pairs]]), torch.tensor([[s for _, s in pairs]]))


TEN = [(i, 10.0 - i) for i in range(NUM_ITEMS)]


def slate_of(candidates, *, shown=None, content=None, seed=0, **rules):
    generator = torch.Generator().manual_seed(seed)
    request = RecommendRequest.model_validate(rules)
    content = Content(None, CODES) if content is None else content
    return arrange(candidates, ITEMS, request, shown=shown or {}, content=content, generator=generator)


def shown_items(slate):
    return [placed.item for placed in slate.items]


def test_without_rules_the_best_are_shown():
    slate = slate_of(listed(*TEN), k=3)
    assert [(p.item, p.score, p.propensity, p.cold, p.moves) for p in slate.items] == [
        (0, 10.0, None, False, ()),
        (1, 9.0, None, False, ()),
        (2, 8.0, None, False, ()),
    ]
    assert slate.removed == ()


def test_a_list_of_few_candidates_is_as_long_as_they_are():
    assert shown_items(slate_of(listed((3, 1.0), (9, 0.5)), k=5)) == [3, 9]
    assert slate_of(listed(), k=5, diversity=0.5, cold_share=0.5).items == ()
    assert slate_of(listed(), k=5, sample=1.0, boosts=[{"when": "price < 3", "weight": 1}]).items == ()


def test_boosts_add_up_and_a_missing_value_is_not_boosted():
    boosts = [{"when": 'category == "mugs"', "weight": 2.5}, {"when": "price > 4", "weight": 1.25}]
    slate = slate_of(listed(*TEN[2:8]), k=3, boosts=boosts)
    assert [(p.item, p.score) for p in slate.items] == [(3, 9.5), (2, 8.0), (6, 7.75)]
    mug, dear = Move('boosts: category == "mugs"', 2.5), Move("boosts: price > 4", 1.25)
    assert [p.moves for p in slate.items] == [(mug,), (), (mug, dear)]
    assert slate.removed == (Taken(4, "boosts"),)
    assert str(mug) == 'boosts: category == "mugs": +2.5'


def test_a_boost_that_does_not_fit_is_refused():
    with pytest.raises(DataError, match="colour"):
        slate_of(listed(*TEN), boosts=[{"when": 'colour == "red"', "weight": 1}])


def test_what_was_shown_goes_down_for_each_time():
    slate = slate_of(listed(*TEN), k=3, rotate=0.75, shown={"i0": 2, "i1": 1, "i7": 9, "gone": 4})
    assert [(p.item, p.score) for p in slate.items] == [(0, 8.5), (1, 8.25), (2, 8.0)]
    assert slate.items[0].moves == (Move("rotate: shown 2 times", -1.5),)
    assert str(slate.items[0].moves[0]) == "rotate: shown 2 times: -1.5"
    slate = slate_of(listed(*TEN), k=2, rotate=0.75, shown={"i0": 2, "i1": 2})
    assert shown_items(slate) == [0, 2]
    assert slate.removed == (Taken(1, "rotate"),)


@pytest.mark.parametrize(("share", "items"), [(None, [0, 1, 2, 3]), (0.25, [0, 1, 2, 8]), (0.26, [0, 1, 8, 9])])
def test_the_share_of_cold_items_is_a_floor(share, items):
    slate = slate_of(listed(*TEN), k=4, cold_share=share)
    assert shown_items(slate) == items
    assert [p.cold for p in slate.items] == [item >= NUM_FITTED for item in items]
    assert {t.item: t.rule for t in slate.removed} == dict.fromkeys({0, 1, 2, 3} - set(items), "cold_share")
    if share == 0.25:
        assert slate.items[3].moves == (Move("cold_share", 0.0, 5),)
        assert str(slate.items[3].moves[0]) == "cold_share: up 5"


def test_a_floor_is_no_cap_and_takes_what_there_is():
    assert shown_items(slate_of(listed((8, 3.0), (9, 2.0), (0, 1.0)), k=2, cold_share=0.5)) == [8, 9]
    assert shown_items(slate_of(listed((0, 3.0), (1, 2.0), (9, 1.0)), k=2, cold_share=1)) == [0, 9]


def test_a_share_of_zero_shows_none():
    slate = slate_of(listed((8, 3.0), (0, 2.0), (1, 1.0)), k=2, cold_share=0)
    assert shown_items(slate) == [0, 1]
    assert slate.removed == (Taken(8, "cold_share"),)
    assert shown_items(slate_of(listed((8, 3.0), (0, 2.0)), k=2, cold_share=0)) == [0]
    assert shown_items(slate_of(listed((8, 3.0), (0, 2.0)), k=2, cold_share=0, sample=1.0)) == [0]
    assert slate_of(listed((8, 3.0)), k=2, cold_share=0, diversity=1).items == ()


def test_diversity_spreads_the_list_over_codes():
    slate = slate_of(listed(*TEN), k=3, diversity=1)
    assert shown_items(slate) == [0, 4, 8], "one of each first code, the best of each"
    assert slate.removed == (Taken(1, "diversity"), Taken(2, "diversity"))
    assert slate.items[1].moves == (Move("diversity", -1 - 6.0, 3),)
    assert str(slate.items[1].moves[0]) == "diversity: -7, up 3"


def test_diversity_prefers_vectors_to_codes():
    vectors = ItemEmbeddings(torch.nn.functional.one_hot(torch.arange(NUM_ITEMS) % 2).float(), "parity")
    slate = slate_of(listed(*TEN), k=2, diversity=0.9, content=Content(vectors, CODES))
    assert shown_items(slate) == [0, 1]


def test_diversity_and_a_floor():
    slate = slate_of(listed(*TEN), k=2, diversity=1, cold_share=0.5)
    assert shown_items(slate) == [0, 8], "MMR has 0, 4, 8 first, and the floor takes the first cold one of those"
    assert slate.removed == (Taken(1, "diversity"), Taken(4, "cold_share"))


def test_what_is_refused():
    with pytest.raises(DataError, match=r"diversity = 0\.5 and sample = 1\.0: .* leave one of them out"):
        slate_of(listed(*TEN), diversity=0.5, sample=1.0)
    with pytest.raises(DataError, match="was given neither"):
        slate_of(listed(*TEN), diversity=0.5, content=Content(None, None))
    two = Candidates(torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 1))
    with pytest.raises(DataError, match="candidates of 2 requests"):
        slate_of(two)


SAMPLED = {
    "plain": {},
    "boosted": {"boosts": [{"when": 'category == "mugs"', "weight": 1.5}]},
    "rotated": {"rotate": 2.0},
    "floor above what would be drawn": {"cold_share": 0.5},
    "floor below what would be drawn": {"cold_share": 0.25, "boosts": [{"when": "price > 7", "weight": 6}]},
    "all rules": {"cold_share": 0.5, "rotate": 1.0, "boosts": [{"when": "price < 2", "weight": -3}]},
}


@pytest.mark.parametrize("rules", SAMPLED.values(), ids=SAMPLED.keys())
def test_propensities_are_exact(rules):
    """Each item is drawn as often as it says it is; the bound is 4.5 standard errors of a binomial."""
    candidates, k, draws = listed(*TEN), 4, 400
    generator = torch.Generator().manual_seed(7)
    request = RecommendRequest.model_validate({"k": k, "sample": 2.0, **rules})
    counts, stated = Counter(), {}
    for _ in range(draws):
        slate = arrange(
            candidates, ITEMS, request, shown={"i1": 3, "i9": 1}, content=Content(None, None), generator=generator
        )
        assert len({p.item for p in slate.items}) == len(slate.items) == k
        assert [p.score for p in slate.items] == sorted((p.score for p in slate.items), reverse=True)
        assert sum(p.cold for p in slate.items) >= math.ceil(rules.get("cold_share", 0) * k)
        for placed in slate.items:
            counts[placed.item] += 1
            assert stated.setdefault(placed.item, placed.propensity) == placed.propensity
    assert len(stated) == NUM_ITEMS
    assert sum(stated.values()) == pytest.approx(k)
    for item, p in stated.items():
        assert abs(counts[item] / draws - p) <= 4.5 * math.sqrt(p * (1 - p) / draws), item


def test_sampling_is_of_the_scores_after_the_rules():
    slate = slate_of(listed(*TEN), k=12, sample=1.0)
    assert [p.propensity for p in slate.items] == [1.0] * 12
    boosted = torch.tensor([s + 3.0 * (i % 3 == 0) for i, s in TEN])
    expected = inclusion_probabilities(boosted, 3, 0.7)
    slate = slate_of(listed(*TEN), k=3, sample=0.7, boosts=[{"when": 'category == "mugs"', "weight": 3}])
    assert [p.propensity for p in slate.items] == pytest.approx([float(expected[p.item]) for p in slate.items])


def test_a_draw_says_what_it_took_and_is_that_of_its_generator():
    slates = [slate_of(listed(*TEN), k=3, sample=10.0, seed=seed) for seed in (1, 1, 2, 3, 4)]
    assert slates[0] == slates[1]
    assert len({tuple(shown_items(slate)) for slate in slates}) > 1
    for slate in slates:
        assert {t.item for t in slate.removed} == {0, 1, 2} - set(shown_items(slate))
        assert {t.rule for t in slate.removed} <= {"sample"}
        for place, placed in enumerate(slate.items):
            assert placed.moves == ((Move("sample", 0.0, placed.item - place),) if placed.item >= 3 else ())


@settings(max_examples=80)
@given(
    scores=st.lists(st.floats(-20, 20, width=32), min_size=0, max_size=NUM_ITEMS),
    order=st.permutations(range(NUM_ITEMS)),
    k=st.integers(1, 14),
    rules=st.fixed_dictionaries(
        {},
        optional={
            "boosts": st.lists(
                st.fixed_dictionaries(
                    {
                        "when": st.sampled_from(['category == "mugs"', "price < 6", "not (price > 2)"]),
                        "weight": st.floats(-9, 9),
                    }
                ),
                max_size=3,
            ),
            "rotate": st.floats(0, 5),
            "cold_share": st.floats(0, 1),
            "diversity": st.floats(0, 1),
            "sample": st.floats(0.01, 10),
        },
    ),
    shown=st.dictionaries(st.sampled_from([f"i{i}" for i in range(NUM_ITEMS)]), st.integers(0, 4)),
    seed=st.integers(0, 2**20),
)
def test_whatever_the_rules_are(scores, order, k, rules, shown, seed):
    if "diversity" in rules and "sample" in rules:
        del rules["diversity"]
    pairs = list(zip(order, sorted(scores, reverse=True), strict=False))
    slate = slate_of(listed(*pairs), k=k, shown=shown, seed=seed, **rules)
    items, own = shown_items(slate), dict(pairs)
    there = {i for i in own if rules.get("cold_share") != 0 or i < NUM_FITTED}
    assert len(set(items)) == len(items) == min(k, len(there))
    assert set(items) <= there
    assert [p.score for p in slate.items] == sorted((p.score for p in slate.items), reverse=True)
    for placed in slate.items:
        assert placed.score == pytest.approx(own[placed.item] + sum(m.change for m in placed.moves), abs=1e-6)
        assert (placed.propensity is not None) == ("sample" in rules)
    num_cold = sum(i >= NUM_FITTED for i in there)
    assert sum(p.cold for p in slate.items) >= min(math.floor(rules.get("cold_share", 0) * k), num_cold)
    removed = [taken.item for taken in slate.removed]
    assert len(set(removed)) == len(removed)
    assert not set(removed) & set(items)
    assert {i for i, _ in pairs[:k]} - set(items) <= set(removed), "every rule that took one of the best is named"
