"""A trained model -> text."""
