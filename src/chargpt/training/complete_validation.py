"""Measures the best checkpoint on the complete validation split, at the end of a run whose validations read a part."""

import logging
import signal
from types import FrameType

import torch
from rich.console import Console
from rich.progress import track

from chargpt.distributed.async_reduce import AsyncMaxReduce
from chargpt.distributed.env import STOP_SIGNALS, received_signals, set_handlers
from chargpt.inference.pretrained import load
from chargpt.model.loss import cross_entropy
from chargpt.training.callbacks.interrupt import end_interrupted
from chargpt.training.setup import Run

log = logging.getLogger(__name__)


def is_required(run: Run) -> bool:
    """Whether `data.max_validation_tokens`, and no setting of the trainer, has limited the validations."""
    metrics = run.metrics_callback
    return run.data.limits_validation and metrics.best_step > 0 and not metrics.partial_validation


def measure_best(run: Run) -> float:
    """The loss of `best.ckpt` on the complete validation split, in nats per token. Called on all ranks.

    Raises:
        Interrupted: by a signal. The resumed run continues with this measurement.
    """
    trainer, data = run.trainer, run.data
    device, plugin = trainer.strategy.root_device, trainer.precision_plugin
    batches = data.complete_val_dataloader()
    log.info("measuring best.ckpt on all %s tokens of the validation split", f"{len(data.val_tokens_N) - 1:,}")
    trainer.strategy.barrier()  # rank 0 may still be writing best.ckpt
    model = plugin.convert_module(load(run.directory.best, trust=run.trust).model).to(device)
    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if stopped:
            set_handlers(handlers)
            signal.raise_signal(number)
        stopped.append(number)

    console = Console(stderr=True)
    visible = trainer.is_global_zero and console.is_terminal
    run.timer.start_activity("validation", device)
    handlers = set_handlers(dict.fromkeys(STOP_SIGNALS, stop))
    stopped += received_signals[:1]
    reduce = AsyncMaxReduce(trainer.world_size, device)
    total = torch.zeros(1, dtype=torch.float64)
    try:
        with torch.inference_mode(), plugin.val_step_context():
            for inputs_BT, targets_BT in track(batches, "", console=console, transient=True, disable=not visible):
                received = reduce.exchange([stopped[0] if stopped else 0])
                if received is not None and received[0]:
                    end_interrupted(trainer, run.directory, int(received[0]), "in the last validation")
                total += cross_entropy(model(inputs_BT), targets_BT, reduction="sum").cpu().double()
        reduce.finish()
    finally:
        set_handlers(handlers)
    if trainer.world_size > 1:
        total = trainer.strategy.reduce(total.to(device), reduce_op="sum")
    run.timer.start_activity("checkpoint", device)
    return total.item() / (len(data.val_tokens_N) - 1)
