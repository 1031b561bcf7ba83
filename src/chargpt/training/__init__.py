"""Logits -> loss -> step; what a run leaves behind."""
