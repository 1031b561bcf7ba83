"""Fixtures of many tests: a small text, and commands in this process or as separate processes."""

import importlib
import logging
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

# Small models run faster on one thread, and parallel tests do not compete for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadlines: the time of an example depends on other programs on the machine.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

REPO = Path(__file__).parent.parent

WORDS = ["the", "king", "shall", "speak", "of", "love", "and", "war", "while", "all", "his", "men", "lie", "down"]
WORDS += ["to", "sleep", "O", "what", "a", "night"]


@pytest.fixture(scope="session")
def text() -> str:
    """About 20,000 characters of random sentences, the same in each session."""
    draw = random.Random(0)
    sentences = (" ".join(draw.choices(WORDS, k=draw.randint(3, 9))).capitalize() + ".\n" for _ in range(650))
    return "".join(sentences)


@pytest.fixture(scope="session")
def text_file(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "nonsense.txt"
    path.write_text(text)
    return path


@pytest.fixture(scope="session")
def tiny(text_file: Path) -> list[str]:
    """Overrides for a run that takes a second: a small GPT with dropout on the small text."""
    return [
        "data=text_file",
        f"data.path={text_file}",
        "model=gpt_nano",
        "model.n_layer=2",
        "model.n_head=2",
        "model.n_embd=16",
        "model.block_size=16",
        "model.dropout=0.2",
        "data.batch_size=4",
        "trainer=cpu",
        "trainer.max_steps=20",
        "trainer.val_check_interval=10",
        "trainer.log_every_n_steps=5",
        "callbacks.samples.max_new_tokens=20",
    ]


@pytest.fixture(autouse=True)
def restored_environment():
    """Removes variables that Lightning's strategies set: with them, processes of later tests would be ranks."""
    names = set(os.environ)
    yield
    for name in os.environ.keys() - names:
        del os.environ[name]


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def run_cli(capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """`run_cli("train", "model=bigram")`: runs a command in this process, in an empty folder.

    The sample of a run is shorter than usual: it would take longer than the training of a tiny run.
    """
    monkeypatch.setattr("chargpt.training.summary.SAMPLE_TOKENS", 50)

    def run(name: str, *arguments: str) -> Outcome:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(REPO / f"{name}.py"), *arguments])
        main = importlib.import_module(name).main
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        try:
            with pytest.raises(SystemExit) as error:
                main()
        finally:
            for handler in set(root.handlers) - set(handlers):
                root.removeHandler(handler)
                handler.close()
            root.setLevel(level)
        captured = capfd.readouterr()
        return Outcome(error.value.code or 0, captured.out, captured.err)

    monkeypatch.syspath_prepend(str(REPO))
    return run


def process(folder: Path, name: str, *arguments: str, timeout: float = 120, **environment: str) -> Outcome:
    """Runs a command as a separate process in `folder`."""
    done = subprocess.run(
        [sys.executable, str(REPO / f"{name}.py"), *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def finished(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished tiny run, for tests that only read it."""
    folder = tmp_path_factory.mktemp("finished")
    run = folder / "outputs" / "tiny" / "run"
    outcome = process(folder, "train", *tiny, f"hydra.run.dir={run}")
    assert outcome.code == 0, outcome.err
    return run
