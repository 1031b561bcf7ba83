"""The groups of a config are those that Hydra itself finds."""

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType

from chargpt.config.schema import Groups
from tests.conftest import REPO


def test_groups_and_options_are_those_of_hydra(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").touch()
    searchpath = [f"hydra.searchpath=[file://{tmp_path}]"]
    with hydra.initialize_config_dir(str(REPO / "conf"), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        groups = Groups(loader, searchpath)
        assert {"model", "model/attention", "data/tokenizer", "recipe"} <= set(groups.names)
        assert "mine" in groups.options("model")
        for group in ["", *groups.names, "hydra/launcher"]:
            for kind in (ObjectType.CONFIG, ObjectType.GROUP):
                assert groups.options(group, kind) == loader.get_group_options(group, kind, overrides=searchpath)
