"""The scaling law: its fit finds a law that is there, and the best size is the one that calculus gives."""

import sys

import numpy as np
import pytest

from tests.conftest import REPO

sys.path.insert(0, str(REPO / "experiments" / "scaling"))
from law import Law, best_size, fit

TRUE = Law(E=1.1, A=60.0, alpha=0.45, B=200.0, beta=0.4)


@pytest.fixture
def grid() -> tuple[np.ndarray, ...]:
    rows = [(12 * 4 * w**2, d) for w in (64, 96, 128, 256) for d in (1e5, 2e5, 4e5, 1.6e6)]
    return tuple(np.array(column, dtype=float) for column in zip(*rows, strict=True))


def test_the_fit_predicts_as_the_law_that_made_the_losses(grid):
    found = fit(*grid, TRUE(*grid))
    assert found.rms < 1e-3
    further = tuple(np.array([value]) for value in (12 * 4 * 384.0**2, 3e6))
    assert found(*further) == pytest.approx(TRUE(*further), abs=0.01)


def test_its_error_is_that_of_the_measurements(grid):
    noise = np.random.default_rng(0).normal(0, 0.01, len(grid[0]))
    found = fit(*grid, TRUE(*grid) + noise)
    assert 0.003 < found.rms < 0.015
    assert found.rms < found.left_out < 0.05


def test_the_best_size_is_that_of_calculus():
    """Hoffmann et al. 2022, equation 4, with a time of k N seconds a token."""
    sizes, k = np.array([2e5, 8e5, 3.2e6]), 1e-9
    for seconds in (30.0, 300.0):
        ratio = TRUE.alpha * TRUE.A / (TRUE.beta * TRUE.B)
        wanted = ratio ** (1 / (TRUE.alpha + TRUE.beta)) * (seconds / k) ** (TRUE.beta / (TRUE.alpha + TRUE.beta))
        parameters, tokens, loss = best_size(TRUE, sizes, k * sizes, seconds)
        assert parameters == pytest.approx(min(max(wanted, 1e5), 6.4e6), rel=0.02)
        assert tokens == pytest.approx(seconds / (k * parameters), rel=1e-6)
        assert loss == pytest.approx(1.1 + 60 / parameters**0.45 + 200 / tokens**0.4)
