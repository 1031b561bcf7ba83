"""What the run trains on: Lightning's Trainer from the `trainer` part of the config."""

import logging
import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException as FabricError
from lightning.pytorch.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from chargpt.distributed import env
from chargpt.errors import UserError
from chargpt.training import peak_flops as peaks
from chargpt.training.bfloat16_support import has_fast_bfloat16
from chargpt.training.strategies import make_strategy

TENSOR_CORE_CAPABILITY = (7, 0)  # the compute capability from which on a GPU has them: Volta's, for float16

# Lightning's own short cuts, with which the figures of a run would not mean what they say.
UNSUPPORTED = {"fast_dev_run", "overfit_batches", "max_epochs", "min_epochs", "min_steps", "num_sanity_val_steps"}
UNSUPPORTED |= {f"limit_{stage}_batches" for stage in ("train", "val", "test", "predict")}


class NoProfiler(PassThroughProfiler):
    """Lightning opens some seventy profiled sections a step; its own profiler of nothing takes 0.1 ms for them."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager:
        return self._nothing


def build_trainer(settings: dict[str, Any], **fixed: Any) -> L.Trainer:
    """A Trainer for an endless stream of batches.

    Args:
        settings: the config's `trainer`, Lightning's own keys. `val_check_interval` counts optimizer steps, and
            `max_time` is left to the training clock.
        fixed: what is not the user's choice: callbacks, loggers, directories.

    Raises:
        UserError: hardware that is not there, or settings that Lightning refuses.
    """
    settings = dict(settings)
    _check(settings)
    settings.pop("max_time")
    for ours in ("compile", "ema_decay"):
        settings.pop(ours, None)
    settings["val_check_interval"] *= settings["accumulate_grad_batches"]
    if settings["precision"] in ("auto", "fastest"):
        settings["precision"] = best_precision(settings["accelerator"], settings["precision"] == "fastest")
    if settings["deterministic"] is False and settings["accelerator"] != "cpu" and torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in float32
    settings["profiler"] = settings.get("profiler") or NoProfiler()
    _silence_lightning()
    shape = _launched_shape()
    several = env.LOCK_FD_ENV in os.environ or shape.get("devices", 1) * shape.get("num_nodes", 1) > 1
    settings["strategy"] = make_strategy(settings["strategy"], several)
    fixed["plugins"] = [*fixed.get("plugins", []), *_cluster_environment()]
    try:
        trainer = L.Trainer(
            **settings | shape,
            **fixed,
            max_epochs=-1,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the sampler shares out each batch itself
            enable_model_summary=False,
        )
    except (
        MisconfigurationException,
        FabricError,
        ValueError,
        TypeError,
        RuntimeError,
        ImportError,
    ) as error:
        message = " ".join(str(error).split())
        other = "" if settings["accelerator"] == "auto" else "; trainer=auto takes what there is"
        raise UserError(f"trainer: {message} ({_detect_accelerator()}){other}") from error
    disable_signal_handlers(trainer)
    return trainer


def disable_signal_handlers(trainer: L.Trainer) -> None:
    """Leaves SIGTERM to `Interruption`. Lightning has no switch for it, so this replaces two private methods.

    Lightning's handler broadcasts in the middle of whatever the rank is doing, while the other ranks may be in
    another collective: then all wait for ever. With several ranks Lightning also broadcasts its flag at each step.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


def _cluster_environment() -> list[ClusterEnvironment]:
    """Who has started the ranks: torchrun is Lightning's to find, srun and we are named to it."""
    if env.launched_by_torchrun():
        return []
    return [SLURMEnvironment(auto_requeue=False) if env.launched_by_srun() else LightningEnvironment()]


def _launched_shape() -> dict[str, int]:
    """Processes a node and nodes, where torchrun or srun has started them: it is they who know."""
    here = os.environ
    if env.launched_by_torchrun():
        local, world = int(here["LOCAL_WORLD_SIZE"]), int(here["WORLD_SIZE"])
    elif env.launched_by_srun():
        world = int(here["SLURM_NTASKS"])
        local = world // int(here.get("SLURM_NNODES") or here.get("SLURM_JOB_NUM_NODES") or 1)
    else:
        return {}
    return {"devices": local, "num_nodes": world // local}


def peak_flops(trainer: L.Trainer) -> float | None:
    """FLOP/s of all devices at their best, in dense 16-bit products; None where the table has no such device."""
    device = trainer.strategy.root_device
    if device.type != "cuda":
        return None
    each = peaks.peak_flops(torch.cuda.get_device_name(device))
    return each and each * trainer.world_size


def device_name(device: torch.device) -> str:
    """The device in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _check(settings: dict[str, Any]) -> None:
    if unwanted := sorted(UNSUPPORTED & settings.keys()):
        raise UserError(
            f"trainer.{unwanted[0]} is not for this bench: a run is measured over the whole validation split. For "
            f"a short run take trainer.max_steps"
        )
    for name in ("val_check_interval", "log_every_n_steps", "accumulate_grad_batches", "num_nodes"):
        if settings[name] < 1:
            raise UserError(f"trainer.{name}={settings[name]}: it must be 1 or more")
    if settings["max_steps"] < 1 and not (settings["max_steps"] == -1 and settings["max_time"]):
        raise UserError(
            f"trainer.max_steps={settings['max_steps']}: it must be 1 or more, or -1 with a trainer.max_time"
        )
    if settings["deterministic"] not in (True, False, "warn"):
        raise UserError(f"trainer.deterministic={settings['deterministic']}: it is true, false or warn")
    if str(settings["strategy"]).endswith(("_notebook", "_fork", "_spawn")):
        raise UserError(f"trainer.strategy={settings['strategy']} starts processes of its own: take ddp or fsdp")
    if settings.get("ema_decay") is not None and str(settings["strategy"]).startswith("fsdp"):
        raise UserError("trainer.ema_decay wants whole weights, which FSDP splits: leave it out, or take trainer=ddp")
    clip = settings["gradient_clip_val"]
    if clip is not None and not clip > 0:
        raise UserError(f"trainer.gradient_clip_val={clip}: it must be more than 0, or null for no clipping")


def best_precision(accelerator: str, on_cpu_too: bool = False) -> str:
    """The fastest precision that a GPU has units for; on a CPU only if asked for, so that figures stay comparable.

    bfloat16 from Ampere on. Volta and Turing (V100, T4) would emulate it, and have float16.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        if has_fast_bfloat16(torch.device("cuda")):
            return "bf16-mixed"
        return "16-mixed" if torch.cuda.get_device_capability() >= TENSOR_CORE_CAPABILITY else "32-true"
    here = on_cpu_too and accelerator in ("auto", "cpu")
    return "bf16-mixed" if here and has_fast_bfloat16(torch.device("cpu")) else "32-true"


def _detect_accelerator() -> str:
    gpus = torch.cuda.device_count()
    mps = ", Apple's GPU" if torch.backends.mps.is_available() else ""
    return f"this machine has {gpus or 'no'} CUDA GPU{'s' if gpus > 1 else ''}{mps}"


def _silence_lightning() -> None:
    """Lightning's announcements, which tell a user of this bench nothing that he can act on."""
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*sync_dist=True.*",
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*treespec.*",
        ".*not resumable.*",
        ".*GPU available but not used.*",
    ):
        warnings.filterwarnings("ignore", message)
