"""The ladder's command: from run directories to the table, the samples, the curves and the picture."""

import csv
import json
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from tests.conftest import REPO


@pytest.fixture
def climbed(run_cli, text_file, tmp_path):
    """Run directories of two seeds of one rung and one of another, cut short."""
    short = ["data=text_file", f"data.path={text_file}", "trainer=cpu", "trainer.max_steps=20"]
    short += [
        "trainer.val_check_interval=10",
        "trainer.log_every_n_steps=5",
        "callbacks.samples.max_new_tokens=20",
    ]
    runs = []
    for rung, seed in (("bigram", 1), ("bigram", 2), ("residual", 1)):
        runs.append(tmp_path / f"{rung}{seed}")
        outcome = run_cli("train", f"+lecture={rung}", f"seed={seed}", *short, f"hydra.run.dir={runs[-1]}")
        assert outcome.code == 0, outcome.err
    return runs


def test_the_table_the_curves_and_the_picture_are_made_from_runs(climbed, tmp_path):
    here = shutil.copytree(REPO / "experiments" / "lecture", tmp_path / "repo" / "experiments" / "lecture")
    shutil.copytree(REPO / "conf", tmp_path / "repo" / "conf")
    (here / "ladder.png").unlink(missing_ok=True)
    (here / "README.md").write_text("# L\n<!-- ladder -->\n<!-- /ladder -->\n<!-- samples -->\n<!-- /samples -->\n")
    subprocess.run([sys.executable, here / "ladder.py", *climbed], check=True, capture_output=True, text=True)
    readme = (here / "README.md").read_text()
    losses = [json.loads((run / "metrics.json").read_text())["final_val_loss"] for run in climbed]
    bigram, residual, scaled_up = (
        next(line for line in readme.splitlines() if line.startswith(f"| [`{rung}`]"))
        for rung in ("bigram", "residual", "scaled_up")
    )
    assert f"| 2.50 | {sum(losses[:2]) / 2:.3f} ± " in bigram and "| 2 |" in bigram
    assert f"| 2.08 | {losses[2]:.3f} |" in residual
    assert "| 1.48 | not measured here |" in scaled_up
    assert "**residual** Three blocks deep" in readme
    with (here / "curves.csv").open(newline="") as file:
        points = list(csv.DictReader(file))
    assert [(p["rung"], p["seed"], p["step"]) for p in points[:3]] == [
        ("bigram", "1", "10"),
        ("bigram", "1", "20"),
        ("bigram", "2", "10"),
    ]
    assert float(points[1]["val_loss"]) == pytest.approx(losses[0])
    with Image.open(here / "ladder.png") as picture:
        assert picture.size[0] > 600
