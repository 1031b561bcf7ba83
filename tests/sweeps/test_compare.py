"""compare.py: a table, compare.csv and compare.png of any set of runs."""

import csv
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from chargpt.errors import UserError
from chargpt.sweeps.compare import compare
from tests.config.test_user_errors import tree
from tests.conftest import REPO


def assert_image(path):
    with Image.open(path) as image:
        image.load()
        assert min(image.size) > 200
        assert len(set(image.convert("RGB").resize((50, 50)).getdata())) > 5, "not empty"


def test_compare_prints_the_table_and_writes_two_files_next_to_the_runs(run_cli, run, tmp_path):
    for n in (1, 2):
        run(f"+lecture=x,n_layer={n}", f"model.n_layer={n}", loss=2.0 / n)
    before = tree(tmp_path)
    outcome = run_cli("compare")
    assert outcome.code == 0, outcome.err
    assert [line.split()[0] for line in outcome.out.splitlines()[2:4]] == ["2", "1"]
    outputs = tmp_path / "outputs"
    assert tree(tmp_path).keys() - before.keys() == {outputs / "compare.csv", outputs / "compare.png"}
    assert "outputs/compare.csv" in outcome.out
    with (outputs / "compare.csv").open(newline="") as file:
        assert [row["run"] for row in csv.DictReader(file)] == ["+lecture=x,n_layer=2", "+lecture=x,n_layer=1"]
    assert_image(outputs / "compare.png")
    assert run_cli("compare").out == outcome.out, "its files are not read as runs"


def test_nothing_that_changes_the_terminal_is_printed(run_cli, run):
    escape = "\x1b[31m"
    run(f"a{escape}", "model.n_layer=1", loss=2.0, choices={"model": f"mine{escape}"})
    run("b", f"optimizer.x={escape}", state="failed", reason=f"{escape}because", settings={"optimizer.x": escape})
    outcome = run_cli("compare")
    assert outcome.code == 0, outcome.err
    assert "because" in outcome.out
    assert "\x1b" not in outcome.out + outcome.err


def test_a_path_with_commas_and_equals_signs_needs_no_quotes(run_cli, run, tmp_path):
    paths = [run(f"+lecture=x,seed={n}", f"seed={n}", loss=2.0) for n in (1, 2, 3)]
    outcome = run_cli("compare", f"runs=[{paths[0]},{paths[2]}]", "folder=a,b=c")
    assert outcome.code == 0, outcome.err
    assert {path.name for path in (tmp_path / "a,b=c").iterdir()} == {"compare.csv", "compare.png"}
    assert outcome.out.splitlines()[2].split()[-1] == "finished"
    assert "±" in outcome.out


@pytest.mark.slow
def test_a_trained_run_is_compared_with_unfinished_and_damaged_ones(run_cli, finished, tmp_path, run):
    outputs = tmp_path / "outputs"
    shutil.copytree(finished, outputs / "real")
    for n, state in enumerate(("waiting", "running", "interrupted", "failed", "diverged", "pruned")):
        run(state, f"model.n_layer={n + 3}", state=state, reason=f"because {state}")
    for n, (name, content) in enumerate(
        [("metrics.json", '{"val_'), (".hydra/config.yaml", "model: ["), (".hydra/hydra.yaml", "hydra: 3"),
         ("history.csv", "\0"), ("status.json", "7"), (".hydra/config.yaml", "model: word\nseed: [1]\ndata: 3\n"),
         ("metrics.json", '{"val_loss": 1' + 400 * "0" + "}"), ("metrics.json", '{"val_loss": "low"}')]
    ):  # fmt: skip
        (run(f"damaged{n}", f"seed={n}", loss=2.0) / name).write_text(content)
    outcome = run_cli("compare")
    assert outcome.code == 0, outcome.err
    for text in ("waiting", "running", "because diverged", "metrics.json is damaged", "config.yaml is damaged"):
        assert text in outcome.out
    with (outputs / "compare.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 15
    assert_image(outputs / "compare.png")


def test_runs_of_which_none_has_finished_are_compared(run, tmp_path, capsys):
    compare([run(n, state="failed", reason="boom", history=[(5, 3.0)]) for n in "ab"], tmp_path / "new" / "folder")
    assert "boom" in capsys.readouterr().out
    assert_image(tmp_path / "new" / "folder" / "compare.png")


def test_the_table_is_printed_even_if_it_cannot_be_written(run, tmp_path, capsys):
    (tmp_path / "here" / "compare.csv" / "in the way").mkdir(parents=True)
    with pytest.raises(UserError, match="folder=FOLDER"):
        compare([run("a", loss=2.0)], tmp_path / "here")
    assert "2.0000" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "here").iterdir()} == {"compare.csv"}


def test_runs_of_two_monitors_have_two_tables_and_two_figures(run_cli, run, accurate, tmp_path):
    for n in (1, 2):
        run(f"loss{n}", f"model.n_layer={n}", loss=2.0 / n)
        accurate(f"accuracy{n}", n / 4, f"model.n_layer={n}")
    outcome = run_cli("compare")
    assert outcome.code == 0, outcome.err
    lines = [line.split() for line in outcome.out.splitlines()]
    titles = {" ".join(line): n for n, line in enumerate(lines) if "better" in line}
    assert [*titles] == ["accuracy, higher is better", "validation loss, lower is better"]
    for n in titles.values():
        assert [line[0] for line in lines[n + 3 : n + 5]] == ["2", "1"], "best first"
    outputs = tmp_path / "outputs"
    assert {path.name for path in outputs.glob("compare*")} == {
        "compare.csv",
        "compare_accuracy.png",
        "compare_val_loss.png",
    }
    assert_image(outputs / "compare_accuracy.png")
    assert "outputs/compare_val_loss.png" in outcome.out
    with (outputs / "compare.csv").open(newline="") as file:
        order = [row["run"] for row in csv.DictReader(file)]
    assert order == ["accuracy2", "accuracy1", "loss2", "loss1"]


def test_a_metric_with_both_modes_is_two_monitors(run, tmp_path, capsys):
    monitors = [{"monitor": "accuracy", "mode": mode, "score": 0.5} for mode in ("min", "max")]
    compare([run(monitor["mode"], loss=2.0, **monitor) for monitor in monitors], tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {"compare_accuracy_min.png", "compare_accuracy_max.png"}


def test_the_files_of_a_sweep_in_the_same_folder_are_kept(run_cli, run, tmp_path):
    run("a", loss=2.0)
    for name in ("sweep.csv", "sweep.png"):
        (tmp_path / "outputs" / name).write_text("of the sweep")
    assert run_cli("compare").code == 0
    assert (tmp_path / "outputs" / "sweep.csv").read_text() == "of the sweep"
    assert (tmp_path / "outputs" / "sweep.png").read_text() == "of the sweep"
    assert (tmp_path / "outputs" / "compare.csv").exists()


def test_the_best_run_and_the_command_that_samples_from_it_are_printed(run_cli, run):
    run("worse", "model.n_layer=1", loss=2.0)
    run("of a sweep/model.n_layer=2", "model.n_layer=2", loss=1.0)
    lines = dict(line.split(maxsplit=1) for line in run_cli("compare").out.splitlines() if line.startswith(" "))
    assert lines["best"] == "outputs/of a sweep/model.n_layer=2"
    assert lines["sample"].endswith("sample.py 'run=outputs/of a sweep/model.n_layer=2'")


def test_runs_without_a_score_have_no_best_run(run_cli, run):
    run("a", state="failed", reason="boom")
    assert "best" not in run_cli("compare").out


def test_the_command_that_samples_from_a_run_of_the_users_code_trusts_it(run, tmp_path, capsys):
    best = run("best", "model.n_layer=1", loss=1.0)
    other = run("other", "model.n_layer=2", loss=2.0)
    compare([best, other], tmp_path, packages={best: ["my_model", "my_data"], other: ["another"]})
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith(" sample"))
    assert line.endswith("'trust=[my_model,my_data]'")


def test_compare_does_not_import_torch(run, tmp_path):
    path = run("a", loss=2.0)
    code = "import sys; from pathlib import Path; from chargpt.sweeps.compare import compare\n"
    code += f"compare([Path({str(path)!r})], Path({str(tmp_path)!r}))\n"
    code += "sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=REPO, timeout=60, check=False)
    assert process.returncode == 0, process.stderr
