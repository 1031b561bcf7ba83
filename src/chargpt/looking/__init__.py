"""A trained model and a text -> pictures of what it does with it."""
