"""T5 against Hugging Face's, and its search against its own full pass."""

import copy

import pytest
import torch

from tesserec.errors import DataError
from tesserec.nn.t5 import T5
from tesserec.nn.transformer import TransformerConfig

SHAPES = (
    {"width": 8, "num_layers": 1, "num_heads": 2, "head_width": 4, "feedforward": 2},
    {"width": 12, "num_layers": 2, "num_heads": 3, "head_width": 5, "feedforward": 3},
    {"width": 16, "num_layers": 3, "num_heads": 1, "head_width": 7, "feedforward": 1},
)
V = 11


def config(shape, dropout=0.0):
    return TransformerConfig(**shape, dropout=dropout)


def huggingface(shape, seed, tied):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    settings = transformers.T5Config(
        vocab_size=V,
        d_model=shape["width"],
        d_kv=shape["head_width"],
        d_ff=shape["width"] * shape["feedforward"],
        num_layers=shape["num_layers"],
        num_heads=shape["num_heads"],
        pad_token_id=0,
        decoder_start_token_id=0,
        eos_token_id=None,
        tie_word_embeddings=tied,
    )
    model = transformers.T5ForConditionalGeneration(settings).eval()
    for parameter in model.parameters():  # norms that start at 1 would hide where they belong
        parameter.data += 0.2 * torch.randn(parameter.shape)
    return model


def inputs(length, num_written=4, batch=3):
    tokens_BS = torch.randint(1, V, (batch, length))
    exists_BS = torch.arange(length) >= torch.tensor([0, length // 2, length - 1])[:, None]
    written_BT = torch.cat([torch.zeros(batch, 1, dtype=torch.int64), torch.randint(1, V, (batch, num_written))], 1)
    return tokens_BS, exists_BS, written_BT


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("seed", "shape"), list(enumerate(SHAPES)))
@pytest.mark.parametrize("length", [3, 300])
def test_logits_equal_those_of_huggingface(seed, shape, tied, length):
    theirs = huggingface(shape, seed, tied)
    ours = T5(config(shape), V).eval()
    ours.load_huggingface(theirs.state_dict(), tied=tied)
    tokens_BS, exists_BS, written_BT = inputs(length, num_written=40)
    with torch.no_grad():
        wanted = theirs(input_ids=tokens_BS, attention_mask=exists_BS.long(), decoder_input_ids=written_BT).logits
        torch.testing.assert_close(
            ours(ours.read(ours.shared(tokens_BS), exists_BS), written_BT), wanted, atol=1e-4, rtol=0
        )
    with_gradient = ours(ours.read(ours.shared(tokens_BS), exists_BS), written_BT)
    torch.testing.assert_close(with_gradient, wanted, atol=1e-4, rtol=0)
    with_gradient.sum().backward()
    assert all(parameter.grad is not None for parameter in ours.parameters())


def test_beams_equal_those_of_huggingface():
    theirs = huggingface(SHAPES[1], 5, False)
    ours = T5(config(SHAPES[1]), V).eval()
    ours.load_huggingface(theirs.state_dict())
    tokens_BS, exists_BS, _ = inputs(9)
    num_beams, length = 6, 3
    found = theirs.generate(
        input_ids=tokens_BS,
        attention_mask=exists_BS.long(),
        num_beams=num_beams,
        num_return_sequences=num_beams,
        max_new_tokens=length,
        do_sample=False,
        length_penalty=0.0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    scores_BM, paths_BML = torch.zeros(3, 1), torch.zeros(3, 1, 1, dtype=torch.int64)
    parents_BM = None
    with torch.inference_mode():
        written = ours.begin(ours.read(ours.shared(tokens_BS), exists_BS))
        for _ in range(length):
            written, logits_BMV = ours.write(written, parents_BM, paths_BML[:, :, -1])
            totals_BX = (scores_BM[..., None] + logits_BMV.log_softmax(-1)).flatten(1)
            scores_BM, picks_BM = totals_BX.topk(num_beams)
            parents_BM = picks_BM // V
            before = paths_BML.gather(1, parents_BM[..., None].expand(-1, -1, paths_BML.shape[2]))
            paths_BML = torch.cat([before, (picks_BM % V)[..., None]], 2)
    assert torch.equal(paths_BML.flatten(0, 1), found.sequences)
    torch.testing.assert_close(scores_BM.flatten(), found.sequences_scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_writing_token_by_token_equals_the_full_pass_of_each_beam(shape):
    torch.manual_seed(2)
    model = T5(config(shape), V).eval()
    tokens_BS, exists_BS, _ = inputs(5)
    tokens_BM = torch.zeros(3, 1, dtype=torch.int64)
    paths_BMT = tokens_BM[..., None]
    parents_BM = None
    with torch.no_grad():
        source = model.read(model.shared(tokens_BS), exists_BS)
        written = model.begin(source)
        for num_beams in (4, 2, 5, 5):
            written, logits_BMV = model.write(written, parents_BM, tokens_BM)
            for beam in range(paths_BMT.shape[1]):
                whole = model(source, paths_BMT[:, beam])
                torch.testing.assert_close(logits_BMV[:, beam], whole[:, -1], atol=1e-5, rtol=1e-5)
            parents_BM = torch.randint(paths_BMT.shape[1], (3, num_beams))
            tokens_BM = torch.randint(1, V, (3, num_beams))
            before = paths_BMT.gather(1, parents_BM[..., None].expand(-1, -1, paths_BMT.shape[2]))
            paths_BMT = torch.cat([before, tokens_BM[..., None]], 2)


def test_what_does_not_exist_changes_nothing_on_either_side():
    torch.manual_seed(3)
    model = T5(config(SHAPES[0]), V).eval()
    tokens_BS = torch.tensor([[1, 2, 3]])
    written_BT = torch.tensor([[0, 4, 5]])
    with torch.no_grad():
        alone = model(model.read(model.shared(tokens_BS), torch.ones(1, 3, dtype=torch.bool)), written_BT)
        for padded, exists in (([9, 9, 1, 2, 3], [0, 0, 1, 1, 1]), ([1, 2, 3, 8, 8], [1, 1, 1, 0, 0])):
            source = model.read(model.shared(torch.tensor([padded])), torch.tensor([exists]).bool())
            torch.testing.assert_close(model(source, written_BT), alone)


def test_dropout_is_of_training_only():
    torch.manual_seed(4)
    model = T5(config(SHAPES[1], dropout=0.5), V)
    tokens_BS, exists_BS, written_BT = inputs(5)

    def logits():
        return model(model.read(model.shared(tokens_BS), exists_BS), written_BT)

    assert not torch.equal(logits(), logits())
    model.eval()
    assert torch.equal(logits(), logits())


def test_other_weights_are_refused():
    theirs = huggingface(SHAPES[0], 0, False).state_dict()
    with pytest.raises(RuntimeError, match="size mismatch for head"):
        T5(config(SHAPES[0]), V + 1).load_huggingface(theirs)
    with pytest.raises(KeyError, match=r"encoder\.block\.1"):
        T5(config(SHAPES[0] | {"num_layers": 2}), V).load_huggingface(theirs)
    with pytest.raises(DataError, match=r"^the weights have more than 0 layers a side: build T5 with as many$"):
        T5(config(SHAPES[0] | {"num_layers": 0}), V).load_huggingface(theirs)


@pytest.mark.parametrize("batch", [3, 60])
def test_weights_that_change_are_not_confused_with_those_of_the_search_before(batch):
    torch.manual_seed(8)
    tokens_BS, exists_BS, written_BT = (
        torch.randint(1, V, (batch, 5)),
        torch.ones(batch, 5).bool(),
        torch.zeros(batch, 1).long(),
    )
    models = [T5(config(SHAPES[1]), V).eval() for _ in range(2)]

    def logits(model):
        with torch.inference_mode():
            return model(model.read(model.shared(tokens_BS), exists_BS), written_BT)

    wanted = [logits(model) for model in models]
    models[0].load_state_dict(models[1].state_dict())
    assert torch.equal(logits(models[0].eval()), wanted[1])
    assert not torch.equal(wanted[0], wanted[1])
    assert torch.equal(logits(copy.deepcopy(models[1])), wanted[1])


def test_bfloat16_is_near():
    torch.manual_seed(5)
    model = T5(config(SHAPES[1]), V).eval()
    tokens_BS, exists_BS, written_BT = inputs(5)
    with torch.no_grad():
        exact = model(model.read(model.shared(tokens_BS), exists_BS), written_BT)
        model.bfloat16()
        near = model(model.read(model.shared(tokens_BS), exists_BS), written_BT)
    assert near.dtype == torch.bfloat16
    torch.testing.assert_close(near.float(), exact, atol=0.2, rtol=0.05)
