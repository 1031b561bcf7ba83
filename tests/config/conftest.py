"""Fixtures: the config of train.py, without training."""

from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from chargpt.config.compose import set_output_dir
from tests.conftest import REPO

CONF = REPO / "conf"


@pytest.fixture
def compose(tmp_path: Path) -> Callable[..., DictConfig]:
    """`compose("model=bigram")`: the config of train.py for a run in `tmp_path / "run"`."""

    def compose(*overrides: str) -> DictConfig:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            config = hydra.compose("train", list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        set_output_dir(tmp_path / "run")
        return OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])

    return compose
