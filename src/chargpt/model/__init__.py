"""Tokens -> logits.

Tensors are named with their shape: B batch, T time (block), C channels (`n_embd`), H heads, D head size,
V vocabulary, N tokens of a corpus.
"""
