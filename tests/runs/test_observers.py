"""The callbacks and loggers of a resumed run come from its recorded choices, never from targets in its files."""

import hydra
import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from chargpt.config.compose import compose
from chargpt.runs.directory import RunDirectory
from chargpt.runs.observers import restore_observers
from tests.conftest import REPO

SAMPLES = "chargpt.training.callbacks.samples.Samples"


@pytest.fixture
def restore(tmp_path):
    """`restore(recorded, choices, typed)`: what a command with the overrides `typed` restores from a run's files."""
    (tmp_path / "my_conf" / "callbacks").mkdir(parents=True)
    (tmp_path / "my_conf" / "callbacks" / "mine.yaml").write_text(
        "defaults:\n- default\n- _self_\nmine:\n  _target_: my_code.Mine\n  n: 3\n"
    )

    (tmp_path / "my_conf" / "callbacks" / "my-own.yaml").write_text("defaults: [mine]\n")

    def restore(recorded: list[str], choices: dict[str, str], *typed: str):
        directory = RunDirectory(tmp_path / "run")
        directory.hydra.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create(recorded), directory.hydra / "overrides.yaml")
        OmegaConf.save({"hydra": {"runtime": {"choices": choices}}}, directory.hydra / "hydra.yaml")
        folder = f"hydra.searchpath=[file://{tmp_path / 'my_conf'}]"
        with hydra.initialize_config_dir(str(REPO / "conf"), version_base="1.3"):
            compose("train", [folder, "resume=run", *typed])
            return restore_observers(directory, {"name": "mine", "seed": 1337})

    yield restore
    HydraConfig.instance().cfg = None


def test_the_recorded_options_and_numbers_are_composed_again(restore, caplog):
    recorded = ["callbacks=mine", "callbacks.mine.n=5", "callbacks.samples.max_new_tokens=7", "~callbacks.progress"]
    callbacks = restore(recorded, {"callbacks": "mine", "logger": "default"})["callbacks"]
    assert callbacks == {
        "mine": {"_target_": "my_code.Mine", "n": 5},
        "samples": {"_target_": SAMPLES, "max_new_tokens": 7, "seed": 1337},
    }
    assert not caplog.messages


def test_the_choice_of_a_config_is_restored_without_an_override(restore):
    assert "mine" in restore([], {"callbacks": "mine"})["callbacks"]


def test_the_name_of_an_option_may_have_a_hyphen(restore, caplog):
    assert "mine" in restore(["callbacks=my-own"], {"callbacks": "my-own"})["callbacks"]
    assert not caplog.messages


@pytest.mark.parametrize(
    ("folder", "recorded", "choices"),
    [("wandb", ["logger=[csv,wandb]"], {}), (".wandb", [], {"logger": "wandb"})],
)
def test_wandb_is_not_restored_beside_settings_that_may_name_another_server(
    restore, folder, recorded, choices, tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "settings").write_text("[default]\nbase_url = https://elsewhere\n")
    observers = restore([*recorded, "callbacks.samples.max_new_tokens=7"], choices)
    assert "wandb" not in observers["logger"]
    assert observers["callbacks"]["samples"]["max_new_tokens"] == 7
    assert "wandb" in caplog.text


def test_an_option_of_this_command_has_priority(restore):
    observers = restore(["callbacks=mine", "logger=wandb"], {"callbacks": "mine"}, "callbacks=default")
    assert [*observers["callbacks"]] == ["samples", "progress"]
    assert "wandb" in observers["logger"]


@pytest.mark.parametrize(
    "override",
    [
        "+callbacks.evil._target_=os.system",
        "callbacks.progress._target_=os.system",
        "+callbacks.evil={_target_:os.system,command:ls}",
        "callbacks={evil:{_target_:os.system}}",
        "+callbacks.evil.command='touch here'",
        "logger.tensorboard.save_dir=/etc",
        "callbacks=../../evil",
        "callbacks='${oc.env:HOME}'",
    ],
)
def test_code_text_and_paths_of_a_file_are_left_out_with_a_line(restore, caplog, override):
    callbacks = restore([override, "callbacks.samples.max_new_tokens=7"], {"callbacks": "default"})["callbacks"]
    assert "os.system" not in str(callbacks)
    assert callbacks["samples"] == {"_target_": SAMPLES, "max_new_tokens": 7, "seed": 1337}
    assert caplog.messages == [f"not restored from the run, add it to this command to use it: {override.lstrip('+')}"]


def test_the_numbers_of_a_callback_that_is_left_out_are_left_out_too(restore, caplog):
    observers = restore(["+callbacks.mine._target_=my.Mine", "+callbacks.mine.n=5"], {"callbacks": "default"})
    assert "mine" not in observers["callbacks"]
    assert caplog.messages[0].endswith("callbacks.mine._target_=my.Mine callbacks.mine.n=5")


def test_a_setting_that_is_added_to_a_callback_is_left_out(restore, caplog):
    callbacks = restore(["+callbacks.samples.x=1", "callbacks.progress=null"], {"callbacks": "default"})["callbacks"]
    assert (callbacks["samples"].get("x"), callbacks["progress"]) == (None, None)
    assert caplog.messages[0].endswith("to use it: callbacks.samples.x=1")


def test_an_option_that_is_not_installed_is_left_out(restore, caplog):
    assert restore(["callbacks=gone"], {"callbacks": "gone"}) == {}
    assert "callbacks=gone" in caplog.text


def test_a_damaged_record_restores_nothing(restore):
    assert restore([], {}) == {}
