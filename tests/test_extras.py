"""The package without its extras, as a plain installation has it: without Ray, Submitit, Optuna, wandb and MLflow."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from tests.conftest import REPO


def closure(requirements: list[str], found: dict[str, metadata.Distribution]) -> dict[str, metadata.Distribution]:
    """The distributions that these requirements install, without extras, and what those require in turn."""
    for requirement in requirements:
        name = re.sub("[-_.]+", "-", re.split("[^A-Za-z0-9._-]", requirement)[0]).lower()
        if name in found or "extra ==" in requirement:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # not required on this platform
            continue
        closure(found[name].requires or [], found)
    return found


@pytest.fixture(scope="session")
def core_python(tmp_path_factory) -> Path:
    """The interpreter of a virtual environment with links to the package, its dependencies, and nothing else."""
    folder = tmp_path_factory.mktemp("core")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    dependencies = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["dependencies"]
    installed = [*closure(dependencies, {}).values(), metadata.distribution("chargpt")]
    for distribution in installed:
        for name in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            path, link = Path(str(distribution.locate_file(name))), site_packages / name
            if path.suffix != ".pth" and path.exists() and not link.exists():
                link.symlink_to(path)
    (site_packages / "src.pth").write_text(str(REPO / "src"))
    return folder / "bin" / "python"


@pytest.fixture
def train(core_python, tmp_path):
    def run(*overrides: str) -> subprocess.CompletedProcess:
        command = [core_python, REPO / "train.py", *overrides]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)

    return run


def test_the_environment_contains_only_the_dependencies(core_python, tmp_path):
    modules = [
        "ray",
        "optuna",
        "submitit",
        "wandb",
        "mlflow",
        "scipy",
        "pytest",
        "beartype",
        "jupytext",
        "psutil",
        "torch",
    ]
    code = f"from importlib.util import find_spec; print([name for name in {modules} if find_spec(name)])"
    done = subprocess.run([core_python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "['psutil', 'torch']\n"


def test_help_and_the_scan_of_hydra_plugins_work(train):
    page = train("--help")
    assert (page.returncode, page.stderr) == (0, "")
    plugins = train("--info", "plugins")
    assert plugins.returncode == 0
    assert {"RayLauncher", "OptunaSweeper"} <= set(plugins.stdout.split())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("hydra/launcher=gpus seed=1,2", "hydra/launcher=gpus requires Ray: pip install ray"),
        (
            "hydra/launcher=slurm seed=1,2",
            "hydra/launcher=slurm requires Submitit: pip install hydra-submitit-launcher",
        ),
        ("hydra/sweeper=random seed=1,2", "this hydra/sweeper requires Optuna: pip install optuna"),
        ("hydra/sweeper=tpe seed=1,2", "this hydra/sweeper requires Optuna: pip install optuna"),
        ("hydra/sweeper=halving seed=1,2", "this hydra/sweeper requires Optuna: pip install optuna"),
    ],
)
def test_a_sweep_that_requires_an_extra_is_a_user_error_that_says_what_to_install(train, tmp_path, overrides, message):
    done = train("-m", *overrides.split())
    assert (done.returncode, done.stderr) == (2, f"train.py: {message}\n")
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_training_works_without_the_extras_and_their_loggers_are_user_errors(train, tiny, tmp_path):
    for name in ("wandb", "mlflow"):
        done = train(*tiny, f"logger={name}")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert f"pip install -U '{name}" in done.stderr
        assert not [*tmp_path.iterdir()]
    done = train(*tiny)
    assert done.returncode == 0, done.stderr
    assert [*tmp_path.glob("outputs/*/*/metrics.json")]
