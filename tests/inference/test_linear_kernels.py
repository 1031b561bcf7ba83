"""Linear layers for a few rows: every implementation, and the choice among them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from chargpt.inference import linear_kernels as module
from chargpt.inference.linear_kernels import KERNELS, fastest_kernel, linear_factory


@pytest.fixture(autouse=True)
def measured(monkeypatch) -> dict:
    """What was measured, instead of the file in the user's cache."""
    known = {}

    def read_or_measure(name, measure, is_valid):
        if not is_valid(known.get(name)):
            known[name] = measure()
        return known[name]

    monkeypatch.setattr(module, "measured", read_or_measure)
    return known


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 6])
@pytest.mark.parametrize("shape", [(40, 48), (65, 32), (256, 64)], ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_is_a_linear_layer(name, shape, rows, bias):
    if not module._is_available(name):
        pytest.skip(f"this build of torch has no {name}")
    weight, x_NC = torch.randn(shape), torch.randn(rows, shape[1])
    bias = torch.randn(shape[0]) if bias else None
    kernel = KERNELS[name](weight, bias, rows)
    kernel(torch.randn(rows, shape[1]))
    actual_NC, before_NC = kernel(x_NC), x_NC.clone()
    torch.testing.assert_close(actual_NC, F.linear(x_NC, weight, bias), atol=1e-5, rtol=1e-5)
    actual_NC.zero_()  # a caller may write to the result
    torch.testing.assert_close(kernel(x_NC), F.linear(x_NC, weight, bias), atol=1e-5, rtol=1e-5)
    assert torch.equal(x_NC, before_NC)


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(*[nn.Linear(384, 384) for _ in range(2)])


@pytest.mark.parametrize("name", KERNELS)
def test_a_model_uses_the_measured_kernel(monkeypatch, model, name):
    if not module._is_available(name):
        pytest.skip(f"this build of torch has no {name}")
    used = []
    monkeypatch.setattr(module, "_measure", lambda weights, rows, names: name)
    monkeypatch.setitem(KERNELS, name, lambda *arguments: used.append(arguments))
    linear_factory(model, 6)(model[0])
    assert used == [(model[0].weight, model[0].bias, 6)]


def test_a_kernel_that_this_build_of_torch_does_not_have_is_neither_measured_nor_used(monkeypatch, model, measured):
    monkeypatch.setattr(module, "_is_available", lambda name: name in ("stored", "split"))
    weights = [layer.weight for layer in model]
    assert fastest_kernel(weights, 6) in ("stored", "split")
    (name,) = measured
    measured[name] = "onednn"
    assert fastest_kernel(weights, 6) in ("stored", "split")


def test_layers_rows_and_threads_are_measured_separately(monkeypatch, model, measured):
    weights, threads = [layer.weight for layer in model], torch.get_num_threads()
    try:
        for rows, num_threads, layers in ((6, 1, 2), (1, 1, 2), (6, 2, 2), (6, 1, 1), (6, 1, 2)):
            torch.set_num_threads(num_threads)
            fastest_kernel(weights[:layers], rows)
    finally:
        torch.set_num_threads(threads)
    assert len(measured) == 4


def test_many_rows_use_the_kernel_of_fewer(model, measured):
    weights = [layer.weight for layer in model]
    assert fastest_kernel(weights, 1000) == fastest_kernel(weights, module.MAX_ROWS)
    assert len(measured) == 1


def test_the_first_layers_of_a_large_model_are_measured(monkeypatch, model):
    measured_weights = []
    monkeypatch.setattr(module, "MAX_WEIGHTS", 384 * 384)
    monkeypatch.setattr(module, "_measure", lambda weights, rows, names: measured_weights.append(weights) or "stored")
    fastest_kernel([layer.weight for layer in model], 6)
    assert [len(weights) for weights in measured_weights] == [1]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float32])
def test_other_types_and_small_models_are_not_measured(monkeypatch, dtype, rows):
    monkeypatch.setattr(module, "measured", lambda *arguments: pytest.fail("measured"))
    layer, x_NC = nn.Linear(32, 40, dtype=dtype), torch.randn(rows, 32, dtype=dtype)
    with torch.no_grad():
        torch.testing.assert_close(linear_factory(layer, rows)(layer)(x_NC), layer(x_NC), atol=0.02, rtol=0.02)
