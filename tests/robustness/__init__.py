"""The robustness suite: fault injection, damaged and hostile checkpoints, and fuzzing of the command line.

`python -m tests.robustness` runs it; pytest does not collect it.
"""
