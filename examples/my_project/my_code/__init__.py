"""A model, an optimizer, a schedule, a corpus, a tokenizer and a callback that chargpt trains without knowing them."""
