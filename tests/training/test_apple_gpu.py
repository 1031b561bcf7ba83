"""Training and sampling on an Apple GPU, without one: every operator has a kernel there, and no tensor is float64.

The code runs on torch's meta device, where tensors have shapes and types but no values. Which operators have a kernel
for Apple GPUs (MPS) is in the file from which torch's dispatcher was generated, a part of every torch installation.
"""

import functools
from pathlib import Path

import pytest
import torch
import torchgen
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor
from torch.fx.experimental import _config as fx_config
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from chargpt.config.instantiate import instantiate
from chargpt.data.dataloader import EvalBlockLoader, RandomBlockLoader
from chargpt.inference.context import Context
from chargpt.model.language_model import LanguageModel
from chargpt.model.loss import cross_entropy
from chargpt.optim import foreach
from tests.conftest import REPO

MODELS = [
    (),
    ("model=gpt_small",),
    ("model=gpt_ensemble",),
    ("model=gpt_nano", "model/feed_forward=swiglu", "model/norm=rms_norm", "model/softcap=soft_cap"),
    ("model=gpt_nano", "model/value_residual=residual", "model/unet_skips=u_net"),
]
TOKENS_N = torch.zeros(5000, dtype=torch.uint8, device="meta")


@functools.cache
def operators() -> dict[str, dict]:
    file = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    entries = yaml.load(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {entry["func"].partition("(")[0]: entry for entry in entries}


def has_kernel(operator: torch._ops.OpOverload) -> bool:
    """Whether an operator has a kernel for MPS, or is composed of other operators."""
    name = operator._schema.name.removeprefix("aten::")
    overload = operator._schema.overload_name
    entry = operators()[f"{name}.{overload}" if overload else name]
    entry = operators()[entry["structured_delegate"]] if "structured_delegate" in entry else entry
    keys = {key.strip() for keys in entry.get("dispatch", {"CompositeImplicitAutograd": ""}) for key in keys.split(",")}
    return "MPS" in keys or any(key.startswith("Composite") for key in keys)


class CheckOperators(TorchDispatchMode):
    """Fails on an operator without a kernel for MPS, and on a float64 tensor."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        if on_device := [tensor for tensor in tensors if tensor.device.type == "meta"]:
            assert has_kernel(function), f"{function} has no kernel for Apple GPUs"
            assert torch.float64 not in {tensor.dtype for tensor in on_device}, f"{function} uses float64"
        return result


@pytest.fixture(params=MODELS, ids=" ".join)
def config(request) -> dict:
    with initialize_config_dir(str(REPO / "conf"), version_base="1.3"):
        composed = compose("train", overrides=list(request.param))
    return {name: OmegaConf.to_container(composed[name], resolve=True) for name in ("model", "optimizer")}


@pytest.fixture
def model(config) -> LanguageModel:
    return instantiate(config["model"], "model", LanguageModel, vocab_size=65).to("meta")


def test_an_operator_without_a_kernel_is_detected():
    assert has_kernel(torch.ops.aten.mm.default)
    assert has_kernel(torch.ops.aten._fused_adamw_.default)
    assert has_kernel(torch.ops.aten._fused_sgd_.default)
    assert not has_kernel(torch.ops.aten._cudnn_rnn.default)


# For the rows of tables that have a gradient: on the meta device, their number is unknown.
@fx_config.patch(meta_nonzero_assume_all_nonzero=True)  # pyright: ignore[reportAttributeAccessIssue] - set at import
def test_training_and_validation_use_only_operators_with_a_kernel(model, config):
    optimizer = instantiate(config["optimizer"], "optimizer")(model)
    loader = RandomBlockLoader(TOKENS_N, model.block_size, 2 * model.batch_multiple, seed=1)
    with CheckOperators():
        inputs_BT, targets_BT = loader.batch(0)
        cross_entropy(model(inputs_BT), targets_BT).backward()
        parameters = [p for p in model.parameters() if p.grad is not None]
        clip_grads_with_norm_(parameters, 1.0, get_total_norm([p.grad for p in parameters]))
        if "muon" in config["optimizer"]["_target_"]:  # torch's AdamW rejects the meta device
            optimizer.step()
        ema = [p.detach().clone() for p in parameters]
        foreach.lerp_(ema, [p.detach() for p in parameters], 0.1)
        inputs_BT, targets_BT = next(iter(EvalBlockLoader(TOKENS_N, model.block_size, 2)))
        with torch.no_grad():
            cross_entropy(model.eval()(inputs_BT), targets_BT, reduction="sum")


@pytest.mark.parametrize("window", ["half", "exact"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_sampling_uses_only_operators_with_a_kernel(monkeypatch, model, batch_size, window):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: False)  # there is none on the meta device
    model.eval().requires_grad_(False)
    with CheckOperators():
        context = Context(model, batch_size, window)
        for length in (model.block_size - 1, 1, 1, 1, 2):
            context.extend(torch.zeros(batch_size, length, dtype=torch.long, device="meta"))
