"""What a run shows to the network: nothing, or no more than the machine itself sees."""

from pathlib import Path

import lightning as L
import pytest
import torch

from chargpt.distributed.env import RENDEZVOUS_FILE_ENV
from chargpt.distributed.rendezvous import INTERFACES, init_process_group
from chargpt.training.strategies import make_strategy
from tests.conftest import process
from tests.training import run_artifacts

LOOK = "+callbacks.look._target_=tests.training.fault_injection.RecordListeningSockets"


def ears(folder: Path) -> dict[str, list[str]]:
    """Addresses that each rank listened on while it trained."""
    return {file.stem: file.read_text().split() for file in folder.glob("ears_*.txt")}


def test_a_run_on_one_device_listens_nowhere(run_cli, tiny, tmp_path: Path):
    outcome = run_cli("train", *tiny, LOOK, f"+callbacks.look.folder={tmp_path}", "hydra.run.dir=run")
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
    assert run_artifacts.metrics(tmp_path / "run")["devices"] == 2


@pytest.mark.parametrize("name", ["ddp", "fsdp", "ddp_find_unused_parameters_true"])
@pytest.mark.parametrize("device", [torch.device("cpu"), torch.device("cuda", 0)], ids=str)
def test_ranks_meet_with_the_settings_that_lightning_would_take(monkeypatch, tmp_path: Path, name, device):
    seen = []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *args, **named: seen.append((args, named)))
    monkeypatch.setenv(RENDEZVOUS_FILE_ENV, str(tmp_path / "meeting"))
    for variable in (*INTERFACES, "MASTER_ADDR", "MASTER_PORT"):  # what the two set, put back after the test
        monkeypatch.setenv(variable, "1")
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=make_strategy(name, several=True),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    monkeypatch.setattr(type(trainer.strategy), "root_device", device)
    monkeypatch.setattr(type(trainer.accelerator), "setup_device", lambda *_: None)
    init_process_group(trainer)
    trainer.strategy.setup_environment()
    (ours, ours_named), (theirs, theirs_named) = seen
    assert isinstance(ours_named.pop("store"), torch.distributed.FileStore)
    assert (ours, ours_named) == (theirs, theirs_named)
    assert ours == ({"cpu": "gloo", "cuda": "nccl"}[device.type],)
