"""Untrained language models of three families, small enough to run in milliseconds, with weights large enough that
their probabilities differ."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
NO_MARKS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
FAMILIES = ("llama", "qwen3", "gpt2")


def tiny_model(family, vocab_size, *, attention="sdpa", seed=0, **more):
    torch.manual_seed(seed)
    options = SHAPE | {"vocab_size": vocab_size, "initializer_range": 0.5, **NO_MARKS, **more}
    if family == "llama":
        config = LlamaConfig(num_key_value_heads=1, **options)
        model = LlamaForCausalLM._from_config(config, attn_implementation=attention)
    elif family == "qwen3":
        config = Qwen3Config(num_key_value_heads=1, head_dim=8, **options)
        model = Qwen3ForCausalLM._from_config(config, attn_implementation=attention)
    else:
        config = GPT2Config(n_positions=64, **options)
        model = GPT2LMHeadModel._from_config(config, attn_implementation=attention)
    return model.eval()
