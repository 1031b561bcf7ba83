"""The command line: composes the config by Hydra, and turns what comes of the work into an exit code.

A single run is composed here, through Hydra's own loader, so that every mistake is told before a directory is
made; --help, --cfg, --info and sweeps are Hydra's. In a sweep the parent does not train: each job is the plain
run one could have typed, in a process of its own, so that no job leaves anything to the next.
"""

import argparse
import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from chargpt.config.overrides import check, one_line, quote
from chargpt.errors import Diverged, Interrupted, Mistake

DONE, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 3

Work = Callable[[DictConfig], None]


def entry_point(config_name: str) -> Callable[[Work], Callable[[], None]]:
    """Decorates the work of a verb (`train.py`, ...): `main()` composes `conf/<config_name>.yaml` for it."""

    def decorate(work: Work) -> Callable[[], None]:
        @functools.wraps(work)
        def main() -> None:
            sys.exit(_run(work, config_name, Path(sys.argv[0]).resolve()))

        return main

    return decorate


def _run(work: Work, config_name: str, script: Path) -> int:
    logging.basicConfig(format="%(message)s", level=logging.INFO, handlers=[_Console()])
    OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
    try:
        args = _arguments(script)
        conf = script.parent / "conf"
        asks_hydra = args.help or args.hydra_help or args.info or args.shell_completion
        if args.config_dir or args.config_path or args.config_name or asks_hydra:
            return _by_hydra(work, conf, args.config_name or config_name, script)
        with _loader(conf, config_name) as loader:
            check(args.overrides, loader, config_name, args.multirun)
            if args.multirun:  # the sweep's own directory is named by ${hydra:...} too
                sweep = loader.load_configuration(config_name, args.overrides, RunMode.MULTIRUN)
                HydraConfig.instance().set_config(sweep)
            elif not args.cfg:
                config = _compose(loader, config_name, args.overrides)
        if args.multirun or args.cfg:
            return _by_hydra(work, conf, config_name, script)
        work(config)
    except OmegaConfBaseException as error:  # an interpolation on the command line that leads nowhere
        return _tell(script, one_line(error), MISTAKE)
    except Mistake as mistake:
        return _tell(script, f"{mistake}", MISTAKE)
    except Interrupted as interrupted:
        return _tell(script, f"{interrupted}", INTERRUPTED)
    except KeyboardInterrupt:
        return _tell(script, "interrupted", INTERRUPTED)
    except Diverged as diverged:
        return _tell(script, f"{diverged}", FAILED)
    except BrokenPipeError:  # `sample.py | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return DONE


class _Console(logging.StreamHandler):
    """Writes to whatever standard error is at the time: a progress bar puts itself in between."""

    stream = property(lambda self: sys.stderr, lambda self, stream: None)


def _tell(script: Path, message: str, code: int) -> int:
    if os.environ.get("HYDRA_FULL_ERROR") == "1" and code != INTERRUPTED:
        raise  # noqa: PLE0704 - only called where an exception is handled
    sys.stderr.write(f"{script.name}: {message}\n")
    return code


def _arguments(script: Path) -> argparse.Namespace:
    """The command line, its texts and paths quoted. Lightning starts its other ranks with the same words."""
    words = sorted(sys.argv[1:], key=lambda word: word not in ("-m", "--multirun"))  # wherever it was typed
    args = get_args_parser().parse_args(words)
    if args.multirun and script.name != "train.py":
        raise Mistake(f"-m is for training: {script.name} takes one value for each setting")
    if not args.multirun:
        words, args.overrides = [[quote(word) for word in some] for some in (words, args.overrides)]
    sys.argv[1:] = words
    if any(word.startswith("resume=") for word in args.overrides):
        # A run on a text of its own, which has moved, though this command line by itself has no data.path.
        args.overrides = [re.sub(r"^data\.path=", "++data.path=", word) for word in args.overrides]
    return args


@contextlib.contextmanager
def _loader(conf: Path, config_name: str):
    with hydra.initialize_config_dir(str(conf), job_name=config_name, version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


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


def place_run(directory: Path) -> None:
    """Tells Hydra, and through it Lightning's other ranks and `${hydra:...}`, where the run lives."""
    settings = HydraConfig.instance().cfg.hydra
    with read_write(settings), open_dict(settings):
        settings.run.dir = str(directory)
        settings.runtime.output_dir = str(directory.absolute())


def _by_hydra(work: Work, conf: Path, config_name: str, script: Path) -> int:
    codes: list[int] = []
    ours: list[Exception] = []  # carried past Hydra, which would print a traceback for each
    flags = [word for word in sys.argv[1:] if word.startswith("--config-")]

    def job(config: DictConfig) -> float | None:
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            try:
                work(config)
            except (Mistake, Interrupted, Diverged) as error:
                ours.append(error)
            return None
        code, loss = _sweep_job(script, flags)
        codes.append(code)
        return loss

    hydra.main(version_base="1.3", config_path=str(conf), config_name=config_name)(job)()
    if ours:
        raise ours[0]
    return max(codes, default=DONE) and FAILED


def _sweep_job(script: Path, flags: list[str]) -> tuple[int, float | None]:
    """Runs one job of a sweep as the plain run it is; its exit code and validation loss."""
    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    hydra_files = folder / ".hydra"
    for file in hydra_files.glob("*.yaml"):  # the job itself writes them, once it is sure to run
        file.unlink()
    overrides = [*settings.overrides.task, f'hydra.run.dir="{folder}"']
    process = subprocess.Popen([sys.executable, str(script), *flags, *overrides])
    try:
        code = process.wait()
    except KeyboardInterrupt:  # the job got the same signal: let it save itself
        code = process.wait()
    for empty in (hydra_files, folder):
        with contextlib.suppress(OSError):
            empty.rmdir()
    if code == INTERRUPTED:
        raise SystemExit(INTERRUPTED)
    if code:
        logging.getLogger(__name__).warning("job %s failed (exit code %d)", settings.job.num, code)
        return code, None
    metrics = json.loads((folder / "metrics.json").read_text())
    return code, metrics["val_loss"]


def folder_name(overrides: str) -> str:
    """Any overrides as a safe, short folder name; different overrides get different names."""
    safe = re.sub(r"[^\w.=,+-]", "_", overrides, flags=re.ASCII) or "default"
    if safe != overrides or len(safe) > 100:
        safe = f"{safe[:90]}_{hashlib.sha256(overrides.encode()).hexdigest()[:8]}"
    return safe
