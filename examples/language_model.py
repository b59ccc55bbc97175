"""Language models: a small Llama learns which item follows which, then writes items, and text with items in it."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessorList

from tesserec.data import history_requests
from tesserec.decoding.language_model import generate_items
from tesserec.decoding.logits_processor import SemanticIdLogitsProcessor
from tesserec.decoding.token_space import TokenSpace
from tesserec.decoding.trie import Trie
from tesserec.semantic_ids import build_semantic_ids
from tesserec.types import Ragged

AFTER, THEN, BEGIN = 0, 1, 2
codes_NL = torch.tensor([[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]])
space = TokenSpace.after(3, (3, 2), item_begin=BEGIN)
trie = Trie.build(build_semantic_ids(codes_NL, (3, 2), "by hand", collisions="bucket"))

# "after <item> then <next item> then <the one after that>", item 0 after the last one.
item_N3 = (torch.arange(6)[:, None] + torch.arange(3)) % 6
text_N3T = torch.cat([torch.full((6, 3, 1), THEN), space.written(codes_NL)[item_N3]], 2)
text_N3T[:, 0, 0] = AFTER
sequences = text_N3T.flatten(1)

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=space.min_vocabulary,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    bos_token_id=None,
    eos_token_id=None,
)
model = LlamaForCausalLM(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
for _ in range(200):
    model(input_ids=sequences, labels=sequences).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
model.eval()

# Our beam search: the best items after "after <item 2> then" and "after <item 5> then", without those of the history.
requests = history_requests([[2], [5]], exclude_history=True)
prompts = Ragged.of([sequences[item, :6].tolist() for item in (2, 5)])
print(generate_items(model, prompts, trie, space, requests, num_beams=4, k=2).items_BK[:, 0])

# The library's own search, with the constraint as a logits processor: text and items as the model likes.
prompt = sequences[2:3, :5]
constraint = SemanticIdLogitsProcessor(trie, space, prompt_length=5, requests=requests.take(torch.tensor([0])))
written = model.generate(
    prompt,
    attention_mask=torch.ones_like(prompt),
    max_new_tokens=7,
    do_sample=False,
    logits_processor=LogitsProcessorList([constraint]),
)
print(space.tuples_in(written[0]).tolist())
