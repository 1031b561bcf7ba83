"""Loss against size and tokens: the law, its fit and its error, and the best size for a time.

    L(N, D) = E + A / N^alpha + B / D^beta

Hoffmann et al. 2022 ("Chinchilla", section 3.3): N parameters of the blocks, D tokens seen. It knows nothing of
repetition, and is for runs that have not begun to overfit.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

Array = NDArray[np.float64]


@dataclass
class Law:
    """The five numbers, and how far the law is from what was measured.

    Attributes:
        rms: of the residuals, in nats.
        left_out: the same of runs that each were left out of a fit of the others.
    """

    E: float
    A: float
    alpha: float
    B: float
    beta: float
    rms: float = 0.0
    left_out: float = 0.0

    def __call__(self, parameters: Array, tokens: Array) -> Array:
        """Nats a token."""
        return self.E + self.A * parameters**-self.alpha + self.B * tokens**-self.beta


# Around these values a fit is begun: E, log A, alpha, log B, beta.
STARTS = [[e, 3.0, a, 4.0, b] for e in (0.8, 1.2) for a in (0.3, 0.6) for b in (0.3, 0.5)]


def fit(parameters: Array, tokens: Array, losses: Array) -> Law:
    """The law by Huber's loss on the logarithm, as Hoffmann et al., the best of several starts, and its error."""

    def best(chosen: NDArray[np.bool_], starts: list[list[float]]) -> tuple[float, list[float]]:
        def residuals(numbers: list[float]) -> Array:
            found = _law(numbers)(parameters[chosen], tokens[chosen])
            return np.log(np.maximum(found, 1e-3)) - np.log(losses[chosen])

        bounds = ([0, -20, 0.02, -20, 0.02], [3, 40, 3, 40, 3])
        how = dict(bounds=bounds, loss="huber", f_scale=0.01, x_scale="jac", max_nfev=4000)
        tries = [least_squares(residuals, start, **how) for start in starts]
        won = min(tries, key=lambda tried: tried.cost)
        return won.cost, list(won.x)

    everything = np.ones(len(losses), dtype=bool)
    _, numbers = best(everything, STARTS)
    law = _law(numbers)
    law.rms = float(np.sqrt(np.mean((law(parameters, tokens) - losses) ** 2)))
    errors = []
    for i in range(len(losses)):
        others = everything.copy()
        others[i] = False
        one = slice(i, i + 1)
        without = _law(best(others, [numbers])[1])
        errors.append(float(without(parameters[one], tokens[one])[0] - losses[i]))
    law.left_out = float(np.sqrt(np.mean(np.square(errors))))
    return law


def _law(numbers: list[float]) -> Law:
    e, log_a, alpha, log_b, beta = numbers
    return Law(e, float(np.exp(log_a)), alpha, float(np.exp(log_b)), beta)


def best_size(law: Law, sizes: Array, seconds_per_token: Array, seconds: float) -> tuple[float, float, float]:
    """The size that ends lowest after so many seconds: (parameters, tokens, loss).

    From half the smallest of `sizes` to twice the largest.

    Args:
        sizes, seconds_per_token: what was measured; between and beyond, a power law through the two nearest.
    """
    many = np.geomspace(sizes.min() / 2, sizes.max() * 2, 400)
    tokens = seconds / np.exp(_line(np.log(many), np.log(sizes), np.log(seconds_per_token)))
    losses = law(many, tokens)
    i = int(losses.argmin())
    return float(many[i]), float(tokens[i]), float(losses[i])


def _line(x: Array, at: Array, values: Array) -> Array:
    """Linear between the points and beyond them."""
    order = np.argsort(at)
    at, values = at[order], values[order]
    left = np.clip(np.searchsorted(at, x) - 1, 0, len(at) - 2)
    slope = (values[left + 1] - values[left]) / (at[left + 1] - at[left])
    return values[left] + slope * (x - at[left])
