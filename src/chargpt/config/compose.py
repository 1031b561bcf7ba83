"""Composes and checks the config of a command with Hydra, and reads the run's overrides from Hydra's config.

Call these functions within `hydra.initialize_config_dir` (`chargpt.cli.app`). A run composes twice: first with the
options of its config groups only, which define the settings and their types, then with all overrides.
"""

import logging
from pathlib import Path
from typing import cast

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from chargpt.config.instantiate import COMPONENTS
from chargpt.config.overrides import (
    GLOBAL_PACKAGE_ADVICE,
    OPTIONAL_GROUPS,
    check_interpolated,
    check_options,
    check_values,
    missing_values,
    parse,
    short_error,
)
from chargpt.config.raw_values import quote_value
from chargpt.config.schema import Groups, Schema
from chargpt.config.trust import packages_to_trust
from chargpt.distributed.env import launched_as_rank
from chargpt.errors import UserError

log = logging.getLogger(__name__)

SEARCHPATH = "hydra.searchpath"
_default_recipes: set[str] = set()  # the models without a recipe of their own, for the current command


def searchpath(config_dir: str | None, overrides: list[str]) -> list[str]:
    """The override that adds a folder of the user's own configs, after the project's in the search path.

    Raises:
        UserError: there is no such folder, or the overrides set the search path too.
    """
    if config_dir is None:
        return []
    if not Path(config_dir).is_dir():
        raise UserError(f"--config-dir={config_dir} is not a folder (relative to {Path.cwd()})")
    folder = Path(config_dir).absolute()
    if any(override.lstrip("+").startswith(f"{SEARCHPATH}=") for override in overrides):
        raise UserError(f"--config-dir and {SEARCHPATH}= cannot be combined: use {SEARCHPATH}=[file://{folder},...]")
    return [f"{SEARCHPATH}=[{quote_value(f'file://{folder}')}]"]


def packages_of(config: DictConfig) -> list[str]:
    """The packages, besides torch and chargpt, whose code a composed config uses: loading its run needs their trust."""
    return packages_to_trust([OmegaConf.to_container(config[key]) for key in COMPONENTS if config.get(key) is not None])


def check_overrides(config_name: str, overrides: list[str], sweep: bool = False) -> tuple[list[Override], Schema]:
    """Checks the overrides against the groups and settings of the config.

    Args:
        sweep: whether a setting may have several values (`--multirun`).

    Returns:
        The parsed overrides, and the schema of the config.

    Raises:
        UserError: the first invalid override.
    """
    _remove_default_recipes()
    parsed = [parse(override) for override in overrides]
    folders = [text for text, override in zip(overrides, parsed, strict=True) if override.key_or_group == SEARCHPATH]
    groups = Groups(GlobalHydra.instance().config_loader(), folders)
    options = check_options(parsed, groups, sweep)
    try:
        _add_default_recipes(options, groups)
        base = hydra.compose(config_name, [*folders, *options])
        schema = Schema(base, groups)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise UserError(short_error(error)) from error
    check_values(parsed, schema, sweep)
    return parsed, schema


def compose(config_name: str, overrides: list[str]) -> DictConfig:
    """Composes and checks the config; Hydra's own config is then in `HydraConfig`.

    Raises:
        UserError: an invalid override, or a setting without a value.
    """
    parsed, schema = check_overrides(config_name, overrides)
    try:
        config = compose_unchecked(config_name, [override.input_line or "" for override in parsed])
        check_interpolated(parsed, config, schema)
        if group := next((name for name in OPTIONAL_GROUPS if name in config), None):
            raise UserError(f"In '{group}/{HydraConfig.get().runtime.choices[group]}': {GLOBAL_PACKAGE_ADVICE}")
        # The vocabulary is known when the text has been read.
        missing = [key for key in missing_values(OmegaConf.to_container(config)) if not _is_vocab_size(key)]
        if missing := sorted(missing):
            raise UserError(f"{' and '.join(missing)} must be given: add {missing[0]}=...")
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(short_error(error)) from error
    return config


def compose_unchecked(config_name: str, overrides: list[str]) -> DictConfig:
    """Composes the config without checks; Hydra's own config is then in `HydraConfig`."""
    config = hydra.compose(config_name, overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    names = cast(list[str], [key for key in config if key != "hydra"])  # keys may be of other types in general
    return OmegaConf.masked_copy(config, names)


def recompose(additional: list[str]) -> DictConfig:
    """Composes the config of this command once more, with additional overrides, and without Hydra's own config."""
    settings = HydraConfig.get()
    hydra_overrides = cast(list[str], OmegaConf.to_container(settings.overrides.hydra, resolve=False))
    return hydra.compose(settings.job.config_name, [*hydra_overrides, *task_overrides(), *additional])


def task_overrides() -> list[str]:
    """The overrides of this run as typed, with interpolations unresolved."""
    # Of a ListConfig, the container is a list.
    return cast(list[str], OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False))


def has_explicit_run_dir() -> bool:
    """Whether the user has set the run directory."""
    overrides = cast(list[str], OmegaConf.to_container(HydraConfig.get().overrides.hydra, resolve=False))
    return any(override.lstrip("+").startswith("hydra.run.dir=") for override in overrides)


def add_task_overrides(overrides: list[str]) -> None:
    """Adds overrides to those of this run, as if they had been typed."""
    settings = cast(DictConfig, HydraConfig.get())
    with read_write(settings), open_dict(settings):
        settings.overrides.task = [*task_overrides(), *overrides]


def set_output_dir(directory: Path) -> None:
    """Sets `${hydra:run.dir}` and `${hydra:runtime.output_dir}` to the directory of the run."""
    settings = cast(DictConfig, HydraConfig.get())  # declared as the dataclass of its schema
    with read_write(settings), open_dict(settings):
        settings.run.dir = str(directory)
        settings.runtime.output_dir = str(directory.absolute())


def _remove_default_recipes() -> None:
    """Removes those of an earlier command in this process."""
    for model in _default_recipes:
        ConfigStore.instance().repo["recipe"].pop(f"{model}.yaml", None)
    _default_recipes.clear()


def _add_default_recipes(options: list[str], groups: Groups) -> None:
    """Adds a recipe of the same name, which is `recipe/default`, for each model that has none.

    Hydra composes each job of a sweep itself, so the recipe must be among its configs.
    """
    recipes = groups.options("recipe")
    if "default" not in recipes:  # --config-path
        return
    _default_recipes.update(set(groups.options("model")) - set(recipes))
    for model in _default_recipes:
        ConfigStore.instance().store(model, {"defaults": ["default"]}, group="recipe", package="_global_")
    selected = [option.removeprefix("model=") for option in options if option.startswith(("model=", "recipe="))]
    if len(selected) == 1 and selected[0] in _default_recipes and not launched_as_rank():
        log.info("%s has no recipe of its own: recipe=default is used", selected[0])


def _is_vocab_size(key: str) -> bool:
    return key.startswith("model.") and key.endswith(".vocab_size")
