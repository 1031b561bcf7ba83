"""The identity of a run: the same list for resuming, for the folder names of sweeps and for tables."""

import pytest
from omegaconf import OmegaConf

from chargpt.runs.identity import LENGTH, MACHINE, MAY_CHANGE, NOT_IDENTITY, OLDER_DEFAULTS, identity
from chargpt.sweeps.naming import job_name

CONFIG = {
    "name": "a",
    "seed": 1,
    "model": {"n_layer": 2, "dropout": None},
    "data": {"path": "here", "batch_size": 4, "block_warmup": 0},
    "optimizer": {"lr": 0.1},
    "schedule": {"warmup_steps": 1},
    "trainer": {"devices": 1, "compile": "auto", "max_steps": 3, "accumulate_grad_batches": 1},
}


def identity_with(key: str, value: object) -> dict:
    config = OmegaConf.create(CONFIG)
    OmegaConf.update(config, key, value, force_add=True)
    return identity(config)


@pytest.mark.parametrize("key", MAY_CHANGE)
def test_a_setting_that_may_change_on_resuming_is_not_part_of_the_identity(key):
    assert identity_with(key, "other") == identity(OmegaConf.create(CONFIG))


@pytest.mark.parametrize("key", ["seed", "model.n_layer", "data.batch_size", "optimizer.lr", "monitor"])
def test_every_other_setting_changes_the_identity(key):
    assert identity_with(key, 7) != identity(OmegaConf.create(CONFIG))


@pytest.mark.parametrize("key", OLDER_DEFAULTS)
def test_the_older_default_of_a_newer_setting_is_not_part_of_the_identity(key):
    assert identity_with(key, OLDER_DEFAULTS[key]) == identity(OmegaConf.create(CONFIG))


@pytest.mark.parametrize("key", [*NOT_IDENTITY, *LENGTH])
def test_a_setting_that_may_change_on_resuming_is_not_part_of_the_folder_name(key):
    assert job_name(["model.n_layer=2", f"{key}=1"], swept=[]) == "model.n_layer=2"


def test_the_path_of_the_text_is_part_of_the_folder_name():
    assert job_name(["data.path=a.txt"], swept=[]) != job_name(["data.path=b.txt"], swept=[])


@pytest.mark.parametrize("override", ["trainer.compile=false", "on_divergence=rollback"])
def test_an_existing_folder_with_the_name_of_an_earlier_version_is_used(tmp_path, override):
    overrides = ["model.n_layer=2", override, f"{MACHINE[1]}=2"]
    old_name = f"model.n_layer=2,{override}"
    assert job_name(overrides, [], str(tmp_path)) == "model.n_layer=2"
    (tmp_path / old_name).mkdir()
    assert job_name(overrides, [], str(tmp_path)) == old_name
    (tmp_path / "model.n_layer=2").mkdir()
    assert job_name(overrides, [], str(tmp_path)) == "model.n_layer=2"
