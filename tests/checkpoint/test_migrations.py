"""Saved configs and checkpoints of earlier versions are translated to the current names."""

import importlib

import pytest
import torch
from hydra import compose, initialize_config_dir

from chargpt.checkpoint.migrations import (
    GROUPS,
    MODULES,
    SETTINGS,
    TARGETS,
    legacy_override,
    migrate,
    migrate_key,
    migrate_override,
    migrate_state_dict,
    migrate_target,
)
from tests.conftest import REPO
from tests.inference.architectures import build_model


@pytest.mark.parametrize(("old", "new"), MODULES.items())
def test_moved_modules_are_importable_under_their_new_name_only(old, new):
    importlib.import_module(new)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(old)
    assert migrate_target(f"{old}.Thing") == f"{new}.Thing"


@pytest.mark.parametrize(("old", "new"), TARGETS.items())
def test_moved_targets_exist_under_their_new_name(old, new):
    module, _, name = new.rpartition(".")
    assert callable(getattr(importlib.import_module(module), name))
    assert migrate_target(old) == new


@pytest.mark.parametrize("target", ["chargpt.model.transformer.Transformer", "torch.nn.GELU", "plain", ""])
def test_targets_that_were_not_moved_are_unchanged(target):
    assert migrate_target(target) == target


def test_nested_targets_are_translated_and_other_values_are_not():
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


def test_only_the_settings_of_chargpt_models_are_renamed():
    old = {"n_grams": None, "values": {"share": 0.5}, "skips": None, "logits": None, "n_layer": 2}
    new = {
        "ngram_embedding": None,
        "value_residual": {"share": 0.5},
        "unet_skips": None,
        "softcap": None,
        "n_layer": 2,
    }
    ensemble, other = {"_target_": "chargpt.model.ensemble.Ensemble"}, {"_target_": "my_model.MyModel"}
    assert migrate({"config": {"model": ensemble | old}}) == {"config": {"model": ensemble | new}}
    assert migrate({"model": other | old}) == {"model": other | old}


@pytest.mark.parametrize(("old", "new"), [*SETTINGS.items(), *GROUPS.items()])
def test_renamed_settings_and_groups_exist_under_their_new_name_only(old, new):
    with initialize_config_dir(str(REPO / "conf"), version_base="1.3"):
        config = compose("train", ["model=gpt_modern"])
    if "/" in new:
        assert (REPO / "conf" / new).is_dir()
        assert not (REPO / "conf" / old).exists()
    else:
        assert new.split(".")[1] in config.model
        assert old.split(".")[1] not in config.model


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("model/n_grams=pairs", "model/ngram_embedding=pairs"),
        ("model.n_grams.dropout=0.1,0.2", "model.ngram_embedding.dropout=0.1,0.2"),
        ("+model.n_grams.x=a=b", "+model.ngram_embedding.x=a=b"),
        ("~model/skips", "~model/unet_skips"),
        ("data/blocks@data=random", "data/dataloader@data=random"),
        ("model/values@model.values=none", "model/value_residual@model.value_residual=none"),
        ("model.logits=null", "model.softcap=null"),
    ],
)
def test_overrides_are_translated_to_the_current_names_and_back(old, new):
    assert migrate_override(old) == migrate_override(new) == new
    assert legacy_override(new) == legacy_override(old) == old


@pytest.mark.parametrize(
    "override",
    [
        "model.n_gramsx=1",
        "model/valuesx=1",
        "model.block_size=8",
        "prompt=model.n_grams=\n",
        "x.model.skips=1",
        "=",
        "",
    ],
)
def test_overrides_without_old_names_are_unchanged(override):
    assert migrate_override(override) == legacy_override(override) == override


def test_nested_settings_are_translated():
    assert migrate_key("model.values.share") == "model.value_residual.share"
    assert migrate_key("model.values_of_mine") == "model.values_of_mine"


@pytest.mark.parametrize("prefix", ["", "model.", "members.1.", "model.members.12."])
def test_state_dict_keys_are_renamed_in_the_same_order(prefix):
    old = [
        *("n_grams.tables.0.weight", "values.1.embedding.weight", "values.1.share", "skips.weights_S"),
        *("blocks.0.attention.qkv.weight", "blocks.0.attention.projection.bias"),
        *("blocks.3.feed_forward.expand.weight", "blocks.3.feed_forward.projection.weight"),
        *("blocks.3.feed_forward.gate.weight", "head.weight", "blocks.0.attention_norm.weight"),
    ]
    new = [
        *("ngram_embedding.tables.0.weight", "value_residual.1.embedding.weight", "value_residual.1.share"),
        *("unet_skips.weights_S", "blocks.0.attention.qkv_proj.weight", "blocks.0.attention.out_proj.bias"),
        *("blocks.3.feed_forward.up_proj.weight", "blocks.3.feed_forward.down_proj.weight"),
        *("blocks.3.feed_forward.gate_proj.weight", "head.weight", "blocks.0.attention_norm.weight"),
    ]
    state = {f"{prefix}{key}": torch.tensor(i) for i, key in enumerate(old)}
    config = {"model": {"_target_": "chargpt.model.transformer.Transformer"}}
    migrated = migrate_state_dict(state, config)
    assert list(migrated) == [f"{prefix}{key}" for key in new]
    assert [value.item() for value in migrated.values()] == list(range(len(old)))
    assert migrate_state_dict(migrated, config) == migrated
    assert migrate_state_dict(state, {"model": {"_target_": "my_model.MyModel"}}) is state


def test_the_current_state_dict_keys_exist_in_the_model():
    model = build_model(["model=gpt_modern", "model/unet_skips=u_net", "model/feed_forward=swiglu"])
    keys = " ".join(model.state_dict())
    for name in ("ngram_embedding.", "value_residual.", "unet_skips.", "qkv_proj.", "out_proj."):
        assert name in keys
    for name in ("up_proj.", "gate_proj.", "down_proj."):
        assert name in keys
