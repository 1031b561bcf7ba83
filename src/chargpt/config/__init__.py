"""Command-line overrides -> a checked config -> objects."""
