"""The data pipeline: corpus -> train/val split -> tokens -> batches of blocks."""
