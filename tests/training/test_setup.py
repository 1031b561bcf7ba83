"""The parts of a run: what a user's own callbacks and loggers are given, and that each thing is built once."""

import json
import shutil
from pathlib import Path

import hydra
import lightning as L
import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
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

HERE = "tests.training.test_setup"


class Wants(L.Callback):
    """A callback of a user's own."""

    def __init__(
        self, metrics_callback: MetricsCallback, timer: TrainingTimer, factor: float = 2.0, nested: object = None
    ):
        self.metrics_callback, self.timer, self.factor, self.nested = metrics_callback, timer, factor, nested


class Accuracy(L.Callback):
    """Logs a figure of a user's own at each validation: better and better, while the loss does what it does."""

    def __init__(self, first: float = 1.0) -> None:
        self.looks = first - 1

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.looks += 1
        pl_module.log("val/accuracy", float(self.looks), logger=False)


class Writes(L.Callback):
    """Keeps TensorBoard's writer from the first moment on."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.writer = trainer.logger.experiment
        self.writer.add_scalar("mine", 1.0, 0)

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        self.writer.add_scalar("mine", 1.0, trainer.global_step)


class Where(L.Callback):
    """Writes down where Hydra says that the run is."""

    def __init__(self, directory: str):
        Path(directory, "here.txt").write_text(directory)


@pytest.fixture
def metrics_callback(tmp_path: Path) -> MetricsCallback:
    return MetricsCallback(TrainingTimer(None), CSVHistory(tmp_path / "history.csv"), Monitor("val_accuracy", "max"))


def test_a_callback_gets_the_curves_and_the_clock_that_its_constructor_names(metrics_callback):
    timer = TrainingTimer(None)
    nested = {"_target_": "collections.Counter", "_args_": [["a", "b", "a"]]}
    configs = {"mine": {"_target_": f"{HERE}.Wants", "factor": 3.0, "nested": nested}, "none": None}
    (mine,) = make_callbacks(configs, metrics_callback, timer)
    assert (mine.metrics_callback, mine.timer, mine.factor, mine.nested["a"]) == (metrics_callback, timer, 3.0, 2)


def test_a_callback_that_must_monitor_something_monitors_the_score(metrics_callback):
    path = "lightning.pytorch.callbacks"
    (stop,) = make_callbacks({"stop": {"_target_": f"{path}.EarlyStopping"}}, metrics_callback, TrainingTimer(None))
    assert isinstance(stop, EarlyStopping)
    assert (stop.monitor, stop.mode) == ("score", "max")
    typed = {"_target_": f"{path}.EarlyStopping", "monitor": "train/loss"}
    (stop,) = make_callbacks({"stop": typed}, metrics_callback, TrainingTimer(None))
    assert (stop.monitor, stop.mode) == ("train/loss", "min")
    placed = {"_target_": f"{path}.EarlyStopping", "_args_": ["train/loss"]}
    (stop,) = make_callbacks({"stop": placed}, metrics_callback, TrainingTimer(None))
    assert (stop.monitor, stop.mode) == ("train/loss", "min")
    (other,) = make_callbacks({"other": {"_target_": f"{path}.ModelCheckpoint"}}, metrics_callback, TrainingTimer(None))
    assert isinstance(other, ModelCheckpoint)
    assert other.monitor is None, "what need not be given is left as it is"


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"_target_": "collections.Counter"}, "must be a Callback"),
        ({"_target_": f"{HERE}.Wants", "fctor": 1.0}, "did you mean factor"),
        ({"_target_": f"{HERE}.Want"}, "did you mean Wants"),
        ({}, "is not one of"),
    ],
)
def test_a_callback_that_cannot_be_made_is_told_in_a_line(metrics_callback, config, told):
    with pytest.raises(UserError, match=told) as mistake:
        make_callbacks({"mine": config or {"x": 1}}, metrics_callback, TrainingTimer(None))
    assert "callbacks.mine cannot be made" in str(mistake.value)


def test_only_a_resumed_run_has_tensorboard_hide_what_comes_after_its_checkpoint(tmp_path: Path):
    configs = {
        "ours": {"_target_": "chargpt.training.loggers.tensorboard.TensorBoard", "directory": str(tmp_path)},
        "csv": {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": str(tmp_path)},
    }
    assert len(make_loggers(configs, None)) == len(make_loggers(configs, 20)) == 2
    assert make_loggers(None, None) == []


def test_early_stopping_of_lightnings_ends_a_run_well(run_cli, tiny, tmp_path: Path):
    words = ["+callbacks.stop._target_=lightning.pytorch.callbacks.EarlyStopping", "+callbacks.stop.patience=2"]
    words += ["trainer.max_steps=50", "trainer.val_check_interval=2", "optimizer.lr=0.0", "hydra.run.dir=run"]
    outcome = run_cli("train", *tiny, *words)
    assert outcome.code == 0, outcome.err
    assert run_artifacts.metrics(tmp_path / "run")["steps"] == 6
    assert (tmp_path / "run" / "status.json").read_text().count("finished") == 1


def test_the_best_checkpoint_is_that_of_the_monitor_also_over_a_cut(run_cli, tiny, tmp_path: Path):
    words = [f"+callbacks.accuracy._target_={HERE}.Accuracy", "monitor=val_accuracy", "mode=max"]
    words += ["trainer.max_steps=6", "trainer.val_check_interval=2", "optimizer.lr=0.5", "hydra.run.dir=run"]
    assert run_cli("train", *tiny, *words).code == 0
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
    assert run_cli("train", *words[:1], "resume=run", "trainer.max_steps=8").code == 0
    metrics = run_artifacts.metrics(tmp_path / "run")
    assert (metrics["monitor"], metrics["best_step"], metrics["score"]) == ("val_accuracy", 6, 3.0), "1.0 is not more"


def test_another_monitor_would_make_it_another_run(run_cli, tiny, finished, tmp_path: Path):
    outcome = run_cli("train", f"resume={finished}", "monitor=val_bpc", "trainer.max_steps=40")
    assert outcome.code == 2
    assert "another run" in outcome.err


def test_a_monitor_that_no_callback_logs_is_told_at_the_first_validation(run_cli, tiny, tmp_path: Path):
    words = [f"+callbacks.accuracy._target_={HERE}.Accuracy", "monitor=val_acuracy", "mode=max"]
    outcome = run_cli("train", *tiny, *words, "trainer.max_steps=2", "hydra.run.dir=run")
    assert outcome.code == 1
    assert "val_accuracy, val_bpc, val_loss, val_perplexity" in outcome.err.splitlines()[-1]


def test_a_score_that_is_no_number_ends_the_run_at_that_validation(run_cli, tiny, tmp_path: Path):
    words = [f"+callbacks.accuracy._target_={HERE}.Accuracy", "+callbacks.accuracy.first=nan"]
    words += ["monitor=val_accuracy", "mode=max", "trainer.val_check_interval=2", "hydra.run.dir=run"]
    outcome = run_cli("train", *tiny, *words)
    assert (outcome.code, "val_accuracy is nan at step 2" in outcome.err) == (1, True)
    assert run_artifacts.status(tmp_path / "run")["state"] == "failed"


def test_a_user_may_write_to_tensorboard_from_the_start_and_keep_its_writer(run_cli, tiny, tmp_path: Path):
    words = [f"+callbacks.mine._target_={HERE}.Writes", "trainer.max_steps=3", "hydra.run.dir=run"]
    assert run_cli("train", *tiny, *words).code == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("mine")] == [0, 1, 2, 3]


def test_of_a_checkpoint_nothing_but_the_run_itself_is_taken(run_cli, finished, tmp_path: Path):
    """Callbacks and loggers may be anything that can be imported: a stranger's file must not name them."""
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
    assert (run / "tensorboard").is_dir()


def test_in_the_process_that_trains_everything_is_composed_twice_and_built_once(run_cli, tiny, monkeypatch):
    composed, made = [], []
    compose, init = hydra.compose, LanguageModeling.__init__

    def counted(self, model, make_optimizer, *args, **kwargs):
        def make(model):
            made.append(1)
            return make_optimizer(model)

        init(self, model, make, *args, **kwargs)

    monkeypatch.setattr(hydra, "compose", lambda *a, **k: composed.append(a) or compose(*a, **k))
    monkeypatch.setattr(LanguageModeling, "__init__", counted)
    assert run_cli("train", *tiny, "trainer.max_steps=2", "hydra.run.dir=run").code == 0
    assert (len(composed), len(made)) == (2, 1)
    assert run_cli("train", "resume=run", "trainer.max_steps=4").code == 0
    assert (len(composed), len(made)) == (4, 2)


def test_hydras_output_dir_is_the_directory_that_the_run_got(run_cli, tiny, tmp_path: Path, monkeypatch):
    """Also where another run has taken the planned one."""
    words = [f"+callbacks.where._target_={HERE}.Where", "+callbacks.where.directory='${hydra:runtime.output_dir}'"]
    for _ in range(2):
        assert run_cli("train", *tiny, *words, "trainer.max_steps=1", "resume=never", "name=same").code == 0
    runs = sorted((tmp_path / "outputs" / "same").iterdir())
    assert len(runs) == 2
    for run in runs:
        assert Path((run / "here.txt").read_text()) == run
        assert json.loads((run / "metrics.json").read_text())["steps"] == 1
