"""hydra/launcher=gpus: the jobs of a sweep side by side, each with devices of its own. Ray does the scheduling.

Each job asks for what its own config needs, and is a line when it begins and a line when it ends. Hydra's own
launcher for Ray gives all jobs of a sweep the same resources, and prints all they say.
"""

import logging
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, run_job, setup_globals
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from chargpt.distributed.env import num_processes

log = logging.getLogger(__name__)

# How Ray is started here: it reports to nobody; a job is as fast as the plain run that it is, and is not killed
# together with the worker that waits for it, but saves itself.
RAY_ENV = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
RAY_ENV |= {"RAY_worker_niceness": "0", "RAY_kill_child_processes_on_worker_exit": "0"}
POLL_SECONDS = 0.5  # seconds between two looks at which job has begun
SAVE_SECONDS = 60.0  # seconds that interrupted jobs have to save themselves


class RayLauncher(Launcher):
    """Runs as many jobs at once as there are devices.

    Args:
        ray: `init` and `remote`, arguments of `ray.init` (its `address` is that of a cluster) and `ray.remote`.
        gpus: GPUs of each process of a job, also a share such as 0.25; null: one where there are any and the job
            would use them, else none.
        cpus: CPU cores of each process of a job, which are its threads too; null: one, and with GPUs a fair share.
    """

    def __init__(self, ray: DictConfig, gpus: float | None = None, cpus: int | None = None):
        self._ray, self._gpus, self._cpus = OmegaConf.to_container(ray, resolve=True), gpus, cpus

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._context, self._task, self._config = hydra_context, task_function, config

    def max_parallel_jobs(self, overrides: list[str]) -> int:
        """How many jobs with these words would run side by side."""
        there = self._start()
        _, _, asked = self._prepare(0, overrides, there)
        shares = [there[kind] / asked[key] for kind, key in (("GPU", "num_gpus"), ("CPU", "num_cpus")) if asked[key]]
        return max(1, int(min(shares)))

    def _start(self) -> dict[str, float]:
        """Starts Ray, or joins it; the resources that there are."""
        try:
            import ray
        except ImportError as error:
            raise HydraException("hydra/launcher=gpus needs Ray: pip install 'chargpt[ray]'") from error
        setup_globals()
        configure_log(self._config.hydra.hydra_logging, self._config.hydra.verbose)
        for name, value in RAY_ENV.items():
            os.environ.setdefault(name, value)
        if not ray.is_initialized():
            ray.init(**self._ray["init"])
        return ray.cluster_resources()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        there = self._start()
        import ray

        jobs = [
            self._prepare(number, list(overrides), there)
            for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        log.info("%d job%s on %s", len(jobs), "s" if len(jobs) > 1 else "", _devices(there))
        waiting = {}
        common = set.intersection(*(set(overrides) for overrides in job_overrides)) if len(jobs) > 1 else set()
        for number, config, resources in jobs:
            job = ray.remote(**self._ray["remote"] | resources)(_run)
            reference = job.remote(self._context, self._task, config, Singleton.get_state())
            waiting[reference] = _JobStatus(number, config, common)
        asked: list[int] = []  # a flag: within Ray's own code an exception would sometimes be lost
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, lambda number, _: asked.append(number)) for number in numbers}
        try:
            return self._wait(waiting, asked)
        except KeyboardInterrupt:
            log.info("interrupted: the jobs save themselves")
            ray.shutdown()  # the jobs notice that who started them is gone
            deadline = time.monotonic() + SAVE_SECONDS
            while any(job.is_training() for job in waiting.values()) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _prepare(self, number: int, overrides: list[str], there: dict[str, float]) -> tuple[int, DictConfig, dict]:
        """A job's config, and the resources that it asks Ray for."""
        config = self._context.config_loader.load_sweep_config(self._config, overrides)
        count = num_processes(config.trainer.devices) or 1
        uses_gpus = there.get("GPU", 0) > 0 and config.trainer.accelerator != "cpu"
        gpus = self._gpus if self._gpus is not None else float(uses_gpus)
        if count > 1 and gpus and gpus != int(gpus):
            raise HydraException(
                f"job {number} has trainer.devices={count} and hydra.launcher.gpus={gpus:g}: each of several "
                f"processes needs a GPU of its own. Take hydra.launcher.gpus=1, or trainer.devices=1"
            )
        cpus = self._cpus
        if cpus is None:
            cpus = max(1, int(there["CPU"] // (there["GPU"] / gpus))) if gpus else 1
        resources = {"num_gpus": gpus * count, "num_cpus": cpus * count, "max_retries": 0}
        for kind, key in (("GPU", "num_gpus"), ("CPU", "num_cpus")):
            if resources[key] > there.get(kind, 0):
                raise HydraException(
                    f"job {number} asks for {resources[key]:g} {kind}s, and there are {there.get(kind, 0):g}: "
                    f"lower trainer.devices, or hydra.launcher.{kind.lower()}s"
                )
        with read_write(config), open_dict(config):
            config.hydra.job.id, config.hydra.job.num = f"job_{number}", number
            config.hydra.job.env_set.OMP_NUM_THREADS = str(cpus)
            # Inductor starts a compiler for each core of the machine.
            config.hydra.job.env_set.TORCHINDUCTOR_COMPILE_THREADS = str(cpus)
        return number, config, resources

    @staticmethod
    def _wait(waiting: "dict[Any, _JobStatus]", asked: list[int]) -> list[JobReturn]:
        import ray

        returns, left = {}, list(waiting)
        while left:
            if asked:
                raise KeyboardInterrupt
            done, left = ray.wait(left, num_returns=1, timeout=POLL_SECONDS)
            for reference in waiting:
                if reference not in returns:
                    waiting[reference].log_if_started()
            for reference in done:
                try:
                    returns[reference] = ray.get(reference)
                except ray.exceptions.RayError as error:  # the worker that waited for the job was killed
                    returns[reference] = waiting[reference].mark_lost(str(error).splitlines()[0])
                waiting[reference].log_result(returns[reference], f"{len(returns)} of {len(waiting)}")
        return [returns[reference] for reference in waiting]


def _run(context: HydraContext, task: TaskFunction, config: DictConfig, singletons: dict[Any, Any]) -> JobReturn:
    """A job, in a worker of Ray's, as Hydra's own launchers run one."""
    setup_globals()
    Singleton.set_state(singletons)
    HydraConfig.instance().set_config(config)
    return run_job(task, config, "hydra.sweep.dir", "hydra.sweep.subdir", context)


class _JobStatus:
    """A job as the one who waits for it sees it."""

    def __init__(self, number: int, config: DictConfig, common: set[str]):
        from chargpt.runs.directory import RunDirectory

        words = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
        plumbing = ("resume=", "+callbacks.pruning")
        words = [word for word in filter_overrides(words) if not word.startswith(plumbing)]
        self._name = " ".join(word for word in words if word not in common)
        self._number, self._config = number, config
        self._directory = RunDirectory(Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir)
        self._begun, self._since = False, time.time()

    def is_training(self) -> bool:
        from chargpt.runs import lock

        return bool(lock.is_held(self._directory.path))

    def log_if_started(self) -> None:
        if not self._begun and (self._directory.path / "job.log").exists() and self.is_training():
            self._begun = True
            log.info("#%d running   %s   (%s/job.log)", self._number, self._name, self._directory.path)

    def log_result(self, returned: JobReturn, progress: str) -> None:
        from chargpt.runs.score import Monitor, score_of

        outcome = returned.return_value if returned.status == JobStatus.COMPLETED else None
        metrics = outcome["metrics"] if isinstance(outcome, dict) else None
        if metrics is not None:
            monitor = Monitor.of(metrics)
            score = score_of(metrics, monitor)
            told = "no score" if score is None else f"{score:.4f}"
            result = f"finished  {self._name}   {monitor.label} {told}"
        else:
            status = self._directory.read_status()
            if isinstance(outcome, dict) and outcome.get("reason"):
                status = {"state": "refused", "reason": outcome["reason"]}
            reason = status.get("reason") or f"see {self._directory.path}/job.log"
            result = f"{status['state']}  {self._name}   {reason}"
        log.info("#%d %s   (%s done)", self._number, result, progress)

    def mark_lost(self, reason: str) -> JobReturn:
        outcome = {"home": str(self._directory.path.absolute()), "code": 1, "metrics": None, "reason": ""}
        log.error("#%d lost its worker %s", self._number, reason)
        deadline = time.monotonic() + SAVE_SECONDS
        while self.is_training() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        returned = JobReturn(cfg=self._config, status=JobStatus.COMPLETED)
        returned.return_value = outcome
        return returned


def _devices(there: dict[str, float]) -> str:
    gpus, cpus = there.get("GPU", 0), there.get("CPU", 0)
    return f"{gpus:g} GPUs and {cpus:g} CPU cores" if gpus else f"{cpus:g} CPU cores"
