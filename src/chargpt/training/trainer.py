"""Builds Lightning's Trainer from the `trainer` config."""

import logging
import os
import re
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.profilers import AdvancedProfiler, PassThroughProfiler, Profiler, PyTorchProfiler, SimpleProfiler

from chargpt.distributed import env
from chargpt.errors import UserError
from chargpt.training import epochs
from chargpt.training import peak_flops as peaks
from chargpt.training.bfloat16_support import has_fast_bfloat16
from chargpt.training.cpu_precision import CPUPrecision, runs_on_cpu
from chargpt.training.strategies import make_strategy

log = logging.getLogger(__name__)

SCALED_UP = "scaled_up"  # the option of the group lecture for its last model
SCALED_UP_ADVICE = (
    "lecture=scaled_up takes most of a day on a CPU: without a GPU, use lecture=scaled_up_cpu, which takes minutes"
)
TENSOR_CORE_CAPABILITY = (7, 0)  # the lowest compute capability with tensor cores: Volta, for float16

# Trainer arguments that a run does not support: the value that asks for nothing, and the reason.
REFUSED: dict[str, tuple[Any, str]] = {
    "barebones": (
        False,
        "a run has no result without checkpoints and metrics; use logger=none ~callbacks.progress",
    ),
    "callbacks": (None, "they are a config group: callbacks=OPTION, or +callbacks.NAME._target_=CLASS"),
    "default_root_dir": (None, "hydra.run.dir=FOLDER sets the directory of the run"),
    "enable_checkpointing": (True, "a run is sampled, evaluated and resumed from its checkpoints"),
    "inference_mode": (None, "a run validates with torch.no_grad, whatever it is; it is for Lightning's own validate"),
    "limit_predict_batches": (None, "a run predicts nothing; sample.py max_new_tokens=N sets the length of a sample"),
    "limit_test_batches": (None, "there is no test split; trainer.limit_val_batches limits the validation"),
    "logger": (None, "loggers are a config group: logger=OPTION, or +logger.NAME._target_=CLASS"),
    "model_registry": (None, "checkpoints stay in the run directory; export.py writes a file to upload"),
    "plugins": (None, "they are objects that the run builds; trainer.precision and trainer.strategy select them"),
    "reload_dataloaders_every_n_epochs": (0, "each batch is computed from its number, so there is nothing to reload"),
    "use_distributed_sampler": (False, "the data loader itself distributes each batch over the devices"),
}
PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
PROFILE = "profile"  # the reports are fit-profile*.txt in the run directory
# Settings of `trainer` that other parts of chargpt implement.
_OWN = ("check_val_every_n_epoch", "compile", "ema_decay", "fast_dev_run", "limit_train_batches", "max_epochs")
_OWN += ("max_time", "min_epochs", "overfit_batches", "threads")


class SlurmStep(SLURMEnvironment):
    """The tasks of a Slurm step, which may be fewer than those of the job."""

    def world_size(self) -> int:
        return env.num_tasks()


class NoProfiler(PassThroughProfiler):
    """A cheaper no-op: Lightning profiles about seventy sections per step, and its own no-op takes 0.1 ms for them."""

    _context = nullcontext()

    # Lightning declares a generator, which costs too much.
    def profile(self, action_name: str) -> AbstractContextManager:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._context


def build_trainer(settings: dict[str, Any], batches_per_epoch: int = 1, **fixed: Any) -> L.Trainer:
    """Builds a Trainer for an infinite stream of batches.

    Settings in epochs become settings in optimizer steps, so that Lightning's own epochs have no effect.

    Args:
        settings: the config's `trainer`, with Lightning's keys. `TrainingTimer` handles `max_time`.
        batches_per_epoch: the number of batches of an epoch.
        fixed: arguments that the user does not set: callbacks, loggers, directories.

    Raises:
        UserError: the hardware is not available, or a setting is invalid or not supported.
    """
    debug_steps = int(settings.get("fast_dev_run") or 0)
    settings = _lightning_settings(settings, batches_per_epoch)
    callbacks = fixed.get("callbacks", [])
    if settings.get("enable_progress_bar") is False:
        fixed["callbacks"] = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    settings.setdefault("enable_progress_bar", any(isinstance(callback, ProgressBar) for callback in callbacks))
    if debug_steps:
        fixed["logger"] = [DummyLogger()] if fixed.get("logger") else False
    if settings["precision"] == "fastest" and runs_on_cpu(settings["accelerator"]):
        if settings["strategy"] == "fsdp":  # it has a precision of its own
            settings["precision"] = CPUPrecision().precision
        else:
            del settings["precision"]
            fixed["plugins"] = [*fixed.get("plugins", []), CPUPrecision()]
    elif settings["precision"] in ("auto", "fastest"):
        settings["precision"] = best_precision(settings["accelerator"])
    if settings["deterministic"] is False and settings["accelerator"] != "cpu" and torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # TF32 for matrix products that autocast leaves in float32
    settings["profiler"] = _make_profiler(settings.get("profiler"), fixed.get("default_root_dir"))
    _silence_lightning()
    launched = _launched_devices()
    distributed = env.LOCK_FD_ENV in os.environ or launched.get("devices", 1) * launched.get("num_nodes", 1) > 1
    if settings["accelerator"] in ("auto", "gpu", "mps") and MPSAccelerator.is_available():
        _check_apple_gpu(settings, distributed)
    settings["strategy"] = make_strategy(settings["strategy"], distributed)
    fixed["plugins"] = [*fixed.get("plugins", []), *_cluster_environment()]
    try:
        trainer = L.Trainer(
            **settings | launched,
            **fixed,
            max_epochs=-1,
            min_epochs=0,  # by default it is 1 with min_steps, and an endless epoch never ends
            check_val_every_n_epoch=None,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
        message = " ".join(str(error).split())
        about_hardware = re.search(r"accelerator|cuda|device|gpu|mps", message, re.IGNORECASE)
        hint = "" if settings["accelerator"] == "auto" else "; trainer=auto uses the available hardware"
        if HydraConfig.initialized() and HydraConfig.get().runtime.choices.get("lecture") == SCALED_UP:
            hint = f"; {SCALED_UP_ADVICE}"
        raise UserError(f"trainer: {message}{f' ({_detect_accelerator()}){hint}' if about_hardware else ''}") from error
    trainer.fast_dev_run = debug_steps  # pyright: ignore[reportAttributeAccessIssue] - not declared; for callbacks
    disable_signal_handlers(trainer)
    return trainer


def _lightning_settings(settings: dict[str, Any], batches_per_epoch: int) -> dict[str, Any]:
    """The arguments of Lightning's Trainer for a config's `trainer`, without null settings."""
    settings = {name: value for name, value in settings.items() if value is not None}
    _check(settings)
    max_steps, min_steps = epochs.max_steps(settings, batches_per_epoch), epochs.min_steps(settings, batches_per_epoch)
    if min_steps and 0 < max_steps < min_steps:
        raise UserError(
            f"trainer.min_steps or min_epochs: the run ends at step {max_steps}, before their step {min_steps}; "
            f"increase trainer.max_steps or max_epochs"
        )
    interval = epochs.val_check_interval(settings, batches_per_epoch) * settings["accumulate_grad_batches"]
    converted = {"max_steps": max_steps, "min_steps": min_steps, "val_check_interval": interval}
    if settings.get("overfit_batches"):
        converted["limit_val_batches"] = settings["overfit_batches"]
    if settings.get("fast_dev_run"):
        converted |= {"limit_val_batches": max_steps, "num_sanity_val_steps": 0}
    defaults = {"num_sanity_val_steps": 0, "enable_model_summary": False}
    kept = {name: value for name, value in settings.items() if name not in (*_OWN, *REFUSED)}
    return defaults | kept | converted


def _make_profiler(name: str | None, directory: str | Path | None) -> Profiler:
    if name is None:
        return NoProfiler()
    if name not in PROFILERS:
        raise UserError(f"trainer.profiler={name}: it must be one of {', '.join(PROFILERS)}")
    return PROFILERS[name](dirpath=directory, filename=PROFILE)


def disable_signal_handlers(trainer: L.Trainer) -> None:
    """Disables Lightning's handling of SIGTERM, which `InterruptHandler` does instead.

    Lightning has no option for it, so this replaces two private methods. Its handler starts a broadcast at any
    point of a step, while the other ranks may be in another collective: a deadlock. With several ranks it also
    broadcasts its flag at each step.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


def _cluster_environment() -> list[ClusterEnvironment]:
    """The environment that started the ranks; empty for torchrun, which Lightning detects itself."""
    if env.launched_by_torchrun():
        return []
    return [SlurmStep(auto_requeue=False) if env.launched_by_srun() else LightningEnvironment()]


def _launched_devices() -> dict[str, int]:
    """The processes per node and the number of nodes, if torchrun or srun has started the ranks."""
    if env.launched_by_torchrun():
        local_size, world_size = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    elif env.launched_by_srun():
        world_size = env.num_tasks()
        names = ("SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES")
        nodes = next((os.environ[name] for name in names if os.environ.get(name)), 1)
        local_size = world_size // int(nodes)
    else:
        return {}
    return {"devices": local_size, "num_nodes": world_size // local_size}


def peak_flops(trainer: L.Trainer) -> float | None:
    """Peak FLOP/s of all devices together, in dense 16-bit products; None for a device that is not in the table."""
    device = trainer.strategy.root_device
    if device.type != "cuda":
        return None
    per_device = peaks.peak_flops(torch.cuda.get_device_name(device))
    return per_device and per_device * trainer.world_size


def device_name(device: torch.device) -> str:
    """The name of a GPU, or the type of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _check(settings: dict[str, Any]) -> None:
    for name, (harmless, reason) in REFUSED.items():
        if settings.get(name, harmless) != harmless:
            raise UserError(f"trainer.{name}: not supported: {reason}")
    for name in ("log_every_n_steps", "accumulate_grad_batches", "num_nodes"):
        if settings[name] < 1:
            raise UserError(f"trainer.{name}={settings[name]}: it must be 1 or more")
    epochs.check(settings)
    if settings.get("num_sanity_val_steps", 0) < -1:
        raise UserError(f"trainer.num_sanity_val_steps={settings['num_sanity_val_steps']}: it must be -1 or more")
    if settings["deterministic"] not in (True, False, "warn"):
        raise UserError(f"trainer.deterministic={settings['deterministic']}: it must be true, false or warn")
    if str(settings["strategy"]).endswith(("_notebook", "_fork", "_spawn")):
        raise UserError(f"trainer.strategy={settings['strategy']}: it starts its own processes; use ddp or fsdp")
    if settings.get("ema_decay") is not None and str(settings["strategy"]).startswith("fsdp"):
        raise UserError(
            "trainer.ema_decay: EMA requires complete weights, but FSDP shards them; remove it, or use trainer=ddp"
        )
    _check_clipping(settings)


def _check_clipping(settings: dict[str, Any]) -> None:
    clip, algorithm = settings.get("gradient_clip_val"), settings.get("gradient_clip_algorithm", "norm")
    if clip is not None and not clip > 0:
        raise UserError(f"trainer.gradient_clip_val={clip}: it must be more than 0, or null for no clipping")
    if algorithm not in ("norm", "value"):
        raise UserError(f"trainer.gradient_clip_algorithm={algorithm}: it must be norm or value")
    if clip is None and algorithm == "value":
        log.warning("trainer.gradient_clip_algorithm=value: nothing is clipped without trainer.gradient_clip_val")


def _check_apple_gpu(settings: dict[str, Any], distributed: bool) -> None:
    """Raises `UserError` for what torch does not support on Apple's GPU."""
    if distributed or settings["strategy"] in ("ddp", "fsdp"):
        raise UserError(
            f"trainer.devices={settings['devices']} trainer.strategy={settings['strategy']}: torch uses Apple's GPU in "
            f"one process only. Use trainer=mps, or several processes on the CPU: trainer=cpu trainer.devices=2"
        )
    if str(settings["precision"]) in ("64", "64-true"):
        raise UserError(f"trainer.precision={settings['precision']}: Apple's GPU has no float64; use trainer=cpu")


def best_precision(accelerator: str) -> str:
    """The fastest precision with hardware support; float32 on a CPU, so that runs are comparable.

    NVIDIA's GPUs support bfloat16 from Ampere on. Volta and Turing (V100, T4) would emulate it, but support float16.
    Apple's GPU uses float32, because the 16-bit types were not measured there.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        if has_fast_bfloat16(torch.device("cuda")):
            return "bf16-mixed"
        return "16-mixed" if torch.cuda.get_device_capability() >= TENSOR_CORE_CAPABILITY else "32-true"
    return "32-true"


def _detect_accelerator() -> str:
    gpus = torch.cuda.device_count()
    mps = ", Apple's GPU" if torch.backends.mps.is_available() else ""
    return f"this machine has {gpus or 'no'} CUDA GPU{'s' if gpus > 1 else ''}{mps}"


def _silence_lightning() -> None:
    """Hides log lines and warnings of Lightning that a user cannot act on."""
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
