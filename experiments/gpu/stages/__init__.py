"""The stages, most important first: one file per stage, with SECONDS, CASES and run(stage)."""

NAMES = ("probe", "agree", "syncs", "speed", "lecture", "modern", "compiled", "resume", "ranks", "sampling")
NAMES += ("pack", "faults")
