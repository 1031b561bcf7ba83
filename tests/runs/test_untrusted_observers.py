"""Callbacks and loggers of a resumed run come from its recorded choices, which may be in an untrusted file."""

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


def record(run: Path, *overrides: str, **choices: str) -> None:
    """Replaces what the run has recorded about its command."""
    (run / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    hydra = yaml.safe_load((run / ".hydra" / "hydra.yaml").read_text())
    hydra["hydra"]["runtime"]["choices"] |= choices
    (run / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(hydra))


def test_a_list_of_loggers_is_used_again(run_cli, run):
    record(run, "logger=[csv,none]", QUIET)
    assert run_cli("train", "resume=run", "trainer.max_steps=21").code == 0
    assert (run / "csv" / "version_0" / "metrics.csv").exists()
    config = yaml.safe_load((run / ".hydra" / "config.yaml").read_text())
    assert list(config["logger"]) == ["csv"]


def test_callbacks_refer_to_the_name_and_seed_of_the_run(run_cli, run):
    """This command composes the default seed and the name of the default model."""
    config = yaml.safe_load((run / ".hydra" / "config.yaml").read_text())
    record(run, QUIET)
    content = run_artifacts.checkpoint(run)
    assert content["chargpt"]["config"]["seed"] == config["seed"]
    assert run_cli("train", "resume=run", "trainer.max_steps=21", "logger=[csv,tensorboard]", "name=mine").code == 0
    config = yaml.safe_load((run / ".hydra" / "config.yaml").read_text())
    assert (config["name"], config["callbacks"]["samples"]["seed"]) == ("mine", config["seed"])


@pytest.mark.parametrize("group", ["callbacks", "logger"])
def test_a_recorded_choice_cannot_name_a_file_outside_the_configs(run_cli, run, tmp_path: Path, group, caplog):
    touch = {"evil": {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": ["touched"]}}}
    (run / "evil.yaml").write_text(yaml.safe_dump(touch))
    path = f"{'../' * 30}{run / 'evil'}"
    record(run, QUIET, **{group: path})
    assert run_cli("train", "resume=run", "trainer.max_steps=21").code == 0
    assert not (tmp_path / "touched").exists()
    assert f"not restored from the run, add it to this command to use it: {group}=" in caplog.text
