"""The models: tokens -> logits.

Tensors carry their shape in their name: B batch, T time (block), C channels (`n_embd`), H heads, D head size,
V vocabulary, N tokens of a corpus.
"""
