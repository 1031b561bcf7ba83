"""Loggers of other packages and of users: they get what their methods take, and a failure does not end the run."""

import csv
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.loggers import Logger

from chargpt.training.loggers import dispatch
from tests.training import run_artifacts

MODULE = "tests.training.loggers.test_dispatch"
SHORT = ["trainer.max_steps=4", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1", "hydra.run.dir=run"]


class Recorder(Logger):
    """A logger of a user, without a method for text."""

    name, version = "recorder", 0

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.calls.append((metrics, step))

    def log_hyperparams(self, params: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        self.calls.append(params)


class OfOurs(Recorder):
    def log_text(self, name: str, text: str, step: int) -> None:
        self.calls.append((name, text, step))


class OfWandb(Recorder):
    def log_text(self, key, columns=None, data=None, dataframe=None, step=None) -> None:
        self.calls.append((key, columns, data, step))


class OfAnotherKind(Recorder):
    def log_text(self, run: str, path: str) -> None:
        raise AssertionError("its arguments are not a text")


class Broken(Recorder):
    """Fails from the second point on, as after the loss of a connection."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if step and step > 1:
            raise ConnectionError("the server is gone\nand more lines")


class WithoutLogin(Recorder):
    def log_hyperparams(self, params: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        raise PermissionError("no API key configured\nand more lines")


def test_text_goes_to_the_loggers_whose_signature_takes_it():
    loggers = [Recorder(), OfOurs(), OfWandb(), OfAnotherKind()]
    assert [dispatch.takes_text(logger) for logger in loggers] == [False, True, True, False]
    dispatch.log_text(loggers, "sample", "What, ho!", 7)
    assert [logger.calls for logger in loggers] == [
        [],
        [("sample", "What, ho!", 7)],
        [("sample", ["step", "text"], [[7, "What, ho!"]], 7)],
        [],
    ]


def test_a_logger_that_fails_is_reported_once_and_the_others_get_all_points(caplog):
    broken, recorder = Broken(), Recorder()
    for step in (1, 2, 3):
        dispatch.log_metrics([broken, recorder], {"loss": 0.5}, step)
    assert [step for _, step in recorder.calls] == [1, 2, 3]
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert record.message.startswith("Broken failed")
    assert record.message.endswith("ConnectionError: the server is gone")


def test_a_run_finishes_although_a_logger_fails(run_cli, tiny, tmp_path: Path, caplog):
    outcome = run_cli("train", *tiny, *SHORT, f"+logger.broken._target_={MODULE}.Broken")
    assert outcome.code == 0, outcome.err
    assert caplog.text.count("the server is gone") == 1
    assert [row["step"] for row in run_artifacts.history(tmp_path / "run")] == ["1", "2", "3", "4"]
    assert [step for step, _ in run_artifacts.scalars(tmp_path / "run")["val/loss"]] == [2, 4]


def test_a_logger_that_cannot_start_ends_the_run_in_one_line(run_cli, tiny, tmp_path: Path):
    outcome = run_cli("train", *tiny, *SHORT, f"+logger.login._target_={MODULE}.WithoutLogin")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].endswith("WithoutLogin cannot be used: PermissionError: no API key configured")
    assert run_artifacts.status(tmp_path / "run")["state"] == "failed"


def rows_of(run: Path, version: int) -> Iterator[tuple[int, bool]]:
    """(step, whether it is that of a validation) of each row of Lightning's CSV file."""
    with (run / "csv" / f"version_{version}" / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            yield int(row["step"]), bool(row["val/loss"])


def test_a_resumed_run_has_each_point_in_one_file_of_lightnings_csv_logger(run_cli, tiny, tmp_path: Path):
    fault = ["+callbacks.fault._target_=tests.training.fault_injection.RaiseAfterStep", "+callbacks.fault.step=4"]
    overrides = [*tiny, *SHORT, "logger=csv", "trainer.max_steps=6", "trainer.val_check_interval=3"]
    with pytest.raises(RuntimeError, match="a part is broken"):
        run_cli("train", *overrides, *fault)
    run = tmp_path / "run"
    assert 4 in dict(rows_of(run, 0))
    assert run_cli("train", "resume=run").code == 0
    assert list(rows_of(run, 0)) == [(1, False), (2, False), (3, False), (3, True)]
    assert list(rows_of(run, 1)) == [(4, False), (5, False), (6, False), (6, True)]
    for version in (0, 1):
        params = yaml.safe_load((run / "csv" / f"version_{version}" / "hparams.yaml").read_text())
        assert (params["n_layer"], params["batch_size"], params["optimizer"]) == (2, 4, "adamw")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"], "nothing outside the run directory"


def test_a_run_without_loggers_has_all_results_and_proposes_no_tensorboard(run_cli, tiny, tmp_path: Path):
    outcome = run_cli("train", *tiny, *SHORT, "logger=none")
    assert outcome.code == 0, outcome.err
    run = tmp_path / "run"
    assert not run_artifacts.event_files(run)
    assert (run / "sample.txt").read_text()
    assert len(run_artifacts.history(run)) == 4
    assert "curves  run/history.csv" in outcome.out
    assert run_cli("train", "resume=run", "trainer.max_steps=6").code == 0
    assert not run_artifacts.event_files(run), "the choice is recorded"
    assert len(run_artifacts.history(run)) == 6
