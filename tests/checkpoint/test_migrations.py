"""Saved configs of earlier versions are read as this version would write them."""

import importlib

import pytest

from chargpt.checkpoint.migrations import MODULES, TARGETS, migrate, migrate_target


@pytest.mark.parametrize(("old", "new"), MODULES.items())
def test_a_module_that_has_moved_is_where_the_table_says(old, new):
    importlib.import_module(new)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(old)
    assert migrate_target(f"{old}.Thing") == f"{new}.Thing"


@pytest.mark.parametrize(("old", "new"), TARGETS.items())
def test_a_target_that_has_moved_by_itself_is_where_the_table_says(old, new):
    module, _, name = new.rpartition(".")
    assert callable(getattr(importlib.import_module(module), name))
    assert migrate_target(old) == new


@pytest.mark.parametrize("target", ["chargpt.model.transformer.Transformer", "torch.nn.GELU", "plain", ""])
def test_what_has_not_moved_keeps_its_name(target):
    assert migrate_target(target) == target


def test_targets_are_translated_wherever_they_stand_and_nothing_else_is():
    old = {
        "_target_": "chargpt.training.muon.muon",
        "parts": [{"_target_": "chargpt.model.values.ValueEmbedding", "name": "chargpt.training.muon.muon"}, 3],
        "text": "chargpt.training.muon",
    }
    new = {
        "_target_": "chargpt.optim.muon.muon",
        "parts": [{"_target_": "chargpt.model.value_residual.ValueEmbedding", "name": old["_target_"]}, 3],
        "text": "chargpt.training.muon",
    }
    assert migrate(old) == new
    assert migrate(new) == new
