"""Building the Trainer from the `trainer` config: arguments, precision, and invalid settings."""

import signal
from pathlib import Path

import lightning as L
import pytest
import torch
import torch._inductor.config
from lightning.fabric.accelerators.mps import MPSAccelerator
from omegaconf import OmegaConf

from chargpt.distributed.env import LOCK_FD_ENV
from chargpt.errors import UserError
from chargpt.training import bfloat16_support
from chargpt.training.callbacks.timer import TrainingTimer
from chargpt.training.compilation import Compilation
from chargpt.training.trainer import best_precision, build_trainer, device_name, peak_flops
from tests.conftest import REPO


def settings(**changed) -> dict:
    auto = OmegaConf.to_container(OmegaConf.load(REPO / "conf" / "trainer" / "auto.yaml"))
    return auto | {"accelerator": "cpu"} | changed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_steps": 0}, r"trainer\.max_steps=0"),
        ({"max_steps": -1}, r"trainer\.max_steps=-1.*trainer\.max_time"),
        ({"max_steps": -2, "max_time": 5}, r"trainer\.max_steps=-2"),
        ({"val_check_interval": 0}, r"trainer\.val_check_interval=0"),
        ({"log_every_n_steps": 0}, r"trainer\.log_every_n_steps=0"),
        ({"accumulate_grad_batches": 0}, r"trainer\.accumulate_grad_batches=0"),
        ({"num_nodes": 0}, r"trainer\.num_nodes=0"),
        ({"gradient_clip_val": 0}, r"trainer\.gradient_clip_val=0"),
        ({"gradient_clip_val": -1.0}, r"trainer\.gradient_clip_val=-1"),
        ({"gradient_clip_val": float("nan")}, r"trainer\.gradient_clip_val=nan"),
        ({"accelerator": "abacus"}, "trainer: .*abacus"),
        ({"devices": 0}, "trainer: .*0"),
        ({"precision": "12-bit"}, "trainer: .*12-bit"),
        ({"strategy": "hope"}, "trainer: .*hope"),
    ],
    ids=str,
)
def test_an_invalid_setting_is_a_user_error(changed, message):
    with pytest.raises(UserError, match=message) as error:
        build_trainer(settings(**changed))
    assert "\n" not in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_a_user_error():
    with pytest.raises(UserError, match="no CUDA GPU"):
        build_trainer(settings(accelerator="gpu"))


def test_a_run_ends_by_steps_or_time_not_by_epochs(tmp_path: Path):
    trainer = build_trainer(settings(max_steps=7), logger=False, default_root_dir=tmp_path)
    assert (trainer.max_steps, trainer.max_epochs) == (7, -1)
    trainer = build_trainer(settings(max_steps=-1, max_time=5), logger=False, default_root_dir=tmp_path)
    assert (trainer.max_steps, trainer.max_epochs) == (-1, -1)


def test_precision_on_a_cpu_is_float32_by_default(tmp_path: Path):
    trainers = [
        build_trainer(settings(precision=p), logger=False, default_root_dir=tmp_path) for p in ("auto", "bf16-mixed")
    ]
    assert [trainer.precision for trainer in trainers] == ["32-true", "bf16-mixed"]
    assert device_name(trainers[0].strategy.root_device) == "cpu"


@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_the_fastest_precision_of_a_cpu_is_bfloat16_if_it_has_hardware_support(monkeypatch, tmp_path, fast, precision):
    monkeypatch.setattr(bfloat16_support, "_has_amx", lambda: fast)
    fixed = dict(logger=False, default_root_dir=tmp_path)
    assert build_trainer(settings(precision="fastest"), **fixed).precision == precision
    assert build_trainer(settings(precision="auto"), **fixed).precision == "32-true"


@pytest.mark.parametrize(
    ("capability", "precision"),
    [
        ((9, 0), "bf16-mixed"),
        ((8, 0), "bf16-mixed"),
        ((7, 5), "16-mixed"),
        ((7, 0), "16-mixed"),
        ((6, 1), "32-true"),
    ],
)
def test_precision_on_a_gpu_is_the_16_bit_format_with_hardware_support(monkeypatch, capability, precision):
    """By default, torch reports emulated bfloat16 as supported."""
    gpu = {"is_available": lambda: True, "get_device_capability": lambda *_: capability}
    gpu["is_bf16_supported"] = lambda including_emulation=True: including_emulation or capability >= (8, 0)
    for name, function in gpu.items():
        monkeypatch.setattr(torch.cuda, name, function)
    assert best_precision("auto") == best_precision("gpu") == precision
    assert best_precision("cpu") == "32-true"


@pytest.fixture
def apple_gpu(monkeypatch):
    """Makes torch and Lightning report a Mac with a GPU. Nothing can be computed on it."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: True))


@pytest.mark.parametrize("accelerator", ["auto", "gpu", "mps"])
@pytest.mark.parametrize("precision", ["auto", "fastest"])
def test_an_apple_gpu_is_used_in_one_process_with_float32_and_without_compilation(
    apple_gpu, tmp_path, accelerator, precision
):
    fixed = dict(logger=False, default_root_dir=tmp_path)
    chosen = settings(accelerator=accelerator, precision=precision, devices="auto", max_steps=10**6)
    trainer = build_trainer(chosen, **fixed)
    device = trainer.strategy.root_device
    assert (device.type, device_name(device), trainer.world_size, trainer.precision) == ("mps", "mps", 1, "32-true")
    assert peak_flops(trainer) is None
    compilation = Compilation("auto", None, TrainingTimer(None))
    compilation.decide(trainer)
    assert compilation._mode is None


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("accelerator", ["auto", "mps"])
def test_mixed_precision_on_an_apple_gpu_uses_its_autocast(apple_gpu, tmp_path, accelerator, precision):
    chosen = settings(accelerator=accelerator, precision=precision)
    trainer = build_trainer(chosen, logger=False, default_root_dir=tmp_path)
    assert trainer.precision_plugin.device == "mps"
    assert torch.amp.is_autocast_available("mps")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"strategy": "ddp"}, r"trainer\.strategy=ddp: .*one process only.*trainer=cpu trainer\.devices=2"),
        ({"strategy": "fsdp", "accelerator": "gpu"}, r"trainer\.strategy=fsdp: .*one process only"),
        ({"devices": 2}, r"trainer: .*machine only has: \[0\].*Apple's GPU"),
        ({"precision": "64-true"}, r"trainer\.precision=64-true: .*no float64"),
    ],
    ids=str,
)
def test_what_an_apple_gpu_does_not_support_is_a_user_error(apple_gpu, changed, message):
    with pytest.raises(UserError, match=message) as error:
        build_trainer(settings(accelerator="mps") | changed)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("accelerator", ["auto", "mps"])
def test_a_rank_of_several_processes_on_an_apple_gpu_reports_a_user_error(apple_gpu, monkeypatch, accelerator):
    monkeypatch.setenv(LOCK_FD_ENV, "3")  # set by `WorkerGroup`
    with pytest.raises(UserError, match=r"trainer\.devices=2.*one process only"):
        build_trainer(settings(accelerator=accelerator, devices=2))


def test_several_processes_on_the_cpu_of_a_mac_are_supported(apple_gpu, monkeypatch, tmp_path):
    monkeypatch.setenv(LOCK_FD_ENV, "3")
    trainer = build_trainer(settings(devices=2), logger=False, default_root_dir=tmp_path)
    assert (trainer.strategy.root_device.type, trainer.world_size) == ("cpu", 2)


@pytest.mark.parametrize(("setting", "expected"), [(True, True), ("warn", True), (False, False)])
def test_a_deterministic_run_is_also_deterministic_when_compiled(tmp_path, setting, expected):
    """torch then sets Inductor's option, too; without it Inductor selects kernels by timing them."""
    with torch._inductor.config.patch(deterministic=False):
        build_trainer(settings(deterministic=setting), logger=False, default_root_dir=tmp_path)
        assert torch._inductor.config.deterministic is expected
    torch.use_deterministic_algorithms(False)


def test_the_settings_are_not_modified(tmp_path: Path):
    original = settings(accumulate_grad_batches=3)
    copy = dict(original)
    build_trainer(original, logger=False, default_root_dir=tmp_path)
    assert original == copy


def test_lightning_still_handles_sigterm_by_the_replaced_private_methods(tmp_path: Path):
    """If this fails, `disable_signal_handlers` has no effect."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        plain = L.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
        plain._signal_connector.register_signal_handlers()
        assert signal.getsignal(signal.SIGTERM) != before
        assert callable(plain.fit_loop.epoch_loop._broadcast_sigterm_tensor)
        signal.signal(signal.SIGTERM, before)
        trainer = build_trainer(settings(), logger=False, default_root_dir=tmp_path)
        trainer._signal_connector.register_signal_handlers()
        assert signal.getsignal(signal.SIGTERM) == before
    finally:
        signal.signal(signal.SIGTERM, before)
