"""hydra/sweeper=random|tpe|halving: trials drawn by Optuna instead of a grid, run by whatever launcher there is.

The study lives in SQLite beside the runs, and each trial's run in a home that is a function of its values: the
same command goes on with both. A trial that was cut off is marked as failed, and made up for by one with the same
values, which goes on where it stopped.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from chargpt.runs.score import Monitor, score_of
from chargpt.sweeps.naming import folder_name, job_name
from chargpt.sweeps.trials import CUT_OFF, counted_trials, replace_interrupted_trials

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

FOLDER_KEY = "home"
DIRECTION = {"min": "minimize", "max": "maximize"}
DRAWS = 200  # before values that were not tried are taken not to exist


class OptunaSweeper(Sweeper):
    """Optuna's ask and tell around a Hydra launcher; a trial's value is its score by the monitor of the config.

    Args:
        n_trials: trials of the whole study, over all times that the command is run.
        n_jobs: trials that are drawn together; None for as many as the launcher runs side by side.
        sampler: an Optuna sampler, without its seed.
        pruner: an Optuna pruner, asked at each validation; None if every trial is run to its end.
        seed: trial k is drawn from it, k, and the trials before.
    """

    def __init__(self, n_trials: int, n_jobs: int | None, sampler: DictConfig, pruner: DictConfig | None, seed: int):
        if n_trials < 1 or (n_jobs is not None and n_jobs < 1):
            raise HydraException(f"hydra.sweeper: n_trials={n_trials} and n_jobs={n_jobs} must be 1 or more")
        self._n_trials, self._n_jobs, self._seed = n_trials, n_jobs, seed
        self._sampler, self._pruner = sampler, pruner

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._context, self._config = hydra_context, config
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[list[JobReturn]]:
        try:
            import optuna
            from filelock import FileLock
        except ImportError as error:
            raise HydraException("a search needs Optuna: pip install 'chargpt[search]'") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        overrides = OverridesParser.create(config_loader=self._context.config_loader).parse_overrides(arguments)
        try:
            space = {o.get_key_element(): distribution(o) for o in overrides if o.is_sweep_override()}
        except ValueError as error:
            raise HydraException(f"the search space cannot be: {error}") from error
        if not space:
            raise HydraException("a search needs something to search: for example model.dropout=interval(0.0,0.3)")
        fixed = [o.input_line for o in overrides if not o.is_sweep_override()]
        self._monitor = self._monitor_of(space)
        folder = Path(self._config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".search.lock"):  # the same search from another shell waits, and finds it done
            storage = f"sqlite:///{(folder / 'search.db').absolute()}"
            name, direction = self._name(fixed, space), DIRECTION[self._monitor.mode]
            study = optuna.create_study(study_name=name, storage=storage, direction=direction, load_if_exists=True)
            replace_interrupted_trials(study)
            max_parallel_jobs = self._n_jobs or getattr(self._launcher, "max_parallel_jobs", lambda words: 1)(fixed)
            while (missing := self._n_trials - len(counted_trials(study))) > 0:
                if not self._batch(study, storage, space, fixed, min(missing, max_parallel_jobs)):
                    log.info("there are no values left that were not tried")
                    break
            self._report(study)
            return [[_returned(trial) for trial in counted_trials(study)]]

    def _monitor_of(self, space: dict) -> Monitor:
        """What the trials are compared by."""
        keys = [key.lstrip("+").partition("@")[0].replace("/", ".") for key in space]
        if {"monitor", "mode"} & {*keys}:
            raise HydraException("a search compares its trials by one monitor: give monitor and mode one value each")
        monitor = Monitor.of(self._config)
        other = any(f"{key}.".startswith("data.tokenizer.") for key in keys)
        return monitor.between_tokenizers if other else monitor

    def _name(self, fixed: list[str], space: dict) -> str:
        """Of the study: another search, or the same of another model, is another study in the same file."""
        how = [OmegaConf.to_yaml(part) if part else "" for part in (self._sampler, self._pruner)]
        if self._monitor != Monitor():  # the only one before 0.3
            how.append(str(self._monitor))
        return job_name([*fixed, f"trainer.max_steps={self._config.trainer.max_steps}"], ["trainer.max_steps"]) + (
            folder_name(str(sorted(map(str, space.items()))) + "".join(how))
        )

    def _batch(self, study: "optuna.Study", storage: str, space: dict, fixed: list[str], size: int) -> bool:
        """Draws up to `size` trials, runs them, tells the study how they ended; False if there are none left."""
        tried = {_key(trial.params) for trial in counted_trials(study)}
        trials, jobs = [], []
        for _ in range(size):
            if (trial := self._draw(study, space, tried)) is None:
                break
            tried.add(_key(trial.params))
            words = [*fixed, *(f"{key}={_format_value(value)}" for key, value in trial.params.items())]
            trial.set_user_attr(FOLDER_KEY, self._trial_directory(words))
            if self._pruner:
                words += self._pruning(storage, study.study_name, trial.number)
            trials.append(trial)
            jobs.append(words)
        if not trials:
            return False
        results: Sequence[JobReturn] = self._launcher.launch(jobs, initial_job_idx=trials[0].number)
        for trial, result in zip(trials, results, strict=True):
            _report_outcome(study, trial, result.return_value, self._monitor)
        return True

    def _draw(self, study: "optuna.Study", space: dict, tried: set) -> "optuna.Trial | None":
        """A trial with values that were not tried; None if none turns up."""
        from optuna.trial import TrialState

        from chargpt.utils.seeding import fold_in

        for _ in range(DRAWS):
            number = len(study.get_trials(deepcopy=False))
            study.sampler = instantiate(self._sampler, seed=fold_in(self._seed, number) % 2**32)
            trial = study.ask(space)
            if _key(trial.params) not in tried:
                return trial
            trial.set_user_attr(CUT_OFF, True)  # drawn once more: it does not count
            study.tell(trial, state=TrialState.FAIL)
        return None

    def _trial_directory(self, words: list[str]) -> str:
        config = self._context.config_loader.load_sweep_config(self._config, words)
        return str((Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir).absolute())

    def _pruning(self, storage: str, study: str, trial: int) -> list[str]:
        """The callback that reports to the study, as words for the job."""
        settings = OmegaConf.to_container(self._pruner, resolve=True)
        pruner = ",".join(f"{key}:{value}" for key, value in settings.items())
        return [
            "+callbacks.pruning._target_=chargpt.sweeps.pruning.PruningCallback",
            f"+callbacks.pruning.monitor='{self._monitor.name}'",
            f"+callbacks.pruning.storage='{storage}'",
            f"+callbacks.pruning.study='{study}'",
            f"+callbacks.pruning.trial={trial}",
            f"+callbacks.pruning.pruner={{{pruner}}}",
        ]

    def _report(self, study: "optuna.Study") -> None:
        from optuna.trial import TrialState

        finished = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        log.info("%d trials, %d of them run to their end", len(counted_trials(study)), len(finished))
        if finished:
            values = " ".join(f"{key}={value}" for key, value in study.best_trial.params.items())
            log.info("the best: %s   %s %.4f", values, self._monitor.label, study.best_value)


def distribution(override: Override) -> "optuna.distributions.BaseDistribution":
    """What a sweep on the command line means to Optuna.

    `interval(a,b)` is drawn evenly, `int(interval(a,b))` in whole numbers, and `tag(log,interval(a,b))` by its
    logarithm; `range` keeps its step; `choice(...)`, commas and `glob` are choices.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        whole = isinstance(value.start, int) and isinstance(value.end, int)
        kind = IntDistribution if whole else FloatDistribution
        return kind(value.start, value.end, log="log" in value.tags)
    if isinstance(value, RangeSweep) and isinstance(value.start, int) and isinstance(value.step, int):
        last = max(value.range())
        return IntDistribution(min(value.range()), last, step=abs(value.step))
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def _key(params: dict[str, Any]) -> tuple:
    return tuple(sorted((key, _format_value(value)) for key, value in params.items()))


def _format_value(value: Any) -> str:
    """A value as one would type it: four digits are enough to tell learning rates apart."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _report_outcome(study: "optuna.Study", trial: "optuna.Trial", outcome: dict[str, Any], monitor: Monitor) -> None:
    from optuna.trial import TrialState

    from chargpt.errors import ExitCode, UserError
    from chargpt.runs.directory import RunDirectory

    state = RunDirectory(outcome["home"]).read_status()["state"]
    score = None if outcome["metrics"] is None else score_of(outcome["metrics"], monitor)
    if score is not None:
        study.tell(trial, score)
    elif outcome["code"] == ExitCode.INTERRUPTED:  # where other jobs run beside it; the next start makes up for it
        raise SystemExit(ExitCode.INTERRUPTED)
    elif outcome["code"] == ExitCode.USER_ERROR and not study.get_trials(
        states=[TrialState.COMPLETE, TrialState.PRUNED]
    ):
        trial.set_user_attr(CUT_OFF, True)  # what was asked cannot be done: once mended, it is to be tried
        study.tell(trial, state=TrialState.FAIL)
        raise UserError(outcome["reason"])
    else:
        if outcome["metrics"] is not None:
            log.warning("trial %d counts as failed: its metrics.json has no %s", trial.number, monitor.name)
        study.tell(trial, state=TrialState.PRUNED if state == "pruned" else TrialState.FAIL)


def _returned(trial: "optuna.trial.FrozenTrial") -> JobReturn:
    from optuna.trial import TrialState

    code = int(trial.state == TrialState.FAIL)
    outcome = {"home": trial.user_attrs[FOLDER_KEY], "code": code, "metrics": None, "reason": ""}
    returned = JobReturn(status=JobStatus.COMPLETED)
    returned.return_value = outcome
    return returned
