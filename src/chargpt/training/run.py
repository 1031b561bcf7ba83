"""One training run, from a composed config to metrics.json."""

import contextlib
import logging
import logging.handlers
import os
import shlex
from collections.abc import Iterator
from typing import Any

import torch
from omegaconf import DictConfig

from chargpt import rank
from chargpt.config.build import REFUSALS
from chargpt.errors import FAILED, INTERRUPTED, Diverged, Failed, Interrupted, Mistake, Pruned
from chargpt.memory import keep_heap
from chargpt.model.loss import bits_per_character, perplexity
from chargpt.sampling.trained import load
from chargpt.training import report, rerun
from chargpt.training.divergence import MOST
from chargpt.training.hardware import device_name
from chargpt.training.meeting import join, leave
from chargpt.training.opening import as_before, open_directory
from chargpt.training.out_of_memory import is_out_of_memory, told, told_by_gpu
from chargpt.training.prepare import Run, prepare
from chargpt.training.run_directory import write_json
from chargpt.training.saved_state import state_of
from chargpt.whole import write_whole

log = logging.getLogger(__name__)


def train(composed: DictConfig) -> None:
    """Trains what the config says; with `on_divergence=rollback`, from the last good checkpoint again.

    Raises:
        Mistake: before anything was written.
        Interrupted: a signal; the run is saved and can go on.
        Diverged: the loss is no longer a number.
    """
    keep_heap()
    diverged_at: list[int] = []
    while True:
        try:
            _train(composed, diverged_at)
            return
        except _GoBack as back:
            diverged_at = back.diverged_at
            composed.resume = str(back.directory)


class _GoBack(Exception):
    """To the last good checkpoint, or to the beginning where there is none."""

    def __init__(self, run: Run):
        self.directory, self.diverged_at = run.directory.path, [*run.rollbacks.steps, run.trainer.global_step]


def _train(composed: DictConfig, diverged_at: list[int]) -> None:
    said = logging.handlers.MemoryHandler(10_000)  # until train.log has a place
    logging.getLogger().addHandler(said)
    try:
        run = prepare(composed, diverged_at)
    finally:
        logging.getLogger().removeHandler(said)
    rank_zero = run.trainer.is_global_zero
    with _recorded(run), contextlib.ExitStack() as until_the_end:
        if rank_zero:
            try:
                if run.checkpoint:
                    until_the_end.enter_context(as_before(run))
                until_the_end.enter_context(open_directory(run, composed, said))
            except OSError as error:
                raise Mistake(f"{run.directory.path} cannot be written: {error.strerror}") from error
            report.opening(run)
            rank.tell_ready()
        join(run.trainer)
        weights_only = True if run.checkpoint else None
        try:
            run.trainer.fit(run.module, datamodule=run.data, ckpt_path=run.checkpoint, weights_only=weights_only)
        except REFUSALS as error:
            if is_out_of_memory(error):
                raise Failed(_out_of_memory(run, error)) from error
            if run.checkpoint and run.module.steps_here == 0:  # Lightning could not take it up
                with state_of(run.checkpoint):
                    raise
            raise
        except Diverged as error:
            if not run.rollbacks.may_go_back():
                raise
            times = len(run.rollbacks.steps) + 1
            log.warning("%s. Going back, with the learning rate halved (%d of %d)", error, times, MOST)
            raise _GoBack(run) from error
        if rank_zero:
            metrics, text = finish(run)
        leave()
    if rank_zero:
        report.closing(run, metrics, text)
        if run.repeated:
            rerun.tell(run.repeated, run.directory)


def _out_of_memory(run: Run, error: BaseException) -> str:
    data, trainer = run.data, run.trainer
    sizes = (data.batch_size, data.block_size, trainer.world_size, trainer.accumulate_grad_batches)
    if (device := trainer.strategy.root_device).type == "cuda":
        return told_by_gpu(error, device, run.model.batch_multiple, *sizes)
    return told(run.module, *sizes)


@contextlib.contextmanager
def _recorded(run: Run) -> Iterator[None]:
    """Writes down in status.json how a run ended that did not end well. Rank 0 speaks for all."""

    def record(state: str, reason: str) -> None:
        if run.trainer.is_global_zero:
            with contextlib.suppress(OSError):  # a full disk has the error's own words
                run.directory.write_status(state, run.trainer.global_step, reason)

    go_on = f"python train.py {shlex.quote(f'resume={run.directory.path}')}"
    try:
        yield
    except Interrupted:
        if run.trainer.is_global_zero:
            raise
        # The others leave in silence: a code other than 0 would have Lightning kill rank 0.
    except (_GoBack, Mistake):
        raise
    except (Diverged, Failed, Pruned) as error:
        record(type(error).__name__.lower(), str(error))
        if run.trainer.is_global_zero or not isinstance(error, Diverged):
            raise
    except KeyboardInterrupt:  # before the first step, or after the last, while the sample is drawn
        record("interrupted", "SIGINT")
        raise Interrupted(f"interrupted. Go on with: {go_on}") from None
    except SystemExit as left:  # a second Ctrl-C: Lightning has torn itself down and leaves with 1
        if not isinstance(left.__context__, KeyboardInterrupt):
            raise
        if not run.trainer.is_global_zero:
            raise SystemExit(INTERRUPTED) from None
        record("interrupted", "a second signal")
        saved = f"go on from the last checkpoint with: {go_on}"
        raise Interrupted(
            f"quit; {saved if run.directory.last.exists() else 'it had no checkpoint yet'}"
        ) from None
    except BaseException as error:
        first = run.directory.first_error()
        record("failed", first or f"{type(error).__name__}: {error}".splitlines()[0])
        if first and rank.OURS in os.environ and os.environ.get("HYDRA_FULL_ERROR") != "1":
            # It is written down, and who started the ranks tells the first of them.
            raise SystemExit(FAILED) from None
        raise


def finish(run: Run) -> tuple[dict[str, Any], str]:
    """Writes the metrics and the sample of a run that reached its end; gives both."""
    directory, curves, data = run.directory, run.curves, run.data
    text = load(directory.best).generate(max_new_tokens=500, seed=run.config["seed"])
    write_whole(directory.sample, text + "\n")
    steps, seconds = run.trainer.global_step, run.clock.seconds()
    tokens = steps * run.trainer.accumulate_grad_batches * data.batch_size * data.block_size
    metrics = {
        "val_loss": curves.best_val_loss,
        "final_val_loss": curves.val_loss,
        "initial_loss": curves.initial_loss,
        "val_bpc": bits_per_character(curves.best_val_loss, data.characters_per_token),
        "val_perplexity": perplexity(curves.best_val_loss),
        "best_step": curves.best_step,
        "steps": steps,
        "rollbacks": len(run.rollbacks.steps),
        **{f"{activity}_seconds": spent for activity, spent in seconds.items()},
        "wall_seconds": sum(seconds.values()),
        "tokens_per_second": tokens / seconds["train"],
        "parameters": run.module.parameter_count,
        "flops_per_token": run.module.flops_per_token,
        "corpus": data.corpus.name,
        "corpus_sha256": data.corpus_sha256,
        "seed": run.config["seed"],
        "devices": run.trainer.world_size,
        "torch": torch.__version__,
        "device": device_name(run.trainer.strategy.root_device),
    }
    write_json(directory.metrics, metrics)
    directory.metrics_before.unlink(missing_ok=True)
    directory.write_status("finished", steps)
    return metrics, text
