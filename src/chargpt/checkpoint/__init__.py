"""File formats of checkpoints and exported models."""
