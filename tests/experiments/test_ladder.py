"""The report on the lecture's models: from run directories to the table, the samples, the curves and the figure."""

import csv
import json
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from tests.conftest import REPO


@pytest.fixture
def lecture_runs(run_cli, text_file, tmp_path):
    """Short runs: two seeds of one of the lecture's models and one of another."""
    short = ["data=text_file", f"data.path={text_file}", "trainer=cpu", "trainer.max_steps=20"]
    short += [
        "trainer.val_check_interval=10",
        "trainer.log_every_n_steps=5",
        "callbacks.samples.max_new_tokens=20",
    ]
    runs = []
    for model, seed in (("bigram", 1), ("bigram", 2), ("residual", 1)):
        runs.append(tmp_path / f"{model}{seed}")
        result = run_cli("train", f"lecture={model}", f"seed={seed}", *short, f"hydra.run.dir={runs[-1]}")
        assert result.code == 0, result.err
    return runs


def test_table_curves_and_figure_are_generated_from_runs(lecture_runs, tmp_path):
    here = shutil.copytree(REPO / "experiments" / "lecture", tmp_path / "repo" / "experiments" / "lecture")
    shutil.copytree(REPO / "conf", tmp_path / "repo" / "conf")
    (here / "ladder.png").unlink(missing_ok=True)
    (here / "README.md").write_text("# L\n<!-- ladder -->\n<!-- /ladder -->\n<!-- samples -->\n<!-- /samples -->\n")
    subprocess.run([sys.executable, here / "ladder.py", *lecture_runs], check=True, capture_output=True, text=True)
    readme = (here / "README.md").read_text()
    losses = [json.loads((run / "metrics.json").read_text())["final_val_loss"] for run in lecture_runs]
    bigram, residual, scaled_up = (
        next(line for line in readme.splitlines() if line.startswith(f"| [`{model}`]"))
        for model in ("bigram", "residual", "scaled_up")
    )
    assert f"| 2.50 | {sum(losses[:2]) / 2:.3f} ± " in bigram and "| 2 |" in bigram
    assert f"| 2.08 | {losses[2]:.3f} |" in residual
    assert "| 1.48 | not measured here |" in scaled_up
    assert "**residual** Three blocks. Residual connections" in readme
    with (here / "curves.csv").open(newline="") as file:
        points = list(csv.DictReader(file))
    assert [(p["model"], p["seed"], p["step"]) for p in points[:3]] == [
        ("bigram", "1", "10"),
        ("bigram", "1", "20"),
        ("bigram", "2", "10"),
    ]
    assert float(points[1]["val_loss"]) == pytest.approx(losses[0])
    with Image.open(here / "ladder.png") as image:
        assert image.size[0] > 600
