"""The documentation is true: its commands run, in the order of each page, and its links point to something.

A test follows each page from top to bottom in a copy of the program, and adds the files that the page shows. Long
trainings are shortened to two steps. New commands and pages are run without being listed here; a command that cannot be
run is added to `NOT_RUN`.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPO

PAGES = [page for pattern in ("README.md", "CONTRIBUTING.md", "docs/*.md") for page in sorted(REPO.glob(pattern))]
LINKING_PAGES = [*PAGES, REPO / "CHANGELOG.md", REPO / "tests/robustness/README.md"]
LINKING_PAGES += sorted(REPO.glob("experiments/*/README.md"))

# The first words of commands -> why no test runs them.
NOT_RUN = {
    "git clone": "requires the network and the repository's address",
    "make": "installs the environment or runs all tests: CI does both",
    "source": "changes only the shell: the test puts this Python first on the PATH instead",
    "tensorboard": "a server that runs until it is stopped",
    "srun": "requires Slurm",
}

# Appended to trainings: two steps, and a tenth of the validation split.
BATCH = ["data.batch_size=4", "data.train_fraction=0.99", "callbacks.samples.max_new_tokens=0"]
SHORT = ["trainer.max_steps=2", "trainer.val_check_interval=2", *BATCH]
# The beginnings of arguments with which SHORT is not appended: the command is short, or its length is given.
AS_WRITTEN = ("trainer.max_steps=", "resume=outputs/", "rerun=outputs/", "--cfg", "--help")

# Arguments with which a training takes minutes or requires a GPU -> the arguments that replace them.
ADAPTED = {
    "model=gpt_small": ["model=gpt_small", "model.n_layer=1"],
    "lecture=scaled_up": ["lecture=scaled_up", "model.n_layer=1", "trainer=cpu"],
    "trainer=fsdp": ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"],
    "trainer.max_epochs=3": ["trainer.max_epochs=1", "trainer.limit_train_batches=2", *BATCH],
    "+logger.mine._target_=my_package.MyLogger": [
        "+logger.mine._target_=lightning.pytorch.loggers.CSVLogger",
        "+logger.mine.save_dir=mine",
    ],
    "trainer.max_time=00:00:05:00": ["trainer.max_time=00:00:00:02"],
    "lecture=glob(*,exclude=scaled_up)": ["lecture=glob(*,exclude=[scaled_up*,feed*,layer*,multi*,res*])"],
    "model.dropout=0,0.1": ["model.dropout=0.1"],
    "model.n_layer=2,4,6,8": ["model.n_layer=2,4"],
    "seed=1,2,3": ["seed=1"],
    "hydra.sweeper.n_trials=40": ["hydra.sweeper.n_trials=2"],
}

# The run that the pages assume, and how they abbreviate it.
RUN, ABBREVIATED_RUN = "outputs/gpt_minute/2026-01-01_12-00-00", "outputs/gpt_minute/..."

FENCED_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PATH_BEFORE_BLOCK = re.compile(r"`([\w./]+)`:\s*$")


def page_name(page: Path) -> str:
    return str(page.relative_to(REPO))


def blocks(page: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a page: each with its language, or with its path if it is the content of a file."""
    text, result, end = page.read_text(), [], 0
    for match in FENCED_BLOCK.finditer(text):
        path = PATH_BEFORE_BLOCK.search(text[end : match.start()])
        result.append((path[1] if path else match[1], match[2]))
        end = match.end()
    return result


def commands(script: str) -> list[list[str]]:
    """The commands of a sh block as lists of arguments, without comments."""
    lines = script.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def commands_of(page: Path) -> list[list[str]]:
    return [words for kind, text in blocks(page) if kind == "sh" for words in commands(text)]


COMMANDS = [words for page in PAGES for words in commands_of(page)]


def begins_with(words: list[str], start: str) -> bool:
    return words[: len(start.split())] == start.split()


def is_long_training(words: list[str]) -> bool:
    return "train.py" in words and not any(word.startswith(AS_WRITTEN) for word in words)


def is_run(words: list[str], page: Path) -> bool:
    """Whether a command is run on this page: of equal trainings on several pages, only the first is."""
    first = next(page for page in PAGES if words in commands_of(page))
    return not any(begins_with(words, start) for start in NOT_RUN) and (page == first or not is_long_training(words))


def shortened(words: list[str]) -> list[str]:
    """The command as the test runs it: within seconds, on a CPU."""
    if "pytest" in words:  # the test only checks that the command selects tests: CI runs all of them
        return [*words, "--collect-only"]
    words = [word.replace(ABBREVIATED_RUN, RUN) for word in words]
    if "--cfg" not in words:
        words = [new for word in words for new in ADAPTED.get(word, [word])]
    short = SHORT[:-1] if "callbacks=none" in words else SHORT  # the last setting is that of a callback
    return words + short if is_long_training(words) else words


def execute(folder: Path, *words: str, exit_code: int = 0) -> str:
    """Runs a command with the copy of the program in `folder`. Pytest shows its output if the test fails."""
    paths = {
        "PYTHONPATH": str(folder / "src"),
        "WANDB_MODE": "offline",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["env", *words],  # a command may begin with variables
        cwd=folder,
        env=os.environ | paths,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    print(f"$ {shlex.join(words)}\n{done.stdout}")
    assert done.returncode == exit_code, f"exit code {done.returncode}: {shlex.join(words)}"
    return done.stdout


def git_ignored(folder: str, names: list[str]) -> set[str]:
    """The runs of the fault injection, which may be large: an argument of `shutil.copytree`."""
    return {"runs"} if Path(folder).name == "robustness" else set()


def copy_program(folder: Path) -> None:
    """Copies the scripts, sources, configs and tests, so that a page may add files to them."""
    for part in ("src", "conf", "tests"):
        shutil.copytree(REPO / part, folder / part, ignore=git_ignored)
    for file in (*REPO.glob("*.py"), REPO / "pyproject.toml"):
        shutil.copy(file, folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The directories of an interrupted and of a finished run of a tiny gpt_modern."""
    interrupted, finished = (tmp_path_factory.mktemp(state) for state in ("interrupted", "finished"))
    copy_program(interrupted)
    fault = {"_target_": "tests.robustness.fault_callback.FaultCallback", "signal_name": "SIGINT"}
    fault |= {"place": "forward", "step": "100", "log_file": "signals.txt"}
    overrides = [f"+callbacks.fault.{key}={value}" for key, value in fault.items()]
    overrides += ["model.n_layer=1", "model.n_embd=16", "model.block_size=16", "data.train_fraction=0.99"]
    execute(interrupted, "python", "train.py", f"hydra.run.dir={RUN}", *overrides, exit_code=3)
    shutil.copytree(interrupted, finished, dirs_exist_ok=True)
    execute(finished, "python", "train.py", f"resume={RUN}")
    return {"interrupted": interrupted / RUN, "finished": finished / RUN}


def write(file: Path, content: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)


def prepare(folder: Path, page: Path, runs: dict[str, Path], text: str) -> None:
    """Creates what a page assumes: the program, a run, and files of the user."""
    copy_program(folder)
    resumed = any(f"resume={RUN}" in words for words in commands_of(page))
    shutil.copytree(runs["interrupted" if resumed else "finished"], folder / RUN)
    for file in ("my_book.txt", "my_books/one.txt", "my_books/two.md", "my_books/three.text", "other.txt"):
        write(folder / file, text)
    for file in ("my_project/model.py", "my_notes/one.md"):
        write(folder / file, text)
    write(folder / "beginning.txt", "ROMEO:\n")
    for path, content in blocks(page):
        if path.startswith("my_conf/"):  # the page uses these files before it shows them
            write(folder / path, content)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if {"sh", "python"} & dict(blocks(page)).keys()], ids=page_name
)
def test_the_commands_of_a_page_run(page, tmp_path, runs, text):
    prepare(tmp_path, page, runs, text)
    imported = execute(tmp_path, "python", "-c", "import chargpt; print(chargpt.__file__)")
    assert imported.strip() == str(tmp_path / "src/chargpt/__init__.py")
    for kind, content in blocks(page):
        if kind == "sh":
            for words in commands(content):
                if is_run(words, page):
                    execute(tmp_path, *shortened(words))
        elif kind == "python":
            execute(tmp_path, "python", "-c", content)
        elif kind:
            write(tmp_path / kind, content)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_each_block_is_a_script_a_file_or_an_output(page):
    assert page.read_text().count("```") == 2 * len(blocks(page))
    assert {kind for kind, _ in blocks(page) if Path(kind).suffix == ""} <= {"sh", "python", ""}


@pytest.mark.parametrize("start", NOT_RUN)
def test_a_command_that_is_not_run_is_on_a_page(start):
    assert any(begins_with(words, start) for words in COMMANDS)


@pytest.mark.parametrize("argument", ADAPTED)
def test_an_adapted_argument_is_on_a_page(argument):
    assert any(argument in words for words in COMMANDS)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ +(.*?) *$", FENCED_BLOCK.sub("", page.read_text()), re.MULTILINE)
    titles = [re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", LINKING_PAGES, ids=page_name)
def test_links_point_to_files_and_headings(page):
    for link in re.findall(r"\]\(([^)\s]+)", FENCED_BLOCK.sub("", page.read_text())):
        if not link.startswith(("http://", "https://")):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), f"{link} does not exist"
            if anchor:
                assert anchor in anchors(target / "README.md" if target.is_dir() else target), (
                    f"{link}: no such heading"
                )


def test_the_options_in_the_table_of_config_groups_exist():
    table = (REPO / "docs/configuration.md").read_text().partition("## Groups\n")[2].partition("\n## ")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| `")]
    assert len(rows) > 5
    for groups, _, options in rows:
        for group in re.findall(r"`\+?([\w/]+)`", groups):
            assert (REPO / "conf" / group).is_dir(), group
            for option in re.findall(r"`(\w+)`", options):
                assert (REPO / "conf" / group / f"{option}.yaml").is_file(), f"{group}={option}"
