"""The parts of an RQ-VAE: those of strength zero change no bit, depths, sources, what losses are told, the alarm."""

import pytest
import torch
from tests.semantic_ids.two_factors import randn
from torch import nn

from tesserec.config import build_component, component, described, fresh
from tesserec.errors import DataError
from tesserec.semantic_ids import RQVAE, RQVAEParts, RQVAETraining
from tesserec.semantic_ids.assigners import Nearest
from tesserec.semantic_ids.composition import QuantizerLoss, info_nce
from tesserec.semantic_ids.residual import explained_share
from tesserec.semantic_ids.rq_network import Alarm, Network
from tesserec.semantic_ids.sources import presence
from tesserec.types import SideInformation

QUICK = RQVAETraining(num_steps=40, batch_size=64, revive_every=10)


@component
class Watching:
    """A loss that keeps the records it saw, and pulls all latents to zero."""

    weight: float = 1.0

    def module(self, setup):
        self.setup, self.seen = setup, []
        return _WatchingModule(self)


class _WatchingModule(nn.Module):
    def __init__(self, owner):
        super().__init__()
        self.owner, self.factor = owner, nn.Parameter(torch.ones(()))

    def forward(self, record):
        self.owner.seen.append(record)
        chosen = [codebook[record.quantized.codes_BL[:, level]] for level, codebook in enumerate(record.codebooks)]
        assert torch.equal(torch.stack(chosen), torch.stack(record.quantized.chosen))
        return (record.quantized.straight_through() * self.factor).square().mean()


def quick(losses=(), training=QUICK, **parts):
    return RQVAE(
        num_levels=2,
        codebook_size=8,
        hidden_sizes=(16,),
        num_latents=4,
        training=training,
        parts=RQVAEParts(**parts),
        losses=losses,
    )


def fitted(quantizer, features, **side):
    quantizer.fit(features, SideInformation(seed=3, **side))
    return quantizer


def test_parts_and_losses_of_strength_zero_change_no_bit():
    features = randn(120, 6)
    plain = fitted(quick(), features).state().tensors
    others = [
        quick(losses=(Watching(weight=0.0),)),
        quick(losses=(Watching(weight=1e-38),)),  # what a loss draws and owns changes nothing else
        quick(assigners=(Nearest(), Nearest())),
        quick(source_widths=(6,)),
    ]
    for other in others:
        found = fitted(other, features).state().tensors
        assert all(torch.equal(found[name], plain[name]) for name in plain)
    assert not torch.equal(
        fitted(quick((Watching(),)), features).state().tensors["encoder.0.bias"], plain["encoder.0.bias"]
    )


def test_a_loss_is_told_of_the_batch_and_its_own_weights_are_trained():
    features = randn(50, 6)
    loss = Watching(weight=5.0)
    assert isinstance(loss, QuantizerLoss)
    items = torch.arange(50) * 2
    quantizer = fitted(quick((loss,)), features, item_N=items)
    assert loss.setup.codebook_sizes == (8, 8)
    assert torch.equal(loss.setup.items_N, items)
    first, last = loss.seen[0], loss.seen[-1]
    assert (first.step, last.step, len(loss.seen)) == (1, 40, 40)
    mean, scale = quantizer._fitted().mean, quantizer._fitted().scale
    assert torch.allclose(last.inputs_BD, (features[last.rows_B] - mean) / scale)
    q = last.quantized
    assert torch.allclose(q.total(), q.chosen[0] + q.chosen[1])
    assert torch.allclose(q.residuals[1], q.residuals[0] - q.chosen[0])
    assert torch.allclose(q.code_errors[0], (q.residuals[0] - q.chosen[0]).square().sum(1))
    assert last.reconstruction_BD.shape == last.inputs_BD.shape


def test_other_features_go_the_same_way():
    loss = Watching()
    quantizer = fitted(quick((loss,)), randn(50, 6))
    quantized = loss.seen[-1].quantize(randn(5, 6, seed=2))
    assert torch.equal(quantized.codes_BL, quantizer.encode(randn(5, 6, seed=2)))


def test_the_sum_of_the_first_levels_by_hand():
    network = Network(2, (), 2, (1, 1))
    with torch.no_grad():
        network.codebooks[0].copy_(torch.tensor([[1.0, 0.0]]))
        network.codebooks[1].copy_(torch.tensor([[0.0, 5.0]]))
    latents = torch.zeros(2, 2, requires_grad=True)
    quantized = network.quantize(latents)
    assert quantized.total(torch.tensor([1, 2])).tolist() == [[1.0, 0.0], [1.0, 5.0]]
    through = quantized.straight_through(torch.tensor([1, 2]))
    assert through.tolist() == [[1.0, 0.0], [1.0, 5.0]]
    through.sum().backward()
    assert latents.grad.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert network.codebooks[0].grad is None


def test_masked_depths_make_the_first_level_decodable_alone():
    coarse, fine = randn(8, 16), randn(8, 16, seed=1)  # as loud as each other: the plain decoder needs both levels
    features = (coarse[:, None, None] + fine[None, :, None] + 0.03 * randn(8, 8, 4, 16, seed=2)).reshape(-1, 16)
    training = RQVAETraining(num_steps=250, batch_size=128, learning_rate=5e-3, revive_every=20)
    shares = []
    for masking in (False, True):
        for seed in range(3):
            quantizer = quick(training=training, depth_masking=masking)
            quantizer.fit(features, SideInformation(seed=seed))
            codes = quantizer.encode(features)
            shares.append([explained_share(features, quantizer.decode(codes[:, :depth])) for depth in (1, 2)])
    (plain, _), (masked, both) = torch.tensor(shares).view(2, 3, 2).mean(1).tolist()
    assert masked > plain + 0.01
    assert both > masked


def test_a_missing_source_is_told_from_the_others_and_neither_read_nor_reconstructed():
    group_N = torch.arange(200) % 8
    left = randn(8, 4)[group_N] + 0.05 * randn(200, 4, seed=1)
    right = randn(8, 5, seed=2)[group_N] * 20 + 3
    features = torch.cat([left, right], 1)
    lacking = features.clone()
    lacking[:60, 4:] = 0
    training = RQVAETraining(num_steps=300, batch_size=128, learning_rate=1e-2)
    found = []
    for widths in ((), (4, 5)):
        quantizer = fitted(quick(training=training, source_widths=widths), lacking)
        decoded = quantizer.decode(quantizer.encode(lacking))
        found.append(explained_share(features[:60, 4:], decoded[:60, 4:]))
    assert found[0] < 0.3  # one encoder: a missing source is a vector of zeros, and is reconstructed as such
    assert found[1] > 0.5  # one a source: what the item has says what is missing
    network = quantizer._fitted()
    assert torch.allclose(network.mean[4:], lacking[60:, 4:].mean(0))
    assert network.scale[:4].unique().numel() == 1
    assert network.scale[4] > 5 * network.scale[0]
    other = quick(source_widths=(4, 5))
    other.restore(quantizer.state())
    assert torch.equal(other.encode(lacking), quantizer.encode(lacking))


def test_presence_by_hand():
    features = torch.tensor([[0.0, 0.0, 1.0], [0.0, 2.0, 0.0]])
    assert presence(features, (2, 1)).tolist() == [[False, True], [True, False]]


def test_info_nce_by_hand():
    a, b = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[5.0, 0.0], [3.0, 4.0]])
    # cosines: 1, 0.6 / 0, 0.8
    expected = (-(torch.tensor([2.0, 1.2]).log_softmax(0)[0]) - torch.tensor([0.0, 1.6]).log_softmax(0)[1]) / 2
    assert info_nce(a, b, 0.5).item() == pytest.approx(expected.item())
    masked = torch.tensor([[False, True], [True, False]])
    assert info_nce(a, b, 0.5, masked).item() == 0


def test_recipes_name_the_parts_by_their_classes():
    table = {
        "class": "tesserec.semantic_ids.rq_vae:RQVAE",
        "num_levels": 2,
        "parts": {
            "assigners": [
                {"class": "tesserec.semantic_ids.assigners:Nearest"},
                {"class": "tesserec.semantic_ids.assigners:Sinkhorn", "epsilon": 0.01},
            ],
            "depth_masking": True,
        },
    }
    quantizer = build_component(table, "quantizer")
    assert quantizer.parts.assigners[1].epsilon == 0.01
    assert fresh(quantizer) == quantizer
    assert build_component(described(quantizer), "quantizer") == quantizer


def test_the_alarm_sounds_once():
    alarm = Alarm((20, 4), 0.1)
    even = torch.stack([torch.arange(20), torch.arange(20) % 4], 1)
    alarm.count(even)
    assert not alarm.note()
    alarm.count(torch.zeros(20, 2, dtype=torch.int64))
    # the second level of 4 codes: a perplexity of 1 is above 0.4
    words = "level 1 has collapsed: perplexity 1.0 of 20 codes"
    assert alarm.note() == f"; {words}"
    alarm.count(torch.zeros(20, 2, dtype=torch.int64))
    assert not alarm.note()
    assert alarm.collapsed == {1: words}
    alarm.count(torch.zeros(19, 2, dtype=torch.int64))
    alarm.note()  # fewer than there are codes, which say nothing yet
    alarm.count(even)
    alarm.count(even)
    alarm.count(even)
    assert not alarm.note()
    assert alarm.collapsed == {}


def test_a_level_that_collapses_is_noted_in_the_progress():
    notes = []
    features = torch.cat([torch.zeros(400, 2), randn(20, 2)])
    training = RQVAETraining(num_steps=100, batch_size=64, collapse_share=0.5)
    quantizer = RQVAE(num_levels=1, codebook_size=20, hidden_sizes=(), num_latents=2, training=training)
    with pytest.warns(UserWarning, match=r"RQ-VAE: level 1 has collapsed: perplexity .* of 20 codes; many items"):
        quantizer.fit(features, SideInformation(progress=lambda *seen: notes.append(seen[-1])))
    assert [("level 1 has collapsed: perplexity " in note) for note in notes] == [True, False]


def test_refuses_parts_that_do_not_fit():
    with pytest.raises(ValueError, match="1 assigners for 2 levels: give one a level"):
        quick(assigners=(Nearest(),))
    with pytest.raises(DataError, match=r"source_widths \[2, 2\] add up to 4, the features have 6 columns"):
        fitted(quick(source_widths=(2, 2)), randn(9, 6))
    with pytest.raises(DataError, match="no item has the source of columns 2 to 5: leave it out"):
        fitted(quick(source_widths=(2, 4)), torch.cat([randn(9, 2), torch.zeros(9, 4)], 1))
    with pytest.raises(DataError, match="item_N names 3 items for 9 rows of features: give one a row"):
        SideInformation(item_N=torch.arange(3)).items_of_rows(9)
