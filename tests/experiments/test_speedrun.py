"""The speedrun: the decision whether a target is reached, and one config per track."""

import math
import statistics
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import REPO

pytest.importorskip("scipy", reason="an optional package: pip install -e '.[experiments]'")

sys.path.insert(0, str(REPO / "experiments" / "speedrun"))
import run as speedrun


def test_each_speedrun_config_is_a_track():
    assert set(speedrun.TARGETS) >= {file.stem for file in (REPO / "conf" / "speedrun").iterdir()}


@given(st.lists(st.floats(1.0, 2.0), min_size=3, max_size=8).filter(lambda losses: statistics.stdev(losses) > 1e-3))
def test_p_value_equals_the_integral_of_students_t(losses):
    """Integrates the density of Student's t distribution numerically (Student 1908)."""
    n, df = len(losses), len(losses) - 1
    t = (statistics.mean(losses) - 1.5) / (statistics.stdev(losses) / math.sqrt(n))
    scale = math.gamma(n / 2) / (math.sqrt(df * math.pi) * math.gamma(df / 2))
    width = abs(t) / 4000
    area = sum(scale * (1 + ((i + 0.5) * width) ** 2 / df) ** (-n / 2) * width for i in range(4000))
    assert speedrun.p_value(losses, 1.5) == pytest.approx(0.5 + math.copysign(area, t), abs=1e-4)


def test_the_summary_contains_mean_spread_p_and_seconds():
    rows = [{"final_val_loss": loss, "train_seconds": 10.0 + loss} for loss in (1.47, 1.46, 1.48)]
    assert speedrun.summary(rows, 1.48) == "1.4700 ± 0.0100, p = 0.11, target 1.48; 3 seeds, 11.5 s each"
    assert speedrun.summary(rows[:1], 1.48) == "1.4700, target 1.48; 1 seed, 11.5 s each"
