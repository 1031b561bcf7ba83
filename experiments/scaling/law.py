"""Loss against size, tokens and repetition: the law, its fit and its error, and the best size for a time.

    L(N, D, U) = E + A / N^alpha + B / D'^beta,    D' = U + U R (1 - exp(-(D / U - 1) / R)) where D > U

Hoffmann et al. 2022 ("Chinchilla", section 3.3), with D' of Muennighoff et al. 2023 ("Scaling Data-Constrained
Language Models", section 3): N parameters of the blocks, D tokens seen, U of them distinct. After R epochs more
than the first, another one is worth 1/e of a first.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

Array = NDArray[np.float64]


@dataclass
class Law:
    """The six numbers, and how far the law is from what was measured.

    Attributes:
        rms: of the residuals, in nats.
        left_out: the same of runs that each were left out of a fit of the others.
    """

    E: float
    A: float
    alpha: float
    B: float
    beta: float
    R: float
    rms: float = 0.0
    left_out: float = 0.0

    def __call__(self, parameters: Array, tokens: Array, distinct: Array) -> Array:
        """Nats a token."""
        repeated = np.maximum(tokens / distinct - 1, 0)
        fresh = np.minimum(tokens, distinct)
        worth = fresh + distinct * self.R * (1 - np.exp(-repeated / self.R))
        return self.E + self.A * parameters**-self.alpha + self.B * worth**-self.beta


# Around these values a fit is begun: E, log A, alpha, log B, beta, log R.
STARTS = [[e, 3.0, a, 4.0, b, 1.0] for e in (0.8, 1.2) for a in (0.3, 0.6) for b in (0.3, 0.5)]


def fit(parameters: Array, tokens: Array, distinct: Array, losses: Array) -> Law:
    """The law by Huber's loss on the logarithm, as Hoffmann et al., the best of several starts, and its error."""

    def best(chosen: NDArray[np.bool_], starts: list[list[float]]) -> tuple[float, list[float]]:
        def residuals(numbers: list[float]) -> Array:
            found = _law(numbers)(parameters[chosen], tokens[chosen], distinct[chosen])
            return np.log(np.maximum(found, 1e-3)) - np.log(losses[chosen])

        bounds = ([0, -20, 0.02, -20, 0.02, -3], [3, 40, 3, 40, 3, 6])
        how = dict(bounds=bounds, loss="huber", f_scale=0.01, x_scale="jac", max_nfev=4000)
        tries = [least_squares(residuals, start, **how) for start in starts]
        won = min(tries, key=lambda tried: tried.cost)
        return won.cost, list(won.x)

    everything = np.ones(len(losses), dtype=bool)
    _, numbers = best(everything, STARTS)
    law = _law(numbers)
    law.rms = float(np.sqrt(np.mean((law(parameters, tokens, distinct) - losses) ** 2)))
    errors = []
    for i in range(len(losses)):
        others = everything.copy()
        others[i] = False
        one = slice(i, i + 1)
        without = _law(best(others, [numbers])[1])
        errors.append(float(without(parameters[one], tokens[one], distinct[one])[0] - losses[i]))
    law.left_out = float(np.sqrt(np.mean(np.square(errors))))
    return law


def _law(numbers: list[float]) -> Law:
    e, log_a, alpha, log_b, beta, log_r = numbers
    return Law(e, float(np.exp(log_a)), alpha, float(np.exp(log_b)), beta, float(np.exp(log_r)))


def best_size(
    law: Law, sizes: Array, seconds_per_token: Array, distinct: float, seconds: float
) -> tuple[float, float, float]:
    """The size that ends lowest after so many seconds: (parameters, tokens, loss).

    Args:
        sizes, seconds_per_token: what was measured; between and beyond, a power law through the two nearest.
    """
    many = np.geomspace(sizes.min() / 2, sizes.max() * 2, 400)
    tokens = seconds / np.exp(_line(np.log(many), np.log(sizes), np.log(seconds_per_token)))
    losses = law(many, tokens, np.full_like(many, distinct))
    i = int(losses.argmin())
    return float(many[i]), float(tokens[i]), float(losses[i])


def _line(x: Array, at: Array, values: Array) -> Array:
    """Linear between the points and beyond them."""
    order = np.argsort(at)
    at, values = at[order], values[order]
    left = np.clip(np.searchsorted(at, x) - 1, 0, len(at) - 2)
    slope = (values[left + 1] - values[left]) / (at[left + 1] - at[left])
    return values[left] + slope * (x - at[left])
