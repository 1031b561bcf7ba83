"""examples/my_project, used from a folder outside the repository: its code is none of chargpt's."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPO, Outcome
from tests.training.run_artifacts import content, differences, history, metrics, training_state

pytestmark = pytest.mark.slow

CONSOLE = [sys.executable, "-P", "-m", "chargpt"]
OWN = ["--config-dir=my_conf", "model=gru", "data=arithmetic", "callbacks=sums"]
OWN += ["monitor=sum_accuracy", "mode=max"]
TINY = ["model.n_embd=16", "model.n_layer=2", "model.dropout=0.2", "data.batch_size=4", "trainer=cpu"]
TINY += ["data.corpus.lines=400", "data.corpus.limit=200", "trainer.max_steps=20", "trainer.val_check_interval=10"]
TINY += ["trainer.log_every_n_steps=5", "callbacks.samples.max_new_tokens=20"]
STOP = ["+callbacks.stop._target_=my_code.stop.Stop", "+callbacks.stop.step=7"]


def execute(folder: Path, *command: str | Path) -> Outcome:
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def output_of(folder: Path, *command: str | Path) -> str:
    """The standard output of a command, which must succeed."""
    outcome = execute(folder, *command)
    assert outcome.code == 0, f"{command}: {outcome.err}"
    return outcome.out


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project, with a callback that stops its process as Ctrl-C does."""
    folder = tmp_path_factory.mktemp("elsewhere") / "project"
    shutil.copytree(REPO / "examples" / "my_project", folder, ignore=shutil.ignore_patterns("outputs", "__pycache__"))
    (folder / "my_code" / "stop.py").write_text(
        "import signal\n"
        "import lightning as L\n"
        "class Stop(L.Callback):\n"
        "    def __init__(self, step): self.step = step\n"
        "    def on_train_batch_end(self, trainer, *_):\n"
        "        if trainer.global_step == self.step: signal.raise_signal(signal.SIGINT)\n"
    )
    return folder


@pytest.fixture(scope="module")
def finished(project) -> tuple[Path, dict[str, str]]:
    """A finished run of all of the project's parts, and the commands that it prints."""
    output = output_of(project, *CONSOLE, "train", *OWN, *TINY, "hydra.run.dir=outputs/finished")
    lines = [line.split(maxsplit=1) for line in output.splitlines() if line.strip()]
    return project / "outputs" / "finished", {words[0]: words[1] for words in lines if len(words) == 2}


@pytest.fixture(params=["console", "script"])
def train(request) -> list[str]:
    return [*CONSOLE, "train"] if request.param == "console" else [sys.executable, str(REPO / "train.py")]


def test_the_run_uses_the_code_of_the_project(finished):
    run, _ = finished
    assert metrics(run)["corpus"] == "sums of numbers below 200"
    assert 0 <= float(history(run)[-1]["sum_accuracy"]) <= 1
    rates = [float(row["lr"]) for row in history(run, "lr") if row["lr"]]
    assert rates[0] == pytest.approx(3e-3)
    assert rates[2] == pytest.approx(3e-3 * (0.05 + 0.95 * 0.0244717), rel=1e-3)  # the end of the first cycle
    assert int(re.search(r"vocabulary of (\d+)", (run / "train.log").read_text())[1]) > 256


def test_an_interrupted_run_resumes_to_the_same_bits(project, train, finished, tmp_path):
    """With `resume=auto` the command composes the targets; a run directory alone needs `trust=`."""
    # The overrides select the directory: those of the second command are the same but for what may differ.
    auto = [*train, *OWN, *TINY, "resume=auto", f"name={tmp_path.name}"]
    assert execute(project, *auto, *STOP).code == 3
    output_of(project, *auto)
    run = next((project / "outputs" / tmp_path.name).rglob("metrics.json")).parent
    assert differences(training_state(run), training_state(finished[0])) == []


def test_resuming_a_directory_needs_trust(project, train, finished, tmp_path):
    run = tmp_path / "run"
    interrupted = execute(project, *train, *OWN, *TINY, *STOP, f"hydra.run.dir={run}")
    assert interrupted.code == 3
    printed = shlex.split(interrupted.err.strip().splitlines()[-1].partition("esume with: ")[2])
    assert {"trust=my_code", "--config-dir=my_conf"} <= set(printed)
    before = content(run)
    refused = execute(project, *train, f"resume={run}", "--config-dir=my_conf")
    assert refused.code == 2
    assert refused.err.splitlines()[-1].endswith("If you trust that package, add trust=[my_code]")
    assert content(run) == before
    resumed = execute(project, *printed)
    assert resumed.code == 0, resumed.err
    assert "not restored from the run" in resumed.err and "callbacks.stop" in resumed.err
    assert "sum_accuracy" in history(run)[-1]  # callbacks=sums was composed again
    assert differences(training_state(run), training_state(finished[0])) == []
    assert not [file for file, text in content(run).items() if b"trust" in text]


@pytest.mark.parametrize(("embedding_lr", "devices"), [("0.01,0.02", 1), ("0.01", 2)])
def test_a_sweep_over_own_settings(project, tmp_path, embedding_lr, devices):
    train = [*CONSOLE, "train"] if devices == 1 else [sys.executable, REPO / "train.py"]
    values = ["-m", "model.n_embd=8,16", f"optimizer.embedding_lr={embedding_lr}"]
    settings = [f"name={tmp_path.name}", f"trainer.devices={devices}", "trust=my_code"]
    table = output_of(project, *train, *OWN, *TINY, *values, *settings)
    folder = project / "outputs" / tmp_path.name
    assert len([*folder.rglob("metrics.json")]) == len(embedding_lr.split(",")) * 2
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert not [file for file in files if "trust" in str(file) or b"trust" in file.read_bytes()]
    (command,) = (line for line in table.splitlines() if line.startswith(" sample"))
    assert "trust=my_code" in command
    assert output_of(project, *shlex.split(command.removeprefix(" sample")), "max_new_tokens=20")
    compared = output_of(project, *CONSOLE, "compare", f"runs={folder}")
    for name in ("n_embd", "embedding_lr")[: 2 if devices == 1 else 1]:
        assert name in table and name in compared


def test_the_printed_commands_run_as_pasted(project, finished, tmp_path):
    _, commands = finished
    shutil.copytree(project, tmp_path / "copy")  # the run is extended
    for command in (commands["sample"], commands["resume"]):
        assert "trust=my_code" in command
        assert output_of(tmp_path / "copy", *shlex.split(command))


def test_a_run_is_evaluated_and_repeated(project, finished):
    run, _ = finished
    report = output_of(project, *CONSOLE, "evaluate", f"run={run}", "trust=my_code")
    assert f"{metrics(run)['val_loss']:.4f} nats" in report
    other = ["--config-dir=my_conf", "data=arithmetic", "data.corpus.lines=400", "data.corpus.limit=200"]
    assert output_of(project, *CONSOLE, "evaluate", f"run={run}", "trust=my_code", *other) == report
    repeated = execute(project, *CONSOLE, "train", f"rerun={run}", "--config-dir=my_conf", "trust=my_code")
    assert "all non-timing metrics equal" in repeated.err, repeated.err


def test_visualize_says_what_it_cannot_draw(project, finished):
    report = output_of(project, *CONSOLE, "visualize", f"run={finished[0]}", "trust=my_code")
    assert "no module of this GRUModel has attention_weights" in report


def test_an_export_is_loaded_only_with_trust(project, finished, tmp_path):
    file = tmp_path / "model.safetensors"
    output_of(project, *CONSOLE, "export", f"run={finished[0]}", f"file={file}", "trust=my_code")
    refused = execute(project, *CONSOLE, "sample", f"run={file}")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "add trust=[my_code]" in refused.err
    sample = ["sample", "max_new_tokens=20", "trust=[my_code]"]
    assert output_of(project, *CONSOLE, *sample, f"run={file}") == output_of(
        project, *CONSOLE, *sample, f"run={finished[0]}"
    )


def test_a_copied_checkpoint_is_loaded_only_with_trust_and_where_its_package_is(project, finished, tmp_path):
    copy = shutil.copy(finished[0] / "checkpoints" / "best.ckpt", tmp_path / "copy.ckpt")
    shutil.copytree(project / "my_code", tmp_path / "my_code")
    refused = execute(tmp_path, *CONSOLE, "sample", "run=copy.ckpt")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "runs the code of my_code. If you trust that package, add trust=[my_code]" in refused.err
    expected = output_of(project, *CONSOLE, "sample", f"run={copy}", "trust=my_code", "max_new_tokens=20")
    code = f"import chargpt; print(chargpt.load({str(copy)!r}, trust=['my_code']).generate(None, 20, seed=1337))"
    assert output_of(tmp_path, sys.executable, "-P", "-c", code) == expected
    shutil.rmtree(tmp_path / "my_code")
    missing = execute(tmp_path, *CONSOLE, "sample", "run=copy.ckpt", "trust=my_code")
    assert (missing.code, missing.err.count("\n")) == (2, 1)
    assert f"there is no module my_code in the installed packages and {tmp_path}" in missing.err
