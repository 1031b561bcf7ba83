"""The grid: its settings and size, and the table generated from its runs."""

import shutil
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir

from tests.conftest import REPO
from tests.sweeps.conftest import write_run


@pytest.mark.parametrize("name", ["small", "full"])
def test_the_grid_varies_depth_heads_dropout_and_block_size(name):
    with initialize_config_dir(str(REPO / "conf"), version_base="1.3"):
        config = compose("train", [f"grid={name}"], return_hydra_config=True)
    params = config.hydra.sweeper.params
    assert set(params) == {"model.n_layer", "model.n_head", "model.dropout", "model.block_size"}
    runs = 1
    for key, values in params.items():
        runs *= len(values.split(","))
        if key == "model.n_head":
            assert all(config.model.n_embd % int(heads) == 0 for heads in values.split(","))
    assert runs == 54


def test_the_table_contains_the_mean_for_each_value(tmp_path):
    here = shutil.copytree(REPO / "experiments" / "grid", tmp_path / "grid")
    losses = {(1, 0.0): 2.0, (1, 0.2): 2.2, (2, 0.0): 1.8, (2, 0.2): 1.9}
    for (depth, dropout), loss in losses.items():
        overrides = (f"model.n_layer={depth}", f"model.dropout={dropout}")
        write_run(tmp_path / "outputs" / f"{depth}{dropout}", *overrides, loss=loss)
    runs = sorted((tmp_path / "outputs").iterdir())
    subprocess.run([sys.executable, here / "table.py", *runs], check=True, capture_output=True, text=True)
    readme = (here / "README.md").read_text()
    assert "| `model.n_layer` | 1: 2.100, 2: 1.850 |" in readme
    assert "| `model.dropout` | 0: 1.900, 0.2: 2.050 |" in readme
    assert "| 1 | 2 | 0 | 1.800 |" in readme
    assert (here / "sweep.png").stat().st_size > 10_000
