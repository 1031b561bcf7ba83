"""Weights & Biases without a network, and MLflow with a local folder: killed and resumed, they continue their run."""

import json
import signal
from pathlib import Path

import pytest

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
    assert "tensorboard" not in {path.name for path in (folder / "run").iterdir()}
    return folder / "run"


@pytest.mark.slow
def test_wandb_offline_continues_its_run_beside_the_csv_logger(tiny, tmp_path: Path):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2  # noqa: PLC0415 - optional
    from wandb.sdk.internal.datastore import DataStore  # noqa: PLC0415 - optional

    run = train_killed_and_resumed(tmp_path, *tiny, "logger=[csv,wandb]")
    (identifier,) = json.loads((run / "logger_runs.json").read_text()).values()
    files = sorted((run / "wandb").glob(f"offline-run-*-{identifier}/run-*.wandb"))
    assert len(files) == 3, "each part is a file of the same run"
    steps, samples, settings = [], [], {}
    for file in files:
        store = DataStore()
        store.open_for_scan(str(file))
        while (data := store.scan_data()) is not None:
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            row = {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            if "train/loss" in row:
                steps.append(row["trainer/global_step"])
            samples += [row["trainer/global_step"]] if "sample" in row or "sample._type" in row else []
            settings |= {item.key: json.loads(item.value_json) for item in record.config.update}
    assert steps[-5:] == [5, 6, 7, 8, 9]
    assert set(steps) == {1, 2, 3, 4, 5, 6, 7, 8, 9}
    assert {3, 6, 8, 9} <= set(samples)
    assert (settings["n_layer"], settings["optimizer"], settings["batch_size"]) == (2, "adamw", 4)
    assert sorted(path.name for path in (run / "csv").iterdir()) == ["version_0", "version_1", "version_2"]
    assert run_artifacts.metrics(run)["steps"] == 9


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
