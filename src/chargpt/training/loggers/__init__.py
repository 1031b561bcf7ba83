"""Loggers: TensorBoard and history.csv."""
