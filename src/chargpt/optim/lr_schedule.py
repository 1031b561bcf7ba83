"""Learning-rate schedules: the share of the learning rate at each step, as a pure function."""

import math

from chargpt.errors import UserError


class Constant:
    """The whole learning rate, after a linear warm-up over `warmup_steps` optimizer steps."""

    def __init__(self, warmup_steps: int = 0):
        if warmup_steps < 0:
            raise UserError(f"schedule.warmup_steps={warmup_steps}: it must not be negative")
        self.warmup_steps = warmup_steps

    def __call__(self, step: int, max_steps: int = -1, time: float = 0.0) -> float:
        """The factor for the step after `step` steps were done.

        Args:
            max_steps: steps of the whole run; -1 if only time ends it.
            time: share of the run's time budget that is used, in [0, 1]; 0 if it has none.

        A run with both ends where it comes to one of them first, so the larger share counts.
        """
        warmup = (step + 1) / (self.warmup_steps + 1) if step < self.warmup_steps else 1.0
        start, done = 0.0, 0.0
        if max_steps > 0:
            start, done = self.warmup_steps / max_steps, step / max_steps
        return warmup * self.decay_factor(max(done, time), start)

    def decay_factor(self, progress: float, start: float) -> float:
        """The factor at `progress` in [0, 1] of the run, whose warm-up ends at `start`."""
        return 1.0


class WarmupCosine(Constant):
    """Warm-up, then half a cosine from 1 down to `final` (Loshchilov and Hutter 2017, SGDR, eq. 5)."""

    def __init__(self, warmup_steps: int = 100, final: float = 0.1):
        super().__init__(warmup_steps)
        self.final = _share("final", final)

    def decay_factor(self, progress: float, start: float) -> float:
        done = _between(progress, start, 1.0)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done))


class WarmupStableDecay(Constant):
    """Warm-up, constant, then linearly down to `final` over the last `decay` of the run.

    Hu et al. 2024, MiniCPM, section 4.2.

    Args:
        decay: share of the run.
    """

    def __init__(self, warmup_steps: int = 100, decay: float = 0.2, final: float = 0.0):
        super().__init__(warmup_steps)
        self.decay, self.final = _share("decay", decay), _share("final", final)

    def decay_factor(self, progress: float, start: float) -> float:
        return 1 - (1 - self.final) * _between(progress, 1 - self.decay, 1.0)


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise UserError(f"schedule.{name}={value}: it is a share, from 0 to 1")
    return value


def _between(value: float, low: float, high: float) -> float:
    if high <= low:
        return float(value >= high)
    return min(1.0, max(0.0, (value - low) / (high - low)))
