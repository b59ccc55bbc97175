import pytest
import torch
import torch.nn.functional as F

from tesserec.errors import RecipeError
from tesserec.nn.items import GateConfig, ItemEncoder, KeepsVectors
from tesserec.nn.sid_features import SIDKeys
from tesserec.types import SemanticIds

CODES = torch.tensor([[0, 1, 0], [1, 2, 0], [1, 2, 1]])
IDS = SemanticIds(CODES, (2, 3, 2), "test", has_digit=True)
CONTENT = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
ROW = torch.tensor([1, -1, 0])


def filled(encoder):
    """The same encoder with weights that can be told apart in a sum."""
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.copy_(torch.arange(1, weight.numel() + 1).view(weight.shape))
        encoder.own.weight[-1] = 0
    return encoder


def test_a_vector_is_the_sum_of_codes_content_and_own():
    encoder = filled(ItemEncoder(IDS, CONTENT, ROW, 4))
    codes, own, content = encoder.codes.weight, encoder.own.weight, encoder.content.weight
    assert codes.shape == (5, 4)
    assert own.shape == (3, 4)
    expected = [
        codes[0] + codes[3] + content[:, 0] + own[1],
        codes[1] + codes[4] + content[:, 1],  # content has length 1
        codes[1] + codes[4] + own[0],
    ]
    assert torch.equal(encoder.table(), torch.stack(expected))
    items = torch.tensor([[2, 0], [1, 1]])
    assert torch.equal(encoder(items), encoder.table()[items])


def test_the_collision_digit_says_nothing_of_content():
    assert IDS.num_content_levels == 2
    without_digit = SemanticIds(CODES, (2, 3, 2), "test")
    assert without_digit.num_content_levels == 3
    encoder = filled(ItemEncoder(without_digit, None, ROW, 4))
    codes = encoder.codes.weight
    assert codes.shape == (7, 4)
    assert torch.equal(encoder.table()[1], codes[1] + codes[4] + codes[5])


def test_parts_may_be_missing():
    own_only = filled(ItemEncoder(None, None, ROW, 4))
    assert own_only.content is None
    assert torch.equal(own_only.table(), own_only.own.weight[[1, 2, 0]])
    content_only = filled(ItemEncoder(None, CONTENT, torch.full((3,), -1), 4))
    assert torch.equal(content_only.table(), F.normalize(CONTENT, dim=1) @ content_only.content.weight.T)


def test_keys_take_the_place_of_codes():
    encoder = filled(ItemEncoder(IDS, CONTENT, ROW, 4, keys=SIDKeys("codes")))
    plain = filled(ItemEncoder(IDS, CONTENT, ROW, 4))
    with torch.no_grad():
        encoder.codes.rows.weight[:-1] = plain.codes.weight
        encoder.codes.rows.weight[-1] = 0
    assert torch.equal(encoder.table(), plain.table())
    prefixes = ItemEncoder(IDS, None, torch.full((3,), -1), 4, keys=SIDKeys("prefixes"))
    rows = prefixes.codes.rows.weight
    # two first codes, then six pairs of first and second
    assert torch.allclose(prefixes.table(), torch.stack([rows[0] + rows[3], rows[1] + rows[7], rows[1] + rows[7]]))
    items = torch.tensor([[2, 0], [1, 1]])
    assert torch.equal(prefixes(items), prefixes.table()[items])


def test_an_item_without_a_row_of_its_own_starts_and_stays_without():
    torch.manual_seed(0)
    encoder = ItemEncoder(IDS, None, torch.full((3,), -1), 64)
    assert encoder.own.weight.tolist() == [[0.0] * 64]
    encoder.table().sum().backward()
    assert encoder.own.weight.grad.tolist() == [[0.0] * 64]


def test_at_the_start_like_content_makes_like_vectors():
    torch.manual_seed(0)
    content_NF = F.normalize(torch.randn(300, 40), dim=1)
    encoder = ItemEncoder(
        SemanticIds(CODES[:1].expand(300, -1), (2, 300, 2), "test"), content_NF, torch.arange(300), 64
    )
    assert abs(encoder.own.weight[:-1].std().item() - 0.3 * 64**-0.5) < 0.003
    assert abs(encoder.codes.weight.std().item() - 0.5 * 64**-0.5) < 0.003
    assert not bool(encoder.own.weight[-1].any())
    projected_ND = encoder.content(encoder.content_NF)
    assert abs(projected_ND.norm(dim=1).mean().item() - 1) < 0.1
    dots_NN, cosines_NN = projected_ND @ projected_ND.T, content_NF @ content_NF.T
    assert torch.corrcoef(torch.stack([dots_NN.flatten(), cosines_NN.flatten()]))[0, 1] > 0.6


def test_only_the_rows_are_kept_with_the_weights():
    kept = ItemEncoder(IDS, CONTENT, ROW, 4).state_dict()
    assert sorted(kept) == ["codes.weight", "content.weight", "own.weight", "row_N"]


def test_a_gate_weighs_the_own_vector_against_the_others():
    plain = ItemEncoder(IDS, CONTENT, ROW, 4)
    gated = ItemEncoder(IDS, CONTENT, ROW, 4, gate=GateConfig(), events_N=torch.tensor([9, 0, 2]))
    gated.load_state_dict(plain.state_dict(), strict=False)
    half = ItemEncoder(IDS, CONTENT, ROW, 4, gate=GateConfig())
    half.load_state_dict(plain.state_dict(), strict=False)
    own_rows = ROW >= 0
    assert torch.allclose(half.table()[own_rows], plain.table()[own_rows] / 2, atol=1e-6)  # it starts half-way
    assert torch.allclose(half.table()[1], plain.table()[1], atol=1e-6)
    torch.nn.init.normal_(gated.gate.out.weight)
    own_ND, semantic_ND = gated._own(None), gated._semantic(None)
    assert not own_ND[1].any()
    gate_N = gated.gate.gate(own_ND, semantic_ND, torch.tensor([[10.0], [1.0], [3.0]]).log())
    gate_N[1] = 1  # without a row of its own
    assert torch.allclose(gated.table(), (1 - gate_N[:, None]) * own_ND + gate_N[:, None] * semantic_ND, atol=1e-6)
    assert torch.equal(gated(torch.tensor([2, 0])), gated.table()[[2, 0]])


def test_only_distinct_items_with_a_row_of_their_own_are_aligned():
    encoder = ItemEncoder(IDS, CONTENT, ROW, 4, gate=GateConfig(alignment=0.5))
    items = torch.tensor([0, 2])
    expected = encoder.gate.alignment(encoder._own(items), encoder._semantic(items), torch.full((2,), 0.5))
    assert torch.allclose(encoder.alignment(torch.tensor([2, 1, 0, 0])), 0.5 * expected)
    assert encoder.alignment(torch.tensor([1])) == 0
    assert ItemEncoder(IDS, CONTENT, ROW, 4).alignment(items) == 0
    assert ItemEncoder(IDS, CONTENT, ROW, 4, gate=GateConfig(alignment=0.0)).alignment(items) == 0


def test_a_gate_without_codes_and_content_is_refused():
    with pytest.raises(RecipeError, match="with that of codes or content, and there is neither"):
        ItemEncoder(None, None, ROW, 4, gate=GateConfig())


def test_of_many_items_some_are_aligned(monkeypatch):
    monkeypatch.setattr("tesserec.nn.items.MAX_ALIGNED", 1)
    encoder = ItemEncoder(IDS, CONTENT, ROW, 4, gate=GateConfig())
    assert encoder.alignment(torch.arange(3)) == 0  # one item has no others to be told from


def test_vectors_are_kept_outside_of_training_only():
    network = KeepsVectors()
    made = []

    def vectors():
        made.append(torch.nn.Parameter(torch.zeros(1)))
        return made[-1]

    network.kept(vectors)
    with torch.no_grad():
        network.kept(vectors)
        network.eval().kept(vectors)
        assert network.kept(vectors) is network.kept(vectors)
    assert len(made) == 3
    network.kept(vectors)
    assert len(made) == 3
    network.train().kept(vectors)
    network.eval().kept(vectors)  # with a gradient
    assert len(made) == 5
    assert not network.state_dict()
