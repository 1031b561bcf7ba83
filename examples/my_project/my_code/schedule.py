"""A learning rate schedule: a function of the step that returns a factor of the learning rate."""

from math import cos, pi


def cycles(step: int, max_steps: int, time: float, count: int) -> float:
    """Cosine decay from 1 to 0.05, `count` times (Loshchilov and Hutter 2017, SGDR)."""
    progress = count * step / max_steps % 1
    return 0.05 + 0.95 * (1 + cos(pi * progress)) / 2
