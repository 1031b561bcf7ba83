"""The scaling law: loss as a function of model size and tokens, its fit and error, and the best size for a time.

    L(N, D) = E + A / N^alpha + B / D^beta

Hoffmann et al. 2022 ("Chinchilla", section 3.3): N parameters of the blocks, D tokens seen. It does not
model repetition, and applies to runs that do not overfit yet.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

Array = NDArray[np.float64]


@dataclass
class Law:
    """The five coefficients, and the error of the fit.

    Attributes:
        rms: root mean square of the residuals, in nats.
        left_out: the same for leave-one-out predictions: each run is predicted by a fit to the others.
    """

    E: float
    A: float
    alpha: float
    B: float
    beta: float
    rms: float = 0.0
    left_out: float = 0.0

    def __call__(self, parameters: Array, tokens: Array) -> Array:
        """Predicted loss in nats per token."""
        return self.E + self.A * parameters**-self.alpha + self.B * tokens**-self.beta


# Initial values of the fit: E, log A, alpha, log B, beta.
STARTS = [[e, 3.0, a, 4.0, b] for e in (0.8, 1.2) for a in (0.3, 0.6) for b in (0.3, 0.5)]


def fit(parameters: Array, tokens: Array, losses: Array) -> Law:
    """Fits the law by the Huber loss of the logarithm, as Hoffmann et al., from several initial values."""

    def best(mask: NDArray[np.bool_], starts: list[list[float]]) -> list[float]:
        def residuals(coefficients: list[float]) -> Array:
            predicted = _law(coefficients)(parameters[mask], tokens[mask])
            return np.log(np.maximum(predicted, 1e-3)) - np.log(losses[mask])

        bounds = ([0, -20, 0.02, -20, 0.02], [3, 40, 3, 40, 3])
        options = dict(bounds=bounds, loss="huber", f_scale=0.01, x_scale="jac", max_nfev=4000)
        fits = [least_squares(residuals, start, **options) for start in starts]
        return list(min(fits, key=lambda result: result.cost).x)

    all_runs = np.ones(len(losses), dtype=bool)
    coefficients = best(all_runs, STARTS)
    law = _law(coefficients)
    law.rms = float(np.sqrt(np.mean((law(parameters, tokens) - losses) ** 2)))
    errors = []
    for i in range(len(losses)):
        others = all_runs.copy()
        others[i] = False
        one = slice(i, i + 1)
        predict = _law(best(others, [coefficients]))
        errors.append(float(predict(parameters[one], tokens[one])[0] - losses[i]))
    law.left_out = float(np.sqrt(np.mean(np.square(errors))))
    return law


def _law(coefficients: list[float]) -> Law:
    e, log_a, alpha, log_b, beta = coefficients
    return Law(e, float(np.exp(log_a)), alpha, float(np.exp(log_b)), beta)


def best_size(law: Law, sizes: Array, seconds_per_token: Array, seconds: float) -> tuple[float, float, float]:
    """The size with the lowest loss after this many seconds: (parameters, tokens, loss).

    Searches from half the smallest of `sizes` to twice the largest.

    Args:
        sizes, seconds_per_token: measured; interpolated and extrapolated by a power law through the two nearest.
    """
    candidates = np.geomspace(sizes.min() / 2, sizes.max() * 2, 400)
    tokens = seconds / np.exp(_interpolate(np.log(candidates), np.log(sizes), np.log(seconds_per_token)))
    losses = law(candidates, tokens)
    i = int(losses.argmin())
    return float(candidates[i]), float(tokens[i]), float(losses[i])


def _interpolate(x: Array, at: Array, values: Array) -> Array:
    """Piecewise linear interpolation, and extrapolation beyond the points."""
    order = np.argsort(at)
    at, values = at[order], values[order]
    i = np.clip(np.searchsorted(at, x) - 1, 0, len(at) - 2)
    slope = (values[i + 1] - values[i]) / (at[i + 1] - at[i])
    return values[i] + slope * (x - at[i])
