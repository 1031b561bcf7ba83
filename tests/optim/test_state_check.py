"""Tests that only an optimizer state that is safe for torch's fused kernels passes the check."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from chargpt.optim.adamw import adamw
from chargpt.optim.sgd import sgd
from chargpt.optim.state_check import check_optimizer_state


def stepped(model: nn.Module, make: Callable) -> torch.optim.Optimizer:
    optimizer = make(model)
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    return optimizer


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))


MAKERS = [
    lambda model: adamw(model, lr=0.1),
    lambda model: adamw(model, lr=0.1, fused=False),
    lambda model: sgd(model, lr=0.1),
    lambda model: sgd(model, lr=0.1, momentum=0.9),
]


@pytest.mark.parametrize("make", MAKERS)
def test_the_state_of_the_same_optimizer_passes(model, make):
    check_optimizer_state(stepped(model, make).state_dict(), make(model))


@pytest.mark.parametrize(
    "edit",
    [
        lambda w: w[:0],
        lambda w: w.mT.contiguous(),
        lambda w: torch.zeros(()).expand(w.shape),
        lambda w: w.to("meta"),
        lambda w: w.to_sparse(),
        lambda w: 0,
    ],
    ids=["empty", "transposed", "expanded", "meta", "sparse", "not a tensor"],
)
@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq", "step"])
def test_a_tensor_with_another_layout_than_the_parameter_is_an_error(model, name, edit):
    saved = copy.deepcopy(stepped(model, MAKERS[0]).state_dict())
    weight_state: dict[str, Tensor] = saved["state"][0]
    edited = edit(weight_state["exp_avg"])
    weight_state[name] = edited if isinstance(edited, Tensor) else [edited]
    with pytest.raises(ValueError, match=f"the optimizer's {name} of parameter 0"):
        check_optimizer_state(saved, MAKERS[0](model))


@pytest.mark.parametrize(("name", "value"), [("amsgrad", True), ("lr", torch.zeros(()))])
def test_settings_of_another_type_are_an_error(model, name, value):
    saved = stepped(model, MAKERS[0]).state_dict()
    saved["param_groups"][1][name] = value
    with pytest.raises(ValueError):
        check_optimizer_state(saved, MAKERS[0](model))


def test_another_number_of_groups_is_an_error(model):
    saved = stepped(model, MAKERS[0]).state_dict()
    saved["param_groups"].pop()
    with pytest.raises(ValueError, match="zip"):
        check_optimizer_state(saved, MAKERS[0](model))


def test_settings_of_another_torch_version_pass(model):
    saved = stepped(model, MAKERS[0]).state_dict()
    for group in saved["param_groups"]:
        group["foreach"], group["brand_new"] = False, 1
        del group["capturable"]
    check_optimizer_state(saved, MAKERS[0](model))
