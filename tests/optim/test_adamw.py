"""Tests of AdamW and SGD: weight decay groups, equality with the papers' update rules, and resuming."""

import copy

import pytest
import torch
from torch import Tensor, nn

from chargpt.config.instantiate import instantiate
from chargpt.optim.adamw import adamw
from chargpt.optim.parameter_groups import decay_groups
from chargpt.optim.sgd import sgd
from tests.training import run_artifacts
from tests.training.stepping import gradients, train


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    tied = nn.Embedding(7, 4)
    head = nn.Linear(4, 7)
    head.weight = tied.weight
    return nn.ModuleDict({"embedding": tied, "norm": nn.LayerNorm(4), "mix": nn.Linear(4, 4), "head": head})


def assert_close(model: nn.Module, expected: list[Tensor]) -> None:
    for (name, p), q in zip(model.named_parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach().double(), q, rtol=1e-5, atol=1e-6, msg=name)


def test_only_matrices_have_weight_decay(model):
    decaying, exempt = decay_groups(model, 0.3)
    assert (decaying["weight_decay"], exempt["weight_decay"]) == (0.3, 0.0)
    assert {p.ndim for p in decaying["params"]} == {2}
    assert {p.ndim for p in exempt["params"]} == {1}


@pytest.mark.parametrize("kind", ["toy", "trained"])
def test_every_parameter_is_in_exactly_one_group(kind, model, finished):
    if kind == "trained":  # its head is tied to its embedding
        config = run_artifacts.checkpoint(finished)["chargpt"]["config"]["model"]
        model = instantiate(config, "model", vocab_size=30)
    grouped = [id(p) for group in decay_groups(model, 0.1) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


def test_a_frozen_parameter_is_in_no_group(model):
    model["mix"].weight.requires_grad_(False)
    grouped = {id(p) for group in decay_groups(model, 0.1) for p in group["params"]}
    assert id(model["mix"].weight) not in grouped
    assert len(grouped) == len(list(model.parameters())) - 1


def test_a_model_with_only_matrices_has_one_group():
    assert [len(g["params"]) for g in decay_groups(nn.Linear(3, 3, bias=False), 0.1)] == [1]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("steps", [1, 5])
def test_adamw_equals_the_papers_update(model, fused, steps):
    """Loshchilov and Hutter 2019, algorithm 2, in double precision."""
    lr, b1, b2, decay, eps = 3e-2, 0.8, 0.95, 0.2, 1e-8
    expected = []
    for i, p in enumerate(model.parameters()):
        x = p.detach().double()
        m, v = torch.zeros_like(x), torch.zeros_like(x)
        for step in range(steps):
            g = gradients(model, step)[i].double()
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            m_hat, v_hat = m / (1 - b1 ** (step + 1)), v / (1 - b2 ** (step + 1))
            x = x - lr * (m_hat / (v_hat.sqrt() + eps) + (decay * x if p.ndim >= 2 else 0))
        expected.append(x)
    train(model, adamw(model, lr=lr, betas=[b1, b2], weight_decay=decay, eps=eps, fused=fused), range(steps))
    assert_close(model, expected)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("steps", [1, 5])
def test_sgd_equals_the_papers_update(model, nesterov, steps):
    """Sutskever et al. 2013, in torch's form: the velocity is a sum of gradients."""
    lr, momentum, decay = 0.1, 0.9, 0.3
    expected = []
    for i, p in enumerate(model.parameters()):
        x = p.detach().double()
        velocity = torch.zeros_like(x)
        for step in range(steps):
            g = gradients(model, step)[i].double() + (decay * x if p.ndim >= 2 else 0)
            velocity = momentum * velocity + g
            x = x - lr * (g + momentum * velocity if nesterov else velocity)
        expected.append(x)
    train(model, sgd(model, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=decay), range(steps))
    assert_close(model, expected)


def test_plain_sgd_subtracts_the_gradient(model):
    initial = copy.deepcopy(list(model.parameters()))
    train(model, sgd(model, lr=1.0), range(1))
    for p, q, g in zip(model.parameters(), initial, gradients(model, 0), strict=True):
        torch.testing.assert_close(q - p, g, rtol=1e-5, atol=1e-6)


def toy(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))


def train_toy(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, skip: tuple[int, ...] = ()) -> None:
    for step in steps:
        optimizer.zero_grad()
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        (model[2](model[0](x)) if step in skip else model(x)).square().sum().backward()
        optimizer.param_groups[0]["lr"] = 0.01 * (1 + step % 3)  # as a schedule does
        optimizer.step()


@pytest.mark.parametrize("skip", [(), (0,), (4,), (0, 1, 5)], ids=str)
def test_adamw_equals_torchs_bit_for_bit_also_with_missing_gradients(skip):
    actual, expected = toy(), toy()
    train_toy(actual, adamw(actual, lr=0.01), range(8), skip)
    groups = decay_groups(expected, 0.1)
    reference = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8, fused=True)
    train_toy(expected, reference, range(8), skip)
    for p, q in zip(actual.parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, q)


def test_adamw_resumes_from_a_saved_state_bit_for_bit():
    uninterrupted, resumed = toy(), toy()
    train_toy(uninterrupted, adamw(uninterrupted, lr=0.01), range(8))
    first = adamw(resumed, lr=0.01)
    train_toy(resumed, first, range(4))
    second = adamw(resumed, lr=0.01)
    train_toy(toy(1), adamw(toy(1), lr=0.01), range(1))
    second.load_state_dict(first.state_dict())
    train_toy(resumed, second, range(4, 6))
    second.load_state_dict(second.state_dict())  # after some steps, too
    train_toy(resumed, second, range(6, 8))
    for p, q in zip(uninterrupted.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)
