"""The scaling law: the fit recovers a known law, and the best size equals the analytic one."""

import sys

import numpy as np
import pytest

from tests.conftest import REPO

pytest.importorskip("scipy", reason="an optional package: pip install -e '.[experiments]'")

sys.path.insert(0, str(REPO / "experiments" / "scaling"))
from law import Law, best_size, fit

TRUE_LAW = Law(E=1.1, A=60.0, alpha=0.45, B=200.0, beta=0.4)


@pytest.fixture
def grid() -> tuple[np.ndarray, ...]:
    rows = [(12 * 4 * w**2, d) for w in (64, 96, 128, 256) for d in (1e5, 2e5, 4e5, 1.6e6)]
    return tuple(np.array(column, dtype=float) for column in zip(*rows, strict=True))


def test_the_fit_recovers_the_law_that_generated_the_losses(grid):
    law = fit(*grid, TRUE_LAW(*grid))
    assert law.rms < 1e-3
    outside = tuple(np.array([value]) for value in (12 * 4 * 384.0**2, 3e6))
    assert law(*outside) == pytest.approx(TRUE_LAW(*outside), abs=0.01)


def test_the_error_of_the_fit_is_that_of_the_measurements(grid):
    noise = np.random.default_rng(0).normal(0, 0.01, len(grid[0]))
    law = fit(*grid, TRUE_LAW(*grid) + noise)
    assert 0.003 < law.rms < 0.015
    assert law.rms < law.left_out < 0.05


def test_the_best_size_equals_the_analytic_optimum():
    """Hoffmann et al. 2022, equation 4, with a time of k N seconds per token."""
    sizes, k = np.array([2e5, 8e5, 3.2e6]), 1e-9
    for seconds in (30.0, 300.0):
        ratio = TRUE_LAW.alpha * TRUE_LAW.A / (TRUE_LAW.beta * TRUE_LAW.B)
        optimum = ratio ** (1 / (TRUE_LAW.alpha + TRUE_LAW.beta)) * (seconds / k) ** (
            TRUE_LAW.beta / (TRUE_LAW.alpha + TRUE_LAW.beta)
        )
        parameters, tokens, loss = best_size(TRUE_LAW, sizes, k * sizes, seconds)
        assert parameters == pytest.approx(min(max(optimum, 1e5), 6.4e6), rel=0.02)
        assert tokens == pytest.approx(seconds / (k * parameters), rel=1e-6)
        assert loss == pytest.approx(1.1 + 60 / parameters**0.45 + 200 / tokens**0.4)
