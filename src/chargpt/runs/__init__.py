"""The run directory: its files, lock, identity, resumption and record."""
