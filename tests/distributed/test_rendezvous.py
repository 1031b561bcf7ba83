"""Runs open no network ports except on the loopback interface."""

import runpy
import sys
from pathlib import Path

import lightning as L
import pytest
import torch

from chargpt.distributed import rendezvous
from chargpt.distributed.env import RENDEZVOUS_FILE_ENV
from chargpt.distributed.rendezvous import INTERFACES, init_process_group
from chargpt.training.strategies import make_strategy
from tests.conftest import process
from tests.training import run_artifacts

RECORD = "+callbacks.record._target_=tests.training.fault_injection.RecordListeningSockets"


@pytest.mark.parametrize(("platform", "interface"), [("linux", "lo"), ("darwin", "lo0")])
def test_the_loopback_interface_has_the_name_of_the_platform(monkeypatch, platform, interface):
    monkeypatch.setattr(sys, "platform", platform)
    assert runpy.run_path(rendezvous.__file__)["LOOPBACK"] == interface


def listening_addresses(folder: Path) -> dict[str, list[str]]:
    """The addresses on which each rank listened during training."""
    return {file.stem: file.read_text().split() for file in folder.glob("listening_*.txt")}


def test_a_run_on_one_device_opens_no_listening_socket(run_cli, tiny, tmp_path: Path):
    outcome = run_cli("train", *tiny, RECORD, f"+callbacks.record.folder={tmp_path}", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert listening_addresses(tmp_path) == {"listening_0": []}


@pytest.mark.slow
def test_two_processes_listen_on_the_loopback_interface_only(tiny, tmp_path: Path):
    overrides = [RECORD, f"+callbacks.record.folder={tmp_path}", "trainer.devices=2", "hydra.run.dir=run"]
    outcome = process(tmp_path, "train", *tiny, *overrides)
    assert outcome.code == 0, outcome.err
    addresses = listening_addresses(tmp_path)
    assert addresses.keys() == {"listening_0", "listening_1"}
    assert addresses["listening_0"], "gloo listens on rank 0"
    assert {address for of_rank in addresses.values() for address in of_rank} == {"127.0.0.1"}
    assert run_artifacts.metrics(tmp_path / "run")["devices"] == 2


@pytest.mark.parametrize("name", ["ddp", "fsdp", "ddp_find_unused_parameters_true"])
@pytest.mark.parametrize("device", [torch.device("cpu"), torch.device("cuda", 0)], ids=str)
def test_the_process_group_has_the_settings_of_lightning_except_the_store(monkeypatch, tmp_path: Path, name, device):
    calls = []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *args, **kwargs: calls.append((args, kwargs)))
    monkeypatch.setenv(RENDEZVOUS_FILE_ENV, str(tmp_path / "rendezvous"))
    for variable in (*INTERFACES, "MASTER_ADDR", "MASTER_PORT"):  # restored after the test
        monkeypatch.setenv(variable, "1")
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=make_strategy(name, distributed=True),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    monkeypatch.setattr(type(trainer.strategy), "root_device", device)
    monkeypatch.setattr(type(trainer.accelerator), "setup_device", lambda *_: None)
    init_process_group(trainer)
    trainer.strategy.setup_environment()
    (args, kwargs), (lightning_args, lightning_kwargs) = calls
    assert isinstance(kwargs.pop("store"), torch.distributed.FileStore)
    assert (args, kwargs) == (lightning_args, lightning_kwargs)
    assert args == ({"cpu": "gloo", "cuda": "nccl"}[device.type],)
