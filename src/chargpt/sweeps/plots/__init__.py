"""The figure of a sweep: its panels and axes."""
