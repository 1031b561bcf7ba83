"""Sweeps: their jobs and folders, and the table and the figure that compare the runs."""
