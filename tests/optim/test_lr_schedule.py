"""Laws of the learning-rate schedules: nanoGPT's formula, the range, no jumps, the end that comes first."""

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


def test_warmup_cosine_is_nanogpts_at_every_step():
    schedule = WarmupCosine(warmup_steps=100, final=0.1)
    ours = [1e-3 * schedule(step, 2000, 0.0) for step in range(2101)]
    assert ours == pytest.approx([nanogpt_lr(step) for step in range(2101)], rel=1e-12)


def test_warmup_stable_decay_rises_stays_and_falls_in_straight_lines():
    schedule = WarmupStableDecay(warmup_steps=10, decay=0.25, final=0.2)
    factors = [schedule(step, 200, 0.0) for step in range(201)]
    assert factors[:10] == pytest.approx([k / 11 for k in range(1, 11)])
    assert factors[10:151] == [1.0] * 141
    assert factors[150:] == pytest.approx([1.0 - 0.8 * k / 50 for k in range(51)])


def test_constant_is_one_after_its_warmup():
    schedule = Constant(warmup_steps=3)
    assert [schedule(step, 10, 0.0) for step in range(10)] == [0.25, 0.5, 0.75, *[1.0] * 7]


def test_constant_without_warmup_is_one_from_the_first_step_on_whatever_the_time():
    schedule = Constant()
    ends, times = (-1, 1, 10), (0.0, 0.3, 1.0)
    assert {schedule(step, end, time) for step in range(10) for end in ends for time in times} == {1.0}


shares = st.floats(0.0, 1.0)
warmups = st.integers(0, 300)
schedules = st.one_of(
    st.builds(Constant, warmups),
    st.builds(WarmupCosine, warmups, shares),
    st.builds(WarmupStableDecay, warmups, shares, shares),
)
ends = st.one_of(st.just(-1), st.integers(1, 400))


@given(schedules, ends, st.integers(0, 500), shares)
def test_the_factor_lies_between_0_and_1(schedule, max_steps, step, time):
    assert 0.0 <= schedule(step, max_steps, time) <= 1.0


@given(schedules, ends)
def test_the_first_step_learns_something(schedule, max_steps):
    assert schedule(0, max_steps, 0.0) > 0


@given(st.integers(0, 100), st.integers(1, 300), st.floats(0.05, 1.0), shares)
def test_neighbouring_steps_differ_by_no_more_than_the_slopes_of_their_parts(warmup, after, decay, final):
    end = warmup + after
    cosine, stable = WarmupCosine(warmup, final), WarmupStableDecay(warmup, decay, final)
    rise = 1 / (warmup + 1)
    for schedule, fall in ((cosine, math.pi / 2 / after), (stable, 1 / (decay * end))):
        factors = [schedule(step, end, 0.0) for step in range(end + 2)]
        jumps = [abs(b - a) for a, b in itertools.pairwise(factors)]
        assert max(jumps) <= rise + fall + 1e-9


@given(shares, shares, st.floats(0.05, 1.0), shares)
def test_near_times_give_near_factors(one, other, decay, final):
    for schedule, slope in (
        (WarmupCosine(0, final), math.pi / 2),
        (WarmupStableDecay(0, decay, final), 1 / decay),
    ):
        assert abs(schedule(7, -1, one) - schedule(7, -1, other)) <= slope * abs(one - other) + 1e-9


@given(shares, st.integers(0, 10_000))
def test_a_run_that_time_ends_ends_at_final(final, step):
    assert WarmupCosine(0, final)(step, -1, 1.0) == pytest.approx(final)
    assert WarmupStableDecay(0, 0.3, final)(step, -1, 1.0) == pytest.approx(final)


def test_a_run_that_time_ends_follows_time_and_not_steps():
    schedule = WarmupCosine(warmup_steps=0, final=0.1)
    assert schedule(10, -1, 0.5) == schedule(10_000, -1, 0.5) == pytest.approx(0.55)


@given(schedules, st.integers(1, 400), st.integers(0, 400), shares)
def test_of_two_ends_the_later_progress_counts(schedule, max_steps, step, time):
    by_steps = schedule(step, max_steps, 0.0)
    both = schedule(step, max_steps, time)
    assert both <= by_steps
    if time <= step / max_steps:
        assert both == by_steps
    else:
        assert both <= schedule(step, max_steps, step / max_steps)


def test_time_that_runs_ahead_of_the_steps_pulls_the_factor_along():
    schedule = WarmupCosine(warmup_steps=0, final=0.1)
    assert schedule(100, 1000, 0.7) == pytest.approx(schedule(700, 1000, 0.0))
    assert schedule(700, 1000, 0.1) == schedule(700, 1000, 0.0)


@pytest.mark.parametrize(
    ("make", "named"),
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
def test_a_bad_value_is_a_mistake_that_names_it(make, named):
    with pytest.raises(UserError, match=named):
        make()
