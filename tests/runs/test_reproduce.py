"""A run once more: in a directory of its own, with the same figures."""

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


def figures(run: Path) -> dict:
    return {k: v for k, v in run_artifacts.metrics(run).items() if not k.endswith(("_seconds", "_second"))}


def new_run(folder: Path) -> Path:
    (found,) = (file.parent for file in (folder / "outputs").rglob("metrics.json"))
    return found


def test_a_rerun_has_the_figures_of_the_run_in_a_directory_of_its_own(run_cli, run, tmp_path: Path, caplog):
    caplog.set_level(logging.INFO)
    before = run_artifacts.content(run)
    outcome = run_cli("train", "rerun=run", QUIET)
    assert outcome.code == 0, outcome.err
    again = new_run(tmp_path)
    assert figures(again) == figures(run)
    assert not run_artifacts.differences(run_artifacts.learned(again), run_artifacts.learned(run))
    assert "every figure is that of run" in caplog.text
    assert again.parent.name == yaml.safe_load((run / ".hydra" / "config.yaml").read_text())["name"]
    assert (again / ".hydra" / "overrides.yaml").read_text() == (run / ".hydra" / "overrides.yaml").read_text()
    assert run_artifacts.provenance(again)["command"][1:] == ["rerun=run", QUIET]
    assert run_artifacts.content(run) == before


def test_a_rerun_of_a_rerun_that_was_cut_off_goes_on_as_any_run(run_cli, run, tmp_path: Path):
    cut = ["+callbacks.cut._target_=tests.training.fault_injection.SignalAt", "+callbacks.cut.name=SIGTERM"]
    place = "hydra.run.dir=again"
    assert run_cli("train", "rerun=run", QUIET, place, *cut, "+callbacks.cut.batch=13").code == 3
    assert run_cli("train", "resume=again", QUIET).code == 0
    assert figures(tmp_path / "again") == figures(run)


def test_what_came_out_otherwise_is_told(run_cli, run, caplog):
    metrics = run_artifacts.metrics(run) | {"val_loss": 9.0}
    (run / "metrics.json").write_text(json.dumps(metrics))
    record = run_artifacts.provenance(run) | {"processor": "an abacus"}
    (run / "provenance.json").write_text(json.dumps(record))
    assert run_cli("train", "rerun=run", QUIET).code == 0
    assert "(there 9.0)" in caplog.text
    assert "which had processor an abacus" in caplog.text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["rerun=nowhere"], "there is no run there"),
        (["rerun=run", "resume=auto"], "leave resume=auto out"),
        (["rerun=run", "seed=5"], "seed=5 would make it another run"),
        (["rerun=run", "hydra.run.dir=run"], "run is already there"),
    ],
)
def test_what_cannot_be_repeated_is_a_mistake(run_cli, run, words, told):
    before = run_artifacts.content(run)
    outcome = run_cli("train", *words)
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert told in outcome.err
    assert run_artifacts.content(run) == before


def test_another_text_is_a_mistake(run_cli, run):
    record = run_artifacts.provenance(run) | {"corpus_sha256": "0" * 64}
    (run / "provenance.json").write_text(json.dumps(record))
    outcome = run_cli("train", "rerun=run")
    assert outcome.code == 2
    assert "another text" in outcome.err


def test_a_config_that_is_an_order_is_not_followed(run_cli, run, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    path = run / ".hydra" / "config.yaml"
    path.write_text(path.read_text().replace("name: gpt_nano", "name: ${oc.env:SECRET}"))
    outcome = run_cli("train", "rerun=run")
    assert outcome.code == 2
    assert "hunter2" not in outcome.err
    assert "config.yaml is missing or damaged" in outcome.err


def test_the_text_may_have_moved(run_cli, run, text, tmp_path: Path):
    (tmp_path / "moved.txt").write_text(text)
    outcome = run_cli("train", "rerun=run", "data.path=moved.txt", QUIET)
    assert outcome.code == 0, outcome.err
    assert figures(new_run(tmp_path)) | {"corpus": ""} == figures(run) | {"corpus": ""}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("trainer", 3),
        ("model", None),
        ("optimizer", {}),
        ("name", "../elsewhere"),
        ("name", ""),
        ("seed", [1]),
        ("trainer.devices", None),
        ("trainer.devices", {"a": 1}),
        ("trainer.precision", ...),
        ("trainer.accelerator", 2.5),
        ("trainer.max_steps", "many"),
        ("schedule._target_", "os.makedirs"),
        ("data.path", "${oc.env:HOME}"),
    ],
)
def test_a_config_that_cannot_be_is_a_mistake(run_cli, run, tmp_path: Path, path, value):
    file = run / ".hydra" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    *parts, key = path.split(".")
    part = config
    for name in parts:
        part = part[name]
    part[key] = value
    if value is ...:
        del part[key]
    file.write_text(yaml.safe_dump(config))
    outcome = run_cli("train", "rerun=run", QUIET)
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1), outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
