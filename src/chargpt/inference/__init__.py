"""Using a trained model: loading, generation, evaluation and export."""
