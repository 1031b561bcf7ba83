"""Resuming: the results equal those of an uninterrupted run bit for bit, and only some settings may change."""

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

QUIET = "callbacks.samples.max_new_tokens=0"  # no samples: these tests do not read them
LONG = ["trainer.max_steps=240", "trainer.val_check_interval=40", QUIET]
COLUMNS = ("step", "train_loss", "val_loss", "lr", "grad_norm")
TIMING_METRICS = (
    "train_seconds",
    "validation_seconds",
    "checkpoint_seconds",
    "setup_seconds",
    "wall_seconds",
    "tokens_per_second",
)


def non_timing_metrics(run: Path) -> dict:
    return {key: value for key, value in run_artifacts.metrics(run).items() if key not in TIMING_METRICS}


def assert_same(run: Path, reference: Path) -> None:
    """Compares the state in each checkpoint, the training curves and the non-timing metrics."""
    for name in ("last", "previous", "best"):
        states = [run_artifacts.training_state(directory, name) for directory in (run, reference)]
        assert not run_artifacts.differences(*states), name
    assert run_artifacts.history(run, *COLUMNS) == run_artifacts.history(reference, *COLUMNS)
    assert non_timing_metrics(run) == non_timing_metrics(reference)
    assert (run / "sample.txt").read_text() == (reference / "sample.txt").read_text()
    assert run_artifacts.status(run)["state"] == "finished"


class RunProcess:
    """A run in its own process group, which a test can interrupt while it trains."""

    def __init__(self, folder: Path, *overrides: str):
        self.run = folder / "run"
        self._err = folder / "err"
        with self._err.open("a") as err:
            self._process = subprocess.Popen(
                [sys.executable, str(REPO / "train.py"), *overrides],
                cwd=folder,
                stdout=subprocess.DEVNULL,
                stderr=err,
                start_new_session=True,
            )

    @property
    def err(self) -> str:
        return self._err.read_text()

    def has_reached(self, step: int) -> bool:
        """Whether history.csv has a row of `step` or a later step."""
        if self._process.poll() is not None:
            raise AssertionError(f"exited before step {step}:\n{self.err}")
        if not (self.run / "history.csv").exists():
            return False
        lines = (self.run / "history.csv").read_text().splitlines()[1:-1]  # the last line may be incomplete
        return bool(lines) and int(lines[-1].split(",")[0]) >= step

    def wait_for_step(self, step: int) -> None:
        deadline = time.monotonic() + 120
        while not self.has_reached(step):
            assert time.monotonic() < deadline, f"step {step} not reached:\n{self.err}"
            time.sleep(0.01)

    def send(self, number: int, group: bool) -> None:
        (os.killpg if group else os.kill)(self._process.pid, number)  # its pid is that of its process group

    def exit_code(self) -> int:
        return self._process.wait(timeout=120)

    def kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(timeout=30)


@dataclass
class InterruptedRun:
    """A run directory after a signal, with the exit code and stderr of its process."""

    signal: int
    code: int
    err: str
    run: Path


SIGNALS = {"ctrl-c": (signal.SIGINT, True), "SIGTERM": (signal.SIGTERM, False), "kill -9": (signal.SIGKILL, False)}


@pytest.fixture(scope="module")
def interrupted(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, InterruptedRun]:
    """Three runs, trained in parallel, each of which received a signal after step 90."""
    runs = {}
    try:
        for name in SIGNALS:
            runs[name] = RunProcess(tmp_path_factory.mktemp("interrupted"), *tiny, *LONG, "hydra.run.dir=run")
        waiting, deadline = dict(runs), time.monotonic() + 120
        while waiting:
            for name, run in list(waiting.items()):
                if run.has_reached(90):
                    run.send(*SIGNALS[name])
                    del waiting[name]
            assert time.monotonic() < deadline, [run.err for run in waiting.values()]
            time.sleep(0.01)
        return {name: InterruptedRun(SIGNALS[name][0], run.exit_code(), run.err, run.run) for name, run in runs.items()}
    finally:
        for run in runs.values():
            run.kill()


@pytest.fixture(scope="module")
def references() -> dict[tuple[str, ...], Path]:
    """Uninterrupted runs by their overrides, so that each is trained once."""
    return {}


@pytest.fixture
def uninterrupted(run_cli, tiny, references, tmp_path: Path):
    def train(*overrides: str) -> Path:
        if overrides not in references:
            outcome = run_cli("train", *tiny, *overrides, "hydra.run.dir=uninterrupted")
            assert outcome.code == 0, outcome.err
            references[overrides] = tmp_path / "uninterrupted"
        return references[overrides]

    return train


@pytest.fixture
def copy(tmp_path: Path):
    """Copies a run directory to `run`."""

    def copy_run(run: Path) -> Path:
        shutil.copytree(run, tmp_path / "run")
        return tmp_path / "run"

    return copy_run


@pytest.mark.parametrize("name", ["ctrl-c", "SIGTERM"])
def test_an_interrupted_run_saves_its_step_exits_with_code_3_and_prints_how_to_resume(interrupted, name):
    result = interrupted[name]
    assert result.code == 3
    assert result.err.splitlines()[-1].startswith("train.py: interrupted after step ")
    assert result.err.splitlines()[-1].endswith("train.py resume=run")
    assert "Traceback" not in result.err
    status = run_artifacts.status(result.run)
    assert (status["state"], status["reason"]) == ("interrupted", signal.Signals(result.signal).name)
    assert 90 <= status["step"] < 240
    assert run_artifacts.checkpoint(result.run)["global_step"] == status["step"]
    assert not (result.run / "metrics.json").exists()


def test_a_killed_run_leaves_complete_checkpoints_and_no_metrics(interrupted):
    result = interrupted["kill -9"]
    assert result.code == -signal.SIGKILL
    assert run_artifacts.status(result.run)["state"] == "running"
    last, previous = (run_artifacts.checkpoint(result.run, name)["global_step"] for name in ("last", "previous"))
    assert (last % 40, last - previous) == (0, 40)
    assert not (result.run / "metrics.json").exists()


@pytest.mark.parametrize("name", ["ctrl-c", *(pytest.param(n, marks=pytest.mark.slow) for n in ("SIGTERM", "kill -9"))])
def test_a_resumed_run_equals_the_uninterrupted_run(interrupted, uninterrupted, run_cli, copy, name):
    run, reference = copy(interrupted[name].run), uninterrupted(*LONG)
    outcome = run_cli("train", QUIET, "resume=run")
    assert outcome.code == 0, outcome.err
    assert_same(run, reference)


def test_a_run_killed_after_its_last_step_only_writes_its_results(run_cli, finished, copy):
    run = copy(finished)
    for name in ("metrics.json", "sample.txt"):
        (run / name).unlink()
    outcome = run_cli("train", QUIET, "resume=run")
    assert outcome.code == 0, outcome.err
    for name in ("last", "previous", "best"):
        states = [run_artifacts.training_state(directory, name) for directory in (run, finished)]
        assert not run_artifacts.differences(*states), name
    assert (run / "history.csv").read_text() == (finished / "history.csv").read_text()
    assert non_timing_metrics(run) == non_timing_metrics(finished)
    assert run_artifacts.status(run)["state"] == "finished"


MODERN = ["model=gpt_modern", "trainer.precision=bf16-mixed"]


@pytest.mark.parametrize("micro_batches", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "recipe",
    [
        [],
        *(
            pytest.param(recipe, marks=pytest.mark.slow)
            for recipe in (MODERN, [*MODERN, "optimizer=soap"], ["model=gpt_ensemble", "model.members=2"])
        ),
    ],
    ids=["adamw", "muon", "soap", "ensemble"],
)
def test_30_steps_resumed_for_30_more_equal_60_steps(
    run_cli, tiny, uninterrupted, tmp_path: Path, recipe, micro_batches
):
    overrides = [
        *recipe,
        QUIET,
        "schedule=constant",
        "trainer.val_check_interval=15",
        f"trainer.accumulate_grad_batches={micro_batches}",
    ]
    assert run_cli("train", *tiny, *overrides, "trainer.max_steps=30", "hydra.run.dir=run").code == 0
    outcome = run_cli("train", QUIET, "resume=run", "trainer.max_steps=60")
    assert outcome.code == 0, outcome.err
    assert_same(tmp_path / "run", uninterrupted(*overrides, "trainer.max_steps=60"))


@pytest.mark.slow
def test_extending_a_run_changes_its_schedule_immediately(run_cli, finished, copy):
    run = copy(finished)  # 20 steps of 100 warm-up steps
    outcome = run_cli("train", QUIET, "resume=run", "trainer.max_steps=120")
    assert outcome.code == 0, outcome.err
    rates = {int(row["step"]): float(row["lr"]) for row in run_artifacts.history(run) if row["lr"]}
    assert rates[25] == pytest.approx(1e-3 * 25 / 101)
    assert rates[120] == pytest.approx(1e-4, rel=0.1)


def damage(checkpoint: Path) -> None:
    """Flips a bit in a new file: `best.ckpt` may be a hard link to the old one."""
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.unlink()
    checkpoint.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [["last"], ["last", "previous"]], ids="-".join)
def test_a_damaged_last_checkpoint_falls_back_to_the_previous_one(
    interrupted, uninterrupted, run_cli, copy, caplog, lost
):
    run = copy(interrupted["ctrl-c"].run)
    for name in lost:
        damage(run / "checkpoints" / f"{name}.ckpt")
    outcome = run_cli("train", QUIET, "resume=run")
    assert outcome.code == 0, outcome.err
    warnings = [line for line in caplog.messages if "is damaged" in line]
    assert [f"{name}.ckpt is damaged" in line for name, line in zip(lost, warnings, strict=True)] == [True] * len(lost)
    assert_same(run, uninterrupted(*LONG))


def test_a_damaged_checkpoint_never_becomes_the_previous_one(interrupted, run_cli, copy):
    """A run that is interrupted shortly after the fallback keeps the checkpoint from which it was resumed."""
    run = copy(interrupted["ctrl-c"].run)
    damage(run / "checkpoints" / "last.ckpt")
    step = run_artifacts.checkpoint(run, "previous")["global_step"]
    signal_at = "+callbacks.signal._target_=tests.training.fault_injection.SignalAt"
    at = ["+callbacks.signal.name=SIGTERM", f"+callbacks.signal.batch={step + 3}"]
    assert run_cli("train", QUIET, "resume=run", signal_at, *at).code == 3
    assert run_artifacts.checkpoint(run, "previous")["global_step"] == step
    assert run_artifacts.checkpoint(run, "last")["global_step"] == step + 3


def test_resuming_from_a_damaged_checkpoint_by_name_is_a_user_error(interrupted, run_cli, copy):
    run = copy(interrupted["ctrl-c"].run)
    damage(run / "checkpoints" / "last.ckpt")
    outcome = run_cli("train", QUIET, "resume=run/checkpoints/last.ckpt")
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert "last.ckpt is damaged" in outcome.err


@pytest.mark.slow
def test_without_its_best_checkpoint_a_resumed_run_starts_with_the_last_as_the_best(interrupted, run_cli, copy, caplog):
    run = copy(interrupted["ctrl-c"].run)
    (run / "checkpoints" / "best.ckpt").unlink()
    step = run_artifacts.checkpoint(run)["global_step"]
    assert run_artifacts.checkpoint(run)["callbacks"]["Curves"]["best_step"] < step
    outcome = run_cli("train", QUIET, "resume=run")
    assert outcome.code == 0, outcome.err
    assert f"the best checkpoint is selected anew from step {step}" in caplog.text
    assert run_artifacts.metrics(run)["best_step"] >= step


def corrupt(content: dict, path: str) -> None:
    """Replaces the value at a path by 0, or removes the last element of a list."""
    *keys, last = (int(key) if key.isdigit() else key for key in path.split("/"))
    for key in keys:
        content = content[key]
    content[last] = content[last][:-1] if isinstance(content[last], list) else 0


@pytest.mark.parametrize(
    "entry",
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
def test_an_invalid_state_with_a_valid_checksum_is_a_user_error_in_one_line(finished, run_cli, copy, entry):
    run = copy(finished)
    path = run / "checkpoints" / "last.ckpt"
    content = torch_file.read(path)
    corrupt(content, entry)
    for name in ("last", "previous", "best"):
        torch_file.save(content, run / "checkpoints" / f"{name}.ckpt")
    before = run_artifacts.content(run)
    outcome = run_cli("train", QUIET, "resume=run", "trainer.max_steps=40")
    assert (outcome.code, "Traceback" in outcome.err) == (2, False), outcome.err
    assert "it contains no state from which a run can resume" in outcome.err.splitlines()[-1]
    assert run_artifacts.content(run) == before


def test_the_best_checkpoint_is_kept_if_the_last_cannot_be_resumed(finished, run_cli, copy):
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
    ("entry", "message"),
    [
        ("trainer/val_check_interval", "KeyError: 'val_check_interval'"),
        ("optimizer", "TypeError: 'NoneType' object is not a mapping"),
        ("seed", "no state"),
    ],
)
def test_a_saved_setting_of_a_wrong_type_is_a_user_error_in_one_line(finished, run_cli, copy, entry, message):
    run = copy(finished)
    content = torch_file.read(run / "checkpoints" / "last.ckpt")
    *keys, last = entry.split("/")
    section = content["chargpt"]["config"]
    for key in keys:
        section = section[key]
    section[last] = None
    torch_file.save(content, run / "checkpoints" / "last.ckpt")
    before = run_artifacts.content(run)
    outcome = run_cli("train", QUIET, "resume=run", "trainer.max_steps=40")
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1), outcome.err
    assert message in outcome.err
    assert run_artifacts.content(run) == before


@pytest.mark.parametrize(
    "override",
    [
        "model.n_layer=3",
        "seed=1",
        "data.batch_size=8",
        "optimizer.lr=0.01",
        "schedule=constant",
        "model/norm=rms_norm",
    ],
)
def test_an_override_that_changes_the_identity_is_a_user_error(run_cli, finished, copy, override):
    run = copy(finished)
    before = run_artifacts.content(run)
    outcome = run_cli("train", QUIET, "resume=run", "trainer.max_steps=40", override)
    assert outcome.code == 2
    assert override in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert run_artifacts.content(run) == before


def test_resuming_a_missing_run_or_an_empty_folder_is_a_user_error(run_cli, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    for path, message in (("nowhere", "there is no run at nowhere"), ("empty", "no checkpoint")):
        outcome = run_cli("train", f"resume={path}")
        assert outcome.code == 2
        assert message in outcome.err
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


def test_resuming_a_finished_run_without_more_steps_is_a_user_error(run_cli, finished, copy):
    run = copy(finished)
    outcome = run_cli("train", QUIET, "resume=run")
    assert outcome.code == 2
    assert "resume=run trainer.max_steps=40" in outcome.err
    assert run_artifacts.status(run) == run_artifacts.status(finished)


@pytest.mark.slow
def test_a_text_may_be_moved_but_not_changed(run_cli, tiny, text, tmp_path: Path):
    (tmp_path / "mine.txt").write_text(text)
    overrides = ["data.path=mine.txt", "trainer.max_steps=2", "hydra.run.dir=run"]
    assert run_cli("train", *tiny, *overrides).code == 0
    (tmp_path / "mine.txt").write_text(text[:-1])
    resume = [QUIET, "resume=run", "trainer.max_steps=4"]
    outcome = run_cli("train", *resume)
    assert outcome.code == 2
    assert "another text" in outcome.err
    (tmp_path / "moved.txt").write_text(text)
    outcome = run_cli("train", *resume, "data=text_file", "data.path=moved.txt")
    assert outcome.code == 0, outcome.err


SAVED = {"seed": 1, "model": {"n_layer": 2}, "data": {"path": "a"}, "trainer": {"max_steps": 10, "devices": 1}}
SAVED["trainer"] |= dict.fromkeys(("accelerator", "strategy", "num_nodes", "precision", "deterministic"), "auto")


def compose(**sections: dict) -> dict:
    return {key: value | sections.get(key, {}) if isinstance(value, dict) else value for key, value in SAVED.items()}


def test_settings_without_an_override_keep_their_saved_values():
    composed = compose(model={"n_layer": 12}, trainer={"max_steps": 5000}) | {"seed": 7}
    assert apply_overrides(SAVED, composed, ["resume=run", "logger=wandb"], {}) == SAVED


def test_overrides_of_settings_that_may_change_are_applied():
    composed = compose(trainer={"max_steps": 20, "devices": 2})
    resumed = apply_overrides(SAVED, composed, ["trainer.max_steps=20", "trainer.devices=2"], {})
    assert resumed == SAVED | {"trainer": composed["trainer"]}


def test_a_trainer_option_changes_the_hardware_and_not_the_recipe():
    composed = compose(trainer={"max_steps": 5000, "devices": 8, "accelerator": "gpu"})
    resumed = apply_overrides(SAVED, composed, ["trainer=ddp"], {})
    assert resumed["trainer"] == SAVED["trainer"] | {"devices": 8, "accelerator": "gpu"}


def test_a_trainer_option_does_not_change_the_precision():
    """The composed precision is that of the default model's recipe."""
    composed = compose(trainer={"precision": "fastest", "accelerator": "cpu"})
    assert apply_overrides(SAVED, composed, ["trainer=cpu"], {})["trainer"]["precision"] == "auto"
    assert apply_overrides(SAVED, composed, ["trainer.precision=fastest"], {})["trainer"]["precision"] == "fastest"


def test_a_newer_setting_that_is_null_is_no_change():
    assert apply_overrides(SAVED, compose(model={"ngram_embedding": None}), ["model=gpt_nano"], {}) == SAVED


def test_an_override_with_the_saved_value_is_no_change():
    assert apply_overrides(SAVED, compose(), ["model.n_layer=2", "seed=1"], {}) == SAVED


@pytest.mark.parametrize("override", ["model.n_layer=3", "+model.width=9", "~model.n_layer", "seed=2"])
def test_an_override_that_changes_the_identity_is_refused_by_name(override):
    composed = compose(model={"n_layer": 3, "width": 9}) | {"seed": 2}
    with pytest.raises(UserError, match=override.lstrip("+~").split("=")[0]):
        apply_overrides(SAVED, composed, [override], {})


@pytest.mark.parametrize("override", ["recipe=nanogpt_laptop", "+lecture=residual"])
def test_another_option_of_a_group_without_settings_in_the_config_is_refused(override):
    choices = {"recipe": "gpt_nano"}
    with pytest.raises(UserError, match=override.lstrip("+").split("=")[0]):
        apply_overrides(SAVED, compose(), [override], choices)
    key, _, value = override.lstrip("+").partition("=")
    assert apply_overrides(SAVED, compose(), [override], choices | {key: value}) == SAVED


@pytest.mark.slow
def test_an_interrupted_run_of_two_processes_resumes_bit_for_bit(tiny, tmp_path: Path):
    """Both processes receive the signal, as from a terminal."""
    overrides = [*tiny, *LONG, "trainer.devices=2"]
    (tmp_path / "uninterrupted").mkdir()
    reference = RunProcess(tmp_path / "uninterrupted", *overrides, "hydra.run.dir=run")
    assert reference.exit_code() == 0, reference.err
    run = RunProcess(tmp_path, *overrides, "hydra.run.dir=run")
    try:
        run.wait_for_step(60)
        run.send(signal.SIGINT, group=True)
        assert run.exit_code() == 3, run.err
    finally:
        run.kill()
    assert run.err.count("train.py: interrupted") == 1
    assert "Traceback" not in run.err
    assert run_artifacts.status(run.run)["state"] == "interrupted"
    resumed = RunProcess(tmp_path, "resume=run", QUIET)
    assert resumed.exit_code() == 0, resumed.err
    assert run_artifacts.metrics(run.run)["devices"] == 2
    assert_same(run.run, reference.run)


@pytest.mark.slow
def test_a_run_that_is_killed_repeatedly_equals_the_uninterrupted_run(tiny, uninterrupted, tmp_path: Path):
    """The kills happen at different moments, possibly during checkpoints and validations."""
    overrides, step = [*tiny, *LONG, "hydra.run.dir=run"], 45
    for _ in range(4):
        running = RunProcess(tmp_path, *overrides)
        try:
            running.wait_for_step(step)
            running.send(signal.SIGKILL, group=False)
            assert running.exit_code() == -signal.SIGKILL
        finally:
            running.kill()
        overrides, step = ["resume=run", QUIET], step + 43
    running = RunProcess(tmp_path, "resume=run", QUIET)
    assert running.exit_code() == 0, running.err
    reference = uninterrupted(*LONG)
    assert not run_artifacts.differences(
        run_artifacts.training_state(running.run), run_artifacts.training_state(reference)
    )
    assert run_artifacts.history(running.run, *COLUMNS) == run_artifacts.history(reference, *COLUMNS)
