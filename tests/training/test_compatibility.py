"""The current code resumes, loads, compares and skips the runs of earlier versions.

The runs are trained by the earlier code from the repository's history, with the installed dependencies. Every command
runs in its own process.
"""

import csv
import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from chargpt.checkpoint import torch_file
from chargpt.checkpoint.migrations import migrate_override
from tests.conftest import REPO, Outcome, process
from tests.sweeps.processes import finished, modification_times
from tests.training import run_artifacts

pytestmark = pytest.mark.long

COMMITS = {
    "0.1": "f303a50472d0fa7947070df4a8f291157e48de22",
    "0.2": "557f2bf41f43b9bb6ccd028a35aea37db53f4aee",
}
PATHS = ("src", "conf", "tests", "*.py")

SHORT = ["data=text_file", "data.path=text.txt", "data.batch_size=8", "trainer=cpu", "trainer.max_steps=20"]
SHORT += ["trainer.val_check_interval=10", "trainer.log_every_n_steps=5", "callbacks.samples.max_new_tokens=0"]
SIZES = ["model.n_head=2", "model.n_embd=16", "model.block_size=16"]
# Without dropout on attention weights, whose gradient is rounded differently since 0.3; everything else is equal.
NANO = [*SHORT, *SIZES, "model=gpt_nano", "model.dropout=0.2", "+model.attention.weights_dropout=false"]
MODERN = [*SHORT, *SIZES, "model=gpt_modern"]  # Muon, n-gram and value embeddings
TWO = "model.n_layer=2"

# In the name of a job's directory: data.batch_size always, trainer.devices never, trainer.compile until 0.2.
SETTINGS = ["trainer.compile=false", "trainer.devices=1", "data.batch_size=8"]
LATER_SETTINGS = {"0.1": [], "0.2": ["on_divergence=rollback"]}

# Part of a job's folder name. 0.3 renamed these settings.
RENAMED = ["model/n_grams=pairs", "model.n_grams.buckets=64"]

STAGED = "+callbacks.end._target_=tests.training.staged"  # the name of the module in the earlier versions


def signal_at(name: str, batch: int) -> list[str]:
    return [f"{STAGED}.SignalAt", f"+callbacks.end.name={name}", f"+callbacks.end.batch={batch}"]


KILL_DEEPER = [f"{STAGED}.DieInRank", "+callbacks.end.rank=0", "+callbacks.end.step=13"]
KILL_DEEPER += [
    "+callbacks.end.how=SIGKILL",
    "+callbacks.end.value=${model.n_layer}",
    "+callbacks.end.where=2",
]


@dataclass
class Version:
    """An earlier version of the code, and the directory in which it trains."""

    version: str
    source: Path
    work: Path

    def train(self, *overrides: str, code: int = 0) -> None:
        self.run("train", *overrides, code=code)

    def run(self, name: str, *overrides: str, code: int = 0) -> None:
        """Runs a command of the earlier version, which must exit with `code`."""
        done = subprocess.run(
            [sys.executable, str(self.source / f"{name}.py"), *overrides],
            cwd=self.work,
            env=os.environ | {"PYTHONPATH": str(self.source / "src")},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == code, f"{self.version}, {overrides}: code {done.returncode}\n{done.stderr}"

    def depths(self) -> list[str]:
        """The arguments of a sweep in which one job is killed, without the overrides that kill it."""
        return ["-m", "model.n_layer=1,2", "name=depths", "optimizer=soap", *NANO, *RENAMED]

    def settings(self) -> list[str]:
        """The arguments of a sweep that finishes."""
        return [
            "-m",
            "optimizer=muon,soap",
            "name=settings",
            *NANO,
            *RENAMED,
            TWO,
            *SETTINGS,
            *LATER_SETTINGS[self.version],
        ]

    def runs(self) -> list[Callable[[], None]]:
        """Functions that each train a run or a sweep. They may run in parallel."""
        train = self.train

        def extended() -> None:
            train(*NANO, TWO, "hydra.run.dir=run")
            shutil.copytree(self.work / "run", self.work / "extended")
            train("resume=extended", "trainer.max_steps=40", *signal_at("SIGTERM", batch=33), code=3)

        def modern() -> None:
            train(*MODERN, TWO, "hydra.run.dir=modern")
            if (self.source / "export.py").exists():  # since 0.2
                self.run("export", "run=modern", "file=modern.safetensors")

        return [
            extended,
            lambda: train(*NANO, TWO, "hydra.run.dir=stopped", *signal_at("SIGTERM", batch=13), code=3),
            modern,
            lambda: train(*MODERN, TWO, "hydra.run.dir=killed", *signal_at("SIGKILL", batch=13), code=-9),
            lambda: train(*SHORT, "model=bigram", "resume=auto", "hydra.run.dir=bigram"),
            lambda: train(*self.depths(), *KILL_DEEPER, code=1),
            lambda: train(*self.settings()),
        ]


def in_parallel(functions: list[Callable]) -> list:
    """The results of all functions, of which two run at a time."""
    with ThreadPoolExecutor(2) as pool:
        return [future.result() for future in [pool.submit(function) for function in functions]]


def unpack(commit: str, directory: Path) -> None:
    """Extracts the code of a commit into `directory`; skips the test if the commit is not in this repository."""
    if shutil.which("git") is None or not (REPO / ".git").exists():
        pytest.skip("the earlier code is read from the repository's history, which requires git and a clone")
    done = subprocess.run(["git", "-C", REPO, "archive", commit, *PATHS], capture_output=True, check=False)
    if done.returncode:
        reason = done.stderr.decode().strip()
        pytest.skip(f"commit {commit[:7]} cannot be read ({reason}). In a shallow clone: git fetch --unshallow")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(directory, filter="data")


@pytest.fixture(scope="module")
def versions(text: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Version]:
    """The earlier versions, with all their runs trained."""
    directory = tmp_path_factory.mktemp("earlier")
    versions = {name: Version(name, directory / name / "source", directory / name / "work") for name in COMMITS}
    for name, version in versions.items():
        unpack(COMMITS[name], version.source)
        version.work.mkdir()
        (version.work / "text.txt").write_text(text)
    in_parallel([train for version in versions.values() for train in version.runs()])
    rerun = [f"rerun={versions['0.1'].work / 'run'}", "data.path=text.txt", "hydra.run.dir=rerun"]
    versions["0.2"].train(*rerun, *signal_at("SIGTERM", batch=13), code=3)
    return versions


@pytest.fixture(params=COMMITS)
def old(request: pytest.FixtureRequest, versions: dict[str, Version], tmp_path: Path) -> Version:
    """An earlier version with a copy of its runs, which the test may modify."""
    version = versions[request.param]
    shutil.copytree(version.work, tmp_path / "work")
    return replace(version, work=tmp_path / "work")


def current(work: Path, name: str, *overrides: str) -> Outcome:
    """Runs a command of the current code in the directory `work`. It must succeed."""
    outcome = process(work, name, *overrides, timeout=600)
    assert outcome.code == 0, f"{name}.py {' '.join(overrides)}\n{outcome.err}"
    return outcome


def results(run: Path) -> dict[str, float]:
    """The metrics of a run that must be reproduced."""
    return {key: run_artifacts.metrics(run)[key] for key in ("steps", "best_step", "val_loss", "final_val_loss")}


def approximately(metrics: dict[str, float]) -> dict[str, float]:
    """Allows for the gradient of the value embeddings, which 0.2 summed in another order."""
    return {key: pytest.approx(value, abs=1e-5) for key, value in metrics.items()}


def job_with(override: str, directory: Path) -> Path:
    """The only finished run below `directory` that has this override."""
    (job,) = (
        run for run in finished(directory).values() if override in (run / ".hydra" / "overrides.yaml").read_text()
    )
    return job


def rows(directory: Path, name: str = "sweep") -> list[dict[str, str]]:
    """The rows of the CSV file of a comparison."""
    with (directory / f"{name}.csv").open(newline="") as file:
        return [*csv.DictReader(file)]


def test_an_interrupted_run_is_resumed_with_the_results_of_an_uninterrupted_one(old):
    shutil.copytree(old.work / "stopped", old.work / "by_file")
    assert run_artifacts.status(old.work / "stopped")["state"] == "interrupted"
    in_parallel(
        [
            lambda: current(old.work, "train", "resume=auto", "hydra.run.dir=stopped", *NANO, TWO),
            lambda: current(old.work, "train", "resume=by_file/checkpoints/best.ckpt"),  # of step 10
            lambda: current(old.work, "train", "resume=killed"),
        ]
    )
    uninterrupted = old.work / "run"
    for resumed in (old.work / "stopped", old.work / "by_file"):
        assert results(resumed) == results(uninterrupted)
        histories = [run_artifacts.history(run, "step", "val_loss") for run in (resumed, uninterrupted)]
        assert histories[0] == histories[1]
        weights = [torch_file.read(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (resumed, uninterrupted)]
        assert not run_artifacts.differences(*weights)
    assert results(old.work / "killed") == approximately(results(old.work / "modern"))


def test_a_finished_run_is_resumed_with_more_steps(old):
    extended = run_artifacts.status(old.work / "extended")
    assert (extended["state"], extended["step"]) == ("interrupted", 33)
    in_parallel(
        [
            lambda: current(old.work, "train", "resume=run", "trainer.max_steps=40"),
            lambda: current(old.work, "train", "resume=extended"),
        ]
    )
    assert run_artifacts.metrics(old.work / "run")["steps"] == 40
    assert results(old.work / "extended") == results(old.work / "run")


def test_a_finished_run_is_skipped(old):
    before = modification_times(old.work / "bigram")
    outcome = current(old.work, "train", *SHORT, "model=bigram", "resume=auto", "hydra.run.dir=bigram")
    assert "bigram is already finished" in outcome.err
    assert modification_times(old.work / "bigram") == before


def test_a_trained_model_gives_the_same_samples_and_losses(old):
    names = ("run", "modern")
    sampled = in_parallel([lambda name=name: current(old.work, "sample", f"run={name}") for name in names])
    evaluated = in_parallel([lambda name=name: current(old.work, "evaluate", f"run={name}") for name in names])
    exported, visualized = in_parallel(
        [
            lambda: current(old.work, "export", "run=modern", "file=exported.safetensors"),
            lambda: current(old.work, "visualize", "run=modern"),
        ]
    )
    for name, sample, evaluation in zip(names, sampled, evaluated, strict=True):
        expected = (old.work / name / "sample.txt").read_text()  # written by the earlier code
        assert len(expected) > 500
        assert sample.out == expected
        assert f"{run_artifacts.metrics(old.work / name)['val_loss']:.4f} nats" in evaluation.out
    assert "after 20 steps" in exported.out
    assert current(old.work, "sample", "run=exported.safetensors").out == sampled[1].out
    shutil.copy(old.work / "modern" / "checkpoints" / "best.ckpt", old.work / "alone.ckpt")
    assert current(old.work, "sample", "run=alone.ckpt").out == sampled[1].out
    if old.version != "0.1":
        assert current(old.work, "sample", "run=modern.safetensors").out == sampled[1].out
    pictures = {path.name for path in (old.work / "modern" / "pictures").iterdir()}
    assert pictures == {"surprise.png", "attention_layer_1.png", "attention_layer_2.png"}
    assert all(name in visualized.out for name in pictures)


def test_a_sweep_resumes_the_killed_job_and_skips_the_finished_one(old):
    (shallow,) = finished(old.work / "outputs" / "depths").values()
    before = modification_times(shallow)
    outcome = current(old.work, "train", *map(migrate_override, old.depths()))
    runs = finished(old.work / "outputs" / "depths")
    assert len(runs) == 2
    assert modification_times(shallow) == before
    assert f"{shallow.name} is already finished" in outcome.err
    (deeper,) = (run for run in runs.values() if run != shallow)
    assert f"{deeper.name} from its last checkpoint" in outcome.err
    assert results(deeper) == results(job_with("optimizer=soap", old.work / "outputs" / "settings"))
    table = rows(old.work / "outputs" / "depths")
    assert {(row["run"], row["state"]) for row in table} == {(name, "finished") for name in runs}


def test_repeating_a_finished_sweep_trains_nothing(old):
    directory = old.work / "outputs" / "settings"
    runs = finished(directory)
    assert len(runs) == 2
    before = {name: modification_times(run) for name, run in runs.items()}
    for overrides in (old.settings(), [*map(migrate_override, old.settings())]):
        outcome = current(old.work, "train", *overrides)
        assert {path.name for path in directory.iterdir() if path.is_dir()} == {*runs}
        assert {name: modification_times(run) for name, run in runs.items()} == before
        for name in runs:
            assert f"{name} is already finished" in outcome.err
    assert {row["run"] for row in rows(directory)} == {*runs}


def test_a_rerun_reproduces_a_run(old):
    outcome = current(old.work, "train", "rerun=run", "hydra.run.dir=again")
    assert results(old.work / "again") == results(old.work / "run")
    columns = ("step", "train_loss", "val_loss")
    assert run_artifacts.history(old.work / "again", *columns) == run_artifacts.history(old.work / "run", *columns)
    assert "all non-timing metrics equal those of run" in outcome.err


def test_an_interrupted_rerun_by_0_2_of_a_run_of_0_1_is_resumed(versions, tmp_path):
    shutil.copytree(versions["0.2"].work, tmp_path / "work")
    current(tmp_path / "work", "train", "resume=rerun")
    assert results(tmp_path / "work" / "rerun") == results(versions["0.1"].work / "run")


def test_compare_lists_runs_of_all_versions(versions, tmp_path):
    for name, version in versions.items():
        shutil.copytree(version.work, tmp_path / name)
    current(tmp_path / "0.2", "train", *NANO, TWO, "hydra.run.dir=../new")
    current(tmp_path, "compare", "runs=.")
    runs = {str(file.parent.relative_to(tmp_path)): file.parent for file in tmp_path.rglob("status.json")}
    table = {row["run"]: row for row in rows(tmp_path, "compare")}
    assert table.keys() == runs.keys()
    for name, run in runs.items():
        if (run / "metrics.json").exists():
            assert table[name]["state"] == "finished"
            assert float(table[name]["val_loss"]) == run_artifacts.metrics(run)["val_loss"]
        else:
            assert table[name]["state"] == "interrupted"
    assert table["new"]["val_loss"] == table["0.1/run"]["val_loss"] == table["0.2/run"]["val_loss"]
