import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.decoding.beam_search import Fusion, beam_search, beams_to_items
from tesserec.decoding.frontier import Distribution
from tesserec.decoding.top_k import allowed_items
from tesserec.decoding.trie import Trie
from tesserec.decoding.trie_mask import TrieMask
from tesserec.decoding.trie_updates import without_items
from tesserec.errors import DataError, ResourceError
from tesserec.semantic_ids.namespaces import Namespaces
from tesserec.testing.data import requests_of
from tesserec.testing.decoding import TableModel, exhaustive, random_requests, random_semantic_ids
from tesserec.types import SemanticIds

INF = float("inf")
# Tuples (leaves): (0 0) 0 · (0 1) 1 · (1 0) 2 · (1 2) 3; items 4 and 0 share (0 1).
TRIE = Trie.build(SemanticIds(torch.tensor([[0, 1], [0, 0], [1, 2], [1, 0], [0, 1]]), (2, 3), "test"))


def model(first, second, rows=1):
    return TableModel(TRIE, (torch.tensor([first]).repeat(rows, 1), torch.tensor([second]).repeat(rows, 1)))


def search(step, num_beams, requests=None, num_requests=1):
    mask = None if requests is None else TrieMask.of(TRIE, requests)
    return beam_search(step, (), TRIE, num_requests=num_requests, num_beams=num_beams, mask=mask)


def test_wide_beams_find_all_tuples_in_order_and_are_padded():
    found = search(model([-1.0, -2.0], [-3.0, -1.5, -0.25, -0.75]), 6)
    assert found.leaves_BM.tolist() == [[2, 1, 3, 0, -1, -1]]
    assert found.log_probs_BM.tolist() == [[-2.25, -2.5, -2.75, -4.0, -INF, -INF]]
    assert found.codes_BML.tolist() == [[[1, 0], [0, 1], [1, 2], [0, 0], [-1, -1], [-1, -1]]]


def test_new_arrays_are_made_where_the_trie_is():
    requests = requests_of([[[0]], []], exclude_history=True)
    step = model([-1.0, -2.0], [-3.0, -1.5, -0.25, -0.75], rows=2)
    mask = TrieMask.of(TRIE, requests)
    with torch.device("meta"):
        found = beam_search(step, (), TRIE, num_requests=2, num_beams=2, mask=mask)
    assert found.leaves_BM.tolist() == [[2, 1], [2, 1]]


def test_one_beam_is_greedy():
    found = search(model([-1.0, -2.0], [-3.0, -1.5, -0.25, -0.75]), 1)
    assert found.leaves_BM.tolist() == [[1]]
    assert found.log_probs_BM.tolist() == [[-2.5]]


def test_of_equal_scores_the_first_tuple_wins():
    equal = model([-1.0, -1.0], [-1.0, -1.0, -1.0, -1.0])
    assert search(equal, 1).leaves_BM.tolist() == [[0]]
    assert search(equal, 3).leaves_BM.tolist() == [[0, 1, 2]]
    # (1 0) and (0 1) end equal, though the first code of (1 0) is the better one.
    assert search(model([-2.0, -1.0], [-9.0, -1.0, -2.0, -9.0]), 2).leaves_BM.tolist() == [[1, 2]]


def test_no_beam_enters_what_a_filter_empties():
    best_is_forbidden = model([-0.5, -9.0], [-0.5, -0.5, -1.0, -2.0], rows=2)
    requests = requests_of([[[0, 4, 1]], []], exclude_history=True, excluded=[[], [3]])
    found = search(best_is_forbidden, 1, requests, 2)
    assert found.leaves_BM.tolist() == [[2], [0]]
    assert found.log_probs_BM.tolist() == [[-10.0], [-1.0]]
    found = search(best_is_forbidden, 3, requests, 2)
    assert found.leaves_BM.tolist() == [[2, 3, -1], [0, 1, 3]]


def test_a_beam_of_probability_zero_ends():
    found = search(model([0.0, -INF], [-INF, -1.0, -2.0, -3.0]), 4)
    assert found.leaves_BM.tolist() == [[1, -1, -1, -1]]
    assert found.codes_BML.tolist() == [[[0, 1]] + [[-1, -1]] * 3]


def test_what_a_model_says_of_padding_does_not_matter():
    table = model([-1.0, -2.0], [-3.0, -1.5, -0.25, -0.75])

    def step(cache, level, parents, nodes, children, codes):
        cache, log_probs = table(cache, level, parents, nodes, children, codes)
        return cache, log_probs.masked_fill(children < 0, torch.nan)

    requests = requests_of([[]], available=[True, False, False, False, False])
    mask = TrieMask.of(TRIE, requests)
    found = beam_search(step, (), TRIE, num_requests=1, num_beams=3, mask=mask)
    assert found.leaves_BM.tolist() == [[1, -1, -1]]
    without_mask = beam_search(step, (), TRIE, num_requests=1, num_beams=3)
    assert without_mask.leaves_BM.tolist() == [[2, 1, 3]]


def test_nothing_allowed_gives_no_beams():
    found = search(model([-1.0, -1.0], [-1.0] * 4), 2, requests_of([[]], available=[False] * 5))
    assert found.leaves_BM.tolist() == [[-1, -1]]
    assert found.log_probs_BM.tolist() == [[-INF, -INF]]


def test_nan_is_a_mistake_of_the_model():
    with pytest.raises(AssertionError, match=r"^log-probabilities of legal children must not be NaN"):
        search(model([float("nan"), 0.0], [0.0] * 4), 2)


@pytest.mark.parametrize("number", [0, -2])
def test_counts_below_one_are_refused(number):
    with pytest.raises(ValueError, match=f"^num_beams = {number}: search with at least one beam$"):
        search(model([0.0, 0.0], [0.0] * 4), number)
    beams = search(model([0.0, 0.0], [0.0] * 4), 1)
    with pytest.raises(ValueError, match=f"^k = {number}: ask for at least one item$"):
        beams_to_items(beams, TRIE, number)


def test_items_of_beams_in_order_of_beam_and_bucket():
    beams = search(model([-1.0, -2.0], [-3.0, -1.5, -0.25, -0.75], rows=2), 3, num_requests=2)
    seen = TrieMask.of(TRIE, requests_of([[], [[3, 0]]], exclude_history=True))
    found = beams_to_items(beams, TRIE, 4, seen)
    assert found.items_BK.tolist() == [[3, 0, 4, 2], [4, 2, -1, -1]]
    assert found.scores_BK.tolist() == [[-2.25, -2.5, -2.5, -2.75], [-2.5, -2.75, -INF, -INF]]
    assert found.trace["codes"].tolist() == [
        [[1, 0], [0, 1], [0, 1], [1, 2]],
        [[0, 1], [1, 2], [-1, -1], [-1, -1]],
    ]
    assert beams_to_items(beams, TRIE, 2).items_BK.tolist() == [[3, 0], [3, 0]]
    unavailable = requests_of([[], []], available=[False, True, True, True, True])
    assert beams_to_items(beams, TRIE, 2, TrieMask.of(TRIE, unavailable)).items_BK.tolist() == [[3, 4], [3, 4]]


def test_prompts_are_the_beginning_of_what_is_found():
    step = model([-1.0, -2.0], [-3.0, -1.5, -0.25, -0.75], rows=3)
    prompts = torch.tensor([[1, -1], [0, 0], [-1, -1]])
    found = beam_search(step, (), TRIE, num_requests=3, num_beams=4, prompts_Bl=prompts)
    assert found.leaves_BM.tolist() == [[2, 3, -1, -1], [0, -1, -1, -1], [2, 1, 3, 0]]
    assert found.log_probs_BM[1].tolist() == [-4.0, -INF, -INF, -INF]
    with pytest.raises(DataError, match=r"^prompts_Bl has shape \(2, 2\): give 3 rows of at most 2 codes$"):
        beam_search(step, (), TRIE, num_requests=3, num_beams=4, prompts_Bl=prompts[:2])
    with pytest.raises(DataError, match=r"^a prompt has a code behind a −1"):
        beam_search(step, (), TRIE, num_requests=3, num_beams=4, prompts_Bl=prompts.flip(1))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([2], "^a prompt has code 2 at place 0: give codes of level 0, 0 to 1, or −1 for any$"),
        ([0, 3], "^a prompt has code 3 at place 1: give codes of level 1, 0 to 2, or −1 for any$"),
        ([-2], "^a prompt has code -2 at place 0: "),
        ([0.0], "^prompts_Bl has type torch.float32: give codes, int64$"),
    ],
)
def test_prompts_of_no_code_are_refused(prompt, message):
    step = model([-1.0, -2.0], [-3.0, -1.5, -0.25, -0.75])
    with pytest.raises(DataError, match=message):
        beam_search(step, (), TRIE, num_requests=1, num_beams=4, prompts_Bl=torch.tensor([prompt]))


def test_prompts_are_in_the_order_in_which_levels_are_filled():
    trie = Trie.build(SemanticIds(torch.tensor([[0, 2], [1, 1], [1, 2]]), (2, 3), "test"), order=(1, 0))
    step = TableModel.random(trie, 1, torch.Generator().manual_seed(0))
    found = beam_search(step, (), trie, num_requests=1, num_beams=4, prompts_Bl=torch.tensor([[2]]))
    assert sorted(found.codes_BML[0].tolist()) == [[-1, -1], [-1, -1], [0, 2], [1, 2]]


def test_a_step_gives_one_number_a_child():
    with pytest.raises(AssertionError, match=r"^a step must give one log-probability a child$"):
        beam_search(lambda *_: (None, torch.zeros(1, 1, 1)), None, TRIE, num_requests=1, num_beams=2)


def test_a_trie_without_items_is_refused():
    empty = without_items(TRIE, torch.arange(5))
    with pytest.raises(DataError, match=r"^the trie has no items: add some with with_items"):
        beam_search(lambda *_: (None, torch.zeros(1, 1, 0)), None, empty, num_requests=1, num_beams=2)


def test_the_normalizer_is_chosen():
    step = model([-1.0, -1.0], [-1.0, -2.0, -3.0, -3.0])
    requests = requests_of([[]], available=[True, False, True, True, True])  # closes leaf 0
    mask = TrieMask.of(TRIE, requests)

    def probabilities(normalizer, temperature=1.0):
        distribution = Distribution(normalizer, temperature)
        found = beam_search(step, (), TRIE, num_requests=1, num_beams=3, mask=mask, distribution=distribution)
        return {
            leaf: float(p) for leaf, p in zip(found.leaves_BM[0].tolist(), found.log_probs_BM[0].exp(), strict=True)
        }

    e = torch.e
    assert probabilities("model")[1] == pytest.approx(e**-3)
    assert probabilities("tree") == pytest.approx({2: 0.25, 3: 0.25, 1: 0.5 * e**-2 / (e**-1 + e**-2)})
    assert probabilities("allowed") == pytest.approx({1: 0.5, 2: 0.25, 3: 0.25})
    assert probabilities("tree", 2.0)[1] == pytest.approx(0.5 * e**-1 / (e**-0.5 + e**-1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 2.0}, "temperature needs a normalizer: set it"),
        ({"nucleus": 0.5, "normalizer": "tree"}, "nucleus leaves out children: set normalizer"),
    ],
)
def test_distributions_that_do_not_sum_to_one_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Distribution(**settings)


def test_a_bonus_steers_and_does_not_count_as_probability():
    step = model([-1.0, -2.0], [-3.0, -1.5, -0.25, -0.75])

    def bonus(level, children):
        return torch.where((level == 1) & (children == 0), 3.0, 0.0)

    found = beam_search(step, (), TRIE, num_requests=1, num_beams=2, bonus=bonus)
    assert found.leaves_BM.tolist() == [[0, 2]]
    assert found.scores_BM.tolist() == [[-1.0, -2.25]]
    assert found.log_probs_BM.tolist() == [[-4.0, -2.25]]
    assert beams_to_items(found, TRIE, 1).scores_BK.tolist() == [[-1.0]]


def test_scores_of_items_order_a_bucket_or_are_fused():
    beams = search(model([-1.0, -2.0], [-3.0, -1.5, -0.25, -0.75]), 3)  # items 3 · 0 4 · 2

    def last_first(rows, items):
        return items.float()

    assert beams_to_items(beams, TRIE, 4).items_BK.tolist() == [[3, 0, 4, 2]]
    resolved = beams_to_items(beams, TRIE, 4, item_scores=last_first)
    assert resolved.items_BK.tolist() == [[3, 4, 0, 2]]
    assert resolved.scores_BK.tolist() == [[-2.25, -2.5, -2.5, -2.75]]
    fused = beams_to_items(beams, TRIE, 4, item_scores=last_first, fusion=Fusion(beam_weight=2.0, item_weight=1.0))
    assert fused.items_BK.tolist() == [[4, 3, 2, 0]]
    assert fused.scores_BK.tolist() == [[-1.0, -1.5, -3.5, -5.0]]
    assert fused.trace["codes"].tolist() == [[[0, 1], [1, 0], [1, 2], [0, 1]]]
    with pytest.raises(ValueError, match=r"^fusion adds scores of items: give item_scores$"):
        beams_to_items(beams, TRIE, 4, fusion=Fusion())


def test_domains_share_one_automaton_and_a_prompt_keeps_to_one():
    generator = torch.Generator().manual_seed(0)
    domain_N = torch.tensor([0, 1] * 20)
    tables = [random_semantic_ids(20, (3, 3), generator) for _ in range(2)]
    trie = Trie.build(Namespaces.of(tables).join(tables, domain_N))
    step = TableModel.random(trie, 2, generator)
    prompts = torch.tensor([[0], [1]])  # the code in front is the domain's
    beams = beam_search(step, (), trie, num_requests=2, num_beams=40, prompts_Bl=prompts)
    found = beams_to_items(beams, trie, 40).items_BK
    for row in range(2):
        assert sorted(found[row][found[row] >= 0].tolist()) == (domain_N == row).nonzero().squeeze(1).tolist()


def test_a_bonus_of_minus_infinity_closes_what_it_is_given_to():
    step = model([-1.0, -2.0], [-3.0, -1.5, -0.25, -0.75])

    def bonus(level, children):
        return torch.where((level == 1) & (children == 2), -INF, 0.0)

    found = beam_search(step, (), TRIE, num_requests=1, num_beams=4, bonus=bonus)
    assert found.leaves_BM.tolist() == [[1, 3, 0, -1]]
    assert found.log_probs_BM.tolist() == [[-2.5, -2.75, -4.0, -INF]]
    assert beams_to_items(found, TRIE, 9).items_BK.tolist() == [[0, 4, 2, 1] + [-1] * 5]
    for number in (torch.nan, INF):
        with pytest.raises(
            DataError, match=r"^a bonus gives NaN or inf: give numbers, or −inf for what is not wanted$"
        ):
            beam_search(
                step,
                (),
                TRIE,
                num_requests=1,
                num_beams=2,
                bonus=lambda _, children, number=number: children.float() + number,
            )
    with pytest.raises(DataError, match=r"^a bonus gives shape \(2, 2\), expected \(1, 2\): give one number each$"):
        beam_search(step, (), TRIE, num_requests=1, num_beams=2, bonus=lambda *_: torch.zeros(2, 1, 2))


def test_scores_of_items_that_order_nothing_are_refused_and_infinity_leaves_out():
    beams = search(model([-1.0, -2.0], [-3.0, -1.5, -0.25, -0.75]), 3)  # items 3 · 0 4 · 2

    def without_3(rows, items):
        return torch.where(items == 3, -INF, items.double())

    assert beams_to_items(beams, TRIE, 4, item_scores=without_3).items_BK.tolist() == [[3, 4, 0, 2]]
    for fusion in (Fusion(), Fusion(item_weight=0.0)):
        found = beams_to_items(beams, TRIE, 4, item_scores=without_3, fusion=fusion)
        assert sorted(found.items_BK[0].tolist()) == [-1, 0, 2, 4]
    with pytest.raises(DataError, match=r"^item_scores give shape \(1,\), expected \(4,\): give one number each$"):
        beams_to_items(beams, TRIE, 4, item_scores=lambda *_: torch.zeros(1))
    with pytest.raises(DataError, match=r"^item_scores give NaN or inf: give numbers"):
        beams_to_items(beams, TRIE, 4, item_scores=lambda _, items: items + torch.nan)


def test_a_search_beyond_its_memory_says_what_fits():
    step = model([-1.0, -2.0], [-3.0, -1.5, -0.25, -0.75], rows=4)
    room = 2 * 3 * 56 * 2  # requests × beams × bytes × children
    with pytest.raises(
        ResourceError, match=r"^4 requests × 3 beams hold up to 1,344 bytes .* search for 2 requests at a"
    ):
        beam_search(step, (), TRIE, num_requests=4, num_beams=3, max_bytes=room)
    with pytest.raises(ResourceError, match=r"search for at most 6 beams, one request$"):
        beam_search(step, (), TRIE, num_requests=4, num_beams=7, max_bytes=room)
    with pytest.raises(ResourceError, match=r"max_bytes is 111: give at least 112, for one beam of one request$"):
        beam_search(step, (), TRIE, num_requests=4, num_beams=7, max_bytes=111)
    assert len(beam_search(step, (), TRIE, num_requests=4, num_beams=3, max_bytes=2 * room).leaves_BM) == 4


def test_a_slate_is_generated_item_by_item_without_repeats():
    step = model([-1.0, -2.0], [-3.0, -1.5, -0.25, -0.75])
    mask, slate = TrieMask.of(TRIE, requests_of([[]])), []
    for _ in range(6):
        beams = beam_search(step, (), TRIE, num_requests=1, num_beams=1, mask=mask)
        item = beams_to_items(beams, TRIE, 1, mask).items_BK[:, 0]
        slate += item.tolist()
        if item[0] >= 0:
            mask = mask.excluding(torch.tensor([0]), item)
    assert slate == [0, 4, 1, 3, 2, -1]


def test_no_requests_give_no_beams():
    beams = beam_search(model([0.0, 0.0], [0.0] * 4, rows=0), (), TRIE, num_requests=0, num_beams=2)
    assert beams.leaves_BM.shape == (0, 2)
    assert beams_to_items(beams, TRIE, 3).items_BK.shape == (0, 3)


def random_case(num_items, sizes, seed, ties):
    generator = torch.Generator().manual_seed(seed)
    codes = random_semantic_ids(num_items, tuple(sizes), generator)
    trie = Trie.build(codes, torch.rand(num_items, generator=generator) if seed % 2 else None)
    requests = random_requests(3, num_items, generator)
    return trie, requests, TableModel.random(trie, 3, generator, ties)


CASES = given(
    st.integers(1, 14), st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 99_999), st.booleans()
)


@settings(max_examples=100, deadline=None)
@CASES
def test_with_enough_beams_it_equals_exhaustive_scoring(num_items, sizes, seed, ties):
    trie, requests, step = random_case(num_items, sizes, seed, ties)
    num_leaves = trie.num_nodes(trie.num_levels)
    mask = TrieMask.of(trie, requests)
    beams = beam_search(step, (), trie, num_requests=3, num_beams=num_leaves, mask=mask)
    found = beams_to_items(beams, trie, num_items + 1, mask)
    items, scores = exhaustive(step, requests, num_items + 1)
    for row in range(3):
        padding = num_items + 1 - len(items[row])
        assert found.items_BK[row].tolist() == items[row] + [-1] * padding
        assert found.scores_BK[row].tolist() == scores[row] + [-INF] * padding


def naive_beams(step, trie, allowed, row, num_beams):
    """Beam search over lists of codes, for one request: (score, path of nodes) of each beam."""
    paths = trie.paths_NL.tolist()
    legal = sorted({tuple(paths[item]) for item in range(trie.num_items) if allowed[item]})
    beams = [(torch.tensor(0.0), ())]
    for level in range(trie.num_levels):
        longer = [
            (score + step.tables[level][row, node], (*path, node))
            for score, path in beams
            for node in sorted({p[level] for p in legal if p[:level] == path})
        ]
        beams = sorted(longer, key=lambda beam: (-float(beam[0]), beam[1]))[:num_beams]
    return beams


@settings(max_examples=100, deadline=None)
@CASES
def test_narrow_beams_equal_a_search_over_lists(num_items, sizes, seed, ties):
    trie, requests, step = random_case(num_items, sizes, seed, ties)
    num_beams = 1 + seed % 3
    found = beam_search(step, (), trie, num_requests=3, num_beams=num_beams, mask=TrieMask.of(trie, requests))
    allowed = allowed_items(requests, num_items).tolist()
    for row in range(3):
        expected = naive_beams(step, trie, allowed[row], row, num_beams)
        padding = num_beams - len(expected)
        assert found.leaves_BM[row].tolist() == [path[-1] for _, path in expected] + [-1] * padding
        assert found.log_probs_BM[row].tolist() == [float(score) for score, _ in expected] + [-INF] * padding


def test_a_mask_of_other_requests_is_refused():
    mask = TrieMask.of(TRIE, requests_of([[]]))
    with pytest.raises(DataError, match=r"^the mask is of 1 requests, the search of 2"):
        beam_search(model([0.0, 0.0], [0.0] * 4, rows=2), (), TRIE, num_requests=2, num_beams=2, mask=mask)
    beams = search(model([0.0, 0.0], [0.0] * 4, rows=2), 2, num_requests=2)
    with pytest.raises(DataError, match=r"^the mask is of 1 requests, the search of 2"):
        beams_to_items(beams, TRIE, 2, mask)
