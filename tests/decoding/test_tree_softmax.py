import math

import pytest
import torch
import torch.nn.functional as F

from tesserec.decoding import tree_softmax as module
from tesserec.decoding.beam_search import beam_search
from tesserec.decoding.tree_softmax import NodeRows, TreeSoftmax, prefix_keys
from tesserec.decoding.trie import Trie
from tesserec.errors import ResourceError
from tesserec.testing.decoding import random_semantic_ids
from tesserec.types import SemanticIds

SIZES = (2, 3, 2)
# Nodes of depth 2: (0 0) 0 · (0 2) 1 · (1 1) 2; of depth 3: an item each.
CODES = [[0, 0, 0], [0, 0, 1], [0, 2, 0], [1, 1, 0], [1, 1, 1]]
COUNTS = torch.tensor([5, 3, 2, 1, 4])
D = 6


def trie_of(codes, sizes=SIZES):
    return Trie.build(SemanticIds(torch.tensor(codes), sizes, "test"))


TRIE = trie_of(CODES)


def rows_of(least, most):
    rows = NodeRows.chosen(TRIE, COUNTS, least, most)
    return list(zip(rows.depth_R.tolist(), rows.key_R.tolist(), strict=True))


def softmax_of(trie, rows, scale=3.0, seed=0):
    """A model whose vectors are all drawn at random."""
    torch.manual_seed(seed)
    model = TreeSoftmax(trie, rows, D, scale)
    with torch.no_grad():
        torch.nn.init.normal_(model.codes.weight)
        torch.nn.init.normal_(model.rows.weight)
        model.rows.weight[-1] = 0
        model.log_scale += torch.arange(trie.num_levels) / 4
    return model


def by_hand(model, codes, sizes, scale=3.0, bonus=lambda prefix: 0.0):
    """A function from states to log-probabilities [S, N], from dictionaries of prefixes."""
    tuples = [tuple(row) for row in codes]
    own = {}
    for row, (depth, key) in enumerate(zip(model.row_depth.tolist(), model.row_key.tolist(), strict=True)):
        radices = [math.prod(sizes[level + 1 : depth]) for level in range(depth)]
        own[tuple(key // radix % size for radix, size in zip(radices, sizes, strict=False))] = model.rows.weight[row]

    def vector(prefix):
        nearest = next((own[prefix[:n]] for n in range(len(prefix), 0, -1) if prefix[:n] in own), torch.zeros(D))
        return model.codes.weight[sum(sizes[: len(prefix) - 1]) + prefix[-1]] + nearest

    def log_probs(states_SD):
        total_SN = torch.zeros(len(states_SD), len(tuples))
        for level in range(len(sizes)):
            for item, whole in enumerate(tuples):
                above = whole[:level]
                children = sorted({t[: level + 1] for t in tuples if t[:level] == above})
                prefix_SD = torch.zeros_like(states_SD) if level == 0 else vector(above).expand_as(states_SD)
                query_SD = states_SD + model.mixers[level](torch.cat([states_SD, prefix_SD], 1))
                cosines = [F.cosine_similarity(query_SD, vector(child)[None]) for child in children]
                logits_SC = torch.stack(cosines, 1) * scale * torch.tensor(level / 4).exp()
                logits_SC = logits_SC + torch.tensor([bonus(child) for child in children])
                total_SN[:, item] += logits_SC.log_softmax(1)[:, children.index(whole[: level + 1])]
        return total_SN

    return log_probs


def all_pairs(model, states_SD, num_items, bonuses=None):
    state_P = torch.arange(len(states_SD)).repeat_interleave(num_items)
    items_P = torch.arange(num_items).repeat(len(states_SD))
    return model.path_log_probs(states_SD, state_P, items_P, bonuses).view(len(states_SD), num_items)


def step_of(model, states_BD, bonuses=None):
    def step(cache, level, parents_BM, nodes_BM, children_BMC, codes_BMC):
        bonus_BG = None if bonuses is None else bonuses[level]
        return None, model.children_log_probs(level, states_BD, nodes_BM, children_BMC, bonus_BG)

    return step


# Which prefixes have vectors.


def test_keys_are_prefixes_in_mixed_radix():
    assert [keys.tolist() for keys in prefix_keys(TRIE)] == [[0, 1], [0, 2, 4], [0, 1, 4, 8, 9]]
    with pytest.raises(
        ResourceError, match=r"^prefixes of codebooks of \[2097152, 2097152, 2097152\] codes need more th"
    ):
        prefix_keys(trie_of([[0, 0, 0]], (2**21,) * 3))


def test_prefixes_with_enough_targets_are_chosen_most_frequent_first():
    assert rows_of(3, 100) == [(2, 0), (2, 4), (3, 0), (3, 1), (3, 9)]
    assert rows_of(4, 100) == [(2, 0), (2, 4), (3, 0), (3, 9)]
    assert rows_of(1, 3) == [(2, 0), (2, 4), (3, 0)]
    assert rows_of(1, 2) == [(2, 0), (2, 4)]
    assert rows_of(9, 2) == rows_of(1, 0) == []
    one_level = NodeRows.chosen(trie_of([[0], [1]], (2,)), torch.tensor([9, 9]), 1, 9)
    assert {one_level.depth_R.dtype, one_level.key_R.dtype} == {torch.int64}
    assert one_level.depth_R.tolist() == one_level.key_R.tolist() == []
    assert one_level.key_R.dtype == torch.int64


def test_a_node_without_a_row_has_that_of_its_nearest_ancestor():
    rows = NodeRows(torch.tensor([3, 2, 2]), torch.tensor([0, 4, 0]))
    found = [row.tolist() for row in rows.of_nodes(TRIE)]
    assert found == [[3, 3], [2, 3, 1], [0, 2, 3, 1, 1]]
    none = NodeRows.chosen(TRIE, COUNTS, 1, 0)
    assert [row.tolist() for row in none.of_nodes(TRIE)] == [[0, 0], [0] * 3, [0] * 5]


def test_rows_are_found_again_in_a_larger_table():
    rows = NodeRows(torch.tensor([2, 3]), torch.tensor([4, 9]))
    grown = trie_of([[0, 1, 0], *CODES, [1, 0, 0], [1, 2, 1]])
    assert [row.tolist() for row in rows.of_nodes(grown)] == [
        [2, 2],
        [2, 2, 2, 2, 0, 2],
        [2, 2, 2, 2, 2, 0, 1, 2],
    ]


def test_vectors_move_to_the_rows_of_the_same_prefixes():
    earlier = NodeRows(torch.tensor([2, 2, 3]), torch.tensor([0, 4, 4]))
    later = NodeRows(torch.tensor([2, 2, 3]), torch.tensor([2, 4, 0]))
    vectors = torch.tensor([[1.0], [2.0], [3.0], [0.0]])
    assert later.moved(earlier, vectors).tolist() == [[0], [2], [0], [0]]
    assert earlier.moved(earlier, vectors).tolist() == vectors.tolist()


# Probabilities.


@pytest.mark.parametrize("most", [0, 3, 100])
def test_path_log_probs_are_those_worked_out_by_hand(most):
    model = softmax_of(TRIE, NodeRows.chosen(TRIE, COUNTS, 1, most))
    states_SD = torch.randn(3, D)
    expected = by_hand(model, CODES, SIZES)(states_SD)
    torch.testing.assert_close(all_pairs(model, states_SD, 5), expected)
    assert expected.exp().sum(1).tolist() == pytest.approx([1.0] * 3, abs=1e-5)
    picked = model.path_log_probs(states_SD, torch.tensor([2, 0, 2, 2]), torch.tensor([4, 1, 4, 0]))
    torch.testing.assert_close(picked, expected[[2, 0, 2, 2], [4, 1, 4, 0]])


@pytest.mark.parametrize("scale", [0.5, 300.0])
def test_random_tables_sum_to_one_and_equal_the_beam_search(scale):
    sizes = (4, 3, 5)
    generator = torch.Generator().manual_seed(4)
    drawn = random_semantic_ids(40, sizes, generator).codes_NL
    codes = torch.unique(drawn, dim=0)[torch.randperm(len(torch.unique(drawn, dim=0)), generator=generator)]
    trie = Trie.build(SemanticIds(codes, sizes, "test"))
    num_items = len(codes)
    model = softmax_of(trie, NodeRows.chosen(trie, torch.ones(num_items), 2, 10), scale)
    states_BD = torch.randn(4, D)
    found_BN = all_pairs(model, states_BD, num_items)
    assert found_BN.exp().sum(1).tolist() == pytest.approx([1.0] * 4, abs=1e-5)
    torch.testing.assert_close(found_BN, by_hand(model, codes.tolist(), sizes, scale)(states_BD), rtol=1e-4, atol=1e-3)
    beams = beam_search(step_of(model, states_BD), None, trie, num_requests=4, num_beams=num_items + 1)
    assert bool((beams.leaves_BM[:, -1] == -1).all())
    leaf_N = trie.paths_NL[:, -1]
    by_leaf_BN = torch.empty_like(found_BN)
    by_leaf_BN[:, leaf_N] = found_BN
    searched = by_leaf_BN.gather(1, beams.leaves_BM[:, :-1])
    torch.testing.assert_close(beams.log_probs_BM[:, :-1], searched, rtol=1e-4, atol=1e-3)


def test_products_of_each_parent_equal_those_of_each_pair(monkeypatch):
    ids = random_semantic_ids(60, (3, 5, 4), torch.Generator().manual_seed(3))
    trie = Trie.build(ids)
    rows = NodeRows.chosen(trie, torch.ones(60), 2, 9)
    model = softmax_of(trie, rows)
    states_SD = torch.randn(4, D)
    state_P, items_P = torch.randint(4, (50,)), torch.randint(60, (50,))
    found = []
    for limit in (10**9, 0):
        monkeypatch.setattr(module, "LARGE_PRODUCT", limit)
        model.zero_grad()
        log_probs_P = model.path_log_probs(states_SD, state_P, items_P)
        log_probs_P[::3].sum().backward()
        found.append((log_probs_P.detach(), model.codes.weight.grad, model.rows.weight.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_an_only_child_has_probability_1_and_teaches_nothing():
    codes = [[0, 0, 1], [0, 1, 2], [1, 0, 0], [2, 2, 0]]
    trie = Trie.build(SemanticIds(torch.tensor(codes), (3, 3, 3), "only"))
    model = softmax_of(trie, NodeRows.chosen(trie, torch.ones(4), 1, 9))
    states_SD = torch.randn(2, D)
    state_P, items_P = torch.arange(2).repeat_interleave(4), torch.arange(4).repeat(2)
    teacher_SN = torch.randn(2, 4).log_softmax(1)
    hard_P, soft_P = model.distilled(states_SD, state_P, items_P, teacher_SN)
    torch.testing.assert_close(hard_P.view(2, 4), by_hand(model, codes, (3, 3, 3))(states_SD))
    first_P = model.path_log_probs(states_SD, state_P, items_P)
    torch.testing.assert_close(hard_P, first_P)
    assert hard_P.view(2, 4).exp().sum(1).tolist() == pytest.approx([1, 1])
    (hard_P.sum() + soft_P.sum()).backward()
    assert not model.codes.weight.grad[6:].any(), "all nodes of the last level are only children"
    assert model.codes.weight.grad[:3].any()
    before = model.path_log_probs(states_SD, state_P, items_P).detach()
    with torch.no_grad():
        model.codes.weight[6:] = torch.nan  # who is an only child is not even looked at
        torch.testing.assert_close(model.path_log_probs(states_SD, state_P, items_P), before)
        beams = beam_search(step_of(model, states_SD), None, trie, num_requests=2, num_beams=4)
    by_leaf_BN = torch.empty(2, 4).index_copy(1, trie.paths_NL[:, -1].long(), before.view(2, 4))
    torch.testing.assert_close(beams.log_probs_BM, by_leaf_BN.gather(1, beams.leaves_BM))


def test_bonuses_of_nodes_are_added_to_their_logits():
    model = softmax_of(TRIE, NodeRows.chosen(TRIE, COUNTS, 1, 3))
    prefixes = [sorted({tuple(row[:depth]) for row in CODES}) for depth in (1, 2, 3)]
    states_BD = torch.randn(2, D)
    bonuses = [torch.randn(2, len(nodes)) for nodes in prefixes]
    found_BN = all_pairs(model, states_BD, 5, bonuses)
    for row in range(2):
        extra = {p: v for nodes, b in zip(prefixes, bonuses, strict=True) for p, v in zip(nodes, b[row], strict=True)}
        expected = by_hand(model, CODES, SIZES, bonus=lambda prefix, extra=extra: float(extra[prefix]))
        torch.testing.assert_close(found_BN[row], expected(states_BD[row][None])[0])
    beams = beam_search(step_of(model, states_BD, bonuses), None, TRIE, num_requests=2, num_beams=5)
    torch.testing.assert_close(beams.log_probs_BM, found_BN.gather(1, beams.leaves_BM))


def test_a_teacher_that_is_sure_teaches_the_target():
    """With all of a teacher's probability on each target the agreement is the log-probability of its path."""
    model = softmax_of(TRIE, NodeRows.chosen(TRIE, COUNTS, 1, 100))
    states_SD, items_P = torch.randn(5, D), torch.arange(5)
    hard_P, soft_P = model.distilled(states_SD, items_P, items_P, torch.eye(5).log())
    torch.testing.assert_close(hard_P, model.path_log_probs(states_SD, items_P, items_P))
    torch.testing.assert_close(soft_P, hard_P)


def test_a_teacher_is_followed_at_every_prefix_of_the_path():
    model = softmax_of(TRIE, NodeRows.chosen(TRIE, COUNTS, 1, 100))
    states_SD, items_P = torch.randn(5, D), torch.arange(5)
    teacher_SN = torch.rand(5, 5).softmax(1)
    _, soft_P = model.distilled(states_SD, items_P, items_P, teacher_SN.log())
    alone_SN = by_hand(model, CODES, SIZES)(states_SD)
    for item, path in enumerate(CODES):
        expected = 0.0
        for level in range(3):
            below = [n for n, other in enumerate(CODES) if other[:level] == path[:level]]
            sure_N = alone_SN[item].exp()
            for code in sorted({CODES[n][level] for n in below}):
                child = [n for n in below if CODES[n][level] == code]
                taught = teacher_SN[item, child].sum() / teacher_SN[item, below].sum()
                expected += taught * (sure_N[child].sum() / sure_N[below].sum()).log()
        torch.testing.assert_close(soft_P[item], expected, atol=1e-4, rtol=1e-4)


def test_what_is_kept_of_vectors_is_forgotten_when_training_goes_on():
    model = softmax_of(TRIE, NodeRows.chosen(TRIE, COUNTS, 1, 100)).eval()
    states_BD = torch.randn(2, D)
    with torch.no_grad():
        before = beam_search(step_of(model, states_BD), None, TRIE, num_requests=2, num_beams=5)
        model.train()
        model.codes.weight += torch.randn_like(model.codes.weight)
        model.eval()
        after = beam_search(step_of(model, states_BD), None, TRIE, num_requests=2, num_beams=5)
    assert not torch.allclose(before.log_probs_BM, after.log_probs_BM)


def test_an_untrained_child_is_its_parent_and_its_code():
    """Only (0 0) has a vector: both its children use it, and nothing else is moved by it."""
    model = softmax_of(TRIE, NodeRows(torch.tensor([2]), torch.tensor([0])))
    assert model.codes.weight.shape == (7, D)
    states_SD = torch.randn(1, D)
    with torch.no_grad():
        before = all_pairs(model, states_SD, 5)
        query = F.normalize(states_SD + model.mixers[2](torch.cat([states_SD, vectors(model, 2, [0])], 1)), dim=1)
        row = model.rows.weight[0]
        children = F.normalize(model.codes.weight[[5, 6]] + row, dim=1)
        by_hand = (query @ children.T * model.log_scale[2].exp()).log_softmax(1)
        assert (before[0, 0] - before[0, 1]).item() == pytest.approx((by_hand[0, 0] - by_hand[0, 1]).item(), rel=1e-4)
        model.rows.weight[0] += torch.randn(D)
        after = all_pairs(model, states_SD, 5)
    assert torch.equal(after[0, 3:], before[0, 3:])
    assert not torch.isclose(after[0, 0] - after[0, 1], before[0, 0] - before[0, 1], atol=1e-4)


def vectors(model, depth, nodes):
    """Code and row of depth-2 nodes (0 0), (0 2), (1 1) of a model with one row, for (0 0)."""
    assert depth == 2
    code = torch.tensor([2, 4, 3])[nodes]
    row = torch.tensor([0, 1, 1])[nodes]
    return model.codes.weight[code] + model.rows.weight[row]


def test_each_level_is_a_softmax_over_the_children_that_exist():
    model = softmax_of(TRIE, NodeRows.chosen(TRIE, COUNTS, 1, 100))
    nodes_BM = torch.tensor([[0, 1, 2, -1]])
    children_BMC, _ = TRIE.children(2, nodes_BM)
    assert children_BMC.tolist() == [[[0, 1], [2, -1], [3, 4], [-1, -1]]]
    found = model.children_log_probs(2, torch.randn(1, D), nodes_BM, children_BMC)
    assert found[0, 1].tolist() == [0.0, -torch.inf]
    assert found[0, 3].tolist() == [-torch.inf] * 2
    assert found[0, [0, 2]].exp().sum(1).tolist() == pytest.approx([1, 1])
    root_BM = torch.zeros(1, 1, dtype=torch.int64)
    first = model.children_log_probs(0, torch.randn(1, D), root_BM, TRIE.children(0, root_BM)[0])
    assert first[0].exp().sum(1).tolist() == pytest.approx([1])


def test_a_new_model_knows_codes_only():
    torch.manual_seed(0)
    model = TreeSoftmax(TRIE, NodeRows.chosen(TRIE, COUNTS, 1, 100), 64, 20.0)
    assert not bool(model.rows.weight.any())
    assert model.rows.weight.shape == (9, 64)
    assert abs(model.codes.weight.std().item() - 1 / 8) < 0.02
    assert model.log_scale.exp().tolist() == pytest.approx([20.0] * 3)
    kept = model.state_dict()
    assert kept["row_depth"].tolist() == [2, 2, 2, 3, 3, 3, 3, 3]
    assert kept["row_key"].tolist() == [0, 2, 4, 0, 1, 4, 8, 9]


def test_a_random_target_is_learnt():
    model = softmax_of(TRIE, NodeRows.chosen(TRIE, COUNTS, 1, 2), scale=10.0)
    states_SD = torch.randn(5, D)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    items = torch.tensor([4, 2, 0, 3, 1])
    for _ in range(60):
        loss = -model.path_log_probs(states_SD, torch.arange(5), items).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all_pairs(model, states_SD, 5).argmax(1).tolist() == items.tolist()
    assert not bool(model.rows.weight[-1].any())


def test_nodes_of_items_have_the_mean_of_the_items_below_them():
    torch.manual_seed(0)
    model = TreeSoftmax(TRIE, NodeRows.chosen(TRIE, COUNTS, 1, 99), D, 3.0, of_items=True)
    units_ND = F.normalize(torch.randn(5, D), dim=1)
    with torch.no_grad():
        model.share.copy_(torch.tensor([2.0, 3.0, 5.0]))
    model.place(units_ND)
    first = model.codes.weight[0] + 2 * units_ND[:3].mean(0)
    second = model.codes.weight[2] + 3 * units_ND[:2].mean(0)
    torch.testing.assert_close(model._vectors(0, torch.tensor([0])), first[None])
    torch.testing.assert_close(model._vectors(1, torch.tensor([0])), second[None])
    torch.testing.assert_close(model._vectors(2, torch.tensor([4])), (model.codes.weight[6] + 5 * units_ND[4])[None])
    states_SD = torch.randn(2, D)
    paths = model.path_log_probs(states_SD, torch.arange(2).repeat_interleave(5), torch.arange(5).repeat(2))
    torch.testing.assert_close(paths.view(2, 5).exp().sum(1), torch.ones(2))
    paths.sum().backward()
    assert bool(model.share.grad.all())


def test_nodes_of_items_follow_them():
    torch.manual_seed(0)
    model = TreeSoftmax(TRIE, NodeRows.chosen(TRIE, COUNTS, 1, 99), D, 3.0, of_items=True).eval()
    model.place(torch.eye(5, D))
    with torch.no_grad():
        before = model.path_log_probs(torch.ones(1, D), torch.zeros(5).long(), torch.arange(5))
        model.train().eval()
        model.place(-torch.eye(5, D))
        after = model.path_log_probs(torch.ones(1, D), torch.zeros(5).long(), torch.arange(5))
    assert not torch.allclose(before, after)
