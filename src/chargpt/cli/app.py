"""The command line: parses it, has Hydra compose the config, and turns the outcome of the work into an exit code.

Every mistake is reported before a directory is made. In a sweep the parent does not train: each job is the plain
run that one could have typed, in a process of its own, so that no job leaves anything to the next.
"""

import argparse
import functools
import logging
import os
import re
import string
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from chargpt.checkpoint.migrations import migrate_override
from chargpt.config.compose import check_overrides, compose, compose_unchecked, searchpath
from chargpt.config.overrides import parse, quote, short_error
from chargpt.config.schema import Groups
from chargpt.distributed import env
from chargpt.errors import DivergenceError, ExitCode, Interrupted, TrainingError, TrialPruned, UserError
from chargpt.version import __version__

log = logging.getLogger(__name__)

Command = Callable[[DictConfig], None]

# What may be asked for besides a run.
EXCLUSIVE_FLAGS = ("help", "hydra_help", "info", "cfg", "shell_completion", "multirun", "run")

# What ends a verb, and with which code.
EXIT_CODES: dict[type[BaseException], int] = {
    OmegaConfBaseException: ExitCode.USER_ERROR,  # an interpolation on the command line that leads nowhere
    UserError: ExitCode.USER_ERROR,
    Interrupted: ExitCode.INTERRUPTED,
    KeyboardInterrupt: ExitCode.INTERRUPTED,
    DivergenceError: ExitCode.FAILED,
    TrainingError: ExitCode.FAILED,
    TrialPruned: ExitCode.DONE,
    OSError: ExitCode.FAILED,  # a disk that fills, a folder that vanishes
}


def entry_point(config_name: str) -> Callable[[Command], Callable[[], None]]:
    """Decorates the work of a verb (`train.py`, ...): `main()` composes `conf/<config_name>.yaml` for it."""

    def decorate(work: Command) -> Callable[[], None]:
        @functools.wraps(work)
        def main() -> None:
            try:
                code = _run(work, config_name, Path(sys.argv[0]).resolve())
            except SystemExit as left:
                code = left.code if isinstance(left.code, int) else int(left.code is not None)
            except BaseException:
                if not env.launched_as_rank():
                    raise
                traceback.print_exc()
                code = ExitCode.FAILED
            for handler in logging.getLogger().handlers:
                if isinstance(handler, _StderrHandler):  # torch cut off in its import would log its statistics at exit
                    handler.setLevel(logging.WARNING)
            env.exit_process(code)

        return main

    return decorate


def _run(work: Command, config_name: str, script: Path) -> int:
    _limit_openmp_spin()
    logging.basicConfig(format="%(message)s", level=logging.INFO, handlers=[_StderrHandler()])
    try:
        parser = _make_parser()
        args = _parse_arguments(parser, script.name)
        folder, name = script.parent / (args.config_path or "conf"), args.config_name or config_name
        if not folder.is_dir():
            raise UserError(f"--config-path={args.config_path} is not a folder (looked from {script.parent})")
        overrides = [*searchpath(args.config_dir, args.overrides), *args.overrides]
        with hydra.initialize_config_dir(str(folder), job_name=config_name, version_base="1.3"):
            if args.multirun:
                check_overrides(name, overrides, sweep=True)
                from chargpt.sweeps.sweep import sweep

                return sweep(name, overrides, script, _job_flags(args, folder))
            if asked := next((flag for flag in EXCLUSIVE_FLAGS[:-2] if getattr(args, flag)), None):
                _print_info(asked, parser, args, name, overrides)
                return ExitCode.DONE
            config = compose(name, overrides)
        work(config)
    except BrokenPipeError:  # `sample.py | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except tuple(EXIT_CODES) as error:
        return _print_error(
            script, _error_line(error), next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))
        )
    return ExitCode.DONE


def _print_info(
    asked: str, parser: argparse.ArgumentParser, args: argparse.Namespace, name: str, overrides: list[str]
) -> None:
    """Prints what a flag asks for. All but the help are Hydra's own answers."""
    app: Any = GlobalHydra.instance().hydra
    try:
        if asked == "shell_completion":
            if not {"install", "uninstall", "query"} & {parse(word).key_or_group for word in args.overrides}:
                raise UserError("--shell-completion wants to know what to do: install=bash, for example")
            app.shell_completion(name, overrides)
        elif asked == "hydra_help":
            args.overrides = [word for word in overrides if word.startswith("hydra")]
            app.hydra_help(None, parser, args)
        elif asked == "info":
            check_overrides(name, overrides)
            app.show_info(args.info, name, overrides)
        elif asked == "cfg":
            check_overrides(name, overrides)
            app.show_cfg(name, overrides, args.cfg, args.package, args.resolve)
        else:
            _, schema = check_overrides(name, overrides)
            config = compose_unchecked(name, overrides)
            page = string.Template(HydraConfig.get().help.template)
            print(page.substitute(APP_CONFIG_GROUPS=_group_choices(schema.groups), CONFIG=OmegaConf.to_yaml(config)))
    except UserError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(short_error(error)) from error


def _group_choices(groups: Groups) -> str:
    choices = {group: groups.options(group) for group in groups.names}
    return "".join(f"{group}: {', '.join(sorted(names))}\n" for group, names in sorted(choices.items()) if names)


def _job_flags(args: argparse.Namespace, folder: Path) -> list[str]:
    """The flags of a sweep that its jobs need as well."""
    given = {
        "--config-path": folder if args.config_path else None,
        "--config-name": args.config_name,
    }
    return [f"{flag}={value}" for flag, value in given.items() if value is not None]


def _error_line(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return short_error(error) if isinstance(error, OmegaConfBaseException) else str(error)


def _limit_openmp_spin() -> None:
    """Threads that wait for each other sleep after a millisecond or so; to be said before torch loads.

    By default they spin so long that with one other busy program on two cores a step takes 18 times as long; this
    way 9 times, and on a quiet machine as long as before (experiments/speed).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "50000")


class _StderrHandler(logging.StreamHandler):
    """Writes to whatever standard error is at the time: a progress bar puts itself in between."""

    stream = property(lambda self: sys.stderr, lambda self, stream: None)


def _print_error(script: Path, message: str, code: int) -> int:
    if os.environ.get("HYDRA_FULL_ERROR") == "1" and code not in (ExitCode.DONE, ExitCode.INTERRUPTED):
        raise  # noqa: PLE0704 - only called where an exception is handled
    if code == ExitCode.USER_ERROR:
        env.report_to_parent(message)
    if env.get_rank() == 0:  # the others have met the same
        sys.stderr.write(f"{script.name}: {message}\n")
    return code


def _argument_error(reason: str) -> NoReturn:
    raise UserError(f"{reason}. Settings are given as KEY=VALUE, for example model.n_layer=3; --help shows them")


def _make_parser() -> argparse.ArgumentParser:
    """Hydra's flags."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.error = _argument_error
    parser.add_argument("overrides", nargs="*", help="GROUP=CHOICE and KEY=VALUE")
    flag = functools.partial(parser.add_argument, action="store_true")
    flag("--help", "-h", help="the command, its groups and the settings that matter most")
    flag("--hydra-help", help="Hydra's own groups and flags")
    flag("--version", action="version", version=f"chargpt {__version__}", help="the version of this bench")
    flag("--run", "-r", help="run once: the default")
    flag("--multirun", "-m", help="a sweep: every combination of the values given")
    flag("--resolve", help="with --cfg: look interpolations up")
    flag("--shell-completion", "-sc", help="install=bash, uninstall=bash, or query=bash")
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"], help="print the config instead of running")
    parser.add_argument("--package", "-p", help="with --cfg: the part of the config to print")
    parser.add_argument("--config-path", "-cp", help="a folder of configs in place of conf/")
    parser.add_argument("--config-name", "-cn", help="another top-level config")
    parser.add_argument("--config-dir", "-cd", help="a folder of your own configs beside conf/")
    topics = ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]
    parser.add_argument("--info", "-i", nargs="?", const="all", choices=topics, help="how the config comes about")
    return parser


def _current_override(override: str) -> str:
    current = migrate_override(override)
    if current != override:
        names = " is now called ".join(word.partition("=")[0].lstrip("+~") for word in (override, current))
        log.warning("%s; the old name is accepted until 0.4", names)
    return current


def _parse_arguments(parser: argparse.ArgumentParser, script_name: str) -> argparse.Namespace:
    """The command line, its texts and paths quoted."""
    args = parser.parse_intermixed_args()
    asked = [name for name in EXCLUSIVE_FLAGS if getattr(args, name)]
    if len(asked) > 1:
        flags = [f"--{name.replace('_', '-')}" for name in asked]
        raise UserError(f"{' and '.join(flags)} do not go together: take one of them")
    if args.multirun and script_name != "train.py":
        raise UserError(f"-m is for training: {script_name} takes one value for each setting")
    if not args.multirun:
        args.overrides = [quote(word) for word in args.overrides]
    args.overrides = [_current_override(word) for word in args.overrides]
    if any(word.startswith(("resume=", "rerun=")) for word in args.overrides):
        # A run on a text of its own, which has moved, though this command line by itself has no data.path.
        args.overrides = [re.sub(r"^data\.path=", "++data.path=", word) for word in args.overrides]
    return args
