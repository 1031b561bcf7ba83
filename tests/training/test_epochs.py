"""The length of a run and the interval between validations in optimizer steps, from settings in epochs."""

import pytest

from chargpt.errors import UserError
from chargpt.training.epochs import check, length, max_steps, min_steps, val_check_interval


def settings(**changed) -> dict:
    return {"max_steps": 100, "max_time": None, "val_check_interval": 25, "accumulate_grad_batches": 1} | changed


@pytest.mark.parametrize(
    ("changed", "steps", "setting"),
    [
        ({}, 100, "trainer.max_steps=100"),
        ({"max_epochs": 2}, 20, "trainer.max_epochs=2"),
        ({"max_epochs": 11}, 100, "trainer.max_steps=100"),
        ({"max_epochs": 2, "max_steps": -1}, 20, "trainer.max_epochs=2"),
        ({"max_epochs": 1, "accumulate_grad_batches": 4}, 3, "trainer.max_epochs=1"),  # 10 batches: 2.5 steps
        ({"max_epochs": 2, "accumulate_grad_batches": 4}, 5, "trainer.max_epochs=2"),
        ({"max_epochs": -1}, 100, "trainer.max_steps=100"),
        ({"fast_dev_run": True}, 1, "trainer.fast_dev_run=True"),
        ({"fast_dev_run": 3, "max_epochs": 2}, 3, "trainer.fast_dev_run=3"),
    ],
)
def test_a_run_ends_at_the_earlier_of_steps_and_epochs(changed, steps, setting):
    assert (max_steps(settings(**changed), 10), length(settings(**changed), 10)) == (steps, setting)


def test_without_steps_and_epochs_only_the_time_limits_a_run():
    assert max_steps(settings(max_steps=-1, max_time=5), 10) == -1


@pytest.mark.parametrize(
    ("changed", "steps"),
    [({}, None), ({"min_steps": 7}, 7), ({"min_epochs": 2}, 20), ({"min_steps": 30, "min_epochs": 2}, 30)],
)
def test_early_stopping_waits_for_the_later_of_steps_and_epochs(changed, steps):
    assert min_steps(settings(**changed), 10) == steps


@pytest.mark.parametrize(
    ("changed", "steps"),
    [
        ({}, 25),
        ({"val_check_interval": 1}, 1),
        ({"val_check_interval": 1.0}, 10),
        ({"val_check_interval": 0.3}, 3),  # 0.3 * 10 is slightly less than 3 in floating point
        ({"val_check_interval": 0.01}, 1),
        ({"val_check_interval": 0.5, "accumulate_grad_batches": 2}, 3),
        ({"check_val_every_n_epoch": 3}, 30),
        ({"fast_dev_run": 2, "check_val_every_n_epoch": 3}, 2),
    ],
)
def test_the_interval_between_validations(changed, steps):
    assert val_check_interval(settings(**changed), 10) == steps


@pytest.mark.parametrize(
    "changed",
    [
        *({name: 0} for name in ("max_steps", "max_epochs", "min_steps", "min_epochs", "check_val_every_n_epoch")),
        *({"val_check_interval": value} for value in (0, 0.0, 1.5, -3)),
        {"max_steps": -1},
        {"max_epochs": -2},
        {"fast_dev_run": -1},
    ],
    ids=str,
)
def test_a_value_out_of_range_is_a_user_error(changed):
    with pytest.raises(UserError, match=rf"trainer\.{next(iter(changed))}="):
        check(settings(**changed))
