"""The step of fixed shapes against the model's own forward pass with its plain KV cache."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from chargpt.inference.decode import DecodeStep
from chargpt.inference.static_decode import StaticDecodeStep
from chargpt.model.attention import LayerKVCache
from tests.inference.architectures import architectures, made

BLOCK = 8
MODERN = ["model=gpt_modern", "model/value_residual=residual", "model/unet_skips=u_net"]


def tokens(batch_size: int, T: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(11, (batch_size, T), generator=torch.Generator().manual_seed(seed))


def step_with(step: StaticDecodeStep, tokens_B: torch.Tensor) -> torch.Tensor:
    step.tokens_B1.copy_(tokens_B[:, None])
    return step().clone()


@settings(max_examples=20, deadline=None)
@given(words=architectures(), batch_size=st.integers(1, 3), prompt=st.integers(1, BLOCK), again=st.integers(1, BLOCK))
def test_it_gives_the_models_logits_also_after_the_window_moved(words, batch_size, prompt, again):
    model = made(words, block_size=BLOCK)
    assert DecodeStep.supports(model)
    step = StaticDecodeStep(model, batch_size)
    for seed, T in enumerate((prompt, again)):  # the second prefill finds the first one's keys and values
        tokens_BT, cache = tokens(batch_size, BLOCK, seed), model.new_cache(batch_size)
        expected_BV = model(tokens_BT[:, :T], cache)[:, -1]
        assert torch.equal(step.prefill(tokens_BT[:, :T]), expected_BV)
        for t in range(T, BLOCK):
            expected_BV = model(tokens_BT[:, t : t + 1], cache)[:, -1]
            torch.testing.assert_close(step_with(step, tokens_BT[:, t]), expected_BV, atol=1e-5, rtol=1e-5)
        assert step.position_1.item() == BLOCK


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_cache_and_the_mask_have_the_dtype_of_the_weights(dtype):
    model = made(MODERN, block_size=BLOCK).to(dtype)
    step, tokens_BT = StaticDecodeStep(model, 2), tokens(2, 4)
    step.prefill(tokens_BT[:, :3])
    expected_BV = model(tokens_BT)[:, -1]
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-9
    torch.testing.assert_close(step_with(step, tokens_BT[:, 3]), expected_BV, atol=tolerance, rtol=tolerance)


def test_memory_that_was_in_use_before_is_zeroed(monkeypatch):
    model, tokens_BT = made(MODERN, block_size=BLOCK), tokens(2, 5)
    new_cache = type(model).new_cache

    def full_of_nan(self, batch_size):
        cache = new_cache(self, batch_size)
        for layer in cache.layers:
            layer.both_2BHTD.fill_(torch.nan)
        return cache

    monkeypatch.setattr(type(model), "new_cache", full_of_nan)
    step = StaticDecodeStep(model, 2)
    step.prefill(tokens_BT[:, :4])
    torch.testing.assert_close(step_with(step, tokens_BT[:, 4]), model(tokens_BT)[:, -1], atol=1e-5, rtol=1e-5)


def test_what_lies_beyond_the_position_does_not_matter():
    model, tokens_BT, logits = made(MODERN, block_size=BLOCK), tokens(2, BLOCK), []
    for before in (tokens_BT, tokens_BT.flip(1)):
        step = StaticDecodeStep(model, 2)
        step.prefill(before)
        step.prefill(tokens_BT[:, :4])
        logits.append(step_with(step, tokens_BT[:, 4]))
    assert torch.equal(*logits)


class Operations(TorchDispatchMode):
    """The operations that run, with the shapes of the tensors that they are given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        shapes = [tuple(arg.shape) for arg in tree_leaves(args) if isinstance(arg, torch.Tensor)]
        self.seen.append((str(func), shapes))
        return func(*args, **(kwargs or {}))


@settings(max_examples=6, deadline=None)
@given(words=architectures())
def test_every_position_runs_the_same_kernels_and_none_of_them_waits_for_the_device(words):
    model = made(words, block_size=BLOCK)
    step, runs = StaticDecodeStep(model, 2), []
    step.prefill(tokens(2, 2))
    for _ in range(2, BLOCK):
        with torch.no_grad(), Operations() as operations:
            step()
        runs.append(operations.seen)
    assert all(run == runs[0] for run in runs)
    waits = ("_local_scalar_dense", "nonzero", "is_nonzero", "_to_copy", "unique", "masked_select", "bincount")
    assert not [name for name, _ in runs[0] if any(word in name for word in waits)]


def test_the_memory_is_allocated_once(monkeypatch):
    model, made_at = made(["model=gpt_ensemble", "model.members=2"], block_size=BLOCK), []
    init = LayerKVCache.__init__
    monkeypatch.setattr(LayerKVCache, "__init__", lambda self, both: made_at.append(both) or init(self, both))
    step = StaticDecodeStep(model, 2)
    allocated = len(made_at)
    for T in (3, BLOCK, 1):
        step.prefill(tokens(2, T))
        if T < BLOCK:
            step()
    assert len(made_at) == allocated
    addresses = [both.data_ptr() for both in made_at]
    assert len(set(addresses)) == len(addresses) // 2  # the plain cache of a layer and its static one share theirs
