"""A trained model: loading, generation, evaluation, export."""
