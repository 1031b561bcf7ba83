"""The entry points: exit codes, overrides with special characters, the user's own configs, and old names."""

import json
import logging
import shutil
import sys

import pytest
from omegaconf import OmegaConf

import chargpt
from chargpt.cli.app import StderrHandler, entry_point
from chargpt.errors import DivergenceError, Interrupted, UserError
from tests.conftest import REPO, process


@pytest.fixture
def run_command(monkeypatch, tmp_path, capsys):
    """Runs a function as the command of sample.py; returns the exit code and the output on stderr."""

    def run(command, *overrides: str) -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(REPO / "sample.py"), *overrides])
        with pytest.raises(SystemExit) as error:
            entry_point("sample")(command)()
        return error.value.code, capsys.readouterr().err

    return run


def test_a_successful_command_receives_the_config_and_exits_with_0(run_command):
    configs = []
    assert run_command(configs.append, "seed=7", "prompt=What, ho (again) = {this}!") == (0, "")
    (config,) = configs
    assert (config.seed, config.prompt) == (7, "What, ho (again) = {this}!")
    assert "hydra" not in config


@pytest.mark.parametrize(
    ("error", "code"),
    [(UserError("mind the gap"), 2), (DivergenceError("mind the gap"), 1), (Interrupted("mind the gap"), 3)],
    ids=lambda value: type(value).__name__,
)
def test_an_exception_is_reported_in_one_line_with_its_exit_code(run_command, error, code):
    def command(config):
        raise error

    assert run_command(command) == (code, "sample.py: mind the gap\n")


def test_no_message_changes_the_terminal(run_command):
    def command(config):
        raise UserError("one\x1b[31m\r \x9b31m\a ñ\ntwo")

    assert run_command(command) == (2, "sample.py: one [31m   31m  ñ\ntwo\n")
    assert StderrHandler().format(logging.makeLogRecord({"msg": "\x1b[31m\n"})) == " [31m\n"


def test_ctrl_c_exits_with_3_without_a_traceback(run_command):
    def command(config):
        raise KeyboardInterrupt

    code, err = run_command(command)
    assert code == 3
    assert "Traceback" not in err


def test_a_bug_is_not_reported_as_a_user_error(monkeypatch):
    def command(config):
        raise ZeroDivisionError

    monkeypatch.setattr(sys, "argv", [str(REPO / "sample.py")])
    with pytest.raises(ZeroDivisionError):
        entry_point("sample")(command)()


@pytest.mark.parametrize("name", ["train", "sample", "evaluate", "visualize", "export", "compare"])
def test_help_exits_with_0_and_writes_no_files(run_cli, tmp_path, name):
    outcome = run_cli(name, "--help")
    assert outcome.code == 0
    assert f"python {name}.py" in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 80
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "override"),
    [
        ("train", "seed=4711"),
        ("sample", "seed=4711"),
        ("evaluate", "split=train"),
        ("export", "file=a,b=[c]"),
        ("compare", "runs=a,b=[c]"),
    ],
)
def test_cfg_job_prints_the_config_with_its_overrides(run_cli, tmp_path, name, override):
    outcome = run_cli(name, override, "--cfg", "job")
    key, _, value = override.partition("=")
    assert outcome.code == 0
    assert str(OmegaConf.create(outcome.out)[key]) == value
    assert not list(tmp_path.iterdir())


def test_cfg_reports_an_invalid_override(run_cli):
    outcome = run_cli("train", "n_layer=3", "--cfg", "job")
    assert (outcome.code, outcome.out) == (2, "")
    assert "model.n_layer" in outcome.err


def test_a_run_can_be_resumed_after_its_text_was_moved(run_cli, finished, text, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    moved = tmp_path / "moved.txt"
    moved.write_text(text)
    outcome = run_cli("train", f"resume={run}", f"data.path={moved}", "trainer.max_steps=21")
    assert outcome.code == 0, outcome.err
    assert json.loads((run / "metrics.json").read_text())["steps"] == 21


@pytest.fixture
def own_configs(tmp_path):
    """A folder of a user's own configs whose name contains special characters of Hydra's grammar."""
    folder = tmp_path / "my conf, a=b"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "mine.yaml").write_text("defaults:\n  - bigram\n  - _self_\nblock_size: 5\n")
    (folder / "model" / "bigram.yaml").write_text("nonsense: 1\n")  # the project's own option has priority
    (folder / "recipe").mkdir()
    (folder / "recipe" / "mine.yaml").write_text("# @package _global_\ndefaults:\n  - bigram\n  - _self_\n")
    return folder


def test_a_folder_of_own_configs_adds_options(run_cli, own_configs, text_file):
    arguments = [f"--config-dir={own_configs}", "model=mine", "data=text_file", f"data.path={text_file}"]
    shown = run_cli("train", *arguments, "--cfg", "job", "--package", "model")
    assert (shown.code, "block_size: 5" in shown.out) == (0, True), shown.err
    assert "mine" in run_cli("train", arguments[0], "--help").out
    mistyped = run_cli("train", arguments[0], "model=mien")
    assert (mistyped.code, "mine" in mistyped.err) == (2, True)


@pytest.mark.slow
def test_a_sweep_uses_a_folder_of_own_configs(run_cli, own_configs, text_file, tmp_path):
    overrides = ["model=mine", "data=text_file", f"data.path={text_file}", "trainer=cpu", "trainer.max_steps=1"]
    outcome = run_cli("train", f"--config-dir={own_configs}", "-m", *overrides, "seed=1,2", "hydra.sweep.dir=sweep")
    assert outcome.code == 0, outcome.err
    assert len(list(tmp_path.glob("sweep/*/metrics.json"))) == 2


def test_config_dir_and_searchpath_cannot_be_combined(run_cli, own_configs):
    outcome = run_cli("train", f"--config-dir={own_configs}", "hydra.searchpath=[file:///tmp]")
    assert (outcome.code, "cannot be combined" in outcome.err) == (2, True)


def test_config_path_and_config_name_select_another_config(run_cli, tmp_path):
    folder = tmp_path / "conf"
    folder.mkdir()
    (folder / "tiny.yaml").write_text("defaults:\n  - _self_\nanswer: 42\n")
    outcome = run_cli("sample", f"--config-path={folder}", "--config-name=tiny", "--cfg", "job")
    assert (outcome.code, outcome.out) == (0, "answer: 42\n"), outcome.err


def test_sys_argv_is_not_changed(run_cli):
    run_cli("sample", "run=nowhere", "prompt=What, ho!")
    assert sys.argv[1:] == ["run=nowhere", "prompt=What, ho!"]


def test_flags_and_overrides_may_be_in_any_order(run_cli):
    outcome = run_cli("train", "seed=4", "--cfg", "job", "name=x", "--package", "seed")
    assert (outcome.code, outcome.out) == (0, "4\n"), outcome.err


def test_the_old_name_of_a_setting_is_accepted_with_a_warning(tmp_path, tiny):
    old = ["model/n_grams=pairs", "model.n_grams.dropout=0.25", "model/skips=u_net"]
    new = ["model/ngram_embedding=pairs", "model.ngram_embedding.dropout=0.25", "model/unet_skips=u_net"]
    with_old, with_new = (process(tmp_path, "train", *tiny, *overrides, "--cfg", "job") for overrides in (old, new))
    assert (with_old.code, with_old.out) == (with_new.code, with_new.out)
    assert "model/n_grams is now called model/ngram_embedding; the old name is accepted until 0.4\n" in with_old.err
    assert with_old.err.count("is now called") == 3
    assert with_new.err == ""


def test_an_old_name_in_a_users_own_config_is_reported(run_cli, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "x.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model/n_grams: none\n"
    )
    outcome = run_cli("train", f"--config-dir={tmp_path / 'mine'}", "+experiment=x", "--cfg", "job")
    assert outcome.code == 2
    assert "model/n_grams is now called model/ngram_embedding" in outcome.err


@pytest.mark.slow
def test_look_runs_visualize_with_a_warning(tmp_path):
    old, new = (process(tmp_path, name, "run=nowhere") for name in ("look", "visualize"))
    assert (old.code, new.code) == (2, 2)
    assert "look.py is now called visualize.py" in old.err
    assert "nowhere" in old.err
    assert "nowhere" in new.err


def test_mistake_is_the_old_name_of_user_error():
    with pytest.warns(DeprecationWarning, match="UserError"):
        assert chargpt.Mistake is UserError
    with pytest.raises(AttributeError, match="Mistakes"):
        chargpt.Mistakes  # noqa: B018
