"""Lightning callbacks, one role per file."""
