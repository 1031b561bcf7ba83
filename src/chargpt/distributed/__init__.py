"""Ranks: their environment, how they meet, and Slurm."""
