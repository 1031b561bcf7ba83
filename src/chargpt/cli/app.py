"""Parses the command line, composes the config with Hydra, runs a command and returns its exit code.

User errors are reported before a directory is created. In a sweep the parent process does not train: each job is an
ordinary run in a separate process, so that jobs share no state.
"""

import argparse
import functools
import logging
import os
import re
import shlex
import string
import sys
import textwrap
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from chargpt.checkpoint.migrations import migrate_override
from chargpt.config.compose import check_overrides, compose, compose_unchecked, packages_of, searchpath
from chargpt.config.overrides import parse, short_error, without_plus
from chargpt.config.raw_values import quote
from chargpt.config.schema import Groups
from chargpt.config.synonyms import SYNONYMS, without_dashes
from chargpt.config.trust import trusted_packages
from chargpt.distributed import env
from chargpt.errors import DivergenceError, ExitCode, Interrupted, TrainingError, TrialPruned, UserError
from chargpt.invocation import config_folder, is_trust, localize, program_name, use_options
from chargpt.utils.terminal import without_controls
from chargpt.version import __version__

log = logging.getLogger(__name__)

Command = Callable[[DictConfig], None]

# Flags that cannot be combined.
EXCLUSIVE_FLAGS = ("help", "hydra_help", "info", "cfg", "shell_completion", "multirun", "run")

# The exit code of each exception that ends a command.
EXIT_CODES: dict[type[BaseException], int] = {
    OmegaConfBaseException: ExitCode.USER_ERROR,  # an override with an interpolation that cannot be resolved
    UserError: ExitCode.USER_ERROR,
    Interrupted: ExitCode.INTERRUPTED,
    KeyboardInterrupt: ExitCode.INTERRUPTED,
    DivergenceError: ExitCode.FAILED,
    TrainingError: ExitCode.FAILED,
    TrialPruned: ExitCode.DONE,
    OSError: ExitCode.FAILED,  # a full disk, a deleted folder
}


def entry_point(config_name: str) -> Callable[[Command], Callable[[], None]]:
    """Decorates the command of a script: `main()` composes `conf/<config_name>.yaml`, runs it and exits."""

    def decorate(command: Command) -> Callable[[], None]:
        @functools.wraps(command)
        def main() -> None:
            try:
                code = _run(command, config_name)
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else int(error.code is not None)
            except BaseException:
                if not env.launched_as_rank():
                    raise
                traceback.print_exc()
                code = ExitCode.FAILED
            for handler in logging.getLogger().handlers:
                if isinstance(handler, StderrHandler):  # an interrupted import of torch logs statistics at exit
                    handler.setLevel(logging.WARNING)
            env.exit_process(code)

        return main

    return decorate


def _run(command: Command, config_name: str) -> int:
    limit_openmp_spin()
    logging.basicConfig(format="%(message)s", level=logging.INFO, handlers=[StderrHandler()])
    try:
        parser = _make_parser()
        args = _parse_arguments(parser, config_name)
        args.overrides, trust = prepare_overrides(args.overrides, args.multirun)
        folder, name = Path(args.config_path or config_folder()).absolute(), args.config_name or config_name
        if not folder.is_dir():
            raise UserError(f"--config-path={args.config_path} is not a folder (relative to {Path.cwd()})")
        overrides = [*searchpath(args.config_dir, args.overrides), *args.overrides]
        with hydra.initialize_config_dir(str(folder), job_name=config_name, version_base="1.3"):
            if args.multirun:
                results, _ = run_sweep(name, overrides, trust, _job_flags(args, folder))
                return _sweep_code([result["code"] for result in results])
            if flag := next((flag for flag in EXCLUSIVE_FLAGS[:-2] if getattr(args, flag)), None):
                _print_info(flag, parser, args, name, overrides)
                return ExitCode.DONE
            command(compose_command(name, overrides, args.config_dir, trust))
    except BrokenPipeError:  # standard output was closed, as by `sample.py | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except tuple(EXIT_CODES) as error:
        return _print_error(
            _error_line(error), next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))
        )
    return ExitCode.DONE


def prepare_overrides(overrides: list[str], sweep: bool = False) -> tuple[list[str], tuple[str, ...]]:
    """Quotes texts and paths, translates old names, and separates `trust=` from the other overrides.

    Args:
        sweep: whether a setting may have several values.

    Returns:
        The overrides for Hydra, and the trusted packages.
    """
    overrides = [_current_override(without_plus(quote(override, sweep))) for override in overrides]
    if any(override.startswith(("resume=", "rerun=")) for override in overrides):
        # Then data.path is the new location of the run's text; ++, because data.path may not exist in this config.
        overrides = [re.sub(r"^data\.path=", "++data.path=", override) for override in overrides]
    trust, overrides = _extract_trust(overrides)
    return overrides, trust


def compose_command(name: str, overrides: list[str], config_dir: str | None, trust: tuple[str, ...]) -> DictConfig:
    """Composes the config of a command, with the trusted packages as `trust`, within `initialize_config_dir`.

    Raises:
        UserError: as `chargpt.config.compose.compose`.
    """
    config = compose(name, overrides)
    with open_dict(config):
        config.trust = list(trust)
    use_options(config_dir, sorted({*trust, *packages_of(config)}))
    return config


def run_sweep(
    name: str, overrides: list[str], trust: tuple[str, ...], flags: list[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Checks the overrides of a sweep and runs it, within `initialize_config_dir`: see `chargpt.sweeps.sweep.sweep`."""
    from chargpt.sweeps.sweep import sweep  # noqa: PLC0415 - only for -m, and adds a third to the start-up

    check_overrides(name, overrides, sweep=True)
    return sweep(name, overrides, [*flags, *([f"trust=[{','.join(trust)}]"] if trust else [])])


def _sweep_code(codes: list[int]) -> int:
    """The exit code of a sweep: `ExitCode.FAILED` if any job failed, `ExitCode.USER_ERROR` if all were refused."""
    if set(codes) == {ExitCode.USER_ERROR}:
        return ExitCode.USER_ERROR
    return ExitCode.FAILED if any(codes) else ExitCode.DONE


def _print_info(
    flag: str, parser: argparse.ArgumentParser, args: argparse.Namespace, name: str, overrides: list[str]
) -> None:
    """Prints the output of a flag. All but --help are Hydra's own."""
    app: Any = GlobalHydra.instance().hydra
    try:
        if flag == "shell_completion":
            if not {"install", "uninstall", "query"} & {parse(override).key_or_group for override in args.overrides}:
                raise UserError("--shell-completion requires an action, for example install=bash")
            app.shell_completion(name, overrides)
        elif flag == "hydra_help":
            args.overrides = [override for override in overrides if override.startswith("hydra")]
            app.hydra_help(None, parser, args)
        elif flag == "info":
            check_overrides(name, overrides)
            app.show_info(args.info, name, overrides)
        elif flag == "cfg":
            check_overrides(name, overrides)
            app.show_cfg(name, overrides, args.cfg, args.package, args.resolve)
        else:
            _, schema = check_overrides(name, overrides)
            config = compose_unchecked(name, overrides)
            template = string.Template(localize(HydraConfig.get().help.template))
            print(
                template.substitute(APP_CONFIG_GROUPS=_group_options(schema.groups), CONFIG=OmegaConf.to_yaml(config))
            )
    except UserError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(short_error(error)) from error


def _group_options(groups: Groups) -> str:
    options = {group: groups.options(group) for group in groups.names}
    lines = [f"{group}: {', '.join(sorted(names))}" for group, names in sorted(options.items()) if names]
    return "\n".join(
        textwrap.fill(line, 80, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False) for line in lines
    )


def _job_flags(args: argparse.Namespace, folder: Path) -> list[str]:
    """The flags of a sweep that its jobs need too."""
    flags = {
        "--config-path": folder if args.config_path else None,
        "--config-name": args.config_name,
    }
    return [f"{flag}={value}" for flag, value in flags.items() if value is not None]


def _error_line(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return short_error(error) if isinstance(error, OmegaConfBaseException) else str(error)


def limit_openmp_spin() -> None:
    """Makes OpenMP threads that wait for each other sleep after about a millisecond. Call it before torch is imported.

    By default they spin for longer: on two cores with one other busy program, a step takes 18 times as long, with this
    limit 5 times. Without other programs, the limit has no effect (experiments/speed).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")


class StderrHandler(logging.StreamHandler):
    """Writes to the current `sys.stderr`, which a progress bar replaces."""

    stream = property(lambda self: sys.stderr, lambda self, stream: None)

    def format(self, record: logging.LogRecord) -> str:
        return without_controls(super().format(record))


def _print_error(message: str, code: int) -> int:
    if os.environ.get("HYDRA_FULL_ERROR") == "1" and code not in (ExitCode.DONE, ExitCode.INTERRUPTED):
        raise  # noqa: PLE0704 - only called where an exception is handled
    if code == ExitCode.USER_ERROR:
        env.report_to_parent(message)
        if env.LOCK_FD_ENV in os.environ:  # the parent process prints it
            return code
    if env.get_rank() == 0:  # the other ranks have the same error
        sys.stderr.write(f"{program_name()}: {without_controls(message)}\n")
    return code


def _check_dashes(command: str, flag: str) -> None:
    """Raises `UserError` if the flag is a setting, under its name here or in another program."""
    if flag.startswith("--") and (setting := without_dashes(flag, _settings_of(command))):
        raise UserError(f"{flag}: settings have no dashes: {shlex.quote(setting)}")


def _argument_error(command: str, message: str) -> NoReturn:
    if flag := re.search(r"--[\w.-]+(=\S*)?", message):
        _check_dashes(command, flag[0])
    raise UserError(f"{message}. Settings have the form KEY=VALUE, for example model.n_layer=3; see --help")


def _settings_of(command: str) -> set[str]:
    """The settings and groups of a command, without composing its config."""
    config = yaml.safe_load((config_folder() / f"{command}.yaml").read_text())
    groups = [group for entry in config.pop("defaults") if isinstance(entry, dict) for group in entry]
    # Only train.py has settings of groups.
    nested = {name for names in SYNONYMS.values() for name in names if "." in name} if command == "train" else set()
    return {*config, *(group.removeprefix("optional ") for group in groups), *nested}


def _make_parser() -> argparse.ArgumentParser:
    """The parser of the command line, with Hydra's flags."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("overrides", nargs="*", help="GROUP=OPTION and KEY=VALUE")
    flag = functools.partial(parser.add_argument, action="store_true")
    flag("--help", "-h", help="this command, its config groups and its most important settings")
    flag("--hydra-help", help="Hydra's own groups and flags")
    flag("--version", action="version", version=f"chargpt {__version__}", help="the version of chargpt")
    flag("--run", "-r", help="a single run (default)")
    flag("--multirun", "-m", help="a sweep over all combinations of the given values")
    flag("--resolve", help="with --cfg: resolve interpolations")
    flag("--shell-completion", "-sc", help="install=bash, uninstall=bash, or query=bash")
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"], help="print the config instead of running")
    parser.add_argument("--package", "-p", help="with --cfg: the section of the config to print")
    parser.add_argument("--config-path", "-cp", help="a config folder that replaces conf/")
    parser.add_argument("--config-name", "-cn", help="another top-level config")
    parser.add_argument("--config-dir", "-cd", help="an additional folder with your own configs")
    topics = ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]
    parser.add_argument("--info", "-i", nargs="?", const="all", choices=topics, help="how the config is composed")
    return parser


def _extract_trust(overrides: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """The packages of `trust=`, and the other overrides. Hydra does not see it, so that no file contains it."""
    settings = [override for override in overrides if is_trust(override)]
    names = [name.strip("'\" ") for setting in settings for name in setting.partition("=")[2].strip("[]").split(",")]
    return trusted_packages(filter(None, names)), [override for override in overrides if override not in settings]


def _current_override(override: str) -> str:
    current = migrate_override(override)
    if current != override:
        old_name, new_name = (text.partition("=")[0].lstrip("+~") for text in (override, current))
        log.warning("%s is now called %s; the old name is accepted until 0.4", old_name, new_name)
    return current


def _parse_arguments(parser: argparse.ArgumentParser, command: str) -> argparse.Namespace:
    """Parses the command line."""
    parser.error = functools.partial(_argument_error, command)
    args = parser.parse_intermixed_args()
    for override in args.overrides:  # argparse takes a flag with a space for one
        _check_dashes(command, override)
    flags = [f"--{name.replace('_', '-')}" for name in EXCLUSIVE_FLAGS if getattr(args, name)]
    if len(flags) > 1:
        raise UserError(f"{' and '.join(flags)} cannot be combined: use one of them")
    if args.multirun and command != "train":
        raise UserError(f"-m is only for training: {program_name()} takes one value per setting")
    return args
