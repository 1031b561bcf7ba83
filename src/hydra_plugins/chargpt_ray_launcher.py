"""hydra/launcher=gpus: runs the jobs of a sweep in parallel, each on its own devices, scheduled by Ray.

Each job requests the resources that its config requires, and logs one line when it starts and one when it ends. With
Hydra's Ray launcher, all jobs of a sweep have the same resources, and all their output is printed.
"""

import contextlib
import logging
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, run_job, setup_globals
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from chargpt.distributed.env import num_processes
from chargpt.runs import lock
from chargpt.runs.directory import RunDirectory
from chargpt.runs.score import Monitor, score_of

log = logging.getLogger(__name__)

# No usage statistics; devices stay visible to jobs without GPUs; the priority of a run without Ray; and a job is not
# killed together with the worker that waits for it, so that it can save a checkpoint.
RAY_ENV = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
RAY_ENV |= {"RAY_worker_niceness": "0", "RAY_kill_child_processes_on_worker_exit": "0"}
POLL_SECONDS = 0.5  # between two checks of which jobs have started
SAVE_SECONDS = 60.0  # for interrupted jobs to save a checkpoint


class RayLauncher(Launcher):
    """Runs as many jobs in parallel as the devices allow.

    Args:
        ray: `init` and `remote`, the arguments of `ray.init` (`address` for a cluster) and of `ray.remote`.
        gpus: GPUs per process of a job, or a fraction such as 0.25; null: one if the machine has GPUs and the job
            uses them, else none.
        cpus: CPU cores and threads per process of a job; null: one, or with GPUs an equal share of the cores.
    """

    def __init__(self, ray: DictConfig, gpus: float | None = None, cpus: int | None = None):
        # Of a DictConfig, the container is a dict.
        self._ray = cast(dict[str, dict[str, Any]], OmegaConf.to_container(ray, resolve=True))
        self._gpus, self._cpus = gpus, cpus

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._context, self._task, self._config = hydra_context, task_function, config

    def max_parallel_jobs(self, overrides: list[str]) -> int:
        """The number of jobs with these overrides that run in parallel."""
        available = self._start()
        _, _, requested = self._prepare(0, overrides, available)
        kinds = (("GPU", "num_gpus"), ("CPU", "num_cpus"))
        return max(1, int(min(available[kind] / requested[key] for kind, key in kinds if requested[key])))

    def _start(self) -> Mapping[str, float]:
        """Starts Ray, or connects to it, and returns the available resources."""
        try:
            import ray  # noqa: PLC0415 - optional dependency
        except ImportError:
            raise HydraException("hydra/launcher=gpus requires Ray: pip install ray") from None
        setup_globals()
        configure_log(self._config.hydra.hydra_logging, self._config.hydra.verbose)
        for name, value in RAY_ENV.items():
            os.environ.setdefault(name, value)
        if not ray.is_initialized():
            with contextlib.chdir("/"):  # Ray's workers import from the directory in which Ray was started
                ray.init(**self._ray["init"])
        return ray.cluster_resources()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        available = self._start()
        import ray  # noqa: PLC0415 - optional dependency

        jobs = [
            self._prepare(number, list(overrides), available)
            for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        log.info("%d job%s on %s", len(jobs), "s" if len(jobs) > 1 else "", _describe_devices(available))
        waiting = {}
        common = set.intersection(*(set(overrides) for overrides in job_overrides)) if len(jobs) > 1 else set()
        for number, config, resources in jobs:
            job = ray.remote(**self._ray["remote"] | resources)(_run)
            reference = job.remote(self._context, self._task, config, Singleton.get_state(), Path.cwd())
            waiting[reference] = _JobStatus(number, config, common)
        received: list[int] = []  # not an exception: Ray's code sometimes swallows it
        numbers = (signal.SIGINT, signal.SIGTERM)
        handlers = {number: signal.signal(number, lambda number, _: received.append(number)) for number in numbers}
        try:
            return self._wait(waiting, received)
        except KeyboardInterrupt:
            log.info("interrupted: waiting until the jobs have saved their checkpoints")
            ray.shutdown()  # the jobs stop when their parent process exits
            deadline = time.monotonic() + SAVE_SECONDS
            while any(job.is_training() for job in waiting.values()) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
            raise
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _prepare(
        self, number: int, overrides: list[str], available: Mapping[str, float]
    ) -> tuple[int, DictConfig, dict[str, Any]]:
        """The number and config of a job, and the resources that it requests from Ray."""
        config = self._context.config_loader.load_sweep_config(self._config, overrides)
        count = num_processes(config.trainer.devices) or 1
        uses_gpus = available.get("GPU", 0) > 0 and config.trainer.accelerator != "cpu"
        gpus = self._gpus if self._gpus is not None else float(uses_gpus)
        if count > 1 and gpus and gpus != int(gpus):
            raise HydraException(
                f"job {number} has trainer.devices={count} and hydra.launcher.gpus={gpus:g}: several processes "
                f"cannot share a GPU. Set hydra.launcher.gpus=1, or trainer.devices=1"
            )
        cpus = self._cpus
        if cpus is None:
            cpus = max(1, int(available["CPU"] // (available["GPU"] / gpus))) if gpus else 1
        resources = {"num_gpus": gpus * count, "num_cpus": cpus * count, "max_retries": 0}
        for kind, key in (("GPU", "num_gpus"), ("CPU", "num_cpus")):
            if resources[key] > available.get(kind, 0):
                raise HydraException(
                    f"job {number} requests {resources[key]:g} {kind}s, but there are {available.get(kind, 0):g}: "
                    f"lower trainer.devices, or hydra.launcher.{kind.lower()}s"
                )
        with read_write(config), open_dict(config):
            config.hydra.job.id, config.hydra.job.num = f"job_{number}", number
            config.hydra.job.env_set.OMP_NUM_THREADS = str(cpus)
            # The default is one compiler process per core of the machine.
            config.hydra.job.env_set.TORCHINDUCTOR_COMPILE_THREADS = str(cpus)
        return number, config, resources

    @staticmethod
    def _wait(waiting: "dict[Any, _JobStatus]", received: list[int]) -> list[JobReturn]:
        import ray  # noqa: PLC0415 - optional dependency
        from ray.exceptions import RayError  # noqa: PLC0415 - optional dependency

        returns, pending = {}, list(waiting)
        while pending:
            if received:
                raise KeyboardInterrupt
            done, pending = ray.wait(pending, num_returns=1, timeout=POLL_SECONDS)
            for reference in waiting:
                if reference not in returns:
                    waiting[reference].log_if_started()
            for reference in done:
                try:
                    returns[reference] = ray.get(reference)
                except RayError as error:  # the worker that waited for the job was killed
                    returns[reference] = waiting[reference].mark_lost(str(error).splitlines()[0])
                waiting[reference].log_result(returns[reference], f"{len(returns)} of {len(waiting)}")
        return [returns[reference] for reference in waiting]


def _run(
    context: HydraContext, task: TaskFunction, config: DictConfig, singletons: dict[Any, Any], directory: Path
) -> JobReturn:
    """Runs a job in a Ray worker, in the way Hydra's own launchers do, with `directory` as the current directory."""
    os.chdir(directory)
    setup_globals()
    Singleton.set_state(singletons)
    HydraConfig.instance().set_config(config)
    return run_job(task, config, "hydra.sweep.dir", "hydra.sweep.subdir", context)


class _JobStatus:
    """Logs the start and the end of a job, from the process that waits for it."""

    def __init__(self, number: int, config: DictConfig, common: set[str]):
        # Of a ListConfig, the container is a list.
        overrides = cast(list[str], OmegaConf.to_container(config.hydra.overrides.task, resolve=False))
        internal = ("resume=", "+callbacks.pruning")
        overrides = [override for override in filter_overrides(overrides) if not override.startswith(internal)]
        self._name = " ".join(override for override in overrides if override not in common)
        self._number, self._config = number, config
        self._directory = RunDirectory(Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir)
        self._started = False

    def is_training(self) -> bool:
        return bool(lock.is_held(self._directory.path))

    def log_if_started(self) -> None:
        if not self._started and (self._directory.path / "job.log").exists() and self.is_training():
            self._started = True
            log.info("#%d running   %s   (%s/job.log)", self._number, self._name, self._directory.path)

    def log_result(self, job_return: JobReturn, progress: str) -> None:
        result = job_return.return_value if job_return.status == JobStatus.COMPLETED else None
        metrics = result["metrics"] if isinstance(result, dict) else None
        if metrics is not None:
            monitor = Monitor.of(metrics)
            score = score_of(metrics, monitor)
            score_text = "no score" if score is None else f"{score:.4f}"
            message = f"finished  {self._name}   {monitor.label} {score_text}"
        else:
            status = self._directory.read_status()
            if isinstance(result, dict) and result.get("reason"):
                status = {"state": "refused", "reason": result["reason"]}
            reason = status.get("reason") or f"see {self._directory.path}/job.log"
            message = f"{status['state']}  {self._name}   {reason}"
        log.info("#%d %s   (%s done)", self._number, message, progress)

    def mark_lost(self, reason: str) -> JobReturn:
        """Waits until a job without a worker has stopped, and returns it as failed."""
        log.error("#%d lost its Ray worker: %s", self._number, reason)
        deadline = time.monotonic() + SAVE_SECONDS
        while self.is_training() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        job_return = JobReturn(cfg=self._config, status=JobStatus.COMPLETED)
        directory = str(self._directory.path.absolute())
        job_return.return_value = {"directory": directory, "code": 1, "metrics": None, "reason": ""}
        return job_return


def _describe_devices(available: Mapping[str, float]) -> str:
    gpus, cpus = available.get("GPU", 0), available.get("CPU", 0)
    return f"{gpus:g} GPUs and {cpus:g} CPU cores" if gpus else f"{cpus:g} CPU cores"
