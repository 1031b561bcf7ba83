"""Words on the command line -> a checked config -> objects."""
