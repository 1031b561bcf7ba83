"""An optimizer's state from a file: only what the fused kernels may be given comes through."""

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
def test_its_own_state_comes_through(model, make):
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
    ids=["empty", "transposed", "stretched", "of no device", "sparse", "no tensor"],
)
@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq", "step"])
def test_a_tensor_that_a_kernel_would_read_beyond_is_refused(model, name, edit):
    saved = copy.deepcopy(stepped(model, MAKERS[0]).state_dict())
    of_weight: dict[str, Tensor] = saved["state"][0]
    edited = edit(of_weight["exp_avg"])
    of_weight[name] = edited if isinstance(edited, Tensor) else [edited]
    with pytest.raises(ValueError, match=f"the optimizer's {name} of parameter 0"):
        check_optimizer_state(saved, MAKERS[0](model))


@pytest.mark.parametrize(("name", "value"), [("amsgrad", True), ("lr", torch.zeros(()))])
def test_settings_that_would_mislead_a_kernel_are_refused(model, name, value):
    saved = stepped(model, MAKERS[0]).state_dict()
    saved["param_groups"][1][name] = value
    with pytest.raises(ValueError):
        check_optimizer_state(saved, MAKERS[0](model))


def test_groups_that_do_not_fit_are_refused(model):
    saved = stepped(model, MAKERS[0]).state_dict()
    saved["param_groups"].pop()
    with pytest.raises(ValueError, match="zip"):
        check_optimizer_state(saved, MAKERS[0](model))


def test_settings_that_another_torch_has_otherwise_come_through(model):
    saved = stepped(model, MAKERS[0]).state_dict()
    for group in saved["param_groups"]:
        group["foreach"], group["brand_new"] = False, 1
        del group["capturable"]
    check_optimizer_state(saved, MAKERS[0](model))
