"""The LightningModule: loss, validation loss, gradient clipping, optimizer and learning-rate schedule."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from jaxtyping import Float, Integer
from lightning.pytorch.strategies import FSDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import SumMetric

from chargpt.data.dataloader import IGNORE_INDEX, Batch
from chargpt.data.datamodule import TextDataModule
from chargpt.model.language_model import LanguageModel
from chargpt.model.loss import bits_per_character, cross_entropy
from chargpt.optim import foreach
from chargpt.utils.seeding import STEP, fold_in, seed_device


class LanguageModeling(L.LightningModule):
    """Next-token prediction with a plain `nn.Module`.

    Args:
        model: maps tokens_BT to logits_BTV.
        make_optimizer: builds the optimizer from the model.
        schedule: maps (step, max_steps, fraction of the time budget) to a factor of the learning rate.
        seed: dropout of batch k is drawn from (seed, k, rank).

    Attributes:
        batches: number of batches that the run has trained on, including before it was resumed; equals the
            index k of the next batch. Independent of Lightning's epochs.
        in_step: whether gradients of the current optimizer step have already been accumulated.
        validation_tokens: the number of predictions of the last validation, on all ranks.
    """

    def __init__(
        self,
        model: LanguageModel,
        make_optimizer: Callable[[torch.nn.Module], torch.optim.Optimizer],
        schedule: Callable[[int, int, float], float],
        seed: int,
    ):
        super().__init__()
        self.model = model
        # Counted here because FSDP later leaves each rank only a shard of the parameters.
        self.parameter_count, self.flops_per_token = model.parameter_count(), model.flops_per_token()
        self._make_optimizer = make_optimizer
        self.optimizer = make_optimizer(model)
        self._schedule = schedule
        self._seed = seed
        # Two sums, because MeanMetric ignores its weights when it does not check for NaN (torchmetrics 1.9.0).
        self.val_loss_sum = SumMetric(nan_strategy="disable")
        self.val_count = SumMetric(nan_strategy="disable")
        # Kept as tensors and read once per logging interval, so that no step waits for the device.
        self.train_losses: list[Tensor] = []
        self.grad_norm: Tensor | None = None
        self.lr_scale: Callable[[], float] = lambda: 1.0  # halved by each rollback
        self.time_fraction: Callable[[], float] = lambda: 0.0  # fraction of the time budget; from `TrainingTimer`
        self.train_loss_fn: Callable[[Tensor, Tensor], Tensor] = self.loss  # `Compilation` replaces it
        self.batches, self.in_step = 0, False
        self.validation_tokens = 0
        self._step = 0  # the last completed step
        self._stops_early = False  # early stopping waits for trainer.min_steps
        self.logs_metrics = True  # False where `MetricsCallback` does

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning sets this attribute about fifty times per step, and `nn.Module.__setattr__` is slow.
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def forward(self, tokens_BT: Integer[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        return self.model(tokens_BT)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["batches"] = self.batches
        waiting = self.trainer.global_step < (self.trainer.min_steps or 0)
        checkpoint["stops_early"] = (self.trainer.should_stop or self._stops_early) and waiting

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        default = checkpoint["global_step"] * self.trainer.accumulate_grad_batches  # version 0.2 did not save it
        self.batches = checkpoint.get("batches", default)
        self._stops_early = bool(checkpoint.get("stops_early"))

    def on_train_start(self) -> None:
        self.trainer.should_stop = self.trainer.should_stop or self._stops_early
        self._step = self.trainer.global_step
        # A resumed run may have a larger max_steps than the one for which the saved learning rate was computed.
        scheduler = self.lr_schedulers()
        assert isinstance(scheduler, LambdaLR)  # that of `configure_optimizers`
        factor = scheduler.lr_lambdas[0](scheduler.last_epoch)
        for group, lr in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
            group["lr"] = lr * factor
        single = isinstance(self.trainer.strategy, SingleDeviceStrategy) and self.device.type == "cpu"
        self._set_sparse(single and self.train_loss_fn == self.loss)  # DDP and torch.compile require dense gradients

    def on_train_end(self) -> None:
        self._set_sparse(False)

    def _set_sparse(self, sparse: bool) -> None:
        """Sets whether the tables that the optimizer updates row by row have sparse gradients."""
        for table in getattr(self.optimizer, "tables", []):
            table.sparse = sparse

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        seed_device(fold_in(self._seed, STEP, self.batches, self.global_rank), self.device)
        if not self.in_step:
            # Lightning frees the gradients after the forward pass. If they are freed before it, the activations reuse
            # their memory, which is still in the CPU's cache: 2 % of the time of a step of a small model.
            self.trainer.optimizers[0].zero_grad(set_to_none=True)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs_BT, targets_BT = batch
        loss = self.train_loss_fn(inputs_BT, targets_BT)
        if self.logs_metrics:
            self.log("train/loss", loss.detach(), prog_bar=True)
        self.train_losses.append(loss.detach().clone())  # the next replay of a CUDA graph overwrites its output
        return loss

    def loss(self, inputs_BT: Integer[Tensor, "B T"], targets_BT: Integer[Tensor, "B T"]) -> Float[Tensor, ""]:
        """The mean loss of a batch, in nats per token."""
        return cross_entropy(self.model(inputs_BT), targets_BT)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        inputs_BT, targets_BT = batch
        self.val_loss_sum.update(cross_entropy(self.model(inputs_BT), targets_BT, reduction="sum"))
        self.val_count.update((targets_BT != IGNORE_INDEX).sum())

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.batches += 1
        self.in_step = self.trainer.global_step == self._step
        self._step = self.trainer.global_step

    def on_validation_epoch_end(self) -> None:
        count = self.val_count.compute()
        loss = self.val_loss_sum.compute() / count
        self.validation_tokens = int(count)
        # Also for callbacks that monitor them, such as EarlyStopping.
        data: TextDataModule = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue] - not declared
        bits = bits_per_character(loss.item(), data.characters_per_token)
        self.log_dict({"val/loss": loss, "val/bpc": bits, "val/perplexity": loss.exp()}, logger=self.logs_metrics)
        self.val_loss_sum.reset()
        self.val_count.reset()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the gradients by their global norm or each element, and keeps the norm before it for logging."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        if scaler is not None and fused:  # 16-mixed: a fused optimizer unscales in its step, after clipping
            scaler.unscale_(optimizer)
        value = gradient_clip_val if gradient_clip_algorithm == "value" else None
        limit = float("inf") if gradient_clip_val is None or value is not None else gradient_clip_val
        clip = getattr(self.trainer.model, "clip_grad_norm_", None)  # FSDP: the norm spans the shards
        if clip is not None:
            self.grad_norm = clip(limit)
        elif gradient_clip_val is None:
            self.grad_norm = None  # measured when a point is logged
        else:
            gradients = self._gradients()
            self.grad_norm = get_total_norm(gradients)
            foreach.mul_(gradients, (limit / (self.grad_norm + 1e-6)).clamp(max=1.0))  # as clip_grads_with_norm_
        if value is not None:
            for gradient in self._gradients():
                gradient.clamp_(-value, value)

    def measure_grad_norm(self) -> Tensor:
        """The global gradient norm of the last step, before clipping."""
        if self.grad_norm is not None:
            return self.grad_norm
        return get_total_norm(self._gradients())

    def _gradients(self) -> list[Tensor]:
        """The gradients, of sparse ones the rows that they contain."""
        gradients = []
        for p in self.parameters():
            if p.grad is not None and p.grad.is_sparse:
                p.grad = p.grad.coalesce()
                gradients.append(p.grad.values())
            elif p.grad is not None:
                gradients.append(p.grad)
        return gradients

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        # FSDP has replaced the parameters by its shards.
        sharded = isinstance(self.trainer.strategy, FSDPStrategy)
        optimizer = self._make_optimizer(self.model) if sharded else self.optimizer

        def factor(step: int) -> float:
            return self._schedule(step, self.trainer.max_steps, self.time_fraction()) * self.lr_scale()

        scheduler = LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
