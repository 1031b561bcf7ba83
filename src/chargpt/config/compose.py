"""The config of a command, composed by Hydra; and what of Hydra's own part a run needs.

Hydra's `initialize_config_dir` is in effect while these functions compose (`chargpt.cli.app`). A run composes
twice: its choices of groups, which say what settings there are and of which type, and then the whole command line.
"""

from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from chargpt.config.overrides import (
    check_choices,
    check_interpolated,
    check_values,
    missing_values,
    parse,
    quote_value,
    short_error,
)
from chargpt.config.schema import Groups, Schema
from chargpt.errors import UserError

SEARCHPATH = "hydra.searchpath"


def searchpath(config_dir: str | None, overrides: list[str]) -> list[str]:
    """The override that adds a folder of the user's own configs, behind those of the project.

    Raises:
        UserError: there is no such folder, or the overrides name folders as well.
    """
    if config_dir is None:
        return []
    if not Path(config_dir).is_dir():
        raise UserError(f"--config-dir={config_dir} is not a folder (looked from {Path.cwd()})")
    folder = Path(config_dir).absolute()
    if any(override.lstrip("+").startswith(f"{SEARCHPATH}=") for override in overrides):
        raise UserError(f"--config-dir and {SEARCHPATH}= do not go together: {SEARCHPATH}=[file://{folder},...]")
    return [f"{SEARCHPATH}=[{quote_value(f'file://{folder}')}]"]


def check_overrides(config_name: str, overrides: list[str], sweep: bool = False) -> tuple[list[Override], Schema]:
    """Checks the overrides against what the config has.

    Args:
        sweep: whether several values for one setting are allowed (`--multirun`).

    Returns:
        The overrides parsed, and what may be set.

    Raises:
        UserError: at the first that names or gives something that is not there.
    """
    parsed = [parse(override) for override in overrides]
    folders = [override.input_line for override in parsed if override.key_or_group == SEARCHPATH]
    groups = Groups(GlobalHydra.instance().config_loader(), folders)
    choices = check_choices(parsed, groups, sweep)
    try:
        schema = Schema(hydra.compose(config_name, [*folders, *choices]), groups)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(short_error(error)) from error
    check_values(parsed, schema, sweep)
    return parsed, schema


def compose(config_name: str, overrides: list[str]) -> DictConfig:
    """The config after its overrides, checked, with Hydra's own part in `HydraConfig`.

    Raises:
        UserError: an override that is wrong, or a setting without a value.
    """
    parsed, schema = check_overrides(config_name, overrides)
    try:
        config = compose_unchecked(config_name, overrides)
        check_interpolated(parsed, config, schema)
        if lacking := sorted(missing_values(OmegaConf.to_container(config))):
            raise UserError(f"{' and '.join(lacking)} must be given: add {lacking[0]}=...")
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(short_error(error)) from error
    return config


def compose_unchecked(config_name: str, overrides: list[str]) -> DictConfig:
    """The config as Hydra composes it, unchecked, with Hydra's own part in `HydraConfig`."""
    config = hydra.compose(config_name, overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    return OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])


def task_overrides() -> list[str]:
    """The overrides of this run, as typed: an interpolation in them is not looked up."""
    return OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)


def has_explicit_run_dir() -> bool:
    """Whether the user has named the run's directory."""
    overrides = OmegaConf.to_container(HydraConfig.get().overrides.hydra, resolve=False)
    return any(override.lstrip("+").startswith("hydra.run.dir=") for override in overrides)


def set_output_dir(directory: Path) -> None:
    """Has `${hydra:run.dir}` and `${hydra:runtime.output_dir}` name the directory that the run got."""
    settings = HydraConfig.instance().cfg.hydra
    with read_write(settings), open_dict(settings):
        settings.run.dir = str(directory)
        settings.runtime.output_dir = str(directory.absolute())
