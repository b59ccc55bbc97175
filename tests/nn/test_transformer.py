import pytest
import torch
import torch.nn.functional as F

from tesserec.nn.transformer import Attention, TransformerConfig, TransformerLayer, Trunk, distance_buckets

B, T, S, D = 3, 4, 6, 8


def config(**settings):
    return TransformerConfig(**({"width": D, "num_layers": 2, "num_heads": 2, "dropout": 0.5} | settings))


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x_BTD = torch.randn(B, T, D, generator=generator)
    source_BSD = torch.randn(B, S, D, generator=generator)
    allowed_BTS = torch.rand(B, T, S, generator=generator) < 0.6
    allowed_BTS[..., 0] = True
    return x_BTD, source_BSD, allowed_BTS


def oracle(attention, x_BTD, source_BSD, allowed_BTS, bias_BHTS):
    """The same weights through torch's own attention."""
    heads = attention.num_heads
    key, value = F.linear(source_BSD, attention.key_value.weight).chunk(2, dim=-1)
    query = F.linear(x_BTD, attention.query.weight)
    q, k, v = (torch.stack(part.chunk(heads, dim=-1), 1) for part in (query, key, value))
    bias_BHTS = bias_BHTS.masked_fill(~allowed_BTS[:, None], -torch.inf)
    mixed_BHTD = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_BHTS)
    return F.linear(torch.cat(list(mixed_BHTD.unbind(1)), -1), attention.output.weight)


@pytest.mark.parametrize("head_width", [None, 5])
def test_attention_equals_that_of_torch(head_width):
    torch.manual_seed(1)
    attention = Attention(config(head_width=head_width))
    assert attention.query.weight.shape == (2 * (head_width or 4), D)
    x_BTD, source_BSD, allowed_BTS = inputs()
    bias_BHTS = torch.randn(B, 2, T, S)
    expected = oracle(attention, x_BTD, source_BSD, allowed_BTS, bias_BHTS)
    torch.testing.assert_close(attention(x_BTD, source_BSD, allowed_BTS, bias_BHTS), expected)
    without = oracle(attention, x_BTD, source_BSD, allowed_BTS, torch.zeros(B, 2, T, S))
    torch.testing.assert_close(attention(x_BTD, source_BSD, allowed_BTS), without)
    key, value = attention.project(source_BSD)
    torch.testing.assert_close(attention.attend(x_BTD, key, value, allowed_BTS), without)


def test_every_layer_adds_the_bias_of_its_distances():
    torch.manual_seed(1)
    trunk = Trunk(config()).eval()
    assert trunk.distances.tolist() == [[0.0] * 32] * 2
    torch.nn.init.normal_(trunk.distances)
    x_BTD, _, allowed_BTS = inputs()
    allowed_BTT, buckets_BTT = allowed_BTS[..., :T], torch.randint(0, 32, (B, T, T))
    bias_BHTT = torch.stack([trunk.distances[head][buckets_BTT] for head in range(2)], 1)
    expected = x_BTD
    for layer in trunk.layers:
        expected = layer(expected, allowed_BTT, bias_BHTT)
    expected = F.layer_norm(expected, (D,))
    torch.testing.assert_close(trunk(x_BTD, allowed_BTT, buckets_BTT), expected)
    assert not torch.allclose(trunk(x_BTD, allowed_BTT), expected)
    trunk.distances = None
    assert torch.equal(trunk(x_BTD, allowed_BTT, buckets_BTT), trunk(x_BTD, allowed_BTT))


def test_what_is_masked_has_no_influence():
    torch.manual_seed(2)
    trunk = Trunk(config()).eval()
    x_BTD, _, _ = inputs()
    causal_BTT = torch.ones(B, T, T, dtype=torch.bool).tril()
    before = trunk(x_BTD, causal_BTT)
    x_BTD = x_BTD.clone()
    x_BTD[:, 2] += 10 * torch.randn(D)
    after = trunk(x_BTD, causal_BTT)
    assert torch.equal(before[:, :2], after[:, :2])
    assert bool((before[:, 2:] != after[:, 2:]).any(-1).all())


def test_a_position_that_sees_nothing_gets_the_mean_of_the_sources():
    torch.manual_seed(3)
    attention = Attention(config())
    x_BTD, source_BSD, allowed_BTS = inputs()
    allowed_BTS[1, 2] = False
    _, value = F.linear(source_BSD[1], attention.key_value.weight).chunk(2, dim=-1)
    found = attention(x_BTD, source_BSD, allowed_BTS)
    torch.testing.assert_close(found[1, 2], F.linear(value.mean(0), attention.output.weight))


def test_a_layer_adds_what_it_normalised_first():
    torch.manual_seed(4)
    layer = TransformerLayer(config(feedforward=3), cross=True).eval()
    x_BTD, source_BSD, allowed_BTS = inputs()
    allowed_BTT = allowed_BTS[..., :T]
    normed = F.layer_norm(x_BTD, (D,))
    attended = x_BTD + layer.attention(normed, normed, allowed_BTT)
    first, _, last = layer.feedforward
    assert first.out_features == last.in_features == 3 * D

    def fed(x):
        return x + last(F.gelu(first(F.layer_norm(x, (D,)))))

    torch.testing.assert_close(layer(x_BTD, allowed_BTT), fed(attended))
    torch.testing.assert_close(layer.look_back(x_BTD, allowed_BTT), attended)
    looked = x_BTD + layer.cross(normed, source_BSD, allowed_BTS)
    torch.testing.assert_close(layer.look(x_BTD, *layer.project(source_BSD), allowed_BTS), looked)
    assert TransformerLayer(config()).cross is None


def test_a_trunk_without_layers_normalises():
    x_BTD, _, allowed_BTS = inputs()
    trunk = Trunk(config(num_layers=0)).eval()
    torch.testing.assert_close(trunk(x_BTD, allowed_BTS), F.layer_norm(x_BTD, (D,)))
    assert len(Trunk(config(num_layers=3), distances=False).layers) == 3
    assert trunk.distances is not None
    assert Trunk(config(), distances=False).distances is None


def test_dropout_is_for_training_only():
    x_BTD, source_BSD, allowed_BTS = inputs()
    layer = TransformerLayer(config(dropout=0.9), cross=True)
    halves = [
        lambda: layer.look_back(x_BTD, allowed_BTS[..., :T]),
        lambda: layer.look(x_BTD, *layer.project(source_BSD), allowed_BTS),
        lambda: layer.feed(x_BTD),
    ]
    dropped = [half() for half in halves]
    layer.eval()
    for half, before in zip(halves, dropped, strict=True):
        assert bool((before == x_BTD).any())
        assert not bool((half() == x_BTD).any())
    trunk = Trunk(config(num_layers=0, dropout=0.9))
    assert not torch.equal(trunk(x_BTD, allowed_BTS), trunk.eval()(x_BTD, allowed_BTS))


def test_distances_are_exact_below_16_and_logarithmic_up_to_1024():
    assert distance_buckets(torch.arange(16)).tolist() == list(range(16))
    # 16 + ⌊16 · ln(d / 16) / ln(64)⌋
    far = torch.tensor([16, 20, 21, 26, 27, 127, 129, 500, 789, 790, 1023, 1024, 10**6])
    assert distance_buckets(far).tolist() == [16, 16, 17, 17, 18, 23, 24, 29, 30, 31, 31, 31, 31]
    every = distance_buckets(torch.arange(3000))
    assert bool((every.diff() >= 0).all())
    assert sorted(set(every.tolist())) == list(range(32))


def test_a_width_that_the_heads_do_not_share_is_refused():
    with pytest.raises(ValueError, match="width 8 must be a multiple of num_heads 3: or give head_width"):
        config(num_heads=3)
    assert config(num_heads=3, head_width=2).head_width == 2


def test_settings():
    made = TransformerConfig()
    assert (made.width, made.num_layers, made.num_heads, made.head_width) == (64, 2, 2, None)
    assert (made.feedforward, made.dropout) == (4, 0.2)
