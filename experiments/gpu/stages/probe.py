"""The machine: versions, whether Triton works, and upper limits to compare the other stages with."""

import importlib.metadata
import platform
import time
from collections.abc import Callable
from typing import Any

from cases import Case
from kit import Stage
from runs import run_in_child

SECONDS = 12
PACKAGES = ("torch", "triton", "lightning", "torchmetrics", "hydra-core", "omegaconf", "numpy")
CASES = [
    Case("versions", "python"),
    *(Case("versions", package) for package in PACKAGES),
    Case("device", "memory", "GiB", cuda=True),
    Case("device", "compute capability", cuda=True),
    Case("device", "NCCL", cuda=True),
    Case("triton", "a compiled function", expected="equal to eager", cuda=True),
    Case("bf16 products", "ceiling", "TFLOP/s", "> 0"),
    Case("copies", "ceiling", "GB/s", "> 0"),
    Case("kernel launches", "queued one after the other", "us", "> 0"),
]


def run(stage: Stage) -> None:
    stage.row("versions", "python", platform.python_version(), seconds=0.0)
    for package in PACKAGES:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
        stage.row("versions", package, version, seconds=0.0)
    # Triton comes last and in a process of its own: its first kernel starts a compiler, which may exceed the timeout.
    for cases, work in (
        (("device", "bf16 products", "copies", "kernel launches"), lambda: probe(stage.device, stage.dry)),
        (("triton",), triton),
    ):
        if not any(map(stage.pending, cases)):
            continue
        with stage.attempt(*cases):
            for case, metrics in run_in_child(stage, cases[0], work).items():
                for metric, value in metrics.items():
                    stage.row(case, metric, value)


def probe(device: str, dry: bool) -> dict[str, dict[str, Any]]:
    import torch  # noqa: PLC0415 - run.py imports the stages without torch

    result: dict[str, dict[str, Any]] = {}
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
        capability = f"{properties.major}.{properties.minor}"
        result["device"] = {
            "memory": properties.total_memory / 2**30,
            "compute capability": capability,
            "NCCL": nccl,
        }
    size = 128 if dry else 8192
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = fastest(lambda: a @ b, wait, 20)
    result["bf16 products"] = {"ceiling": 2 * size**3 / seconds / 1e12}
    source = torch.empty(2**20 if dry else 2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = fastest(lambda: target.copy_(source), wait, 20)
    result["copies"] = {"ceiling": 2 * source.numel() / seconds / 1e9}  # bytes read and written
    small, count = torch.zeros(1, device=device), 100 if dry else 5000

    def launch() -> None:
        for _ in range(count):
            small.add_(1.0)

    result["kernel launches"] = {"queued one after the other": fastest(launch, wait, 3) / count * 1e6}
    return result


def triton() -> dict[str, dict[str, Any]]:
    import torch  # noqa: PLC0415 - run.py imports the stages without torch

    try:
        x = torch.randn(4096, device="cuda")
        equal = torch.allclose(torch.compile(_function)(x), _function(x), atol=1e-6)
        value = "equal to eager" if equal else "not equal to eager"
    except Exception as error:
        value = f"{type(error).__name__}: {str(error).strip()[:200]}"
    return {"triton": {"a compiled function": value}}


def _function(x):
    return (x.sin() + 1) * x.exp()


def fastest(work: Callable[[], Any], wait: Callable[[], None], times: int) -> float:
    """Seconds of the fastest of `times` calls, after one warm-up call."""
    work()
    wait()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        wait()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
