"""The moving average of the weights: by its formula, validated and saved in their place, and exact on resume."""

import copy
from pathlib import Path

import lightning as L
import pytest
import torch

from chargpt.inference.evaluate import mean_loss
from chargpt.inference.pretrained import load
from chargpt.optim.ema import EMA
from chargpt.training.lightning_module import LanguageModeling
from tests.conftest import process
from tests.training import run_artifacts

WORDS = ["trainer.ema_decay=0.8", "hydra.run.dir=run"]


@pytest.fixture
def weights(monkeypatch) -> list[dict[str, torch.Tensor]]:
    """The model's own weights, before the first step and after each."""
    seen, zero_grad = [], LanguageModeling.on_train_batch_start

    def remember(self, *args):
        seen.append(copy.deepcopy(self.model.state_dict()))
        return zero_grad(self, *args)

    monkeypatch.setattr(LanguageModeling, "on_train_batch_start", remember)
    return seen


def averaged(weights: list[dict[str, torch.Tensor]], decay: float) -> dict[str, torch.Tensor]:
    mean = {name: weight.double() for name, weight in weights[0].items()}
    for step, now in enumerate(weights[1:], start=1):
        d = min(decay, (1 + step) / (10 + step))
        mean = {name: d * mean[name] + (1 - d) * now[name].double() for name in mean}
    return mean


def test_what_is_saved_and_validated_is_the_average(run_cli, tiny, weights, tmp_path: Path):
    outcome = run_cli("train", *tiny, *WORDS, "trainer.max_steps=40", "trainer.val_check_interval=10")
    assert outcome.code == 0, outcome.err
    previous = run_artifacts.checkpoint(tmp_path / "run", "previous")
    assert previous["global_step"] == 30
    kept, own = ({k: v.double() for k, v in previous[key].items()} for key in ("state_dict", "trained_state_dict"))
    for name, mean in averaged(weights[:31], 0.8).items():
        torch.testing.assert_close(kept[f"model.{name}"], mean, rtol=1e-4, atol=1e-6)
        assert own[f"model.{name}"].float().equal(weights[30][name])
    trained = load(tmp_path / "run" / "checkpoints" / "previous.ckpt")
    (row,) = [row for row in run_artifacts.history(tmp_path / "run") if row["step"] == "30"]
    assert float(row["val_loss"]) == pytest.approx(loss_of(trained, tiny), rel=1e-4)


def loss_of(trained, tiny: list[str]) -> float:
    from chargpt.data.datamodule import TextDataModule

    path = next(word.removeprefix("data.path=") for word in tiny if word.startswith("data.path="))
    data = TextDataModule.from_files(path, block_size=16, batch_size=4)
    data.read(trained.tokenizer)
    return mean_loss(trained.model, data.split("val"), 16)


def test_with_accumulated_gradients_a_step_counts_once(run_cli, tiny, weights, tmp_path: Path):
    words = ["trainer.accumulate_grad_batches=2", "trainer.max_steps=6", "trainer.val_check_interval=3"]
    outcome = run_cli("train", *tiny, *WORDS, *words)
    assert outcome.code == 0, outcome.err
    kept = run_artifacts.checkpoint(tmp_path / "run", "previous")["state_dict"]
    for name, mean in averaged(weights[:7:2], 0.8).items():
        torch.testing.assert_close(kept[f"model.{name}"].double(), mean, rtol=1e-4, atol=1e-6)


def test_a_run_that_goes_on_ends_at_the_same_bits(run_cli, tiny, tmp_path: Path):
    whole, words = tmp_path / "whole", [*tiny, "schedule=constant", "trainer.ema_decay=0.8"]
    assert run_cli("train", *words, "trainer.max_steps=20", f"hydra.run.dir={whole}").code == 0
    assert run_cli("train", *words, "trainer.max_steps=10", "hydra.run.dir=run").code == 0
    outcome = run_cli("train", "resume=run", "trainer.max_steps=20")
    assert outcome.code == 0, outcome.err
    one, other = (run_artifacts.checkpoint(run) for run in (tmp_path / "run", whole))
    for key in ("state_dict", "trained_state_dict", "optimizer_states"):
        assert not run_artifacts.differences(one[key], other[key]), key
    assert run_artifacts.metrics(tmp_path / "run")["final_val_loss"] == run_artifacts.metrics(whole)["final_val_loss"]


@pytest.mark.parametrize("decay", ["0", "1", "1.5", "-0.1"])
def test_a_decay_that_is_none_is_refused(run_cli, tiny, tmp_path: Path, decay):
    outcome = run_cli("train", *tiny, f"trainer.ema_decay={decay}", "hydra.run.dir=run")
    assert outcome.code == 2
    assert "trainer.ema_decay" in outcome.err and len(outcome.err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_the_run_itself_is_the_one_without_an_average(run_cli, tiny, tmp_path: Path):
    assert run_cli("train", *tiny, "trainer.ema_decay=0.8", "hydra.run.dir=with").code == 0
    assert run_cli("train", *tiny, "hydra.run.dir=without").code == 0
    one, other = run_artifacts.checkpoint(tmp_path / "with"), run_artifacts.checkpoint(tmp_path / "without")
    assert not run_artifacts.differences(one["trained_state_dict"], other["state_dict"])
    assert not run_artifacts.differences(one["optimizer_states"], other["optimizer_states"])
    assert "trained_state_dict" not in other


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_in_bfloat16_the_average_is_in_float32_also_after_a_resume(run_cli, tiny, tmp_path: Path, precision):
    words = [*tiny, "trainer.ema_decay=0.99", "schedule=constant", f"trainer.precision={precision}"]
    whole = tmp_path / "whole"
    assert run_cli("train", *words, "trainer.max_steps=20", f"hydra.run.dir={whole}").code == 0
    assert run_cli("train", *words, "trainer.max_steps=10", "hydra.run.dir=run").code == 0
    outcome = run_cli("train", "resume=run", "trainer.max_steps=20")
    assert outcome.code == 0, outcome.err
    mine, theirs = (run_artifacts.checkpoint(run)["state_dict"] for run in (tmp_path / "run", whole))
    assert {weight.dtype for weight in theirs.values()} == {torch.float32}
    assert not run_artifacts.differences(mine, theirs)


def test_what_is_saved_while_the_average_stands_in_is_the_same():
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module = L.LightningModule()
    module.layer = torch.nn.Linear(3, 2)
    part, own = EMA(0.9), copy.deepcopy(module.state_dict())
    part.on_train_start(trainer, module)
    for average in part._average.values():
        average.fill_(7.0)
    for stands_in in (False, True):
        if stands_in:
            part.on_validation_start(trainer, module)
            assert all(weight.eq(7.0).all() for weight in module.state_dict().values())
        saved = {"state_dict": dict(module.state_dict())}
        part.on_save_checkpoint(trainer, module, saved)
        assert all(weight.eq(7.0).all() for weight in saved["state_dict"].values())
        assert not run_artifacts.differences(dict(saved["trained_state_dict"]), dict(own))
    part.on_exception(trainer, module, ValueError())
    assert not run_artifacts.differences(dict(module.state_dict()), dict(own))


def test_a_run_that_is_cut_off_between_two_validations_goes_on_to_the_same_bits(run_cli, tiny, tmp_path: Path):
    words, whole = [*tiny, "trainer.ema_decay=0.9"], tmp_path / "whole"
    assert run_cli("train", *words, f"hydra.run.dir={whole}").code == 0
    cut = [
        f"+callbacks.cut.{word}"
        for word in ("_target_=tests.training.fault_injection.SignalAt", "name=SIGTERM", "batch=7")
    ]
    assert run_cli("train", *words, *cut, "hydra.run.dir=run").code == 3
    assert run_artifacts.status(tmp_path / "run")["step"] == 7
    outcome = run_cli("train", "resume=run")
    assert outcome.code == 0, outcome.err
    one, other = (run_artifacts.checkpoint(run) for run in (tmp_path / "run", whole))
    for key in ("state_dict", "trained_state_dict"):
        assert not run_artifacts.differences(one[key], other[key]), key


@pytest.mark.slow
def test_two_processes_have_one_average(tiny, tmp_path: Path):
    words = [*tiny, "model.dropout=0", "trainer.ema_decay=0.9"]
    for devices in (1, 2):
        outcome = process(tmp_path, "train", *words, f"trainer.devices={devices}", f"hydra.run.dir=on_{devices}")
        assert outcome.code == 0, outcome.err
    alone, both = (run_artifacts.metrics(tmp_path / f"on_{devices}")["final_val_loss"] for devices in (1, 2))
    assert both == pytest.approx(alone, abs=1e-4)
