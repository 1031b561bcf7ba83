"""Checkpoints as an attacker would write them, for the experiment beside it: sealed with their right digest.

`canary` is a path that only code of the attacker's would make.
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

Hostile = tuple[str, str, bytes, tuple[str, ...]]  # kind, in words, content, the verbs that must refuse it
TIED = "model.head.weight"  # the same as the embedding's, which is there
ALL, RESUME, NOBODY = ("sample", "evaluate", "train"), ("train",), ()


class Call:
    """Unpickled without care, it calls something."""

    def __init__(self, call: Callable, *arguments: Any):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def calls(canary: Path, scratch: Path) -> dict[str, Call]:
    """Calls that leave a file."""
    evil = scratch / "evil.pickle"
    torch.save(Call(os.system, f"touch {canary}"), evil)
    hub = scratch / "hub"
    hub.mkdir(exist_ok=True)
    (hub / "hubconf.py").write_text(f"open({str(canary)!r}, 'w')\ndef model(): pass\n")
    careless = functools.partial(torch.load, weights_only=False)
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
        "torch.load": Call(careless, str(evil)),
        "torch.storage": Call(torch.storage._load_from_bytes, evil.read_bytes()),
        "torch.hub.download": Call(torch.hub.download_url_to_file, "file:///etc/hostname", str(canary)),
        "torch.hub.load": Call(torch.hub.load, str(hub), "model", "local"),
        "torch.hub._load_local": Call(torch.hub._load_local, str(hub), "model"),
    }


def pickles(whole: bytes, canary: Path, scratch: Path) -> Iterator[Hostile]:
    """Each call in several places of a checkpoint; and files that are nothing but the call."""
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
        for place, put in places.items():
            yield "hostile pickle", f"{name} in {place}", edited(whole, functools.partial(_put, put, call)), ALL
        yield "hostile pickle", f"{name} alone", sealed(call), ALL
        yield "hostile pickle", f"{name}, a bare pickle", pickle.dumps(call), ALL
        old = io.BytesIO()
        torch.save(call, old, _use_new_zipfile_serialization=False)
        yield "hostile pickle", f"{name}, torch's old format", old.getvalue(), ALL


def _put(put: Callable, call: Call, checkpoint: dict) -> None:
    put(checkpoint, call)


def edited(whole: bytes, edit: Callable[[dict], Any]) -> bytes:
    """The checkpoint after `edit`, sealed."""
    checkpoint = torch.load(io.BytesIO(whole), weights_only=True)
    edit(checkpoint)
    return sealed(checkpoint)


def sealed(content: object) -> bytes:
    path = Path("/dev/shm" if Path("/dev/shm").is_dir() else ".") / f"sealed-{os.getpid()}.ckpt"
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


def contents(whole: bytes, canary: Path) -> Iterator[Hostile]:
    """Plain data that says what it should not."""
    yield from _targets(whole, canary)
    yield from _settings(whole, canary)
    yield from _wrong_types(whole)
    yield from _missing(whole)
    yield from _state(whole)


def _targets(whole: bytes, canary: Path) -> Iterator[Hostile]:
    more = {"name": str(canary), "path": str(canary), "f": str(canary), "command": f"touch {canary}"}
    parts = (
        "model",
        "model.norm",
        "model.attention",
        "data",
        "data.tokenizer",
        "optimizer",
        "schedule",
        "tokenizer",
    )
    draw = random.Random(0)
    for target in TARGETS:
        for part in draw.sample(parts, 1):
            for given in ({}, more):

                def edit(c: dict, target: str = target, part: str = part, given: dict = given) -> None:
                    place = c["chargpt"] if part == "tokenizer" else c["chargpt"]["config"]
                    *above, key = part.split(".")
                    for name in above:
                        place = place[name]
                    place[key] = {"_target_": target, **given}

                refused = ALL if part.startswith(("model", "tok")) else RESUME
                yield (
                    "hostile target",
                    f"{part}: {target} {'with' if given else 'without'}",
                    edited(whole, edit),
                    refused,
                )


def _settings(whole: bytes, canary: Path) -> Iterator[Hostile]:
    makes = {"mine": {"_target_": "os.makedirs", "name": str(canary)}}
    shakespeare = {"_target_": "chargpt.data.datamodule.TextDataModule.from_tiny_shakespeare"}
    settings: list[tuple[str, Any, tuple[str, ...]]] = [
        *(("callbacks", makes, NOBODY), ("logger", makes, NOBODY), ("hydra", makes, NOBODY)),
        *(
            (f"data.path={path}", path, ("train",))
            for path in ("/etc/passwd", "/dev/zero", str(canary), "", "/proc/self")
        ),
        ("data", shakespeare | {"cache_dir": str(canary), "block_size": 16, "batch_size": 4}, RESUME),
        ("data.cache_dir", str(canary), RESUME),
        *((f"model.{key}", 10**n, ALL) for key in ("n_embd", "n_layer", "block_size", "n_head") for n in (9, 18, 30)),
        *((f"data.{key}", 10**n, NOBODY) for key in ("batch_size", "validation_tokens") for n in (9, 18, 30)),
        *((f"trainer.{key}", 10**9, NOBODY) for key in ("devices", "val_check_interval", "log_every_n_steps")),
        *((f"trainer.{key}", str(canary), RESUME) for key in ("strategy", "precision", "accelerator", "profiler")),
        *(("trainer.default_root_dir", str(canary), RESUME), ("trainer.plugins", str(canary), RESUME)),
        *(("name", name, NOBODY) for name in ("../../x", "/etc/x", "", "\0", str(canary), "x" * 5000)),
        *(("name", f"${{{word}}}", ALL) for word in ("oc.env:HOME", "hydra:runtime.cwd", "seed", "oc.decode:1")),
        *(("model.n_embd", "${oc.env:HOME}", ALL), ("data.path", "${oc.env:HOME}", ALL)),
        *(("on_divergence", "x", NOBODY), ("resume", "/etc", NOBODY), ("seed", "${seed}", ALL)),
    ]
    for path, value, refused in settings:
        keys = path.partition("=")[0].split(".")
        yield (
            "hostile setting",
            f"{path}={str(value)[:60]}",
            edited(whole, functools.partial(_set, keys, value)),
            refused,
        )


def _set(keys: list[str], value: Any, checkpoint: dict) -> None:
    place = checkpoint["chargpt"]["config"]
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value


def _wrong_types(whole: bytes) -> Iterator[Hostile]:
    """Each key of the checkpoint, and of the dictionaries in it, with something else behind it."""
    draw = random.Random(0)
    checkpoint = torch.load(io.BytesIO(whole), weights_only=True)
    for keys in _paths(checkpoint):
        (value,) = draw.sample(WRONG, 1)
        if keys[-1] != "accumulate_grad_batches" or value != 10**9:  # which is legal, and long
            content = edited(whole, lambda c, k=keys, v=value: _at(c, k, v))
            yield "wrong type", f"{_name(keys)}={str(value)[:40]}", content, NOBODY


def _missing(whole: bytes) -> Iterator[Hostile]:
    checkpoint = torch.load(io.BytesIO(whole), weights_only=True)
    for keys in _paths(checkpoint):
        needed = keys[0] == "state_dict" and keys[-1] != TIED
        refused = ALL if needed or keys in (("chargpt",), ("global_step",)) else NOBODY
        yield "missing", _name(keys), edited(whole, lambda c, k=keys: _at(c, k)), refused


def _paths(part: Any, above: tuple = ()) -> Iterator[tuple]:
    items = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    for key, item in [*items][: 40 if len(above) < 2 or above[0] == "chargpt" else 2]:
        yield (*above, key)
        if len(above) < 4:
            yield from _paths(item, (*above, key))


def _name(keys: tuple) -> str:
    return ".".join(map(str, keys))


def _at(checkpoint: Any, keys: tuple, *value: Any) -> None:
    for key in keys[:-1]:
        checkpoint = checkpoint[key]
    if value:
        checkpoint[keys[-1]] = value[0]
    else:
        del checkpoint[keys[-1]]


def _quantized(weight: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings(action="ignore"):  # torch is about to give them up
        return torch.quantize_per_tensor(weight.float(), 0.1, 0, torch.qint8)


def _state(whole: bytes) -> Iterator[Hostile]:
    """Weights and states that are tensors, and the wrong ones."""

    def weights(edit: Callable[[torch.Tensor], torch.Tensor]) -> bytes:
        return edited(whole, lambda c: c.update(state_dict={k: edit(v) for k, v in c["state_dict"].items()}))

    def states(edit: Callable[[torch.Tensor], Any]) -> bytes:
        def all_of(c: dict) -> None:
            for state in c["optimizer_states"][0]["state"].values():
                state.update({k: edit(v) for k, v in state.items()})

        return edited(whole, all_of)

    edits: dict[str, tuple[Callable, tuple, tuple]] = {
        "nan": (lambda w: w * float("nan"), NOBODY, RESUME),
        "infinite": (lambda w: w + float("inf"), NOBODY, RESUME),
        "transposed": (lambda w: w.mT if w.ndim > 1 else w[None], ALL, RESUME),
        "empty": (lambda w: w[:0] if w.ndim else w, ALL, RESUME),
        "whole numbers": (lambda w: w.long(), NOBODY, NOBODY),
        "complex": (lambda w: w.to(torch.complex64), NOBODY, NOBODY),
        "doubles": (lambda w: w.double(), NOBODY, NOBODY),
        "sparse": (lambda w: w.to_sparse() if w.ndim else w, NOBODY, NOBODY),
        "of no device": (lambda w: w.to("meta"), NOBODY, NOBODY),
        "one number stretched": (lambda w: torch.zeros(()).expand(w.shape), NOBODY, NOBODY),
        "quantized": (_quantized, NOBODY, NOBODY),
    }
    for name, (edit, of_weights, of_states) in edits.items():
        yield "wrong tensors", f"weights: {name}", weights(edit), of_weights
        yield "wrong tensors", f"optimizer: {name}", states(edit), of_states
