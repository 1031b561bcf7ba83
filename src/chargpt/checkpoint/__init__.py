"""File formats of trained models."""
