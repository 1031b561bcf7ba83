"""Nothing of a downloaded folder is executed: runs, exports, and modules beside them (tests/robustness has more)."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import chargpt
from tests.conftest import process
from tests.robustness import fork_server, hostile_folders
from tests.robustness.hostile_folders import SAMPLE, SHADOWS, HostileFolder

PLANTED = ("evil", "evil_package", "evil_kernel", "trusted_module", "trusted_module_evil", "other_package")
CANARY = Path("canary")  # relative to the folder
CASES = hostile_folders.cases(CANARY)


def named(cases: list[HostileFolder]) -> list:
    return [pytest.param(case, id=case.description) for case in cases]


@pytest.fixture(scope="session")
def exported(finished, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("exported") / "model.safetensors"
    assert process(file.parent, "export", f"run={finished}", f"file={file}").code == 0
    return file


@pytest.fixture
def folder(finished, exported, text_file, tmp_path, monkeypatch) -> Path:
    """The current directory: a run, an export and modules, all of them downloaded."""
    folder = tmp_path / "downloaded"
    shutil.copytree(finished, folder / "run")
    shutil.copy(exported, folder)
    shutil.copy(text_file, folder / "text.txt")
    hostile_folders.plant(folder, folder / CANARY)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] in PLANTED]:
        del sys.modules[name]


@pytest.mark.parametrize("case", named([case for case in CASES if case.refused and case.commands[0][0] == "sample"]))
def test_a_file_that_names_code_is_refused_in_one_line(case, folder):
    case.build(folder)
    _, arguments = case.commands[0]
    trust = ["trusted_module"] if hostile_folders.TRUST in arguments else []
    with pytest.raises(chargpt.UserError) as error:
        chargpt.load(arguments[0].removeprefix("run="), trust=trust)
    assert len(str(error.value).splitlines()) == 1
    assert not CANARY.exists()


@pytest.mark.slow
@pytest.mark.parametrize("case", named([case for case in CASES if case.refused and case.commands[0][0] != "sample"]))
def test_a_hostile_run_is_refused_and_nothing_is_written(case, folder, tmp_path):
    case.build(folder)
    before = fork_server.file_digests(folder)
    for command, arguments in case.commands:
        longer = [argument.replace("max_steps=4", "max_steps=22") for argument in arguments]
        cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        outcome = process(folder, command, *longer, **fork_server.ENVIRONMENT, **cache)
        assert outcome.code == 2, outcome.err
        assert outcome.err.splitlines()[-1].startswith(f"{command}.py: ")
        assert not fork_server.changed_files(before, fork_server.file_digests(folder))


@pytest.mark.slow
@pytest.mark.parametrize("case", named([case for case in CASES if not case.refused and not case.modules]))
def test_callbacks_and_loggers_of_a_file_are_ignored(case, folder):
    case.build(folder)
    outcome = process(folder, "train", "resume=run", "trainer.max_steps=22")
    assert outcome.code == 0, outcome.err
    assert not CANARY.exists()


@pytest.fixture
def shadowed(folder) -> Path:
    for name in SHADOWS:
        hostile_folders.plant_module(folder, name, folder / CANARY)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("how", hostile_folders.STARTS)
def test_modules_beside_a_run_are_not_imported(how, shadowed):
    outcome = hostile_folders.start(how, *SAMPLE, shadowed)
    assert outcome.code == 0, outcome.err
    assert not CANARY.exists()
    subprocess.run([sys.executable, "-c", "import wandb"], check=True)
    assert CANARY.exists(), "the modules would be noticed"


@pytest.mark.slow
@pytest.mark.parametrize("case", named([case for case in CASES if case.modules == SHADOWS]))
def test_modules_in_the_current_directory_of_a_sweep_are_not_imported(case, shadowed):
    pytest.importorskip("ray")
    pytest.importorskip("submitit")
    outcome = hostile_folders.start("module", *case.commands[0], shadowed)
    assert outcome.code == 0, outcome.err
    assert len([*shadowed.rglob("outputs/**/metrics.json")]) == 2
    assert not CANARY.exists()
