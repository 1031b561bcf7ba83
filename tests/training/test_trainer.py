"""The Trainer from the `trainer` part of the config: what is handed on, and which settings are mistakes."""

import signal
from pathlib import Path

import lightning as L
import pytest
import torch
import torch._inductor.config
from omegaconf import OmegaConf

from chargpt.errors import UserError
from chargpt.training import bfloat16_support
from chargpt.training.trainer import best_precision, build_trainer, device_name
from tests.conftest import REPO


def settings(**changed) -> dict:
    auto = OmegaConf.to_container(OmegaConf.load(REPO / "conf" / "trainer" / "auto.yaml"))
    return auto | {"accelerator": "cpu"} | changed


@pytest.mark.parametrize(
    ("changed", "named"),
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
def test_a_setting_that_cannot_be_is_a_mistake_that_names_it(changed, named):
    with pytest.raises(UserError, match=named) as told:
        build_trainer(settings(**changed))
    assert "\n" not in str(told.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_a_mistake_that_says_what_is():
    with pytest.raises(UserError, match="no CUDA GPU"):
        build_trainer(settings(accelerator="gpu"))


def test_a_run_ends_by_steps_or_time_and_never_by_epochs(tmp_path: Path):
    trainer = build_trainer(settings(max_steps=7), logger=False, default_root_dir=tmp_path)
    assert (trainer.max_steps, trainer.max_epochs) == (7, -1)
    trainer = build_trainer(settings(max_steps=-1, max_time=5), logger=False, default_root_dir=tmp_path)
    assert (trainer.max_steps, trainer.max_epochs) == (-1, -1)


def test_on_a_cpu_numbers_have_32_bits_unless_asked_otherwise(tmp_path: Path):
    made = [
        build_trainer(settings(precision=p), logger=False, default_root_dir=tmp_path) for p in ("auto", "bf16-mixed")
    ]
    assert [trainer.precision for trainer in made] == ["32-true", "bf16-mixed"]
    assert device_name(made[0].strategy.root_device) == "cpu"


@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_the_fastest_precision_of_a_cpu_is_bfloat16_where_it_has_products_for_it(
    monkeypatch, tmp_path, fast, precision
):
    monkeypatch.setattr(bfloat16_support, "_has_amx", lambda: fast)
    made = dict(logger=False, default_root_dir=tmp_path)
    assert build_trainer(settings(precision="fastest"), **made).precision == precision
    assert build_trainer(settings(precision="auto"), **made).precision == "32-true"


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
def test_a_gpu_gets_the_16_bit_numbers_that_it_multiplies_in_hardware(monkeypatch, capability, precision):
    """torch counts emulated bfloat16 as supported unless it is asked."""
    gpu = {"is_available": lambda: True, "get_device_capability": lambda *_: capability}
    gpu["is_bf16_supported"] = lambda including_emulation=True: including_emulation or capability >= (8, 0)
    for name, answer in gpu.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    assert best_precision("auto") == best_precision("gpu") == precision
    assert best_precision("cpu") == "32-true"


@pytest.mark.parametrize(("choice", "wanted"), [(True, True), ("warn", True), (False, False)])
def test_a_deterministic_run_is_deterministic_when_compiled_too(tmp_path, choice, wanted):
    """torch sets the compiler's mode with its own; without it inductor chooses kernels by timing them."""
    with torch._inductor.config.patch(deterministic=False):
        build_trainer(settings(deterministic=choice), logger=False, default_root_dir=tmp_path)
        assert torch._inductor.config.deterministic is wanted
    torch.use_deterministic_algorithms(False)


def test_the_settings_stay_as_they_were(tmp_path: Path):
    given = settings(accumulate_grad_batches=3)
    before = dict(given)
    build_trainer(given, logger=False, default_root_dir=tmp_path)
    assert given == before


def test_the_private_methods_that_are_replaced_are_still_those_that_handle_sigterm(tmp_path: Path):
    """Lightning has no switch for it. Where this fails, `disable_signal_handlers` has nothing to replace."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        bare = L.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
        bare._signal_connector.register_signal_handlers()
        assert signal.getsignal(signal.SIGTERM) != before
        assert callable(bare.fit_loop.epoch_loop._broadcast_sigterm_tensor)
        signal.signal(signal.SIGTERM, before)
        ours = build_trainer(settings(), logger=False, default_root_dir=tmp_path)
        ours._signal_connector.register_signal_handlers()
        assert signal.getsignal(signal.SIGTERM) == before
    finally:
        signal.signal(signal.SIGTERM, before)
