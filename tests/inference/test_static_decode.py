"""The decoding step with fixed shapes, compared to the forward pass of the model with its plain KV cache."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from chargpt.inference.decode import DecodeStep
from chargpt.inference.static_decode import StaticDecodeStep
from chargpt.model.attention import LayerKVCache
from tests.inference.architectures import architectures, build_model

BLOCK = 8
MODERN = ["model=gpt_modern", "model/value_residual=residual", "model/unet_skips=u_net"]


def random_tokens(batch_size: int, T: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(11, (batch_size, T), generator=torch.Generator().manual_seed(seed))


def step_with(step: StaticDecodeStep, tokens_B: torch.Tensor) -> torch.Tensor:
    step.tokens_B1.copy_(tokens_B[:, None])
    return step().clone()


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    overrides=architectures(), batch_size=st.integers(1, 3), prompt=st.integers(1, BLOCK), refill=st.integers(1, BLOCK)
)
def test_logits_are_equal_to_the_forward_pass_also_after_a_second_prefill(overrides, batch_size, prompt, refill):
    model = build_model(overrides, block_size=BLOCK)
    assume(DecodeStep.supports(model))
    step = StaticDecodeStep(model, batch_size)
    for seed, T in enumerate((prompt, refill)):  # the second prefill starts with the keys and values of the first
        tokens_BT, cache = random_tokens(batch_size, BLOCK, seed), model.new_cache(batch_size)
        expected_BV = model(tokens_BT[:, :T], cache)[:, -1]
        assert torch.equal(step.prefill(tokens_BT[:, :T]), expected_BV)
        for t in range(T, BLOCK):
            expected_BV = model(tokens_BT[:, t : t + 1], cache)[:, -1]
            torch.testing.assert_close(step_with(step, tokens_BT[:, t]), expected_BV, atol=1e-5, rtol=1e-5)
        assert step.position_1.item() == BLOCK


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_cache_and_the_mask_use_the_dtype_of_the_weights(dtype):
    model = build_model(MODERN, block_size=BLOCK).to(dtype)
    step, tokens_BT = StaticDecodeStep(model, 2), random_tokens(2, 4)
    step.prefill(tokens_BT[:, :3])
    expected_BV = model(tokens_BT)[:, -1]
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-9
    torch.testing.assert_close(step_with(step, tokens_BT[:, 3]), expected_BV, atol=tolerance, rtol=tolerance)


def test_reused_memory_is_zeroed(monkeypatch):
    model, tokens_BT = build_model(MODERN, block_size=BLOCK), random_tokens(2, 5)
    new_cache = type(model).new_cache

    def cache_of_nans(self, batch_size):
        cache = new_cache(self, batch_size)
        for layer in cache.layers:
            layer.keys_values_2BHTD.fill_(torch.nan)
        return cache

    monkeypatch.setattr(type(model), "new_cache", cache_of_nans)
    step = StaticDecodeStep(model, 2)
    step.prefill(tokens_BT[:, :4])
    torch.testing.assert_close(step_with(step, tokens_BT[:, 4]), model(tokens_BT)[:, -1], atol=1e-5, rtol=1e-5)


def test_cache_content_beyond_the_position_has_no_effect():
    model, tokens_BT, logits = build_model(MODERN, block_size=BLOCK), random_tokens(2, BLOCK), []
    for old_BT in (tokens_BT, tokens_BT.flip(1)):
        step = StaticDecodeStep(model, 2)
        step.prefill(old_BT)
        step.prefill(tokens_BT[:, :4])
        logits.append(step_with(step, tokens_BT[:, 4]))
    assert torch.equal(*logits)


class OperationRecorder(TorchDispatchMode):
    """Records the operations that run, with the shapes of their tensor arguments."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        shapes = [tuple(arg.shape) for arg in tree_leaves(args) if isinstance(arg, torch.Tensor)]
        self.operations.append((str(func), shapes))
        return func(*args, **(kwargs or {}))


@settings(max_examples=6, deadline=None)
@given(overrides=architectures())
def test_every_position_runs_the_same_kernels_without_synchronization(overrides):
    model = build_model(overrides, block_size=BLOCK)
    assume(DecodeStep.supports(model))
    step, runs = StaticDecodeStep(model, 2), []
    step.prefill(random_tokens(2, 2))
    for _ in range(2, BLOCK):
        with torch.no_grad(), OperationRecorder() as recorder:
            step()
        runs.append(recorder.operations)
    assert all(run == runs[0] for run in runs)
    synchronizing = ("_local_scalar_dense", "nonzero", "is_nonzero", "_to_copy", "unique", "masked_select", "bincount")
    assert not [name for name, _ in runs[0] if any(operation in name for operation in synchronizing)]


def test_memory_is_allocated_once(monkeypatch):
    model, allocations = build_model(["model=gpt_ensemble", "model.members=2"], block_size=BLOCK), []
    init = LayerKVCache.__init__
    monkeypatch.setattr(LayerKVCache, "__init__", lambda self, both: allocations.append(both) or init(self, both))
    step = StaticDecodeStep(model, 2)
    count = len(allocations)
    for T in (3, BLOCK, 1):
        step.prefill(random_tokens(2, T))
        if T < BLOCK:
            step()
    assert len(allocations) == count
    addresses = [both.data_ptr() for both in allocations]
    assert len(set(addresses)) == len(addresses) // 2  # a plain and a static layer cache share memory
