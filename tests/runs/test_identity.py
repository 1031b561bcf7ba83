"""What identifies a run: the same list for resuming, for the folders of a sweep, and for tables."""

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


def changed(key: str, value: object) -> dict:
    config = OmegaConf.create(CONFIG)
    OmegaConf.update(config, key, value, force_add=True)
    return identity(config)


@pytest.mark.parametrize("key", MAY_CHANGE)
def test_a_setting_that_may_change_on_resuming_leaves_it_the_same_run(key):
    assert changed(key, "other") == identity(OmegaConf.create(CONFIG))


@pytest.mark.parametrize("key", ["seed", "model.n_layer", "data.batch_size", "optimizer.lr", "monitor"])
def test_every_other_setting_makes_it_another_run(key):
    assert changed(key, 7) != identity(OmegaConf.create(CONFIG))


@pytest.mark.parametrize("key", OLDER_DEFAULTS)
def test_a_setting_that_came_later_means_what_was_before(key):
    assert changed(key, OLDER_DEFAULTS[key]) == identity(OmegaConf.create(CONFIG))


@pytest.mark.parametrize("key", [*NOT_IDENTITY, *LENGTH])
def test_what_may_change_on_resuming_is_not_in_the_name_of_a_folder(key):
    assert job_name(["model.n_layer=2", f"{key}=1"], swept=[]) == "model.n_layer=2"


def test_where_the_text_lies_is_in_the_name_since_another_text_lies_elsewhere():
    assert job_name(["data.path=a.txt"], swept=[]) != job_name(["data.path=b.txt"], swept=[])


@pytest.mark.parametrize("word", ["trainer.compile=false", "on_divergence=rollback"])
def test_a_folder_that_an_earlier_version_named_is_found_again(tmp_path, word):
    overrides = ["model.n_layer=2", word, f"{MACHINE[1]}=2"]
    earlier = f"model.n_layer=2,{word}"
    assert job_name(overrides, [], str(tmp_path)) == "model.n_layer=2"
    (tmp_path / earlier).mkdir()
    assert job_name(overrides, [], str(tmp_path)) == earlier
    (tmp_path / "model.n_layer=2").mkdir()
    assert job_name(overrides, [], str(tmp_path)) == "model.n_layer=2"
