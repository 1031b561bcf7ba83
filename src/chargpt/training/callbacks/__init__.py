"""Lightning callbacks, one role a file."""
