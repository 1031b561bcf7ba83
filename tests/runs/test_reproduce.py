"""rerun=RUN: repeats a run in a new directory, with the same metrics."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import yaml

from tests.training import run_artifacts

QUIET = "callbacks.samples.max_new_tokens=0"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def non_timing_metrics(run: Path) -> dict:
    return {k: v for k, v in run_artifacts.metrics(run).items() if not k.endswith(("_seconds", "_second"))}


def new_run(folder: Path) -> Path:
    (run,) = (file.parent for file in (folder / "outputs").rglob("metrics.json"))
    return run


def test_a_rerun_has_the_metrics_of_the_run_in_a_new_directory(run_cli, run, tmp_path: Path, caplog):
    caplog.set_level(logging.INFO)
    before = run_artifacts.content(run)
    outcome = run_cli("train", "rerun=run", QUIET)
    assert outcome.code == 0, outcome.err
    repeated = new_run(tmp_path)
    assert non_timing_metrics(repeated) == non_timing_metrics(run)
    assert not run_artifacts.differences(run_artifacts.training_state(repeated), run_artifacts.training_state(run))
    assert "all non-timing metrics equal those of run" in caplog.text
    assert repeated.parent.name == yaml.safe_load((run / ".hydra" / "config.yaml").read_text())["name"]
    assert (repeated / ".hydra" / "overrides.yaml").read_text() == (run / ".hydra" / "overrides.yaml").read_text()
    assert run_artifacts.provenance(repeated)["command"][1:] == ["rerun=run", QUIET]
    assert run_artifacts.content(run) == before


def test_an_interrupted_rerun_can_be_resumed(run_cli, run, tmp_path: Path):
    sigterm = ["+callbacks.signal._target_=tests.training.fault_injection.SignalAt", "+callbacks.signal.name=SIGTERM"]
    directory = "hydra.run.dir=again"
    assert run_cli("train", "rerun=run", QUIET, directory, *sigterm, "+callbacks.signal.batch=13").code == 3
    assert run_cli("train", "resume=again", QUIET).code == 0
    assert non_timing_metrics(tmp_path / "again") == non_timing_metrics(run)


def test_different_metrics_and_environments_are_reported(run_cli, run, caplog):
    metrics = run_artifacts.metrics(run) | {"val_loss": 9.0}
    (run / "metrics.json").write_text(json.dumps(metrics))
    provenance = run_artifacts.provenance(run) | {"processor": "another processor"}
    (run / "provenance.json").write_text(json.dumps(provenance))
    assert run_cli("train", "rerun=run", QUIET).code == 0
    assert "(original 9.0)" in caplog.text
    assert "(original another processor)" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rerun=nowhere"], "there is no such run"),
        (["rerun=run", "resume=auto"], "remove resume=auto"),
        (["rerun=run", "seed=5"], "seed=5 would make this a different run"),
        (["rerun=run", "hydra.run.dir=run"], "run already exists"),
    ],
)
def test_an_invalid_rerun_is_a_user_error(run_cli, run, overrides, message):
    before = run_artifacts.content(run)
    outcome = run_cli("train", *overrides)
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert message in outcome.err
    assert run_artifacts.content(run) == before


def test_a_rerun_on_another_text_is_a_user_error(run_cli, run):
    provenance = run_artifacts.provenance(run) | {"corpus_sha256": "0" * 64}
    (run / "provenance.json").write_text(json.dumps(provenance))
    outcome = run_cli("train", "rerun=run")
    assert outcome.code == 2
    assert "another text" in outcome.err


def test_an_interpolation_in_a_saved_config_is_not_resolved(run_cli, run, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    path = run / ".hydra" / "config.yaml"
    path.write_text(path.read_text().replace("name: gpt_nano", "name: ${oc.env:SECRET}"))
    outcome = run_cli("train", "rerun=run")
    assert outcome.code == 2
    assert "hunter2" not in outcome.err
    assert "config.yaml is missing or damaged" in outcome.err


def test_a_rerun_finds_the_moved_text_by_an_override(run_cli, run, text, tmp_path: Path):
    (tmp_path / "moved.txt").write_text(text)
    outcome = run_cli("train", "rerun=run", "data.path=moved.txt", QUIET)
    assert outcome.code == 0, outcome.err
    assert non_timing_metrics(new_run(tmp_path)) | {"corpus": ""} == non_timing_metrics(run) | {"corpus": ""}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("trainer", 3),
        ("model", None),
        ("optimizer", {}),
        ("name", "../elsewhere"),
        ("name", ""),
        ("seed", [1]),
        ("trainer.devices", {"a": 1}),
        ("trainer.precision", ...),
        ("trainer.accelerator", 2.5),
        ("trainer.max_steps", "many"),
        ("schedule._target_", "os.makedirs"),
        ("data.path", "${oc.env:HOME}"),
    ],
)
def test_an_invalid_saved_config_is_a_user_error(run_cli, run, tmp_path: Path, path, value):
    file = run / ".hydra" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    *keys, last = path.split(".")
    section = config
    for key in keys:
        section = section[key]
    section[last] = value
    if value is ...:
        del section[last]
    file.write_text(yaml.safe_dump(config))
    outcome = run_cli("train", "rerun=run", QUIET)
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1), outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
