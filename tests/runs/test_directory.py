"""The run directory: each is claimed by one run, even if several processes request the same name."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from chargpt.errors import UserError
from chargpt.runs.directory import PACKAGE, RunDirectory, git_state, provenance


def run_in_threads(function: Callable[[], RunDirectory], count: int) -> list[RunDirectory]:
    """The results of `function` in `count` threads that start simultaneously."""
    start, results = threading.Barrier(count), []

    def call():
        start.wait()
        results.append(function())

    threads = [threading.Thread(target=call) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == count
    return results


def test_the_first_run_gets_the_name_and_later_runs_a_suffix(tmp_path: Path):
    names = []
    for _ in range(3):
        run = RunDirectory(tmp_path / "outputs" / "gpt" / "12-00-00")
        run.claim(chosen=False)
        run.write_status("running", 0)
        names.append(run.path.name)
    assert names == ["12-00-00", "12-00-00_2", "12-00-00_3"]


def test_a_run_with_a_suffix_has_all_its_files_in_its_directory(tmp_path: Path):
    (tmp_path / "run").mkdir()
    run = RunDirectory(tmp_path / "run")
    run.claim(chosen=False)
    files = (
        run.checkpoints,
        run.last,
        run.previous,
        run.best,
        run.metrics,
        run.status_file,
        run.sample,
        run.history,
    )
    assert run.path.is_dir()
    assert run.path != tmp_path / "run"
    assert all(run.path in file.parents for file in files)


def test_runs_that_claim_a_name_simultaneously_get_different_directories(tmp_path: Path):
    def claim() -> RunDirectory:
        run = RunDirectory(tmp_path / "outputs" / "run")
        run.claim(chosen=False)
        return run

    for _ in range(20):
        runs = run_in_threads(claim, 4)
        assert len({run.path for run in runs}) == 4
        assert all(run.path.is_dir() for run in runs)


def test_a_chosen_directory_that_contains_a_run_is_a_user_error(tmp_path: Path):
    RunDirectory(tmp_path / "mine").claim(chosen=True)
    (tmp_path / "mine" / "status.json").touch()
    with pytest.raises(UserError, match=r"mine already exists.*resume="):
        RunDirectory(tmp_path / "mine").claim(chosen=True)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_a_chosen_empty_directory_is_used(tmp_path: Path):
    run = RunDirectory(tmp_path)
    run.claim(chosen=True)
    assert run.path == tmp_path


@pytest.mark.parametrize("chosen", [True, False])
def test_a_path_below_a_file_is_a_user_error(tmp_path: Path, chosen):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be created.*hydra.run.dir="):
        RunDirectory(tmp_path / "file" / "run").claim(chosen)


def test_a_status_contains_state_step_reason_time_and_process(tmp_path: Path):
    run = RunDirectory(tmp_path)
    run.write_status("interrupted", 7, "SIGINT")
    written = json.loads((tmp_path / "status.json").read_text())
    assert (written["state"], written["step"], written["reason"]) == ("interrupted", 7, "SIGINT")
    assert written["pid"] == os.getpid()
    assert written["time"] == pytest.approx(Path(tmp_path / "status.json").stat().st_mtime, abs=60)
    assert run.read_status() == written


def test_an_unknown_state_is_not_written(tmp_path: Path):
    with pytest.raises(AssertionError):
        RunDirectory(tmp_path).write_status("unknown", 7)
    assert not list(tmp_path.iterdir())


STATUS = {"state": "diverged", "step": 7, "reason": "NaN"}
WRONG = [{"state": ["diverged"]}, {"state": "unknown"}, {"step": "7"}, {"step": None}, {"reason": 1}, {"reason": {}}]


@pytest.mark.parametrize(
    "content",
    [None, "", '{"state": "runn', "[]", "7", "[" * 9**5, "{}", *(json.dumps(STATUS | wrong) for wrong in WRONG)],
    ids=lambda content: str(content)[:60],
)
def test_a_missing_or_damaged_status_is_read_as_failed(tmp_path: Path, content):
    (tmp_path / "status.json").write_text(json.dumps(STATUS))
    assert RunDirectory(tmp_path).read_status() == STATUS
    (tmp_path / "status.json").unlink()
    if content is not None:
        (tmp_path / "status.json").write_text(content)
    status = RunDirectory(tmp_path).read_status()
    assert status == {"state": "failed", "step": 0, "reason": "status.json is missing or damaged"}


@pytest.mark.parametrize(
    "content", ["", "{", "{}", "[1]", '{"corpus_sha256": 1}', "[" * 9**5], ids=lambda text: text[:20]
)
def test_damaged_metrics_are_a_user_error(tmp_path: Path, content):
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(UserError, match=r"metrics\.json is damaged: delete it"):
        RunDirectory(tmp_path).read_metrics()


@pytest.mark.parametrize("name", ["train.log", "checkpoints", "tensorboard/version_0", "wandb"])
def test_a_link_out_of_the_directory_is_a_user_error(tmp_path: Path, name):
    link = tmp_path / "run" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "outside")  # which need not exist
    with pytest.raises(UserError, match=rf"{name} is a link out of the run directory, and .* to {tmp_path}/outside: "):
        RunDirectory(tmp_path / "run").check_links()


def test_a_link_within_the_directory_one_to_it_and_those_of_wandb_are_allowed(tmp_path: Path):
    (tmp_path / "run" / "wandb").mkdir(parents=True)
    (tmp_path / "run" / "wandb" / "latest-run").symlink_to(tmp_path / "cache")
    (tmp_path / "run" / "best.ckpt").symlink_to(tmp_path / "run" / "wandb")
    (tmp_path / "link").symlink_to("run")
    for name in ("run", "link", "new"):
        RunDirectory(tmp_path / name).check_links()


def test_a_reason_cannot_change_the_terminal(tmp_path: Path):
    (tmp_path / "status.json").write_text(json.dumps(STATUS | {"reason": "\x1b[31mNaN\n"}))
    assert RunDirectory(tmp_path).read_status()["reason"] == " [31mNaN "


def git(repository: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=repository, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Callable[[str], Path]:
    """`repository("src/chargpt")`: creates a package in that folder of a new repository with one commit."""

    def create(folder: str) -> Path:
        package = tmp_path / "repository" / folder
        package.mkdir(parents=True)
        (package / "version.py").write_text("1")
        git(tmp_path / "repository", "init", "--quiet")
        git(tmp_path / "repository", "add", ".")
        git(tmp_path / "repository", "commit", "--quiet", "--message", "one")
        return package

    return create


def test_the_git_state_of_a_clone_is_its_commit_and_whether_tracked_files_are_modified(repository, tmp_path):
    package = repository("src/chargpt")
    commit = git(package, "rev-parse", "HEAD")
    (package / "untracked.py").touch()
    assert git_state(package) == {"git_commit": commit, "git_dirty": False}
    (package / "version.py").write_text("2")
    assert git_state(package) == {"git_commit": commit, "git_dirty": True}
    (tmp_path / "link").symlink_to(package)
    assert git_state(tmp_path / "link") == {"git_commit": commit, "git_dirty": True}


@pytest.mark.parametrize(
    "folder", [".venv/lib/python3.12/site-packages/chargpt", "chargpt", "libraries/chargpt/src/chargpt"]
)
def test_the_repository_of_a_project_that_contains_the_package_is_not_recorded(repository, folder):
    assert git_state(repository(folder)) == {"git_commit": None, "git_dirty": None}


def test_a_worktree_has_the_git_state_of_its_own_commit(repository, tmp_path):
    package = repository("src/chargpt")
    git(package, "worktree", "add", "--quiet", str(tmp_path / "worktree"))
    (tmp_path / "worktree" / "src" / "chargpt" / "version.py").write_text("2")
    git(tmp_path / "worktree", "commit", "--quiet", "--all", "--message", "two")
    assert git_state(tmp_path / "worktree" / "src" / "chargpt") == {
        "git_commit": git(tmp_path / "worktree", "rev-parse", "HEAD"),
        "git_dirty": False,
    }


def test_without_a_repository_a_commit_or_git_there_is_no_git_state(tmp_path, monkeypatch):
    absent = {"git_commit": None, "git_dirty": None}
    package = tmp_path / "src" / "chargpt"
    package.mkdir(parents=True)
    assert git_state(package) == absent
    git(tmp_path, "init", "--quiet")
    assert git_state(package) == absent
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state() == absent


def test_the_variables_of_a_git_hook_do_not_select_another_repository(repository, tmp_path, monkeypatch):
    package = repository("src/chargpt")
    git(tmp_path, "init", "--quiet", "other")
    git(tmp_path / "other", "commit", "--quiet", "--allow-empty", "--message", "other")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    assert git_state(package)["git_commit"] is None


def test_the_package_is_the_folder_of_the_source():
    assert (PACKAGE / "runs" / "directory.py").is_file()


@pytest.mark.parametrize("override", ["trust=[my_model]", "+trust=[my_model]"])
def test_the_recorded_command_does_not_contain_trust(monkeypatch, override):
    monkeypatch.setattr(sys, "argv", ["train.py", "seed=1", override])
    assert provenance("text", "0" * 64, "cpu", 1, 1)["command"] == ["train.py", "seed=1"]
