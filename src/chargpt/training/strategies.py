"""Lightning strategies for several processes: DDP, and FSDP with unsharded checkpoints."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, Strategy
from torch import nn
from torch.distributed.fsdp import (
    FullOptimStateDictConfig,
    FullStateDictConfig,
    FullyShardedDataParallel,
    MixedPrecision,
    StateDictType,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torchmetrics import Metric

from chargpt.model.transformer import Block

TIMEOUT = timedelta(minutes=30)  # how long a rank waits for the others in a collective operation
WRAPPER = "_fsdp_wrapped_module."  # FSDP inserts it into parameter names; torch has no public constant for it


def make_strategy(name: str, distributed: bool) -> str | Strategy:
    """The strategy for `trainer.strategy`; the unchanged name if Lightning's defaults suffice.

    Args:
        distributed: whether the run has more than one process.
    """
    if name == "fsdp":
        return ShardedStrategy(auto_wrap_policy=ModuleWrapPolicy({Block}), timeout=TIMEOUT)
    if name == "ddp" or (name == "auto" and distributed):
        # The only buffers are tables that are equal on all ranks, so none are broadcast at each step.
        renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # torch 2.13
        no_broadcast: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
        return DDPStrategy(gradient_as_bucket_view=True, timeout=TIMEOUT, **no_broadcast)
    return name


class ShardedStrategy(FSDPStrategy):
    """FSDP with one unit per block, gradients reduced in float32, and checkpoints in the format of other strategies.

    A checkpoint contains the full weights, and the optimizer state with parameters numbered as in torch's
    `state_dict`, so that a run may be resumed with another strategy or another number of devices.
    """

    @property
    def mixed_precision_config(self) -> MixedPrecision:
        """Reduces gradients and keeps buffers in float32; with mixed precision, parameters too.

        Autocast selects the operations that run in 16 bits, as with every other strategy. The cast of FSDP would
        convert norms, embeddings and the sums of their gradients, too.
        """
        # FSDP would cast a copy of a block's `BlockContext`, and values that the block writes to it would be lost.
        uncast = dict(cast_forward_inputs=False, cast_root_forward_inputs=False)
        config = super().mixed_precision_config
        assert config is not None  # `precision_plugin` has one
        if "mixed" in self.precision_plugin.precision:
            config = replace(config, param_dtype=torch.float32)
        return replace(config, reduce_dtype=torch.float32, buffer_dtype=torch.float32, **uncast)

    def _setup_model(self, model: nn.Module) -> nn.Module:
        # Lightning's implementation passes only the index of the device, which a CPU does not have. `setup` calls
        # this method, and there is no public hook for wrapping the module.
        model = FullyShardedDataParallel(
            model,
            device_id=self.root_device,
            mixed_precision=self.mixed_precision_config,
            sharding_strategy=self.sharding_strategy,
            **self.kwargs,
        )
        for metric in (module for module in model.modules() if isinstance(module, Metric)):
            metric.to(self.root_device)  # FSDP moves parameters and buffers; a metric has neither
        return model

    def setup_optimizers(self, trainer: L.Trainer) -> None:
        # Optimizers group parameters by shape, and shards are 1-D.
        assert self.model is not None
        with FullyShardedDataParallel.summon_full_params(self.model, writeback=False):
            super().setup_optimizers(trainer)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The full weights; empty on ranks other than 0."""
        with self._full(rank0_only=True) as model:
            return model.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The full state, with parameters numbered in the optimizer's order; empty on ranks other than 0."""
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        with self._full(rank0_only=True) as model:
            named = FullyShardedDataParallel.optim_state_dict(model, optimizer)
        if self.global_rank != 0:
            return {}
        numbers = {name: number for number, name in enumerate(chain.from_iterable(self._names(optimizer)))}
        groups = [group | {"params": [numbers[name] for name in group["params"]]} for group in named["param_groups"]]
        return {"state": {numbers[name]: state for name, state in named["state"].items()}, "param_groups": groups}

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        checkpoint = self.checkpoint_io.load_checkpoint(checkpoint_path)
        with self._full(rank0_only=False) as model:
            model.load_state_dict(checkpoint["state_dict"])
            for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
                sharded = FullyShardedDataParallel.optim_state_dict_to_load(
                    model, optimizer, self._by_name(optimizer, saved)
                )
                optimizer.load_state_dict(sharded)
        return checkpoint

    def _by_name(self, optimizer: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
        groups, names = saved["param_groups"], self._names(optimizer)
        numbers = chain.from_iterable(group["params"] for group in groups)
        by_number = dict(zip(numbers, chain.from_iterable(names), strict=True))
        groups = [group | {"params": params} for group, params in zip(groups, names, strict=True)]
        state = {by_number[number]: state for number, state in saved["state"].items()}
        return {"state": state, "param_groups": groups}

    def _names(self, optimizer: Optimizer) -> list[list[str]]:
        """The parameter names of each group."""
        assert self.model is not None
        names = {p: name.replace(WRAPPER, "") for name, p in self.model.named_parameters()}
        return [[names[p] for p in group["params"]] for group in optimizer.param_groups]

    @contextmanager
    def _full(self, rank0_only: bool) -> Iterator[nn.Module]:
        """Within this context, state dicts of the yielded model are unsharded: gathered from all ranks, on the CPU."""
        assert self.model is not None
        # CPU offload does not copy tensors that are on the CPU already, and FSDP frees their storage.
        settings = dict(offload_to_cpu=self.root_device.type != "cpu", rank0_only=rank0_only)
        configs = FullStateDictConfig(**settings), FullOptimStateDictConfig(**settings)
        with FullyShardedDataParallel.state_dict_type(self.model, StateDictType.FULL_STATE_DICT, *configs):
            yield self.model
