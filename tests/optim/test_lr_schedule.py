"""Tests of the learning-rate schedules: nanoGPT's formula, range, continuity, and limits on steps and time."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chargpt.errors import UserError
from chargpt.optim.lr_schedule import Constant, WarmupCosine, WarmupStableDecay


def nanogpt_lr(it: int) -> float:
    """`get_lr` of karpathy/nanoGPT's train.py, with the numbers of its config/train_shakespeare_char.py."""
    learning_rate, min_lr, warmup_iters, lr_decay_iters = 1e-3, 1e-4, 100, 2000
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if it > lr_decay_iters:
        return min_lr
    decay_ratio = (it - warmup_iters) / (lr_decay_iters - warmup_iters)
    coeff = 0.5 * (1.0 + math.cos(math.pi * decay_ratio))
    return min_lr + coeff * (learning_rate - min_lr)


def test_warmup_cosine_equals_nanogpts_schedule():
    schedule = WarmupCosine(warmup_steps=100, final=0.1)
    rates = [1e-3 * schedule(step, 2000, 0.0) for step in range(2101)]
    assert rates == pytest.approx([nanogpt_lr(step) for step in range(2101)], rel=1e-12)


def test_warmup_stable_decay_is_piecewise_linear():
    schedule = WarmupStableDecay(warmup_steps=10, decay=0.25, final=0.2)
    factors = [schedule(step, 200, 0.0) for step in range(201)]
    assert factors[:10] == pytest.approx([k / 11 for k in range(1, 11)])
    assert factors[10:151] == [1.0] * 141
    assert factors[150:] == pytest.approx([1.0 - 0.8 * k / 50 for k in range(51)])


def test_constant_is_one_after_its_warmup():
    schedule = Constant(warmup_steps=3)
    assert [schedule(step, 10, 0.0) for step in range(10)] == [0.25, 0.5, 0.75, *[1.0] * 7]


def test_constant_without_warmup_is_always_one():
    schedule = Constant()
    limits, times = (-1, 1, 10), (0.0, 0.3, 1.0)
    assert {schedule(step, limit, time) for step in range(10) for limit in limits for time in times} == {1.0}


fractions = st.floats(0.0, 1.0)
warmups = st.integers(0, 300)
schedules = st.one_of(
    st.builds(Constant, warmups),
    st.builds(WarmupCosine, warmups, fractions),
    st.builds(WarmupStableDecay, warmups, fractions, fractions),
)
step_limits = st.one_of(st.just(-1), st.integers(1, 400))


@given(schedules, step_limits, st.integers(0, 500), fractions)
def test_the_factor_is_between_0_and_1(schedule, max_steps, step, time):
    assert 0.0 <= schedule(step, max_steps, time) <= 1.0


@given(schedules, step_limits)
def test_the_factor_of_the_first_step_is_positive(schedule, max_steps):
    assert schedule(0, max_steps, 0.0) > 0


@given(st.integers(0, 100), st.integers(1, 300), st.floats(0.05, 1.0), fractions)
def test_the_change_per_step_is_bounded_by_the_slopes(warmup, after_warmup, decay, final):
    max_steps = warmup + after_warmup
    cosine, stable = WarmupCosine(warmup, final), WarmupStableDecay(warmup, decay, final)
    rise = 1 / (warmup + 1)
    for schedule, fall in ((cosine, math.pi / 2 / after_warmup), (stable, 1 / (decay * max_steps))):
        factors = [schedule(step, max_steps, 0.0) for step in range(max_steps + 2)]
        changes = [abs(b - a) for a, b in itertools.pairwise(factors)]
        assert max(changes) <= rise + fall + 1e-9


@given(fractions, fractions, st.floats(0.05, 1.0), fractions)
def test_the_factor_is_a_continuous_function_of_time(time, other_time, decay, final):
    for schedule, slope in (
        (WarmupCosine(0, final), math.pi / 2),
        (WarmupStableDecay(0, decay, final), 1 / decay),
    ):
        difference = abs(schedule(7, -1, time) - schedule(7, -1, other_time))
        assert difference <= slope * abs(time - other_time) + 1e-9


@given(fractions, st.integers(0, 10_000))
def test_a_run_limited_by_time_ends_at_the_final_factor(final, step):
    assert WarmupCosine(0, final)(step, -1, 1.0) == pytest.approx(final)
    assert WarmupStableDecay(0, 0.3, final)(step, -1, 1.0) == pytest.approx(final)


def test_the_factor_of_a_run_limited_by_time_does_not_depend_on_the_step():
    schedule = WarmupCosine(warmup_steps=0, final=0.1)
    assert schedule(10, -1, 0.5) == schedule(10_000, -1, 0.5) == pytest.approx(0.55)


@given(schedules, st.integers(1, 400), st.integers(0, 400), fractions)
def test_the_factor_follows_the_limit_with_the_larger_progress(schedule, max_steps, step, time):
    by_steps = schedule(step, max_steps, 0.0)
    both = schedule(step, max_steps, time)
    assert both <= by_steps
    if time <= step / max_steps:
        assert both == by_steps
    else:
        assert both <= schedule(step, max_steps, step / max_steps)


def test_the_factor_follows_time_if_its_progress_is_larger():
    schedule = WarmupCosine(warmup_steps=0, final=0.1)
    assert schedule(100, 1000, 0.7) == pytest.approx(schedule(700, 1000, 0.0))
    assert schedule(700, 1000, 0.1) == schedule(700, 1000, 0.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(-1), "schedule.warmup_steps=-1"),
        (lambda: WarmupCosine(-5), "schedule.warmup_steps=-5"),
        (lambda: WarmupCosine(final=1.5), "schedule.final=1.5"),
        (lambda: WarmupCosine(final=-0.1), "schedule.final=-0.1"),
        (lambda: WarmupCosine(final=math.nan), "schedule.final=nan"),
        (lambda: WarmupStableDecay(decay=20.0), "schedule.decay=20"),
        (lambda: WarmupStableDecay(final=2.0), "schedule.final=2"),
    ],
)
def test_the_message_about_an_invalid_value_names_setting_and_value(make, message):
    with pytest.raises(UserError, match=message):
        make()
