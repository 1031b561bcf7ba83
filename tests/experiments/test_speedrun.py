"""The speedrun: who has won a track, and that each track is a config that says what its rules ask."""

import math
import statistics
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import REPO

sys.path.insert(0, str(REPO / "experiments" / "speedrun"))
import run as speedrun


def test_the_tracks_are_the_configs():
    assert set(speedrun.TARGETS) >= {file.stem for file in (REPO / "conf" / "speedrun").iterdir()}


@given(st.lists(st.floats(1.0, 2.0), min_size=3, max_size=8).filter(lambda losses: statistics.stdev(losses) > 1e-3))
def test_p_is_students(losses):
    """By integrating the density of Student's t distribution (Student 1908)."""
    n, freedom = len(losses), len(losses) - 1
    t = (statistics.mean(losses) - 1.5) / (statistics.stdev(losses) / math.sqrt(n))
    scale = math.gamma(n / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    width = abs(t) / 4000
    between = sum(scale * (1 + ((i + 0.5) * width) ** 2 / freedom) ** (-n / 2) * width for i in range(4000))
    assert speedrun.p_value(losses, 1.5) == pytest.approx(0.5 + math.copysign(between, t), abs=1e-4)


def test_a_verdict_has_the_mean_the_spread_p_and_the_seconds():
    rows = [{"final_val_loss": loss, "train_seconds": 10.0 + loss} for loss in (1.47, 1.46, 1.48)]
    assert speedrun.decision(rows, 1.48) == "1.4700 ± 0.0100, p = 0.11, for 1.48 or less; 3 seeds, 11.5 s each"
    assert speedrun.decision(rows[:1], 1.48) == "1.4700 for 1.48 or less; 1 seed, 11.5 s each"
