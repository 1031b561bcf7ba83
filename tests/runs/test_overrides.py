"""Going on: a run that was cut off, however rudely, becomes the run that was not, to the last bit."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from chargpt.checkpoint import torch_file
from chargpt.errors import UserError
from chargpt.runs.overrides import apply_overrides
from tests.conftest import REPO
from tests.training import run_artifacts

QUIET = "callbacks.samples.max_new_tokens=0"  # no samples at validations: they only take time here
LONG = ["trainer.max_steps=240", "trainer.val_check_interval=40", QUIET]
COLUMNS = ("step", "train_loss", "val_loss", "lr", "grad_norm")
TIMED = (
    "train_seconds",
    "validation_seconds",
    "checkpoint_seconds",
    "setup_seconds",
    "wall_seconds",
    "tokens_per_second",
)


def assert_same(run: Path, whole: Path) -> None:
    """Weights, optimizer, schedule and counters of each checkpoint, the curves and the figures but the times."""
    for name in ("last", "previous", "best"):
        assert not run_artifacts.differences(run_artifacts.learned(run, name), run_artifacts.learned(whole, name)), name
    assert run_artifacts.history(run, *COLUMNS) == run_artifacts.history(whole, *COLUMNS)
    mine, theirs = ({k: v for k, v in run_artifacts.metrics(r).items() if k not in TIMED} for r in (run, whole))
    assert mine == theirs
    assert (run / "sample.txt").read_text() == (whole / "sample.txt").read_text()
    assert run_artifacts.status(run)["state"] == "finished"


class Running:
    """A run in a process and a process group of its own, that a test can cut off while it trains."""

    def __init__(self, folder: Path, *words: str):
        self.run = folder / "run"
        self._err = folder / "err"
        with self._err.open("a") as err:
            self._process = subprocess.Popen(
                [sys.executable, str(REPO / "train.py"), *words],
                cwd=folder,
                stdout=subprocess.DEVNULL,
                stderr=err,
                start_new_session=True,
            )

    @property
    def err(self) -> str:
        return self._err.read_text()

    def has_done(self, step: int) -> bool:
        """Whether history.csv has a row of a step that is at least `step`."""
        if self._process.poll() is not None:
            raise AssertionError(f"ended before step {step}:\n{self.err}")
        if not (self.run / "history.csv").exists():
            return False
        lines = (self.run / "history.csv").read_text().splitlines()[1:-1]  # the last may be half a line
        return bool(lines) and int(lines[-1].split(",")[0]) >= step

    def wait_for_step(self, step: int) -> None:
        end = time.monotonic() + 120
        while not self.has_done(step):
            assert time.monotonic() < end, f"never at step {step}:\n{self.err}"
            time.sleep(0.01)

    def send(self, number: int, group: bool) -> None:
        (os.killpg if group else os.kill)(self._process.pid, number)  # the group has the number of its first

    def exit_code(self) -> int:
        return self._process.wait(timeout=120)

    def end(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(timeout=30)


@dataclass
class CutOff:
    """What a signal left behind."""

    number: int
    code: int
    err: str
    run: Path


SIGNALS = {"ctrl-c": (signal.SIGINT, True), "SIGTERM": (signal.SIGTERM, False), "kill -9": (signal.SIGKILL, False)}


@pytest.fixture(scope="module")
def cut_off(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, CutOff]:
    """Three runs that got a signal while they trained, side by side, as their processes left them."""
    runs = {}
    try:
        for name in SIGNALS:
            runs[name] = Running(tmp_path_factory.mktemp("cut"), *tiny, *LONG, "hydra.run.dir=run")
        waiting, end = dict(runs), time.monotonic() + 120
        while waiting:
            for name, run in list(waiting.items()):
                if run.has_done(90):
                    run.send(*SIGNALS[name])
                    del waiting[name]
            assert time.monotonic() < end, [run.err for run in waiting.values()]
            time.sleep(0.01)
        return {name: CutOff(SIGNALS[name][0], run.exit_code(), run.err, run.run) for name, run in runs.items()}
    finally:
        for run in runs.values():
            run.end()


@pytest.fixture(scope="module")
def whole() -> dict[tuple[str, ...], Path]:
    """Uncut runs by their words, so that each is trained once."""
    return {}


@pytest.fixture
def uncut(run_cli, tiny, whole, tmp_path: Path):
    def train(*words: str) -> Path:
        if words not in whole:
            outcome = run_cli("train", *tiny, *words, "hydra.run.dir=uncut")
            assert outcome.code == 0, outcome.err
            whole[words] = tmp_path / "uncut"
        return whole[words]

    return train


@pytest.fixture
def copy(tmp_path: Path):
    """A run directory of one's own, `run`, with the content of another."""

    def copied(run: Path) -> Path:
        shutil.copytree(run, tmp_path / "run")
        return tmp_path / "run"

    return copied


@pytest.mark.parametrize("name", ["ctrl-c", "SIGTERM"])
def test_a_signal_is_answered_with_code_3_a_saved_step_and_how_to_go_on(cut_off, name):
    left = cut_off[name]
    assert left.code == 3
    assert left.err.splitlines()[-1].startswith("train.py: interrupted after step ")
    assert left.err.splitlines()[-1].endswith("python train.py resume=run")
    assert "Traceback" not in left.err
    status = run_artifacts.status(left.run)
    assert (status["state"], status["reason"]) == ("interrupted", signal.Signals(left.number).name)
    assert 90 <= status["step"] < 240
    assert run_artifacts.checkpoint(left.run)["global_step"] == status["step"]
    assert not (left.run / "metrics.json").exists()


def test_a_killed_run_leaves_whole_checkpoints_and_no_sign_of_an_end(cut_off):
    left = cut_off["kill -9"]
    assert left.code == -signal.SIGKILL
    assert run_artifacts.status(left.run)["state"] == "running"
    last, previous = (run_artifacts.checkpoint(left.run, name)["global_step"] for name in ("last", "previous"))
    assert (last % 40, last - previous) == (0, 40)
    assert not (left.run / "metrics.json").exists()


@pytest.mark.parametrize("name", SIGNALS)
def test_a_run_that_was_cut_off_becomes_the_uncut_run(cut_off, uncut, run_cli, copy, name):
    run, whole = copy(cut_off[name].run), uncut(*LONG)
    outcome = run_cli("train", QUIET, "resume=run")
    assert outcome.code == 0, outcome.err
    assert_same(run, whole)


def test_a_run_that_was_killed_after_its_last_step_only_needs_its_end(run_cli, finished, copy):
    run = copy(finished)
    for name in ("metrics.json", "sample.txt"):
        (run / name).unlink()
    outcome = run_cli("train", QUIET, "resume=run")
    assert outcome.code == 0, outcome.err
    for name in ("last", "previous", "best"):
        assert not run_artifacts.differences(run_artifacts.learned(run, name), run_artifacts.learned(finished, name)), (
            name
        )
    assert (run / "history.csv").read_text() == (finished / "history.csv").read_text()
    mine, theirs = ({k: v for k, v in run_artifacts.metrics(r).items() if k not in TIMED} for r in (run, finished))
    assert mine == theirs
    assert run_artifacts.status(run)["state"] == "finished"


MODERN = ["model=gpt_modern", "trainer.precision=bf16-mixed"]


@pytest.mark.parametrize("passes", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "recipe",
    [[], MODERN, [*MODERN, "optimizer=soap"], ["model=gpt_ensemble", "model.members=2"]],
    ids=["adamw", "muon", "soap", "ensemble"],
)
def test_30_steps_and_then_30_more_are_60(run_cli, tiny, uncut, tmp_path: Path, recipe, passes):
    words = [
        *recipe,
        QUIET,
        "schedule=constant",
        "trainer.val_check_interval=15",
        f"trainer.accumulate_grad_batches={passes}",
    ]
    assert run_cli("train", *tiny, *words, "trainer.max_steps=30", "hydra.run.dir=run").code == 0
    outcome = run_cli("train", QUIET, "resume=run", "trainer.max_steps=60")
    assert outcome.code == 0, outcome.err
    assert_same(tmp_path / "run", uncut(*words, "trainer.max_steps=60"))


def test_a_higher_end_moves_the_schedule_at_once(run_cli, finished, copy):
    run = copy(finished)  # 20 steps of a warm-up of 100
    outcome = run_cli("train", QUIET, "resume=run", "trainer.max_steps=120")
    assert outcome.code == 0, outcome.err
    rates = {int(row["step"]): float(row["lr"]) for row in run_artifacts.history(run) if row["lr"]}
    assert rates[25] == pytest.approx(1e-3 * 25 / 101)
    assert rates[120] == pytest.approx(1e-4, rel=0.1)


def damage(checkpoint: Path) -> None:
    """Flips a bit, in a file of its own: `best.ckpt` may be another name of it."""
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.unlink()
    checkpoint.write_bytes(content)


@pytest.mark.parametrize("lost", [["last"], ["last", "previous"]], ids="-".join)
def test_a_damaged_last_checkpoint_falls_back_to_the_one_before_it(cut_off, uncut, run_cli, copy, caplog, lost):
    run = copy(cut_off["ctrl-c"].run)
    for name in lost:
        damage(run / "checkpoints" / f"{name}.ckpt")
    outcome = run_cli("train", QUIET, "resume=run")
    assert outcome.code == 0, outcome.err
    told = [line for line in caplog.messages if "is damaged" in line]
    assert [f"{name}.ckpt is damaged" in line for name, line in zip(lost, told, strict=True)] == [True] * len(lost)
    assert_same(run, uncut(*LONG))


def test_a_damaged_checkpoint_never_becomes_the_one_before(cut_off, run_cli, copy):
    """Cut off right after it fell back: what it went on from is still there."""
    run = copy(cut_off["ctrl-c"].run)
    damage(run / "checkpoints" / "last.ckpt")
    before = run_artifacts.checkpoint(run, "previous")["global_step"]
    signal_at = "+callbacks.cut._target_=tests.training.fault_injection.SignalAt"
    at = ["+callbacks.cut.name=SIGTERM", f"+callbacks.cut.batch={before + 3}"]
    assert run_cli("train", QUIET, "resume=run", signal_at, *at).code == 3
    assert run_artifacts.checkpoint(run, "previous")["global_step"] == before
    assert run_artifacts.checkpoint(run, "last")["global_step"] == before + 3


def test_a_damaged_checkpoint_that_was_named_is_a_mistake(cut_off, run_cli, copy):
    run = copy(cut_off["ctrl-c"].run)
    damage(run / "checkpoints" / "last.ckpt")
    outcome = run_cli("train", QUIET, "resume=run/checkpoints/last.ckpt")
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert "last.ckpt is damaged" in outcome.err


def test_without_its_best_checkpoint_a_run_goes_on_from_the_last_as_the_best(cut_off, run_cli, copy, caplog):
    run = copy(cut_off["ctrl-c"].run)
    (run / "checkpoints" / "best.ckpt").unlink()
    step = run_artifacts.checkpoint(run)["global_step"]
    assert run_artifacts.checkpoint(run)["callbacks"]["Curves"]["best_step"] < step
    outcome = run_cli("train", QUIET, "resume=run")
    assert outcome.code == 0, outcome.err
    assert f"the best checkpoint is selected anew from step {step}" in caplog.text
    assert run_artifacts.metrics(run)["best_step"] >= step


def spoil(content: dict, path: str) -> None:
    """Makes a 0 of what stands at a path, or takes the last of a list away."""
    *keys, last = (int(key) if key.isdigit() else key for key in path.split("/"))
    for key in keys:
        content = content[key]
    content[last] = content[last][:-1] if isinstance(content[last], list) else 0


@pytest.mark.parametrize(
    "place",
    [
        "loops",
        "loops/fit_loop/epoch_loop.state_dict",
        "callbacks",
        "callbacks/Curves",
        "callbacks/TrainingClock",
        "optimizer_states",
        "optimizer_states/0/state/1/exp_avg",
        "optimizer_states/0/param_groups/0/betas",
        "lr_schedulers",
        "lr_schedulers/0/base_lrs",
    ],
)
def test_a_state_that_makes_no_sense_is_told_in_a_line(finished, run_cli, copy, place):
    """Sealed as well as any: by a stranger."""
    run = copy(finished)
    path = run / "checkpoints" / "last.ckpt"
    content = torch_file.read(path)
    spoil(content, place)
    for name in ("last", "previous", "best"):
        torch_file.save(content, run / "checkpoints" / f"{name}.ckpt")
    before = run_artifacts.content(run)
    outcome = run_cli("train", QUIET, "resume=run", "trainer.max_steps=40")
    assert (outcome.code, "Traceback" in outcome.err) == (2, False), outcome.err
    assert "it contains no state from which a run can resume" in outcome.err.splitlines()[-1]
    assert run_artifacts.content(run) == before


def test_the_best_stays_where_the_last_says_that_it_is_the_best_and_cannot_go_on(finished, run_cli, copy):
    run = copy(finished)
    last = run / "checkpoints" / "last.ckpt"
    content = torch_file.read(last)
    content["callbacks"]["Curves"]["best_step"] = content["global_step"]
    content["loops"] = 0
    torch_file.save(content, last)
    (run / "checkpoints" / "best.ckpt").write_bytes((run / "checkpoints" / "previous.ckpt").read_bytes())
    before = run_artifacts.content(run)
    assert run_cli("train", QUIET, "resume=run", "trainer.max_steps=40").code == 2
    assert run_artifacts.content(run) == before


@pytest.mark.parametrize(
    ("place", "told"),
    [
        (
            "trainer/val_check_interval",
            "NoneType",
        ),
        ("optimizer", "not a NoneType"),
        ("seed", "no state"),
    ],
)
def test_a_saved_setting_of_a_wrong_type_is_told_in_a_line(finished, run_cli, copy, place, told):
    run = copy(finished)
    content = torch_file.read(run / "checkpoints" / "last.ckpt")
    *parts, key = place.split("/")
    part = content["chargpt"]["config"]
    for name in parts:
        part = part[name]
    part[key] = None
    torch_file.save(content, run / "checkpoints" / "last.ckpt")
    before = run_artifacts.content(run)
    outcome = run_cli("train", QUIET, "resume=run", "trainer.max_steps=40")
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1), outcome.err
    assert told in outcome.err
    assert run_artifacts.content(run) == before


@pytest.mark.parametrize(
    "word",
    [
        "model.n_layer=3",
        "seed=1",
        "data.batch_size=8",
        "optimizer.lr=0.01",
        "schedule=constant",
        "model/norm=rms_norm",
    ],
)
def test_a_change_that_makes_it_another_run_is_a_mistake(run_cli, finished, copy, word):
    run = copy(finished)
    before = run_artifacts.content(run)
    outcome = run_cli("train", QUIET, "resume=run", "trainer.max_steps=40", word)
    assert outcome.code == 2
    assert word in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert run_artifacts.content(run) == before


def test_where_there_is_no_run_there_is_nothing_to_go_on_with(run_cli, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    for place, told in (("nowhere", "there is no run at nowhere"), ("empty", "no checkpoint")):
        outcome = run_cli("train", f"resume={place}")
        assert outcome.code == 2
        assert told in outcome.err
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


def test_a_run_that_is_at_its_end_is_not_gone_on_with(run_cli, finished, copy):
    run = copy(finished)
    outcome = run_cli("train", QUIET, "resume=run")
    assert outcome.code == 2
    assert "resume=run trainer.max_steps=40" in outcome.err
    assert run_artifacts.status(run) == run_artifacts.status(finished)


def test_a_text_may_have_moved_but_not_changed(run_cli, tiny, text, tmp_path: Path):
    (tmp_path / "mine.txt").write_text(text)
    words = ["data.path=mine.txt", "trainer.max_steps=2", "hydra.run.dir=run"]
    assert run_cli("train", *tiny, *words).code == 0
    (tmp_path / "mine.txt").write_text(text[:-1])
    again = [QUIET, "resume=run", "trainer.max_steps=4"]
    outcome = run_cli("train", *again)
    assert outcome.code == 2
    assert "another text" in outcome.err
    (tmp_path / "moved.txt").write_text(text)
    outcome = run_cli("train", *again, "data=text_file", "data.path=moved.txt")
    assert outcome.code == 0, outcome.err


SAVED = {"seed": 1, "model": {"n_layer": 2}, "data": {"path": "a"}, "trainer": {"max_steps": 10, "devices": 1}}
SAVED["trainer"] |= dict.fromkeys(("accelerator", "strategy", "num_nodes", "precision", "deterministic"), "auto")


def composed(**parts: dict) -> dict:
    return {key: value | parts.get(key, {}) if isinstance(value, dict) else value for key, value in SAVED.items()}


def test_what_is_not_named_stays_as_it_was():
    now = composed(model={"n_layer": 12}, trainer={"max_steps": 5000}) | {"seed": 7}
    assert apply_overrides(SAVED, now, ["resume=run", "logger=wandb"], {}) == SAVED


def test_what_is_named_and_may_change_changes():
    now = composed(trainer={"max_steps": 20, "devices": 2})
    resumed = apply_overrides(SAVED, now, ["trainer.max_steps=20", "trainer.devices=2"], {})
    assert resumed == SAVED | {"trainer": now["trainer"]}


def test_a_choice_of_trainer_brings_the_hardware_and_not_the_recipe():
    now = composed(trainer={"max_steps": 5000, "devices": 8, "accelerator": "gpu"})
    resumed = apply_overrides(SAVED, now, ["trainer=ddp"], {})
    assert resumed["trainer"] == SAVED["trainer"] | {"devices": 8, "accelerator": "gpu"}


def test_a_choice_of_trainer_leaves_the_precision_to_the_run():
    """The composed one is the default model's recipe's."""
    now = composed(trainer={"precision": "fastest", "accelerator": "cpu"})
    assert apply_overrides(SAVED, now, ["trainer=cpu"], {})["trainer"]["precision"] == "auto"
    assert apply_overrides(SAVED, now, ["trainer.precision=fastest"], {})["trainer"]["precision"] == "fastest"


def test_a_part_that_has_got_settings_since_then_and_leaves_them_null_is_no_change():
    assert apply_overrides(SAVED, composed(model={"ngram_embedding": None}), ["model=gpt_nano"], {}) == SAVED


def test_what_is_named_with_the_value_it_had_is_no_change():
    assert apply_overrides(SAVED, composed(), ["model.n_layer=2", "seed=1"], {}) == SAVED


@pytest.mark.parametrize("word", ["model.n_layer=3", "+model.width=9", "~model.n_layer", "seed=2"])
def test_what_would_be_another_run_is_refused_by_its_name(word):
    now = composed(model={"n_layer": 3, "width": 9}) | {"seed": 2}
    with pytest.raises(UserError, match=word.lstrip("+~").split("=")[0]):
        apply_overrides(SAVED, now, [word], {})


@pytest.mark.parametrize("word", ["recipe=nanogpt_laptop", "+lecture=residual"])
def test_another_choice_of_what_has_no_place_in_the_config_is_another_run(word):
    choices = {"recipe": "gpt_nano"}
    with pytest.raises(UserError, match=word.lstrip("+").split("=")[0]):
        apply_overrides(SAVED, composed(), [word], choices)
    key, _, value = word.lstrip("+").partition("=")
    assert apply_overrides(SAVED, composed(), [word], choices | {key: value}) == SAVED


@pytest.mark.slow
def test_two_processes_that_get_ctrl_c_go_on_to_the_last_bit(tiny, tmp_path: Path):
    """The signal reaches both, as from a terminal; a third run is never cut."""
    words = [*tiny, *LONG, "trainer.devices=2"]
    (tmp_path / "uncut").mkdir()
    whole = Running(tmp_path / "uncut", *words, "hydra.run.dir=run")
    assert whole.exit_code() == 0, whole.err
    run = Running(tmp_path, *words, "hydra.run.dir=run")
    try:
        run.wait_for_step(60)
        run.send(signal.SIGINT, group=True)
        assert run.exit_code() == 3, run.err
    finally:
        run.end()
    assert run.err.count("train.py: interrupted") == 1
    assert "Traceback" not in run.err
    assert run_artifacts.status(run.run)["state"] == "interrupted"
    again = Running(tmp_path, "resume=run", QUIET)
    assert again.exit_code() == 0, again.err
    assert run_artifacts.metrics(run.run)["devices"] == 2
    assert_same(run.run, whole.run)


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_gets_there(tiny, uncut, tmp_path: Path):
    """Killed at a different moment each time, checkpoints and validations included."""
    words, step = [*tiny, *LONG, "hydra.run.dir=run"], 45
    for _ in range(4):
        running = Running(tmp_path, *words)
        try:
            running.wait_for_step(step)
            running.send(signal.SIGKILL, group=False)
            assert running.exit_code() == -signal.SIGKILL
        finally:
            running.end()
        words, step = ["resume=run", QUIET], step + 43
    running = Running(tmp_path, "resume=run", QUIET)
    assert running.exit_code() == 0, running.err
    whole = uncut(*LONG)
    assert not run_artifacts.differences(run_artifacts.learned(running.run), run_artifacts.learned(whole))
    assert run_artifacts.history(running.run, *COLUMNS) == run_artifacts.history(whole, *COLUMNS)
