"""The command line: composes the config by Hydra, and turns what comes of the work into an exit code.

A single run is composed here, through Hydra's own loader, so that every mistake is told before a directory is
made; --help, --cfg, --info and sweeps are Hydra's. In a sweep the parent does not train: each job is the plain
run one could have typed, in a process of its own, so that no job leaves anything to the next.
"""

import argparse
import contextlib
import functools
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from chargpt import rank
from chargpt.config.overrides import check
from chargpt.config.words import one_line, parse, quote
from chargpt.errors import DONE, FAILED, INTERRUPTED, MISTAKE, Diverged, Failed, Interrupted, Mistake, Pruned

Work = Callable[[DictConfig], None]

# What may be asked for besides a run.
ONE_OF = ("help", "hydra_help", "info", "cfg", "shell_completion", "multirun", "run")

# What ends a verb, and with which code.
CODES: dict[type[BaseException], int] = {
    OmegaConfBaseException: MISTAKE,  # an interpolation on the command line that leads nowhere
    Mistake: MISTAKE,
    Interrupted: INTERRUPTED,
    KeyboardInterrupt: INTERRUPTED,
    Diverged: FAILED,
    Failed: FAILED,
    Pruned: DONE,
    OSError: FAILED,  # a disk that fills, a folder that vanishes
}


def entry_point(config_name: str) -> Callable[[Work], Callable[[], None]]:
    """Decorates the work of a verb (`train.py`, ...): `main()` composes `conf/<config_name>.yaml` for it."""

    def decorate(work: Work) -> Callable[[], None]:
        @functools.wraps(work)
        def main() -> None:
            try:
                code = _run(work, config_name, Path(sys.argv[0]).resolve())
            except SystemExit as left:
                code = left.code if isinstance(left.code, int) else int(left.code is not None)
            except BaseException:
                if not rank.started_as_rank():
                    raise
                traceback.print_exc()
                code = FAILED
            for handler in logging.getLogger().handlers:
                if isinstance(handler, _Console):  # torch cut off in its import would log its statistics at exit
                    handler.setLevel(logging.WARNING)
            rank.exit_process(code)

        return main

    return decorate


def _run(work: Work, config_name: str, script: Path) -> int:
    _let_go_of_the_core()
    logging.basicConfig(format="%(message)s", level=logging.INFO, handlers=[_Console()])
    try:
        args = _arguments(script)
        conf = script.parent / "conf"
        asks_hydra = args.help or args.hydra_help or args.info or args.cfg
        other = args.config_path or args.config_name
        if other and args.multirun:
            raise Mistake(
                "-m takes no --config-name or --config-path; configs of your own come by --config-dir=FOLDER"
            )
        if other or args.shell_completion:
            names = [parse(word).key_or_group for word in args.overrides]
            if args.shell_completion and not {"install", "uninstall", "query"} & {*names}:
                raise Mistake("--shell-completion wants to know what to do: install=bash, for example")
            return _by_hydra(work, conf, args.config_name or config_name, script)
        with _loader(conf, config_name, args.config_dir) as loader:
            check(args.overrides, loader, config_name, args.multirun)
            if args.multirun:
                from chargpt.sweeps.sweep import sweep

                return sweep(config_name, args.overrides, script, args.config_dir)
            if not asks_hydra:
                config = _compose(loader, config_name, args.overrides)
        if asks_hydra:
            return _by_hydra(work, conf, config_name, script)
        work(config)
    except BrokenPipeError:  # `sample.py | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except tuple(CODES) as error:
        return _tell(script, _line(error), next(code for kind, code in CODES.items() if isinstance(error, kind)))
    return DONE


def _line(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return one_line(error) if isinstance(error, OmegaConfBaseException) else str(error)


def _let_go_of_the_core() -> None:
    """Threads that wait for each other sleep after a millisecond or so; to be said before torch loads.

    By default they spin so long that with one other busy program on two cores a step takes 18 times as long; this
    way 9 times, and on a quiet machine as long as before (experiments/speed).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "50000")


class _Console(logging.StreamHandler):
    """Writes to whatever standard error is at the time: a progress bar puts itself in between."""

    stream = property(lambda self: sys.stderr, lambda self, stream: None)


def _tell(script: Path, message: str, code: int) -> int:
    if os.environ.get("HYDRA_FULL_ERROR") == "1" and code not in (DONE, INTERRUPTED):
        raise  # noqa: PLE0704 - only called where an exception is handled
    if code == MISTAKE:
        rank.tell_starter(message)
    if rank.number() == 0:  # the others have met the same
        sys.stderr.write(f"{script.name}: {message}\n")
    return code


def _not_understood(reason: str) -> NoReturn:
    raise Mistake(f"{reason}. Settings are given as KEY=VALUE, for example model.n_layer=3; --help shows them")


def _arguments(script: Path) -> argparse.Namespace:
    """The command line, its texts and paths quoted. Further ranks are started with the same words."""
    words = sorted(sys.argv[1:], key=lambda word: word not in ("-m", "--multirun"))  # wherever it was typed
    parser = get_args_parser()
    parser.error = _not_understood
    args = parser.parse_args(words)
    asked = [name for name in ONE_OF if getattr(args, name)]
    if len(asked) > 1:
        flags = [f"--{name.replace('_', '-')}" for name in asked]
        raise Mistake(f"{' and '.join(flags)} do not go together: take one of them")
    if args.multirun and script.name != "train.py":
        raise Mistake(f"-m is for training: {script.name} takes one value for each setting")
    if not args.multirun:
        words, args.overrides = [[quote(word) for word in some] for some in (words, args.overrides)]
    sys.argv[1:] = words
    if any(word.startswith(("resume=", "rerun=")) for word in args.overrides):
        # A run on a text of its own, which has moved, though this command line by itself has no data.path.
        args.overrides = [re.sub(r"^data\.path=", "++data.path=", word) for word in args.overrides]
    return args


@contextlib.contextmanager
def _loader(conf: Path, config_name: str, more: str | None = None):
    """Hydra's loader of `conf`, and of a folder of the user's own configs (`--config-dir`) before it."""
    with hydra.initialize_config_dir(str(conf), job_name=config_name, version_base="1.3"):
        ours = GlobalHydra.instance().hydra
        if more is not None:
            if not Path(more).is_dir():
                raise Mistake(f"--config-dir={more} is not a folder (looked from {Path.cwd()})")
            path = ours.config_loader.get_search_path()
            path.prepend("command-line", f"file://{Path(more).absolute()}", "schema")
            ours.config_loader = ConfigLoaderImpl(path)
        yield ours.config_loader


def _compose(loader, config_name: str, overrides: list[str]) -> DictConfig:
    """The run's config; Hydra's own part is left where Lightning and `${hydra:...}` look for it."""
    try:
        config = loader.load_configuration(config_name, overrides, RunMode.RUN)
        HydraConfig.instance().set_config(config)
        place_run(Path(str(config.hydra.run.dir)))
        config = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
        if missing := _missing(OmegaConf.to_container(config)):
            raise Mistake(f"{' and '.join(sorted(missing))} must be given: add {sorted(missing)[0]}=...")
    except (HydraException, OmegaConfBaseException) as error:
        raise Mistake(one_line(error)) from error
    return config


def _missing(config: object, path: str = "") -> set[str]:
    """The settings that have no value (`???`): somebody must say them."""
    if isinstance(config, dict):
        return set().union(*(_missing(v, f"{path}.{k}".lstrip(".")) for k, v in config.items()))
    return {path} if config == "???" else set()


def task_words() -> list[str]:
    """The words of this run, as typed: an interpolation in them is not looked up."""
    return OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)


def chosen_place() -> bool:
    """Whether the user has named the run's directory."""
    words = OmegaConf.to_container(HydraConfig.get().overrides.hydra, resolve=False)
    return any(word.lstrip("+").startswith("hydra.run.dir=") for word in words)


def place_run(directory: Path) -> None:
    """Tells Hydra, and through it `${hydra:...}`, where the run lives."""
    settings = HydraConfig.instance().cfg.hydra
    with read_write(settings), open_dict(settings):
        settings.run.dir = str(directory)
        settings.runtime.output_dir = str(directory.absolute())


def _by_hydra(work: Work, conf: Path, config_name: str, script: Path) -> int:
    ours: list[Exception] = []  # carried past Hydra, which would print a traceback for each

    def job(config: DictConfig) -> None:
        try:
            work(config)
        except (Mistake, Interrupted, Diverged, Failed, Pruned) as error:
            ours.append(error)

    hydra.main(version_base="1.3", config_path=str(conf), config_name=config_name)(job)()
    if ours:
        raise ours[0]
    return DONE
