"""Checkpoints as an attacker would write them, with a correct checksum.

`canary` is a path that only executed code from a checkpoint creates.
"""

import builtins
import functools
import io
import logging
import os
import pickle
import random
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.hub

from chargpt.checkpoint import torch_file

Hostile = tuple[str, str, bytes, tuple[str, ...]]  # kind, description, content, the commands that must refuse it
TIED = "model.head.weight"  # may be missing: it is tied to the weight of the embedding
COMMANDS, RESUME, NONE = ("sample", "evaluate", "train"), ("train",), ()


class Call:
    """An object that calls a function when it is unpickled without restrictions."""

    def __init__(self, function: Callable, *arguments: Any):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def calls(canary: Path, scratch: Path) -> dict[str, Call]:
    """Calls that create `canary`."""
    evil = scratch / "evil.pickle"
    torch.save(Call(os.system, f"touch {canary}"), evil)
    hub = scratch / "hub"
    hub.mkdir(exist_ok=True)
    (hub / "hubconf.py").write_text(f"open({str(canary)!r}, 'w')\ndef model(): pass\n")
    unrestricted_load = functools.partial(torch.load, weights_only=False)
    return {
        "os.system": Call(os.system, f"touch {canary}"),
        "subprocess.Popen": Call(subprocess.Popen, ["touch", str(canary)]),
        "Path.touch": Call(Path.touch, canary),
        "exec": Call(builtins.exec, f"open({str(canary)!r}, 'w')"),
        "eval": Call(builtins.eval, f"open({str(canary)!r}, 'w')"),
        "getattr": Call(getattr, Call(__import__, "os"), "system"),
        "shutil.copy": Call(shutil.copy, "/etc/hostname", str(canary)),
        "logging.FileHandler": Call(logging.FileHandler, str(canary)),
        "torch.save": Call(torch.save, 1, str(canary)),
        "torch.load": Call(unrestricted_load, str(evil)),
        "torch.storage": Call(torch.storage._load_from_bytes, evil.read_bytes()),
        "torch.hub.download": Call(torch.hub.download_url_to_file, "file:///etc/hostname", str(canary)),
        "torch.hub.load": Call(torch.hub.load, str(hub), "model", "local"),
        "torch.hub._load_local": Call(torch.hub._load_local, str(hub), "model"),
    }


def pickles(intact: bytes, canary: Path, scratch: Path) -> Iterator[Hostile]:
    """Each call in several places of a checkpoint, and files that consist of the call."""
    places: dict[str, Callable[[dict, Call], Any]] = {
        "config": lambda c, call: c["chargpt"]["config"].update(name=call),
        "tokenizer": lambda c, call: c["chargpt"].update(tokenizer=call),
        "weights": lambda c, call: c["state_dict"].update(extra=call),
        "optimizer_states": lambda c, call: c["optimizer_states"][0]["state"].update({99: {"exp_avg": [call]}}),
        "callbacks": lambda c, call: c["callbacks"].update(mine=call),
        "loops": lambda c, call: c["loops"]["fit_loop"].update(state_dict=call),
        "a key": lambda c, call: c.update({call: 1}),
        "the version": lambda c, call: c.update({"pytorch-lightning_version": call}),
    }
    for name, call in calls(canary, scratch).items():
        for place, insert in places.items():
            content = edited(intact, lambda c, insert=insert, call=call: insert(c, call))
            yield "hostile pickle", f"{name} in {place}", content, COMMANDS
        yield "hostile pickle", f"{name} alone", with_checksum(call), COMMANDS
        yield "hostile pickle", f"{name}, a bare pickle", pickle.dumps(call), COMMANDS
        old = io.BytesIO()
        torch.save(call, old, _use_new_zipfile_serialization=False)
        yield "hostile pickle", f"{name}, torch's old format", old.getvalue(), COMMANDS


def edited(intact: bytes, edit: Callable[[dict], Any]) -> bytes:
    """The checkpoint after `edit`, with a correct checksum."""
    checkpoint = torch.load(io.BytesIO(intact), weights_only=True)
    edit(checkpoint)
    return with_checksum(checkpoint)


def with_checksum(content: object) -> bytes:
    path = Path("/dev/shm" if Path("/dev/shm").is_dir() else ".") / f"hostile-{os.getpid()}.ckpt"
    torch_file.save(content, path)
    try:
        return path.read_bytes()
    finally:
        path.unlink()


TARGETS = str.split("""
os.makedirs os.system os.mkdir subprocess.run subprocess.call builtins.open builtins.exec builtins.eval
pathlib.Path pathlib.Path.touch shutil.copy torch.load torch.save torch.hub.load
torch.hub.download_url_to_file hydra.utils.instantiate hydra.utils.call omegaconf.OmegaConf.save
lightning.Trainer chargpt.load chargpt.checkpoint.torch_file.save chargpt.utils.atomic_write.atomic_write_text
chargpt.runs.directory.write_json chargpt.data.tokenizer.np.save chargpt.data.tokenizer.torch.save
chargpt.data.corpus.os.makedirs chargpt.data.datamodule.hashlib.file_digest chargpt.data.datamodule.partial
chargpt.model.transformer.torch.hub.load chargpt.model.transformer.nn.Module
chargpt.optim.adamw.torch.save chargpt.optim.lr_schedule.math.cos
chargpt.data.datamodule.TinyShakespeare chargpt.data.datamodule.TextFiles torch.nn.Module
torch.nn.modules.module.torch.save torch.nn.functional.torch.save torch.nn.parallel.DistributedDataParallel
torch.nn torch.optim.swa_utils.torch.save chargpt.model chargpt chargpt.model.transformer
chargpt.model.transformer.Transformer.__init__ chargpt.model..x os chargpt.model.transformer.__builtins__
chargpt.model.transformer.__loader__ chargpt.data.tokenizer.__spec__.loader
""")
WRONG = [
    None,
    True,
    -1,
    0,
    1.5,
    10**9,
    10**18,
    10**30,
    float("nan"),
    float("inf"),
    "",
    "x",
    "1",
    [],
    [1],
    {},
    {"a": 1},
]
WRONG += [{"_target_": "os.system"}, torch.zeros(2), "${oc.env:HOME}", "\0", "😀" * 99]


def contents(intact: bytes, canary: Path) -> Iterator[Hostile]:
    """Checkpoints of plain data with hostile or wrong values."""
    yield from _targets(intact, canary)
    yield from _settings(intact, canary)
    yield from _wrong_types(intact)
    yield from _missing(intact)
    yield from _state(intact)


def _targets(intact: bytes, canary: Path) -> Iterator[Hostile]:
    with_arguments = {"name": str(canary), "path": str(canary), "f": str(canary), "command": f"touch {canary}"}
    components = (
        "model",
        "model.norm",
        "model.attention",
        "data",
        "data.tokenizer",
        "optimizer",
        "schedule",
        "tokenizer",
    )
    rng = random.Random(0)
    for target in TARGETS:
        for component in rng.sample(components, 1):
            for arguments in ({}, with_arguments):

                def edit(
                    c: dict, target: str = target, component: str = component, arguments: dict = arguments
                ) -> None:
                    parent = c["chargpt"] if component == "tokenizer" else c["chargpt"]["config"]
                    *parents, key = component.split(".")
                    for name in parents:
                        parent = parent[name]
                    parent[key] = {"_target_": target, **arguments}

                description = f"{component}: {target} {'with' if arguments else 'without'} arguments"
                refused_by = COMMANDS if component.startswith(("model", "tok")) else RESUME
                yield "hostile target", description, edited(intact, edit), refused_by


def _settings(intact: bytes, canary: Path) -> Iterator[Hostile]:
    makedirs = {"mine": {"_target_": "os.makedirs", "name": str(canary)}}
    shakespeare = {"_target_": "chargpt.data.datamodule.TextDataModule.from_tiny_shakespeare"}
    settings: list[tuple[str, Any, tuple[str, ...]]] = [
        *(("callbacks", makedirs, NONE), ("logger", makedirs, NONE), ("hydra", makedirs, NONE)),
        *(
            (f"data.path={path}", path, ("train",))
            for path in ("/etc/passwd", "/dev/zero", str(canary), "", "/proc/self")
        ),
        ("data", shakespeare | {"cache_dir": str(canary), "block_size": 16, "batch_size": 4}, RESUME),
        ("data.cache_dir", str(canary), RESUME),
        *(
            (f"model.{key}", 10**n, COMMANDS)
            for key in ("n_embd", "n_layer", "block_size", "n_head")
            for n in (9, 18, 30)
        ),
        *((f"data.{key}", 10**n, NONE) for key in ("batch_size", "validation_tokens") for n in (9, 18, 30)),
        *((f"trainer.{key}", 10**9, NONE) for key in ("devices", "val_check_interval", "log_every_n_steps")),
        *((f"trainer.{key}", str(canary), RESUME) for key in ("strategy", "precision", "accelerator", "profiler")),
        *(("trainer.default_root_dir", str(canary), RESUME), ("trainer.plugins", str(canary), RESUME)),
        *(("name", name, NONE) for name in ("../../x", "/etc/x", "", "\0", str(canary), "x" * 5000)),
        *(("name", f"${{{key}}}", COMMANDS) for key in ("oc.env:HOME", "hydra:runtime.cwd", "seed", "oc.decode:1")),
        *(("model.n_embd", "${oc.env:HOME}", COMMANDS), ("data.path", "${oc.env:HOME}", COMMANDS)),
        *(("on_divergence", "x", NONE), ("resume", "/etc", NONE), ("seed", "${seed}", COMMANDS)),
    ]
    for path, value, refused_by in settings:
        keys = ("chargpt", "config", *path.partition("=")[0].split("."))
        content = edited(intact, lambda c, k=keys, v=value: _edit_key(c, k, v))
        yield "hostile setting", f"{path}={str(value)[:60]}", content, refused_by


def _wrong_types(intact: bytes) -> Iterator[Hostile]:
    """For each key of the checkpoint and of the dictionaries in it, a checkpoint with another value there."""
    rng = random.Random(0)
    checkpoint = torch.load(io.BytesIO(intact), weights_only=True)
    for keys in _paths(checkpoint):
        (value,) = rng.sample(WRONG, 1)
        if keys[-1] != "accumulate_grad_batches" or value != 10**9:  # valid, but takes long
            content = edited(intact, lambda c, k=keys, v=value: _edit_key(c, k, v))
            yield "wrong type", f"{_name(keys)}={str(value)[:40]}", content, NONE


def _missing(intact: bytes) -> Iterator[Hostile]:
    checkpoint = torch.load(io.BytesIO(intact), weights_only=True)
    for keys in _paths(checkpoint):
        required = keys[0] == "state_dict" and keys[-1] != TIED
        refused_by = COMMANDS if required or keys in (("chargpt",), ("global_step",)) else NONE
        yield "missing", _name(keys), edited(intact, lambda c, k=keys: _edit_key(c, k)), refused_by


def _paths(container: Any, parents: tuple = ()) -> Iterator[tuple]:
    """Paths of keys and indices into nested dictionaries and lists, of at most five levels."""
    if isinstance(container, dict):
        items = [*container.items()]
    else:
        items = [*enumerate(container)] if isinstance(container, list) else []
    for key, item in items[: 40 if len(parents) < 2 or parents[0] == "chargpt" else 2]:
        yield (*parents, key)
        if len(parents) < 4:
            yield from _paths(item, (*parents, key))


def _name(keys: tuple) -> str:
    return ".".join(map(str, keys))


def _edit_key(checkpoint: Any, keys: tuple, *value: Any) -> None:
    """Replaces the value at the path `keys`; deletes it if no value is given."""
    for key in keys[:-1]:
        checkpoint = checkpoint[key]
    if value:
        checkpoint[keys[-1]] = value[0]
    else:
        del checkpoint[keys[-1]]


def _quantized(weight: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings(action="ignore"):  # deprecated in torch
        return torch.quantize_per_tensor(weight.float(), 0.1, 0, torch.qint8)


def _state(intact: bytes) -> Iterator[Hostile]:
    """Weights and optimizer states that are tensors of wrong values, shapes or types."""

    def weights(edit: Callable[[torch.Tensor], torch.Tensor]) -> bytes:
        return edited(intact, lambda c: c.update(state_dict={k: edit(v) for k, v in c["state_dict"].items()}))

    def states(edit: Callable[[torch.Tensor], Any]) -> bytes:
        def edit_all(c: dict) -> None:
            for state in c["optimizer_states"][0]["state"].values():
                state.update({k: edit(v) for k, v in state.items()})

        return edited(intact, edit_all)

    edits: dict[str, tuple[Callable, tuple, tuple]] = {
        "nan": (lambda w: w * float("nan"), NONE, RESUME),
        "infinity": (lambda w: w + float("inf"), NONE, RESUME),
        "transposed": (lambda w: w.mT if w.ndim > 1 else w[None], COMMANDS, RESUME),
        "empty": (lambda w: w[:0] if w.ndim else w, COMMANDS, RESUME),
        "integers": (lambda w: w.long(), NONE, NONE),
        "complex": (lambda w: w.to(torch.complex64), NONE, NONE),
        "float64": (lambda w: w.double(), NONE, NONE),
        "sparse": (lambda w: w.to_sparse() if w.ndim else w, NONE, NONE),
        "on the meta device": (lambda w: w.to("meta"), NONE, NONE),
        "one number expanded": (lambda w: torch.zeros(()).expand(w.shape), NONE, NONE),
        "quantized": (_quantized, NONE, NONE),
    }
    for name, (edit, weights_refused_by, states_refused_by) in edits.items():
        yield "wrong tensors", f"weights: {name}", weights(edit), weights_refused_by
        yield "wrong tensors", f"optimizer: {name}", states(edit), states_refused_by
