"""The stages, most valuable first: a file each, with SECONDS, CASES and run(stage)."""

NAMES = ("probe", "agree", "syncs", "speed", "lecture", "modern", "compiled", "resume", "ranks", "sampling")
NAMES += ("pack", "faults")
