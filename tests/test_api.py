"""The Python API of training, in scripts, threads and notebooks."""

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import hydra
import nbformat
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from nbclient import NotebookClient

import chargpt
from tests.conftest import REPO
from tests.training import run_artifacts

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


def state() -> list:
    """What the API must restore, except what Hydra caches."""
    root = logging.getLogger()
    handlers = [signal.getsignal(number) for number in STOP_SIGNALS]
    return [handlers, root.handlers[:], root.level, set(os.environ.items()), sys.argv[:], warnings.filters[:]]


@pytest.fixture
def overrides(tiny, tmp_path, monkeypatch) -> list[str]:
    """Those of a tiny run, in an empty folder, in a program with arguments of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["my_program.py", "--flag", "model.n_layer=9", "seed=99"])
    return [*tiny, "callbacks.samples.max_new_tokens=0"]


def test_importing_the_package_does_not_import_torch():
    code = "import sys, chargpt; chargpt.UserError; print({'torch', 'hydra', 'lightning'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_run_has_the_metrics_of_the_command_line_and_leaves_the_program_as_it_was(overrides, run_cli, tmp_path):
    before = state()
    run = chargpt.train(overrides)
    assert state() == before
    assert run.directory.parent == tmp_path / "outputs" / "gpt_nano"
    assert run_cli("train", *overrides, "hydra.run.dir=other").code == 0
    assert run.metrics["val_loss"] == run_artifacts.metrics(tmp_path / "other")["val_loss"]
    assert run_artifacts.provenance(run.directory)["command"] == ["chargpt", "train", *overrides]
    assert len(run.load().generate("T", 5)) == 6


@pytest.fixture
def own_model(overrides, tmp_path) -> tuple[list[str], Path]:
    """The overrides of a run of 2 steps with a model that is not part of the package, and the folder of its config."""
    model = tmp_path / "my_conf" / "model"
    model.mkdir(parents=True)
    (model / "mine.yaml").write_text("_target_: tests.config.test_model.WithBlockSize\nblock_size: 8\n")
    settings = [override for override in overrides if not override.startswith("model")]
    return [*settings, "model=mine", "trainer.max_steps=2"], tmp_path / "my_conf"


def test_a_run_of_own_code_is_loaded_without_trust(own_model):
    settings, folder = own_model
    run = chargpt.train(settings, config_dir=folder)
    assert len(run.load().generate("T", 5)) == 6
    with pytest.raises(chargpt.UserError, match="trust"):
        chargpt.load(run.directory)


@pytest.mark.slow
def test_a_sweep_of_own_code_is_loaded_without_trust(own_model, monkeypatch):
    settings, folder = own_model
    monkeypatch.setenv("PYTHONPATH", str(REPO))  # for the model
    best = chargpt.sweep([*settings, "optimizer.lr=0.1,0.01"], config_dir=folder).best
    assert len(best.load().generate("T", 5)) == 6
    with pytest.raises(chargpt.UserError, match="trust"):
        chargpt.load(best.directory)


def test_a_flag_is_a_user_error_that_names_the_argument(overrides):
    with pytest.raises(chargpt.UserError, match="config_dir="):
        chargpt.train([*overrides, "--config-dir=my_conf"])
    with pytest.raises(chargpt.UserError, match=r"chargpt\.sweep"):
        chargpt.train([*overrides, "model.n_layer=1,2"])


def test_it_works_within_a_hydra_program(overrides, tmp_path):
    (tmp_path / "mine.yaml").write_text("a: 1\n")
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3", job_name="mine"):
        before, job = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
        assert chargpt.compose(overrides)["model"]["n_layer"] == 2
        assert chargpt.train([*overrides, "trainer.max_steps=2"]).metrics["steps"] == 2
        assert GlobalHydra.instance().hydra is before
        assert HydraConfig.instance().cfg is job
        assert hydra.compose("mine", ["a=2"]) == {"a": 2}
    assert not GlobalHydra.instance().is_initialized()


def test_it_works_in_a_thread(overrides):
    runs = []
    thread = threading.Thread(target=lambda: runs.append(chargpt.train([*overrides, "trainer.max_steps=2"])))
    thread.start()
    thread.join()
    assert runs[0].metrics["steps"] == 2


def test_the_config_is_plain_data(overrides, tmp_path):
    config = chargpt.compose([*overrides, "seed=7"])
    assert (config["name"], config["data"]["seed"], config["model"]["n_layer"]) == ("gpt_nano", 7, 2)
    assert "hydra" not in config
    (tmp_path / "mine" / "optimizer").mkdir(parents=True)
    (tmp_path / "mine" / "optimizer" / "adam.yaml").write_text("_target_: torch.optim.Adam\nlr: 0.01\n")
    assert chargpt.compose(["optimizer=adam"], config_dir="mine")["optimizer"]["lr"] == 0.01


@pytest.mark.parametrize("call", [chargpt.train, chargpt.compose, chargpt.sweep])
def test_an_invalid_setting_is_a_user_error(overrides, call, tmp_path):
    before = state()
    with pytest.raises(chargpt.UserError, match=r"model\.n_layers"):
        call(["model.n_layers=3"])
    assert state() == before
    assert not GlobalHydra.instance().is_initialized()
    assert not [*tmp_path.iterdir()]


def test_divergence_is_an_exception(overrides):
    diverging = [*overrides, "optimizer.lr=1e30", "resume=auto"]
    with pytest.raises(chargpt.DivergenceError):
        chargpt.train(diverging)
    with pytest.raises(chargpt.DivergenceError):  # it would diverge again
        chargpt.train(diverging)


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_same_metrics(overrides, tmp_path):
    interrupt = ["+callbacks.stop._target_=tests.training.fault_injection.SignalAt", "+callbacks.stop.name=SIGINT"]
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(chargpt.Interrupted, match="step 13, checkpoint saved"):
        chargpt.train([*overrides, "resume=auto", *interrupt, "+callbacks.stop.batch=13"])
    assert signal.getsignal(signal.SIGINT) is before
    run = chargpt.train([*overrides, "resume=auto"])
    assert chargpt.train([*overrides, "resume=auto"]) == run, "finished"
    assert run.metrics["val_loss"] == chargpt.train(overrides).metrics["val_loss"]


@pytest.mark.slow
def test_a_sweep_returns_its_rows(overrides, tmp_path):
    before = state()
    table = chargpt.sweep([*overrides, "model.n_layer=1,2", "optimizer.lr=0.01,1e30"])
    assert state() == before
    assert table.path == tmp_path / "outputs" / "gpt_nano" / "sweep.csv"
    assert [row["state"] for row in table.rows] == ["finished", "finished", "diverged", "diverged"]
    assert table.rows[0]["score"] <= table.rows[1]["score"]
    assert {row["model.n_layer"] for row in table.rows[:2]} == {1, 2}
    assert table.best.metrics["val_loss"] == table.rows[0]["val_loss"]
    with pytest.raises(chargpt.UserError, match="n_head"):
        chargpt.sweep([*overrides, "model.n_head=3,5"])


@pytest.mark.slow
def test_several_devices_train_in_processes_of_their_own(overrides, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPO))  # for the callback
    before = state()
    run = chargpt.train([*overrides, "trainer.devices=2"])
    assert state() == before
    assert (run.metrics["devices"], run.metrics["steps"]) == (2, 20)
    with pytest.raises(chargpt.UserError, match="batch_size"):
        chargpt.train([*overrides, "trainer.devices=2", "data.batch_size=3"])
    fail = ["+callbacks.fail._target_=tests.training.fault_injection.FailRank", "+callbacks.fail.rank=1"]
    with pytest.raises(chargpt.TrainingError, match="a rank is broken"):
        chargpt.train([*overrides, "trainer.devices=2", *fail, "+callbacks.fail.step=7", "+callbacks.fail.how=raise"])


SCRIPT = """
import sys
import chargpt

overrides = sys.argv[1:]
run = chargpt.train(overrides)
print("steps", run.metrics["steps"], run.load().step)
table = chargpt.sweep([*overrides, "model.n_layer=1,2"])
print("rows", len(table.rows), table.best.metrics["steps"])
"""


@pytest.mark.slow
def test_a_plain_script(overrides, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "script.py", *overrides]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "steps 20 20" in done.stdout
    assert "rows 2 20" in done.stdout


def run_notebook(folder: Path, *cells: str) -> list[nbformat.NotebookNode]:
    """Runs the cells in a new kernel; returns the output of each."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return [cell.outputs for cell in notebook.cells]


def printed(outputs: list) -> str:
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


INTERRUPT = """
import _thread, threading
threading.Timer(8, _thread.interrupt_main).start()  # as the button of the notebook
try:
    chargpt.train([*overrides, "name=interrupted", "trainer.max_steps=1000000", "resume=auto"])
except chargpt.Interrupted as error:
    print(error)
"""


@pytest.mark.slow
def test_a_notebook(overrides, tmp_path):
    outputs = run_notebook(
        tmp_path,
        f"import chargpt\noverrides = {overrides}",
        "run = chargpt.train(overrides)\nprint(run.metrics['steps'])",
        "print(run.load().generate('T', 5))",
        "table = chargpt.sweep([*overrides, 'model.n_layer=1,2'])\nprint(len(table.rows), table.best.metrics['steps'])",
        INTERRUPT,
        "status = (table.path.parents[1] / 'interrupted').rglob('status.json')\nprint([p.read_text() for p in status])",
    )
    assert "20\n" in printed(outputs[1])
    (bar,) = [output for output in outputs[1] if "20/20" in output.get("data", {}).get("text/plain", "")]
    assert "tokens/s" in bar.data["text/html"]
    assert len(printed(outputs[2])) == 7
    assert printed(outputs[3]).endswith("2 20\n")
    assert "checkpoint saved. Resume with: " in printed(outputs[4])
    assert "interrupted" in printed(outputs[5])


def code_blocks(page: Path, *words: str) -> str:
    """The Python code blocks of a page that contain one of the words, one after another."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    return "\n".join(block for block in blocks if any(word in block for word in words))


@pytest.mark.slow
def test_the_documented_trainer_of_ones_own_trains(overrides, tmp_path):
    code = code_blocks(REPO / "docs" / "inference.md", "L.Trainer")
    code = code.replace("from_tiny_shakespeare(", f"from_files({str(tmp_path / 'text.txt')!r}, ").replace(
        "max_steps=300, val_check_interval=100", "max_steps=20, val_check_interval=10"
    )
    (tmp_path / "text.txt").write_text("To be, or not to be: that is the question.\n" * 200)
    (tmp_path / "mine.py").write_text(code + "\nprint('steps', trainer.global_step, trainer.callback_metrics)\n")
    done = subprocess.run([sys.executable, "mine.py"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "steps 20" in done.stdout
    assert "val/loss" in done.stdout
