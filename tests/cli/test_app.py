"""The entry points: exit codes, words with special signs, names of a sweep's folders, and a sweep as a whole."""

import json
import shutil
import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

import chargpt
from chargpt.cli.app import entry_point
from chargpt.config.overrides import RAW_KEYS, quote
from chargpt.errors import DivergenceError, Interrupted, UserError
from tests.conftest import REPO, process


@pytest.fixture
def leave(monkeypatch, tmp_path, capsys):
    """The exit code of a sample.py whose work is `work`, and what it says."""

    def leave(work, *words: str) -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(REPO / "sample.py"), *words])
        with pytest.raises(SystemExit) as left:
            entry_point("sample")(work)()
        return left.value.code, capsys.readouterr().err

    return leave


def test_work_that_ends_well_is_0_and_gets_the_config(leave):
    got = []
    assert leave(got.append, "seed=7", "prompt=What, ho (again) = {this}!") == (0, "")
    (config,) = got
    assert (config.seed, config.prompt) == (7, "What, ho (again) = {this}!")
    assert "hydra" not in config


@pytest.mark.parametrize(
    ("error", "code"),
    [(UserError("mind the gap"), 2), (DivergenceError("mind the gap"), 1), (Interrupted("mind the gap"), 3)],
    ids=lambda value: type(value).__name__,
)
def test_what_goes_wrong_is_told_in_a_line_and_has_its_code(leave, error, code):
    def work(config):
        raise error

    assert leave(work) == (code, "sample.py: mind the gap\n")


def test_ctrl_c_is_3_without_a_traceback(leave):
    def work(config):
        raise KeyboardInterrupt

    code, err = leave(work)
    assert code == 3
    assert "Traceback" not in err


def test_a_bug_is_not_mistaken_for_a_mistake(monkeypatch):
    def work(config):
        raise ZeroDivisionError

    monkeypatch.setattr(sys, "argv", [str(REPO / "sample.py")])
    with pytest.raises(ZeroDivisionError):
        entry_point("sample")(work)()


@pytest.mark.parametrize("name", ["train", "sample", "evaluate", "visualize", "export", "compare"])
def test_help_is_0_and_leaves_nothing(run_cli, tmp_path, name):
    outcome = run_cli(name, "--help")
    assert outcome.code == 0
    assert f"python {name}.py" in outcome.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("train", "seed=4711"),
        ("sample", "seed=4711"),
        ("evaluate", "split=train"),
        ("export", "file=a,b=[c]"),
        ("compare", "runs=a,b=[c]"),
    ],
)
def test_cfg_job_is_0_and_shows_the_config_after_the_choices(run_cli, tmp_path, name, word):
    outcome = run_cli(name, word, "--cfg", "job")
    key, _, value = word.partition("=")
    assert outcome.code == 0
    assert str(OmegaConf.create(outcome.out)[key]) == value
    assert not list(tmp_path.iterdir())


def test_a_mistake_with_cfg_is_told_as_without(run_cli):
    outcome = run_cli("train", "n_layer=3", "--cfg", "job")
    assert (outcome.code, outcome.out) == (2, "")
    assert "model.n_layer" in outcome.err


@given(text=st.text())
@example(text="What's = (this), {or} [that]: $5?")
@example(text='a "quoted" word')
@example(text="it's \\'escaped\\'")
@example(text="ends in a backslash \\")
@example(text="\\\\")
@example(text="two\nlines\n")
@example(text="ROMEO:")
@example(text="1,2")
@example(text="  spaces  ")
@example(text="1e3")
@example(text="true")
@example(text="null and void")
@example(text="@scene.txt")
@example(text="")
def test_a_text_on_the_command_line_is_taken_as_it_is(text):
    if text[:1] in ("'", '"') or text in ("null", "???"):
        return  # these mean what they mean to Hydra
    for key in RAW_KEYS:
        parsed = OverridesParser.create().parse_override(quote(f"{key}={text}"))
        assert parsed.key_or_group == key
        assert parsed.value() == text


@pytest.mark.parametrize(
    "word", ["prompt='quoted, already'", 'prompt="too"', "prompt=null", "model.n_layer=1,2", "+x=[1,2]", "--help"]
)
def test_what_hydra_understands_is_left_alone(word):
    assert quote(word) == word


def test_a_run_whose_text_has_moved_goes_on_from_the_new_place(run_cli, finished, text, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    moved = tmp_path / "moved.txt"
    moved.write_text(text)
    outcome = run_cli("train", f"resume={run}", f"data.path={moved}", "trainer.max_steps=21")
    assert outcome.code == 0, outcome.err
    assert json.loads((run / "metrics.json").read_text())["steps"] == 21


@pytest.fixture
def own_configs(tmp_path):
    """A folder of a user's own configs, with signs in its name that Hydra's grammar has another use for."""
    folder = tmp_path / "my conf, a=b"
    (folder / "model").mkdir(parents=True)
    mine = "defaults:\n  - bigram\n  - _self_\nblock_size: 5\n"
    (folder / "model" / "mine.yaml").write_text(mine)
    (folder / "model" / "bigram.yaml").write_text("nonsense: 1\n")  # the project's own choices come first
    (folder / "recipe").mkdir()
    (folder / "recipe" / "mine.yaml").write_text("# @package _global_\ndefaults:\n  - bigram\n  - _self_\n")
    return folder


def test_a_folder_of_ones_own_configs_adds_choices(run_cli, own_configs, text_file):
    words = [f"--config-dir={own_configs}", "model=mine", "data=text_file", f"data.path={text_file}"]
    shown = run_cli("train", *words, "--cfg", "job", "--package", "model")
    assert (shown.code, "block_size: 5" in shown.out) == (0, True), shown.err
    assert "mine" in run_cli("train", words[0], "--help").out
    wrong = run_cli("train", words[0], "model=mien")
    assert (wrong.code, "mine" in wrong.err) == (2, True)


def test_a_folder_of_ones_own_configs_goes_with_a_sweep(run_cli, own_configs, text_file, tmp_path):
    words = ["model=mine", "data=text_file", f"data.path={text_file}", "trainer=cpu", "trainer.max_steps=1"]
    outcome = run_cli("train", f"--config-dir={own_configs}", "-m", *words, "seed=1,2", "hydra.sweep.dir=sweep")
    assert outcome.code == 0, outcome.err
    assert len(list(tmp_path.glob("sweep/*/metrics.json"))) == 2


def test_folders_of_configs_are_given_in_one_way(run_cli, own_configs):
    outcome = run_cli("train", f"--config-dir={own_configs}", "hydra.searchpath=[file:///tmp]")
    assert (outcome.code, "do not go together" in outcome.err) == (2, True)


def test_another_config_may_be_named(run_cli, tmp_path):
    folder = tmp_path / "conf"
    folder.mkdir()
    (folder / "tiny.yaml").write_text("defaults:\n  - _self_\nanswer: 42\n")
    outcome = run_cli("sample", f"--config-path={folder}", "--config-name=tiny", "--cfg", "job")
    assert (outcome.code, outcome.out) == (0, "answer: 42\n"), outcome.err


def test_the_words_of_the_command_line_stay_as_they_were_typed(run_cli, tmp_path):
    run_cli("sample", "run=nowhere", "prompt=What, ho!")
    assert sys.argv[1:] == ["run=nowhere", "prompt=What, ho!"]


def test_flags_and_settings_come_in_any_order(run_cli):
    outcome = run_cli("train", "seed=4", "--cfg", "job", "name=x", "--package", "seed")
    assert (outcome.code, outcome.out) == (0, "4\n"), outcome.err


def test_the_old_name_of_a_setting_is_taken_with_a_warning(tmp_path, tiny):
    old = ["model/n_grams=pairs", "model.n_grams.dropout=0.25", "model/skips=u_net"]
    new = ["model/ngram_embedding=pairs", "model.ngram_embedding.dropout=0.25", "model/unet_skips=u_net"]
    by_old, by_new = (process(tmp_path, "train", *tiny, *words, "--cfg", "job") for words in (old, new))
    assert (by_old.code, by_old.out) == (by_new.code, by_new.out)
    assert "model/n_grams is now called model/ngram_embedding; the old name is accepted until 0.4\n" in by_old.err
    assert by_old.err.count("is now called") == 3
    assert by_new.err == ""


def test_the_old_name_in_a_config_of_the_users_own_is_pointed_out(run_cli, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "x.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model/n_grams: none\n"
    )
    outcome = run_cli("train", f"--config-dir={tmp_path / 'mine'}", "+experiment=x", "--cfg", "job")
    assert outcome.code == 2
    assert "model/n_grams is now called model/ngram_embedding" in outcome.err


def test_look_is_visualize_with_a_warning(tmp_path):
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
