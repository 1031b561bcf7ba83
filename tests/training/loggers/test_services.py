"""Weights & Biases without a network, and MLflow with a local folder: killed and resumed, they continue their run."""

import json
import signal
from pathlib import Path

import pytest
import yaml

from chargpt.training.loggers.mlflow import MLflow
from tests.conftest import process
from tests.training import run_artifacts

OVERRIDES = ["trainer.log_every_n_steps=1", "trainer.max_steps=8", "trainer.val_check_interval=3", "hydra.run.dir=run"]
KILL = ["+callbacks.kill._target_=tests.training.fault_injection.FailRank", "+callbacks.kill.rank=0"]
KILL += ["+callbacks.kill.step=5", "+callbacks.kill.how=SIGKILL"]


def train_killed_and_resumed(folder: Path, *overrides: str) -> Path:
    """Trains 8 steps, killed after step 5 and resumed from step 3, then resumed to step 9."""
    environment = {"WANDB_MODE": "offline"}
    killed = process(folder, "train", *overrides, *OVERRIDES, *KILL, **environment)
    assert killed.code == -signal.SIGKILL, killed.err
    for more in ([], ["trainer.max_steps=9"]):
        resumed = process(folder, "train", "resume=run", *more, **environment)
        assert resumed.code == 0, resumed.err
    assert [path.name for path in folder.iterdir()] == ["run"], "nothing outside the run directory"
    assert not run_artifacts.event_files(folder / "run")
    return folder / "run"


@pytest.mark.slow
def test_wandb_offline_continues_its_run_beside_the_csv_logger(tiny, tmp_path: Path):
    pytest.importorskip("wandb")
    run = train_killed_and_resumed(tmp_path, *tiny, "logger=[csv,wandb]")
    (identifier,) = json.loads((run / "logger_runs.json").read_text()).values()
    parts = sorted((run / "wandb").glob(f"offline-run-*-{identifier}"))
    assert len(parts) == 3, "each part of the run is a folder of the same W&B run"
    for part in parts[1:]:  # of a run that was killed within its first seconds, W&B has not written them
        (file,) = part.glob("*.wandb")
        assert all(name in file.read_bytes() for name in (b"train/loss", b"val/loss", b"n_layer", b"batch_size"))
    tables = [json.loads(file.read_text()) for file in (run / "wandb").glob("offline-run-*/files/media/table/sample_*")]
    samples = dict(table["data"][0] for table in tables)
    assert samples.keys() == {3, 6, 8, 9}
    assert all(isinstance(text, str) and text for text in samples.values())
    assert sorted(path.name for path in (run / "csv").iterdir()) == ["version_0", "version_1", "version_2"]
    assert run_artifacts.metrics(run)["steps"] == 9


@pytest.mark.slow
def test_two_runs_in_one_process_are_two_runs_of_wandb(run_cli, tiny, tmp_path: Path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for directory in ("one", "two"):
        short = ["trainer.max_steps=1", f"hydra.run.dir={directory}"]
        assert run_cli("train", *tiny, "logger=wandb", *short).code == 0
    identifiers = {(tmp_path / directory / "logger_runs.json").read_text() for directory in ("one", "two")}
    assert len(identifiers) == 2


@pytest.mark.slow
def test_mlflow_in_a_folder_writes_no_text_elsewhere(tmp_path: Path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = tmp_path / "mlflow"
    logger = MLflow(str(folder))
    logger.log_text("sample", "to be", 1)
    assert [path.read_text() for path in folder.rglob("step_1.txt")] == ["to be"]
    (record,) = folder.glob(f"*/{logger.run_id}/meta.yaml")
    for elsewhere in (tmp_path, folder / "..", tmp_path / "mlflow_2"):
        content = yaml.safe_load(record.read_text()) | {"artifact_uri": f"file://{elsewhere}/artifacts"}
        record.write_text(yaml.safe_dump(content))
        with pytest.raises(ValueError, match="the artifacts of this run are in"):
            MLflow(str(folder), run_id=logger.run_id).log_text("sample", "or not", 2)
    assert not [*tmp_path.rglob("step_2.txt")]


@pytest.mark.slow
def test_mlflow_in_a_folder_continues_its_run(tiny, tmp_path: Path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run = train_killed_and_resumed(tmp_path, *tiny, "logger=mlflow")
    client = mlflow.MlflowClient(f"file:{run / 'mlflow'}")
    experiment = client.get_experiment_by_name("chargpt")
    (continued,) = client.search_runs([experiment.experiment_id])
    assert continued.info.status == "FINISHED"
    assert {"n_layer": "2", "optimizer": "adamw", "max_steps": "8"}.items() <= continued.data.params.items()
    points = client.get_metric_history(continued.info.run_id, "train/loss")
    assert {point.step for point in points} == {1, 2, 3, 4, 5, 6, 7, 8, 9}
    assert continued.data.metrics["val/loss"] == run_artifacts.metrics(run)["final_val_loss"]
    samples = [file.path for file in client.list_artifacts(continued.info.run_id, "sample")]
    assert samples == [f"sample/step_{step}.txt" for step in (3, 6, 8, 9)]
