"""hydra/sweeper=random|tpe|halving: runs trials sampled by Optuna instead of a grid, with any launcher.

The study is stored in SQLite next to the runs, and the run directory of a trial is a function of its values: the same
command resumes both. An interrupted trial is marked as failed and replaced by a trial with the same values, which
resumes its run.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from filelock import FileLock
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from chargpt.config.compose import packages_of
from chargpt.errors import ExitCode, UserError
from chargpt.runs.directory import RunDirectory
from chargpt.runs.score import Monitor, score_of
from chargpt.sweeps.naming import folder_name, job_name
from chargpt.sweeps.trials import NOT_COUNTED, counted_trials, replace_interrupted_trials

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

DIRECTORY_KEY = "home"  # user attribute of a trial: its run directory
DIRECTION: dict[str, Literal["minimize", "maximize"]] = {"min": "minimize", "max": "maximize"}
MAX_DRAWS = 200  # repeated draws after which the search space is considered exhausted


class OptunaSweeper(Sweeper):
    """Optuna's ask-and-tell interface around a Hydra launcher. The value of a trial is its run's score.

    Args:
        n_trials: the number of trials of the study, over all invocations of the command.
        n_jobs: the number of trials that are sampled together; None for as many as the launcher runs in parallel.
        sampler: an Optuna sampler, without its seed.
        pruner: an Optuna pruner, called after each validation; None to run every trial to its end.
        seed: trial k is a function of the seed, k and the previous trials.
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
            import optuna  # noqa: PLC0415 - optional dependency
        except ImportError:
            raise HydraException("this hydra/sweeper requires Optuna: pip install optuna") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        overrides = OverridesParser.create(config_loader=self._context.config_loader).parse_overrides(arguments)
        try:
            space = {o.get_key_element(): distribution(o) for o in overrides if o.is_sweep_override()}
        except ValueError as error:
            raise HydraException(f"the search space is invalid: {error}") from error
        if not space:
            raise HydraException("the search space is empty: add for example model.dropout=interval(0.0,0.3)")
        fixed = [text for text, o in zip(arguments, overrides, strict=True) if not o.is_sweep_override()]
        self._monitor = self._monitor_of(space)
        folder = Path(self._config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".search.lock"):  # the same command in another shell waits until this one is done
            storage = f"sqlite:///{(folder / 'search.db').absolute()}"
            name, direction = self._study_name(fixed, space), DIRECTION[self._monitor.mode]
            study = optuna.create_study(study_name=name, storage=storage, direction=direction, load_if_exists=True)
            replace_interrupted_trials(study)
            max_parallel_jobs = self._n_jobs or getattr(self._launcher, "max_parallel_jobs", lambda overrides: 1)(fixed)
            while (missing := self._n_trials - len(counted_trials(study))) > 0:
                if not self._run_batch(study, storage, space, fixed, min(missing, max_parallel_jobs)):
                    log.info("the search space is exhausted: all its values have been tried")
                    break
            self._log_result(study)
            packages = packages_of(self._config)
            return [[_job_return(trial, packages) for trial in counted_trials(study)]]

    def _monitor_of(self, space: dict) -> Monitor:
        """The monitor that compares the trials."""
        keys = [key.lstrip("+").partition("@")[0].replace("/", ".") for key in space]
        if {"monitor", "mode"} & {*keys}:
            raise HydraException("a search compares its trials by one monitor: set monitor and mode to one value each")
        monitor = Monitor.of(self._config)
        tokenizers_differ = any(f"{key}.".startswith("data.tokenizer.") for key in keys)
        return monitor.between_tokenizers if tokenizers_differ else monitor

    def _study_name(self, fixed: list[str], space: dict) -> str:
        """The name of the study: a function of the search space, the fixed overrides, the sampler and the pruner."""
        settings = [OmegaConf.to_yaml(config) if config else "" for config in (self._sampler, self._pruner)]
        if self._monitor != Monitor():  # versions before 0.3 had only the default monitor
            settings.append(str(self._monitor))
        return job_name([*fixed, f"trainer.max_steps={self._config.trainer.max_steps}"], ["trainer.max_steps"]) + (
            folder_name(str(sorted(map(str, space.items()))) + "".join(settings))
        )

    def _run_batch(self, study: "optuna.Study", storage: str, space: dict, fixed: list[str], size: int) -> bool:
        """Samples and runs up to `size` trials and reports them to the study; False if the space is exhausted."""
        tried = {_params_key(trial.params) for trial in counted_trials(study)}
        trials, jobs = [], []
        for _ in range(size):
            if (trial := self._sample_trial(study, space, tried)) is None:
                break
            tried.add(_params_key(trial.params))
            overrides = [*fixed, *(f"{key}={_format_value(value)}" for key, value in trial.params.items())]
            trial.set_user_attr(DIRECTORY_KEY, self._trial_directory(overrides))
            if self._pruner:
                overrides += self._pruning_overrides(storage, study.study_name, trial.number)
            trials.append(trial)
            jobs.append(overrides)
        if not trials:
            return False
        results: Sequence[JobReturn] = self._launcher.launch(jobs, initial_job_idx=trials[0].number)
        for trial, result in zip(trials, results, strict=True):
            _report_result(study, trial, result.return_value, self._monitor)
        return True

    def _sample_trial(self, study: "optuna.Study", space: dict, tried: set) -> "optuna.Trial | None":
        """A trial with values that were not tried before; None after `MAX_DRAWS` draws without one."""
        from optuna.trial import TrialState  # noqa: PLC0415 - optional dependency

        from chargpt.utils.seeding import fold_in  # noqa: PLC0415 - torch takes seconds to import

        for _ in range(MAX_DRAWS):
            number = len(study.get_trials(deepcopy=False))
            study.sampler = instantiate(self._sampler, seed=fold_in(self._seed, number) % 2**32)
            trial = study.ask(space)
            if _params_key(trial.params) not in tried:
                return trial
            trial.set_user_attr(NOT_COUNTED, True)  # a repeated draw
            study.tell(trial, state=TrialState.FAIL)
        return None

    def _trial_directory(self, overrides: list[str]) -> str:
        config = self._context.config_loader.load_sweep_config(self._config, overrides)
        return str((Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir).absolute())

    def _pruning_overrides(self, storage: str, study: str, trial: int) -> list[str]:
        """The overrides that add the callback which reports to the study."""
        settings = cast(dict[str, Any], OmegaConf.to_container(self._pruner, resolve=True))  # of a DictConfig, a dict
        pruner = ",".join(f"{key}:{value}" for key, value in settings.items())
        return [
            "+callbacks.pruning._target_=chargpt.sweeps.pruning.PruningCallback",
            f"+callbacks.pruning.monitor='{self._monitor.name}'",
            f"+callbacks.pruning.storage='{storage}'",
            f"+callbacks.pruning.study='{study}'",
            f"+callbacks.pruning.trial={trial}",
            f"+callbacks.pruning.pruner={{{pruner}}}",
        ]

    def _log_result(self, study: "optuna.Study") -> None:
        from optuna.trial import TrialState  # noqa: PLC0415 - optional dependency

        completed = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        log.info("%d trials, %d of them completed", len(counted_trials(study)), len(completed))
        if completed:
            values = " ".join(f"{key}={value}" for key, value in study.best_trial.params.items())
            log.info("best trial: %s   %s %.4f", values, self._monitor.label, study.best_value)


def distribution(override: Override) -> "optuna.distributions.BaseDistribution":
    """Converts a sweep of Hydra's override syntax to an Optuna distribution.

    `interval(a,b)` is uniform, `int(interval(a,b))` uniform over integers, and `tag(log,interval(a,b))` log-uniform;
    `range` keeps its step; `choice(...)`, comma-separated values and `glob` are categorical.
    """
    from optuna.distributions import (  # noqa: PLC0415 - optional dependency
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        low, high = cast(float, value.start), cast(float, value.end)  # Hydra's parser sets both
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log="log" in value.tags)
        return FloatDistribution(low, high, log="log" in value.tags)
    if isinstance(value, RangeSweep) and isinstance(value.start, int) and isinstance(value.step, int):
        last = max(value.range())
        return IntDistribution(min(value.range()), last, step=abs(value.step))
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def _params_key(params: dict[str, Any]) -> tuple:
    return tuple(sorted((key, _format_value(value)) for key, value in params.items()))


def _format_value(value: Any) -> str:
    """A value in the syntax of an override: four digits are enough to distinguish learning rates."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _report_result(study: "optuna.Study", trial: "optuna.Trial", result: dict[str, Any], monitor: Monitor) -> None:
    from optuna.trial import TrialState  # noqa: PLC0415 - optional dependency

    state = RunDirectory(result["directory"]).read_status()["state"]
    score = None if result["metrics"] is None else score_of(result["metrics"], monitor)
    if score is not None:
        study.tell(trial, score)
    elif result["code"] == ExitCode.INTERRUPTED:  # with a parallel launcher; the next invocation replaces the trial
        raise SystemExit(ExitCode.INTERRUPTED)
    elif result["code"] == ExitCode.USER_ERROR and not study.get_trials(
        states=[TrialState.COMPLETE, TrialState.PRUNED]
    ):
        trial.set_user_attr(NOT_COUNTED, True)  # its values are tried again once the user has corrected the error
        study.tell(trial, state=TrialState.FAIL)
        raise UserError(result["reason"])
    else:
        if result["metrics"] is not None:
            log.warning("trial %d counts as failed: its metrics.json has no %s", trial.number, monitor.name)
        study.tell(trial, state=TrialState.PRUNED if state == "pruned" else TrialState.FAIL)


def _job_return(trial: "optuna.trial.FrozenTrial", packages: list[str]) -> JobReturn:
    from optuna.trial import TrialState  # noqa: PLC0415 - optional dependency

    code = int(trial.state == TrialState.FAIL)
    job_return = JobReturn(status=JobStatus.COMPLETED)
    job_return.return_value = {
        "directory": trial.user_attrs[DIRECTORY_KEY],
        "code": code,
        "metrics": None,
        "reason": "",
        "packages": packages,
    }
    return job_return
