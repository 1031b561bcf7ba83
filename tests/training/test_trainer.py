"""Building the Trainer from the `trainer` config: arguments, precision, and invalid settings."""

import inspect
import signal
from pathlib import Path

import lightning as L
import pytest
import torch
import torch._inductor.config
from lightning.fabric.accelerators.mps import MPSAccelerator
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar
from omegaconf import OmegaConf

from chargpt.distributed.env import LOCK_FD_ENV
from chargpt.errors import UserError
from chargpt.model.kernels.cpu_dtypes import CPUDtypes, set_cpu_dtypes
from chargpt.training.callbacks.timer import TrainingTimer
from chargpt.training.compilation import Compilation
from chargpt.training.trainer import REFUSED, best_precision, build_trainer, device_name, peak_flops
from tests.conftest import REPO
from tests.training import run_artifacts


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
        ({"max_steps": 5, "min_steps": 6}, r"trainer\.min_steps.*step 5.*step 6"),
        ({"num_sanity_val_steps": -2}, r"trainer\.num_sanity_val_steps=-2"),
        ({"gradient_clip_algorithm": "agc"}, r"trainer\.gradient_clip_algorithm=agc: .*norm or value"),
        ({"profiler": "fast"}, r"trainer\.profiler=fast: .*simple, advanced, pytorch"),
        ({"limit_test_batches": 1.0}, r"trainer\.limit_test_batches: not supported: there is no test split"),
        ({"logger": False}, r"trainer\.logger: .*config group"),
        ({"enable_checkpointing": False}, r"trainer\.enable_checkpointing: "),
        ({"reload_dataloaders_every_n_epochs": 1}, r"trainer\.reload_dataloaders_every_n_epochs: "),
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


@pytest.mark.parametrize(("linear", "precision"), [("bfloat16", "bf16-mixed"), ("float32", "32-true")])
@pytest.mark.parametrize("strategy", ["auto", "fsdp"])
def test_the_fastest_precision_of_a_cpu_is_the_measured_one(tmp_path, strategy, linear, precision):
    set_cpu_dtypes(CPUDtypes(linear))
    fixed = dict(logger=False, default_root_dir=tmp_path)
    assert build_trainer(settings(precision="fastest", strategy=strategy), **fixed).precision == precision
    assert build_trainer(settings(precision="auto", strategy=strategy), **fixed).precision == "32-true"
    set_cpu_dtypes(None)


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


def test_the_config_has_every_argument_of_lightnings_trainer():
    arguments = inspect.signature(L.Trainer).parameters
    assert settings().keys() == {*arguments, "compile", "ema_decay", "threads"}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_argument_is_accepted_with_the_value_that_asks_for_nothing(name, tmp_path: Path):
    build_trainer(settings(**{name: REFUSED[name][0]}), logger=False, default_root_dir=tmp_path)


def test_settings_in_epochs_become_optimizer_steps(tmp_path: Path):
    chosen = settings(max_epochs=3, min_epochs=1, val_check_interval=0.5, accumulate_grad_batches=2)
    trainer = build_trainer(chosen, 10, logger=False, default_root_dir=tmp_path)
    assert (trainer.max_steps, trainer.min_steps, trainer.max_epochs) == (15, 5, -1)
    assert trainer.val_check_interval == 6  # batches


def test_there_is_no_progress_bar_besides_the_one_of_the_callbacks(tmp_path: Path):
    def bars(callbacks: list[L.Callback], **changed) -> list[L.Callback]:
        trainer = build_trainer(settings(**changed), logger=False, default_root_dir=tmp_path, callbacks=callbacks)
        return [callback for callback in trainer.callbacks if isinstance(callback, ProgressBar)]

    bar = TQDMProgressBar()
    assert bars([bar]) == [bar]
    assert bars([bar], enable_progress_bar=False) == bars([]) == []
    assert len(bars([], enable_progress_bar=True)) == 1


FLAGS_WITHOUT_EFFECT = ["num_sanity_val_steps=2", "enable_model_summary=true", "detect_anomaly=true", "profiler=simple"]


@pytest.mark.slow
def test_flags_that_only_show_something_do_not_change_the_run(run_cli, tiny, finished, tmp_path: Path):
    overrides = [*(f"trainer.{flag}" for flag in FLAGS_WITHOUT_EFFECT), "hydra.run.dir=run"]
    outcome = run_cli("train", *tiny, *overrides)
    assert outcome.code == 0, outcome.err
    states = [run_artifacts.training_state(run) for run in (tmp_path / "run", finished)]
    assert not run_artifacts.differences(*states)
    columns = ("step", "train_loss", "val_loss")
    assert run_artifacts.history(tmp_path / "run", *columns) == run_artifacts.history(finished, *columns)
    assert "Trainable params" in outcome.out
    assert "run_training_batch" in outcome.err
    assert "run_training_batch" in (tmp_path / "run" / "fit-profile.txt").read_text()


def test_fast_dev_run_takes_one_step_and_logs_only_the_history(run_cli, tiny, tmp_path: Path):
    outcome = run_cli("train", *tiny, "trainer.fast_dev_run=true", "data.validation_tokens=64", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    metrics = run_artifacts.metrics(tmp_path / "run")
    assert (metrics["steps"], metrics["best_step"], metrics["partial_validation"]) == (1, 1, True)
    assert [row["step"] for row in run_artifacts.history(tmp_path / "run")] == ["1"]
    assert not run_artifacts.event_files(tmp_path / "run")
    resumed = run_cli("train", "resume=run", "trainer.fast_dev_run=false")
    assert resumed.code == 0, resumed.err
    assert run_artifacts.metrics(tmp_path / "run")["steps"] == 20


@pytest.mark.slow
def test_a_part_of_the_validation_split_is_marked_in_the_metrics(run_cli, tiny, tmp_path: Path):
    small = "data.validation_tokens=64"
    losses = {}
    for name, limit in (("two", "2"), ("all", "1.0")):
        arguments = [f"trainer.limit_val_batches={limit}", f"hydra.run.dir={name}"]
        outcome = run_cli("train", *tiny, small, *arguments)
        assert outcome.code == 0, outcome.err
        metrics = run_artifacts.metrics(tmp_path / name)
        assert metrics.get("partial_validation", False) == (name == "two")
        assert ("in a partial validation" in outcome.out) == (name == "two")
        losses[name] = metrics["val_loss"]
    assert losses["two"] != losses["all"]
    extended = ["resume=two", "trainer.limit_val_batches=1.0", "trainer.max_steps=30"]
    assert run_cli("train", *extended).code == 0
    assert run_artifacts.metrics(tmp_path / "two")["partial_validation"], "the best checkpoint may be an earlier one"


def test_a_fraction_that_selects_no_validation_batch_is_a_user_error(run_cli, tiny):
    outcome = run_cli("train", *tiny, "trainer.limit_val_batches=0.0001")
    assert outcome.code == 2
    assert "trainer.limit_val_batches=0.0001: it selects none of" in outcome.err


@pytest.mark.slow
def test_without_validation_a_run_is_saved_at_the_same_steps_and_its_last_checkpoint_is_the_best(
    run_cli, tiny, tmp_path: Path
):
    fault = ["+callbacks.fault._target_=tests.training.fault_injection.RaiseAfterStep", "+callbacks.fault.step=15"]
    arguments = [*tiny, "trainer.limit_val_batches=0", "hydra.run.dir=run"]
    with pytest.raises(RuntimeError):
        run_cli("train", *arguments, *fault)
    assert run_artifacts.checkpoint(tmp_path / "run")["global_step"] == 10
    outcome = run_cli("train", "resume=run")
    assert outcome.code == 0, outcome.err
    assert "no validation" in outcome.out
    metrics = run_artifacts.metrics(tmp_path / "run")
    assert (metrics["steps"], metrics["best_step"], metrics["score"], metrics["val_loss"]) == (20, 20, None, None)
    assert not run_artifacts.differences(
        *(run_artifacts.training_state(tmp_path / "run", name) for name in ("best", "last"))
    )
    assert run_cli("compare", "runs=run").code == 0
    assert run_cli("train", *arguments, "resume=auto").code == 0


@pytest.mark.slow
def test_max_epochs_may_be_raised_but_not_lowered_on_resuming(run_cli, tiny, tmp_path: Path):
    arguments = ["trainer.max_steps=-1", "trainer.limit_train_batches=5", "hydra.run.dir=run"]
    assert run_cli("train", *tiny, *arguments, "trainer.max_epochs=2").code == 0
    metrics = run_artifacts.metrics(tmp_path / "run")
    assert (metrics["steps"], metrics["epochs"]) == (10, 2)
    refused = run_cli("train", "resume=run", "trainer.max_epochs=1")
    assert refused.code == 2
    assert "trainer.max_epochs=1" in refused.err
    again = run_cli("train", "resume=run")
    assert again.code == 2
    assert "resume=run trainer.max_epochs=4" in again.err
    assert run_cli("train", "resume=run", "trainer.max_epochs=4").code == 0
    assert run_artifacts.metrics(tmp_path / "run")["steps"] == 20


@pytest.mark.slow
def test_early_stopping_waits_for_min_steps_even_if_the_run_is_interrupted(run_cli, tiny, tmp_path: Path):
    stop = ["+callbacks.stop._target_=lightning.pytorch.callbacks.EarlyStopping", "+callbacks.stop.patience=1"]
    stop += ["+callbacks.stop.min_delta=100.0", "trainer.val_check_interval=4", "trainer.min_steps=11"]
    signal_at = ["+callbacks.signal._target_=tests.training.fault_injection.SignalAt"]
    signal_at += ["+callbacks.signal.name=SIGTERM", "+callbacks.signal.batch=9"]
    assert run_cli("train", *tiny, *stop, "hydra.run.dir=one").code == 0
    assert run_cli("train", *tiny, *stop, *signal_at, "hydra.run.dir=other").code == 3
    assert run_cli("train", "resume=other", *stop[:3]).code == 0
    assert [run_artifacts.metrics(tmp_path / name)["steps"] for name in ("one", "other")] == [11, 11]
    one, other = (run_artifacts.training_state(tmp_path / name) for name in ("one", "other"))
    assert not run_artifacts.differences(one, other)


def test_detect_anomaly_reports_the_operation_in_one_line(run_cli, tiny):
    overflow = ["+callbacks.fault._target_=tests.training.fault_injection.Fault", "+callbacks.fault.step=2"]
    outcome = run_cli("train", *tiny, "trainer.detect_anomaly=true", *overflow)
    assert outcome.code == 1
    assert "trainer.detect_anomaly: step 3" in outcome.err.splitlines()[-1]
