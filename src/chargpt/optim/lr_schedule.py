"""Learning-rate schedules: the factor on the learning rate as a pure function of the step."""

import math

from chargpt.errors import UserError


class Constant:
    """A constant learning rate after a linear warm-up over `warmup_steps` optimizer steps."""

    def __init__(self, warmup_steps: int = 0):
        if warmup_steps < 0:
            raise UserError(f"schedule.warmup_steps={warmup_steps}: it must not be negative")
        self.warmup_steps = warmup_steps

    def __call__(self, step: int, max_steps: int = -1, time: float = 0.0) -> float:
        """Returns the factor for the step that follows `step` completed steps.

        Args:
            max_steps: the total number of steps; -1 if the run is limited only by time.
            time: the used fraction of the run's time budget, in [0, 1]; 0 if there is no time budget.

        A run with both limits ends at the one that it reaches first, so the larger progress counts.
        """
        warmup = (step + 1) / (self.warmup_steps + 1) if step < self.warmup_steps else 1.0
        start, progress = 0.0, 0.0
        if max_steps > 0:
            start, progress = self.warmup_steps / max_steps, step / max_steps
        return warmup * self.decay_factor(max(progress, time), start)

    def decay_factor(self, progress: float, start: float) -> float:
        """The factor at `progress` in [0, 1] of the run, whose warm-up ends at `start`."""
        return 1.0


class WarmupCosine(Constant):
    """Warm-up, then a half cosine from 1 down to `final` (Loshchilov and Hutter 2017, SGDR, eq. 5)."""

    def __init__(self, warmup_steps: int = 100, final: float = 0.1):
        super().__init__(warmup_steps)
        self.final = _check_fraction("final", final)

    def decay_factor(self, progress: float, start: float) -> float:
        decayed = _relative_position(progress, start, 1.0)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * decayed))


class WarmupStableDecay(Constant):
    """Warm-up, then constant, then a linear decay to `final` in the last part of the run.

    Hu et al. 2024, MiniCPM, section 4.2.

    Args:
        decay: the fraction of the run in which the learning rate decays.
    """

    def __init__(self, warmup_steps: int = 100, decay: float = 0.2, final: float = 0.0):
        super().__init__(warmup_steps)
        self.decay, self.final = _check_fraction("decay", decay), _check_fraction("final", final)

    def decay_factor(self, progress: float, start: float) -> float:
        return 1 - (1 - self.final) * _relative_position(progress, 1 - self.decay, 1.0)


def _check_fraction(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise UserError(f"schedule.{name}={value}: it must be a fraction from 0 to 1")
    return value


def _relative_position(value: float, low: float, high: float) -> float:
    if high <= low:
        return float(value >= high)
    return min(1.0, max(0.0, (value - low) / (high - low)))
