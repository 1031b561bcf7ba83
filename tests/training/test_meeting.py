"""What a run shows to the network: nothing, or no more than the machine itself sees."""

from pathlib import Path

import pytest

from tests.conftest import process
from tests.training import reading

LOOK = "+callbacks.look._target_=tests.training.staged.Ears"


def ears(folder: Path) -> dict[str, list[str]]:
    """Addresses that each rank listened on while it trained."""
    return {file.stem: file.read_text().split() for file in folder.glob("ears_*.txt")}


def test_a_run_on_one_device_listens_nowhere(verb, tiny, tmp_path: Path):
    outcome = verb("train", *tiny, LOOK, f"+callbacks.look.folder={tmp_path}", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert ears(tmp_path) == {"ears_0": []}


@pytest.mark.slow
def test_two_processes_listen_to_their_own_machine_alone(tiny, tmp_path: Path):
    words = [LOOK, f"+callbacks.look.folder={tmp_path}", "trainer.devices=2", "hydra.run.dir=run"]
    outcome = process(tmp_path, "train", *tiny, *words)
    assert outcome.code == 0, outcome.err
    found = ears(tmp_path)
    assert found.keys() == {"ears_0", "ears_1"}
    assert found["ears_0"], "gloo's own connections"
    assert {address for heard in found.values() for address in heard} == {"127.0.0.1"}
    assert reading.metrics(tmp_path / "run")["devices"] == 2
