"""Tests of the EMA of the weights: its formula, its use in validation and checkpoints, and exact resuming."""

import copy
from pathlib import Path

import lightning as L
import pytest
import torch

from chargpt.data.datamodule import TextDataModule
from chargpt.inference.evaluate import mean_loss
from chargpt.inference.pretrained import PretrainedModel, load
from chargpt.optim.ema import EMA
from chargpt.training.lightning_module import LanguageModeling
from tests.conftest import process
from tests.training import run_artifacts

OVERRIDES = ["trainer.ema_decay=0.8", "hydra.run.dir=run"]


@pytest.fixture
def weights(monkeypatch) -> list[dict[str, torch.Tensor]]:
    """The trained weights before the first step and after each step."""
    recorded, on_train_batch_start = [], LanguageModeling.on_train_batch_start

    def record(self, *args):
        recorded.append(copy.deepcopy(self.model.state_dict()))
        return on_train_batch_start(self, *args)

    monkeypatch.setattr(LanguageModeling, "on_train_batch_start", record)
    return recorded


def averaged(weights: list[dict[str, torch.Tensor]], decay: float) -> dict[str, torch.Tensor]:
    mean = {name: weight.double() for name, weight in weights[0].items()}
    for step, current in enumerate(weights[1:], start=1):
        d = min(decay, (1 + step) / (10 + step))
        mean = {name: d * mean[name] + (1 - d) * current[name].double() for name in mean}
    return mean


def test_the_ema_is_saved_and_validated(run_cli, tiny, weights, tmp_path: Path):
    outcome = run_cli("train", *tiny, *OVERRIDES, "trainer.max_steps=40", "trainer.val_check_interval=10")
    assert outcome.code == 0, outcome.err
    previous = run_artifacts.checkpoint(tmp_path / "run", "previous")
    assert previous["global_step"] == 30
    ema, trained = ({k: v.double() for k, v in previous[key].items()} for key in ("state_dict", "trained_state_dict"))
    for name, mean in averaged(weights[:31], 0.8).items():
        torch.testing.assert_close(ema[f"model.{name}"], mean, rtol=1e-4, atol=1e-6)
        assert trained[f"model.{name}"].float().equal(weights[30][name])
    model = load(tmp_path / "run" / "checkpoints" / "previous.ckpt")
    (row,) = [row for row in run_artifacts.history(tmp_path / "run") if row["step"] == "30"]
    assert float(row["val_loss"]) == pytest.approx(loss_of(model, tiny), rel=1e-4)


def loss_of(pretrained: PretrainedModel, tiny: list[str]) -> float:
    path = next(override.removeprefix("data.path=") for override in tiny if override.startswith("data.path="))
    data = TextDataModule.from_files(path, block_size=16, batch_size=4)
    data.read(pretrained.tokenizer)
    return mean_loss(pretrained.model, data.split("val"), 16)


def test_with_accumulated_gradients_the_ema_is_updated_once_per_step(run_cli, tiny, weights, tmp_path: Path):
    overrides = ["trainer.accumulate_grad_batches=2", "trainer.max_steps=6", "trainer.val_check_interval=3"]
    outcome = run_cli("train", *tiny, *OVERRIDES, *overrides)
    assert outcome.code == 0, outcome.err
    ema = run_artifacts.checkpoint(tmp_path / "run", "previous")["state_dict"]
    for name, mean in averaged(weights[:7:2], 0.8).items():
        torch.testing.assert_close(ema[f"model.{name}"].double(), mean, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(run_cli, tiny, tmp_path: Path):
    run, uninterrupted = tmp_path / "run", tmp_path / "uninterrupted"
    overrides = [*tiny, "schedule=constant", "trainer.ema_decay=0.8"]
    assert run_cli("train", *overrides, "trainer.max_steps=20", f"hydra.run.dir={uninterrupted}").code == 0
    assert run_cli("train", *overrides, "trainer.max_steps=10", "hydra.run.dir=run").code == 0
    outcome = run_cli("train", "resume=run", "trainer.max_steps=20")
    assert outcome.code == 0, outcome.err
    actual, expected = (run_artifacts.checkpoint(path) for path in (run, uninterrupted))
    for key in ("state_dict", "trained_state_dict", "optimizer_states"):
        assert not run_artifacts.differences(actual[key], expected[key]), key
    losses = [run_artifacts.metrics(path)["final_val_loss"] for path in (run, uninterrupted)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("decay", ["0", "1", "1.5", "-0.1"])
def test_a_decay_out_of_range_is_a_user_error(run_cli, tiny, tmp_path: Path, decay):
    outcome = run_cli("train", *tiny, f"trainer.ema_decay={decay}", "hydra.run.dir=run")
    assert outcome.code == 2
    assert "trainer.ema_decay" in outcome.err and len(outcome.err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_ema_does_not_change_the_training(run_cli, tiny, tmp_path: Path):
    assert run_cli("train", *tiny, "trainer.ema_decay=0.8", "hydra.run.dir=with").code == 0
    assert run_cli("train", *tiny, "hydra.run.dir=without").code == 0
    with_ema, without_ema = (run_artifacts.checkpoint(tmp_path / name) for name in ("with", "without"))
    assert not run_artifacts.differences(with_ema["trained_state_dict"], without_ema["state_dict"])
    assert not run_artifacts.differences(with_ema["optimizer_states"], without_ema["optimizer_states"])
    assert "trained_state_dict" not in without_ema


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_in_bfloat16_the_ema_is_in_float32_also_after_resuming(run_cli, tiny, tmp_path: Path, precision):
    overrides = [*tiny, "trainer.ema_decay=0.99", "schedule=constant", f"trainer.precision={precision}"]
    uninterrupted = tmp_path / "uninterrupted"
    assert run_cli("train", *overrides, "trainer.max_steps=20", f"hydra.run.dir={uninterrupted}").code == 0
    assert run_cli("train", *overrides, "trainer.max_steps=10", "hydra.run.dir=run").code == 0
    outcome = run_cli("train", "resume=run", "trainer.max_steps=20")
    assert outcome.code == 0, outcome.err
    actual, expected = (run_artifacts.checkpoint(run)["state_dict"] for run in (tmp_path / "run", uninterrupted))
    assert {weight.dtype for weight in expected.values()} == {torch.float32}
    assert not run_artifacts.differences(actual, expected)


def test_a_checkpoint_saved_during_validation_is_the_same():
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module = L.LightningModule()
    module.layer = torch.nn.Linear(3, 2)
    ema, trained = EMA(0.9), copy.deepcopy(module.state_dict())
    ema.on_train_start(trainer, module)
    for average in ema._average.values():
        average.fill_(7.0)
    for validating in (False, True):
        if validating:
            ema.on_validation_start(trainer, module)
            assert all(weight.eq(7.0).all() for weight in module.state_dict().values())
        checkpoint = {"state_dict": dict(module.state_dict())}
        ema.on_save_checkpoint(trainer, module, checkpoint)
        assert all(weight.eq(7.0).all() for weight in checkpoint["state_dict"].values())
        assert not run_artifacts.differences(dict(checkpoint["trained_state_dict"]), dict(trained))
    ema.on_exception(trainer, module, ValueError())
    assert not run_artifacts.differences(dict(module.state_dict()), dict(trained))


@pytest.mark.slow
def test_a_run_interrupted_between_two_validations_resumes_bit_for_bit(run_cli, tiny, tmp_path: Path):
    overrides, uninterrupted = [*tiny, "trainer.ema_decay=0.9"], tmp_path / "uninterrupted"
    assert run_cli("train", *overrides, f"hydra.run.dir={uninterrupted}").code == 0
    interrupt = [
        f"+callbacks.interrupt_test.{setting}"
        for setting in ("_target_=tests.training.fault_injection.SignalAt", "name=SIGTERM", "batch=7")
    ]
    assert run_cli("train", *overrides, *interrupt, "hydra.run.dir=run").code == 3
    assert run_artifacts.status(tmp_path / "run")["step"] == 7
    outcome = run_cli("train", "resume=run")
    assert outcome.code == 0, outcome.err
    actual, expected = (run_artifacts.checkpoint(run) for run in (tmp_path / "run", uninterrupted))
    for key in ("state_dict", "trained_state_dict"):
        assert not run_artifacts.differences(actual[key], expected[key]), key


@pytest.mark.slow
def test_one_and_two_processes_have_the_same_ema(tiny, tmp_path: Path):
    overrides = [*tiny, "model.dropout=0", "trainer.ema_decay=0.9"]
    for devices in (1, 2):
        outcome = process(tmp_path, "train", *overrides, f"trainer.devices={devices}", f"hydra.run.dir=on_{devices}")
        assert outcome.code == 0, outcome.err
    one, two = (run_artifacts.metrics(tmp_path / f"on_{devices}")["final_val_loss"] for devices in (1, 2))
    assert two == pytest.approx(one, abs=1e-4)
