"""Building the components of a run: custom callbacks and loggers, monitors, and that each is built once."""

import json
import shutil
from pathlib import Path

import hydra
import lightning as L
import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from chargpt.checkpoint import torch_file
from chargpt.errors import UserError
from chargpt.runs.score import Monitor
from chargpt.training.callbacks.metrics import MetricsCallback
from chargpt.training.callbacks.timer import TrainingTimer
from chargpt.training.lightning_module import LanguageModeling
from chargpt.training.loggers.csv_history import CSVHistory
from chargpt.training.setup import make_callbacks, make_loggers
from tests.training import run_artifacts

MODULE = "tests.training.test_setup"


class CustomCallback(L.Callback):
    """A callback of a user."""

    def __init__(
        self, metrics_callback: MetricsCallback, timer: TrainingTimer, factor: float = 2.0, nested: object = None
    ):
        self.metrics_callback, self.timer, self.factor, self.nested = metrics_callback, timer, factor, nested


class Accuracy(L.Callback):
    """Logs a custom metric that increases at each validation, independently of the loss."""

    def __init__(self, first: float = 1.0) -> None:
        self.value = first - 1

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.value += 1
        pl_module.log("val/accuracy", float(self.value), logger=False)


class WriteScalars(L.Callback):
    """Uses one reference to TensorBoard's writer from `setup` on."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.writer = trainer.logger.experiment
        self.writer.add_scalar("custom", 1.0, 0)

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        self.writer.add_scalar("custom", 1.0, trainer.global_step)


class RecordDirectory(L.Callback):
    """Writes the output directory that it receives to a file in it."""

    def __init__(self, directory: str):
        Path(directory, "directory.txt").write_text(directory)


@pytest.fixture
def metrics_callback(tmp_path: Path) -> MetricsCallback:
    return MetricsCallback(TrainingTimer(None), CSVHistory(tmp_path / "history.csv"), Monitor("val_accuracy", "max"))


def test_a_callback_receives_the_metrics_callback_and_the_timer_by_parameter_name(metrics_callback):
    timer = TrainingTimer(None)
    nested = {"_target_": "collections.Counter", "_args_": [["a", "b", "a"]]}
    configs = {"custom": {"_target_": f"{MODULE}.CustomCallback", "factor": 3.0, "nested": nested}, "none": None}
    (custom,) = make_callbacks(configs, metrics_callback, timer)
    assert (custom.metrics_callback, custom.timer) == (metrics_callback, timer)
    assert (custom.factor, custom.nested["a"]) == (3.0, 2)


def test_a_required_monitor_defaults_to_the_score(metrics_callback):
    path = "lightning.pytorch.callbacks"
    (stop,) = make_callbacks({"stop": {"_target_": f"{path}.EarlyStopping"}}, metrics_callback, TrainingTimer(None))
    assert isinstance(stop, EarlyStopping)
    assert (stop.monitor, stop.mode) == ("score", "max")
    explicit = {"_target_": f"{path}.EarlyStopping", "monitor": "train/loss"}
    (stop,) = make_callbacks({"stop": explicit}, metrics_callback, TrainingTimer(None))
    assert (stop.monitor, stop.mode) == ("train/loss", "min")
    positional = {"_target_": f"{path}.EarlyStopping", "_args_": ["train/loss"]}
    (stop,) = make_callbacks({"stop": positional}, metrics_callback, TrainingTimer(None))
    assert (stop.monitor, stop.mode) == ("train/loss", "min")
    (other,) = make_callbacks({"other": {"_target_": f"{path}.ModelCheckpoint"}}, metrics_callback, TrainingTimer(None))
    assert isinstance(other, ModelCheckpoint)
    assert other.monitor is None, "an optional monitor keeps its default"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_target_": "collections.Counter"}, "must be a Callback"),
        ({"_target_": f"{MODULE}.CustomCallback", "fctor": 1.0}, "did you mean factor"),
        ({"_target_": f"{MODULE}.CustomCallbak"}, "did you mean CustomCallback"),
        ({}, "import path"),
    ],
)
def test_a_callback_that_cannot_be_instantiated_is_a_user_error(metrics_callback, config, message):
    with pytest.raises(UserError, match=message) as error:
        make_callbacks({"custom": config or {"x": 1}}, metrics_callback, TrainingTimer(None))
    assert "callbacks.custom cannot be instantiated" in str(error.value)


def test_loggers_are_built_for_new_and_for_resumed_runs(tmp_path: Path):
    configs = {
        "tensorboard": {"_target_": "chargpt.training.loggers.tensorboard.TensorBoard", "directory": str(tmp_path)},
        "csv": {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": str(tmp_path)},
    }
    assert len(make_loggers(configs, None)) == len(make_loggers(configs, 20)) == 2
    assert make_loggers(None, None) == []


class Service(DummyLogger):
    """A logger of a service that can continue a run."""

    def __init__(self, run_id: str | None = None):
        super().__init__()
        self.run_id = run_id


def test_a_logger_of_a_resumed_run_gets_the_identifier_of_its_run_at_the_service():
    config = {"_target_": f"{MODULE}.Service"}
    configs = {"mine": config, "other": config, "set": config | {"run_id": "chosen"}}
    runs = {"mine": "a1", "set": "b2"}
    assert [logger.run_id for logger in make_loggers(configs, 20, runs)] == ["a1", None, "chosen"]
    assert [logger.run_id for logger in make_loggers(configs, None)] == [None, None, "chosen"]


def test_lightnings_early_stopping_finishes_a_run(run_cli, tiny, tmp_path: Path):
    overrides = ["+callbacks.stop._target_=lightning.pytorch.callbacks.EarlyStopping", "+callbacks.stop.patience=2"]
    overrides += ["trainer.max_steps=50", "trainer.val_check_interval=2", "optimizer.lr=0.0", "hydra.run.dir=run"]
    outcome = run_cli("train", *tiny, *overrides)
    assert outcome.code == 0, outcome.err
    assert run_artifacts.metrics(tmp_path / "run")["steps"] == 6
    assert (tmp_path / "run" / "status.json").read_text().count("finished") == 1


def test_the_monitor_selects_the_best_checkpoint_also_after_resuming(run_cli, tiny, tmp_path: Path):
    overrides = [f"+callbacks.accuracy._target_={MODULE}.Accuracy", "monitor=val_accuracy", "mode=max"]
    overrides += ["trainer.max_steps=6", "trainer.val_check_interval=2", "optimizer.lr=0.5", "hydra.run.dir=run"]
    assert run_cli("train", *tiny, *overrides).code == 0
    metrics = run_artifacts.metrics(tmp_path / "run")
    assert {key: metrics[key] for key in ("monitor", "mode", "score", "best_step")} == {
        "monitor": "val_accuracy",
        "mode": "max",
        "score": 3.0,
        "best_step": 6,
    }
    assert metrics["val_loss"] == metrics["final_val_loss"]
    rows = run_artifacts.history(tmp_path / "run")
    assert [row["val_accuracy"] for row in rows if row["val_accuracy"]] == ["1.0", "2.0", "3.0"]
    assert run_cli("train", *overrides[:1], "resume=run", "trainer.max_steps=8").code == 0
    metrics = run_artifacts.metrics(tmp_path / "run")
    assert (metrics["monitor"], metrics["best_step"], metrics["score"]) == ("val_accuracy", 6, 3.0), "1.0 is not better"


def test_a_resumed_run_cannot_change_its_monitor(run_cli, finished):
    outcome = run_cli("train", f"resume={finished}", "monitor=val_bpc", "trainer.max_steps=40")
    assert outcome.code == 2
    assert "a different run" in outcome.err


def test_a_run_fails_at_the_first_validation_if_no_callback_logs_its_monitor(run_cli, tiny):
    overrides = [f"+callbacks.accuracy._target_={MODULE}.Accuracy", "monitor=val_acuracy", "mode=max"]
    outcome = run_cli("train", *tiny, *overrides, "trainer.max_steps=2", "hydra.run.dir=run")
    assert outcome.code == 1
    assert "val_accuracy, val_bpc, val_loss, val_perplexity" in outcome.err.splitlines()[-1]


def test_a_score_of_nan_fails_the_run(run_cli, tiny, tmp_path: Path):
    overrides = [f"+callbacks.accuracy._target_={MODULE}.Accuracy", "+callbacks.accuracy.first=nan"]
    overrides += ["monitor=val_accuracy", "mode=max", "trainer.val_check_interval=2", "hydra.run.dir=run"]
    outcome = run_cli("train", *tiny, *overrides)
    assert (outcome.code, "val_accuracy is nan at step 2" in outcome.err) == (1, True)
    assert run_artifacts.status(tmp_path / "run")["state"] == "failed"


def test_a_callback_can_write_to_tensorboard_from_setup_on(run_cli, tiny, tmp_path: Path):
    overrides = [f"+callbacks.custom._target_={MODULE}.WriteScalars", "trainer.max_steps=3", "hydra.run.dir=run"]
    assert run_cli("train", *tiny, *overrides).code == 0
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [event.step for event in events.Scalars("custom")] == [0, 1, 2, 3]


def test_resuming_ignores_callbacks_and_loggers_in_a_checkpoint(run_cli, finished, tmp_path: Path):
    """They could run any importable code, and the file may be untrusted."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for name in ("last", "best"):
        path = run / "checkpoints" / f"{name}.ckpt"
        content = torch_file.read(path)
        evil = {"evil": {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": ["touched"]}}}
        content["chargpt"]["config"] |= {"callbacks": evil, "logger": evil, "on_divergence": "nonsense"}
        torch_file.save(content, path)
    outcome = run_cli("train", "resume=run", "trainer.max_steps=21", "callbacks.samples.max_new_tokens=0")
    assert outcome.code == 0, outcome.err
    assert not (tmp_path / "touched").exists()
    assert run_artifacts.event_files(run)


def test_a_training_process_composes_the_config_twice_and_builds_the_optimizer_once(run_cli, tiny, monkeypatch):
    composed, built = [], []
    compose, init = hydra.compose, LanguageModeling.__init__

    def counted(self, model, make_optimizer, *args, **kwargs):
        def build(model):
            built.append(1)
            return make_optimizer(model)

        init(self, model, build, *args, **kwargs)

    monkeypatch.setattr(hydra, "compose", lambda *a, **k: composed.append(a) or compose(*a, **k))
    monkeypatch.setattr(LanguageModeling, "__init__", counted)
    assert run_cli("train", *tiny, "trainer.max_steps=2", "hydra.run.dir=run").code == 0
    assert (len(composed), len(built)) == (2, 1)
    assert run_cli("train", "resume=run", "trainer.max_steps=4").code == 0
    assert (len(composed), len(built)) == (5, 2), "the callbacks and loggers of the run are composed again"


def test_hydras_output_dir_is_the_actual_run_directory(run_cli, tiny, tmp_path: Path):
    """The planned directory of the second run already exists, so it uses another."""
    overrides = [
        f"+callbacks.record._target_={MODULE}.RecordDirectory",
        "+callbacks.record.directory='${hydra:runtime.output_dir}'",
    ]
    for _ in range(2):
        assert run_cli("train", *tiny, *overrides, "trainer.max_steps=1", "resume=never", "name=same").code == 0
    runs = sorted((tmp_path / "outputs" / "same").iterdir())
    assert len(runs) == 2
    for run in runs:
        assert Path((run / "directory.txt").read_text()) == run
        assert json.loads((run / "metrics.json").read_text())["steps"] == 1
