"""Downloaded folders as an attacker would write them: a run, an export, and modules beside them.

Each module and each call creates a file in the folder of canaries when it is executed. Each command starts in the
hostile folder. "console" starts it as the installed command `chargpt` does, "module" as `python -P -m chargpt`, and
"script" as `python REPO/COMMAND.py`.
"""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from chargpt.checkpoint import safetensors_file, torch_file
from tests.robustness import fork_server

REPO = Path(__file__).parents[2]
STARTS = ("console", "module", "script")
TRUST = "trust=[trusted_module]"
SAMPLE = ("sample", ["run=run", "max_new_tokens=5"])
EVALUATE = ("evaluate", ["run=run"])
RESUME = ("train", ["resume=run", "trainer.max_steps=4"])
RERUN = ("train", ["rerun=run", "hydra.run.dir=again"])
EXPORT = ("sample", ["run=model.safetensors", "max_new_tokens=5"])
VISUALIZE = ("visualize", ["run=run"])
SHADOWS = ("hydra_plugins/evil", "torch", "chargpt", "numpy", "sitecustomize", "usercustomize", "tensorflow", "wandb")

# `trust=[trusted_module]` allows what this module defines, which creates no canary.
TRUSTED_MODULE = """
import functools, os, shutil, torch
from runpy import run_path
from other_package import Base, touch

class Child(Base):
    pass

class Instance:
    def __call__(self, path, **settings):
        touch(path)

class Config:
    def __init__(self, _attn_implementation=None, **settings):
        self._attn_implementation = _attn_implementation

class Model(torch.nn.Module):
    def __init__(self, *parts, **settings):
        super().__init__()

def make_list(**settings):
    return [1]

instance = Instance()
system = os.system
partial = functools.partial(touch)
"""
OTHER_PACKAGE = """
import pathlib

def touch(path, **settings):
    pathlib.Path(path).touch()

class Base:
    @classmethod
    def touch(cls, path, **settings):
        touch(path)
"""


@dataclass
class HostileFolder:
    """A folder that a command must refuse, or use without executing its code.

    Attributes:
        build: changes an intact folder, with the run `run` and the export `model.safetensors`.
        commands: each with its arguments.
        refused: whether each command must end with exit code 2.
        starts: how the commands are started; None: in a fork of a process that has imported the libraries.
        modules: the hostile modules in the folder, besides those of `plant`.
    """

    description: str
    build: Callable[[Path], Any]
    commands: tuple[tuple[str, list[str]], ...] = (SAMPLE, EVALUATE, RESUME)
    refused: bool = True
    starts: tuple[str, ...] | None = None
    modules: tuple[str, ...] = ()
    kind = "hostile folder"


def trusting(*commands: tuple[str, list[str]]) -> tuple[tuple[str, list[str]], ...]:
    return tuple((command, [*arguments, TRUST]) for command, arguments in commands)


def cases(canary: Path) -> list[HostileFolder]:
    """All hostile folders; `canary` is in the folder of canaries."""
    return [
        *_targets(canary),
        *_trusted(canary),
        *_adapters(canary),
        *_run_files(canary),
        *_exports(canary),
        *_data_sets(canary),
        _own_trust(canary),
        *_links(),
        *_shadows(),
    ]


def plant(folder: Path, canary: Path) -> None:
    """Writes the modules that hostile configs name, and a trusted one."""
    for name in ("evil", "trusted_module_evil", "evil_package/__init__", "evil_package/sub", "evil_kernel"):
        plant_module(folder, name, canary)
    (folder / "trusted_module.py").write_text(TRUSTED_MODULE)
    (folder / "other_package.py").write_text(OTHER_PACKAGE)


def plant_module(folder: Path, name: str, canary: Path) -> None:
    """A module that creates the canary when it is imported."""
    (folder / name).parent.mkdir(exist_ok=True)
    lines = [f"open({str(canary)!r}, 'w').close()", "class Model: pass", "Callback = Logger = Tokenizer = Model"]
    (folder / name).with_suffix(".py").write_text("\n".join(lines) + "\n")


def edit_model(config: dict[str, Any]) -> Callable[[Path], None]:
    """Replaces the model in all checkpoints and in the config of the run."""

    def build(folder: Path) -> None:
        edit_checkpoints(folder, lambda checkpoint: checkpoint["chargpt"]["config"].update(model=config))
        edit_yaml(folder / "run" / ".hydra" / "config.yaml", lambda content: content.update(model=config))

    return build


def edit_checkpoints(folder: Path, edit: Callable[[dict], Any]) -> None:
    for path in (folder / "run" / "checkpoints").glob("*.ckpt"):
        checkpoint = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
        edit(checkpoint)
        torch_file.save(checkpoint, path)


def edit_yaml(path: Path, edit: Callable[[Any], Any]) -> None:
    content = yaml.safe_load(path.read_text())
    edit(content)
    path.write_text(yaml.safe_dump(content))


def _calls(canary: Path) -> dict[str, dict[str, Any]]:
    """Targets with the arguments with which they create the canary, or import the planted module `evil`."""
    touch, python = f"touch {canary}", f"open({str(canary)!r}, 'w').close()"
    return {
        "os.system": {"command": touch},
        "subprocess.run": {"args": ["touch", str(canary)]},
        "builtins.exec": {"_args_": [python]},
        "shutil.copy": {"src": "/etc/hostname", "dst": str(canary)},
        "runpy.run_path": {"path_name": "evil.py"},
        "importlib.import_module": {"name": "evil"},
        "timeit.timeit": {"stmt": python, "number": 1},
        "logging.FileHandler": {"filename": str(canary)},
        "evil.Model": {},
        "evil_package.sub.Model": {},
        "hydra_plugins.evil.Model": {},
        "trusted_module.Model": {},
        "torch.hub.load": {"repo_or_dir": ".", "model": "Model", "source": "local"},
        "torch.utils.collect_env.run": {"command": touch},
        "torch.utils.cpp_extension.load_inline": {"name": "evil", "cpp_sources": touch},
        "torch.nn.modules.module.torch.hub.load": {"repo_or_dir": ".", "model": "Model", "source": "local"},
        "torch.optim.swa_utils.torch.utils.collect_env.run": {"command": touch},
        "chargpt.training.loggers.tensorboard.TensorBoard": {"save_dir": str(canary)},
        "chargpt.training.loggers.csv_history.CSVHistory": {"path": str(canary), "monitor": "val_loss"},
        "chargpt.utils.atomic_write.atomic_write_text": {"path": str(canary), "text": ""},
        "chargpt.checkpoint.torch_file.save": {"content": {}, "path": str(canary)},
        "chargpt.training.callbacks.rank_errors.RankErrorFile": {"directory": str(canary)},
    }


def _targets(canary: Path) -> list[HostileFolder]:
    """Importable modules of the standard library, of the current directory, of torch, and of chargpt itself."""
    calls = _calls(canary).items()
    return [HostileFolder(f"model: {target}", edit_model({"_target_": target, **kw})) for target, kw in calls]


def _trusted(canary: Path) -> list[HostileFolder]:
    """What `trust=[trusted_module]` does not include."""
    path = {"path": str(canary)}
    system = {"command": f"touch {canary}"}
    models: dict[str, dict[str, Any]] = {
        "os.system of it": {"_target_": "trusted_module.os.system", **system},
        "shutil.copy of it": {"_target_": "trusted_module.shutil.copy", "src": "/etc/hostname", "dst": str(canary)},
        "a function that it imports": {"_target_": "trusted_module.run_path", "path_name": "evil.py"},
        "a function of another package": {"_target_": "trusted_module.touch", **path},
        "another name of os.system": {"_target_": "trusted_module.system", **system},
        "a callable instance": {"_target_": "trusted_module.instance", **path},
        "a partial function": {"_target_": "trusted_module.partial", **path},
        "an inherited class method of another package": {"_target_": "trusted_module.Child.touch", **path},
        "its built-in functions": {
            "_target_": "trusted_module.__builtins__.exec",
            "_args_": [f"open('{canary}', 'w')"],
        },
        "its loader": {"_target_": "trusted_module.__loader__.exec_module", "_args_": ["evil"]},
        "a nested target": {"_target_": "trusted_module.Model", "part": {"_target_": "evil.Model"}},
        "a nested target among positional arguments": {
            "_target_": "trusted_module.Model",
            "_args_": [{"_target_": "os.system", **system}],
        },
        "a module whose name starts with it": {"_target_": "trusted_module_evil.Model"},
        "a result that is no module": {"_target_": "trusted_module.make_list"},
    }
    commands = trusting(SAMPLE, EVALUATE, RESUME)
    folders = [HostileFolder(f"trusted: {name}", edit_model(model), commands) for name, model in models.items()]
    tokenizer = {"_target_": "trusted_module.make_list"}

    def edit(checkpoint: dict) -> None:
        checkpoint["chargpt"]["tokenizer"] = tokenizer

    build = lambda folder: edit_checkpoints(folder, edit)  # noqa: E731
    return [*folders, HostileFolder("trusted: a result that is no tokenizer", build, commands)]


def _adapters(canary: Path) -> list[HostileFolder]:
    """Targets that hide in an argument of an adapter."""
    system = {"_target_": "os.system", "command": f"touch {canary}"}
    partial = {"_target_": "evil.Model", "_partial_": True}
    adapters = "chargpt.model.adapters"
    sizes = {"vocab_size": 32, "block_size": 16}
    models = {
        "the class of NanoGPT": {"_target_": f"{adapters}.NanoGPT", "model": partial, "config": {}, **sizes},
        "the config of NanoGPT": {"_target_": f"{adapters}.NanoGPT", "model": partial, "config": system, **sizes},
        "the class of HuggingFace": {"_target_": f"{adapters}.HuggingFace", "model": partial, "config": {}, **sizes},
        "the config of HuggingFace": {
            "_target_": f"{adapters}.HuggingFace",
            "model": {"_target_": "torch.nn.Linear", "_partial_": True},
            "config": {"nested": [system]},
            **sizes,
        },
        "the module of ModuleAdapter": {"_target_": f"{adapters}.ModuleAdapter", "module": system, **sizes},
        "a module that the adapters import": {"_target_": f"{adapters}.torch.hub.load", "repo_or_dir": "."},
    }
    folders = [HostileFolder(f"adapter: {name}", edit_model(model)) for name, model in models.items()]
    kernel = {
        "_target_": f"{adapters}.HuggingFace",
        "model": {"_target_": "trusted_module.Model", "_partial_": True},
        "config": {"_target_": "trusted_module.Config", "_attn_implementation": "attacker/evil_kernel"},
        **sizes,
    }
    commands = trusting(SAMPLE, EVALUATE, RESUME)
    return [*folders, HostileFolder("adapter: an attention that is downloaded", edit_model(kernel), commands)]


def _run_files(canary: Path) -> list[HostileFolder]:
    """Callbacks and loggers in the files of a run. They are ignored: the commands succeed."""
    raw = {"evil": {"_target_": "evil.Callback"}, "file": {"_target_": "logging.FileHandler", "filename": str(canary)}}

    def config(folder: Path) -> None:
        edit_yaml(folder / "run" / ".hydra" / "config.yaml", lambda c: c.update(callbacks=raw, logger=raw))
        edit_checkpoints(folder, lambda c: c["chargpt"]["config"].update(callbacks=raw, logger=raw))

    def overrides(*lines: str) -> Callable[[Path], None]:
        return lambda folder: edit_yaml(folder / "run" / ".hydra" / "overrides.yaml", lambda c: c.extend(lines))

    def choice(group: str, text: str) -> Callable[[Path], None]:
        def build(folder: Path) -> None:
            evil = folder / "evil.yaml"
            evil.write_text(f"# @package {group}\n" + yaml.safe_dump(raw))
            text_here = text.replace("UP", os.path.relpath(folder, REPO / "conf" / group))
            choices = {group: text_here.replace("HERE", str(folder))}
            path = folder / "run" / ".hydra" / "hydra.yaml"
            edit_yaml(path, lambda c: c["hydra"]["runtime"]["choices"].update(choices))

        return build

    builds = {
        "config.yaml and checkpoints: raw callbacks and loggers": config,
        "overrides.yaml: a callback": overrides("+callbacks.evil._target_=evil.Callback"),
        "overrides.yaml: a logger": overrides(
            "+logger.evil._target_=logging.FileHandler", f"+logger.evil.filename={canary}"
        ),
        "overrides.yaml: another target of a callback": overrides("callbacks.samples._target_=evil.Callback"),
        "overrides.yaml: a mapping": overrides("+callbacks.evil={_target_: evil.Callback}"),
        "overrides.yaml: an option by a path": overrides("callbacks=../../evil", "logger=[default,../../evil]"),
        "overrides.yaml: a search path": overrides("hydra.searchpath=[file://.]", "callbacks=evil"),
        "hydra.yaml: a choice by a path": choice("callbacks", "UP/evil"),
        "hydra.yaml: a list of choices by a path": choice("logger", "[default,UP/evil]"),
        "hydra.yaml: a choice by an absolute path": choice("callbacks", "HERE/evil"),
    }
    return [HostileFolder(name, build, (RESUME, RERUN), refused=False) for name, build in builds.items()]


def _exports(canary: Path) -> list[HostileFolder]:
    def edit(key: str, value: dict[str, Any]) -> Callable[[Path], None]:
        def build(folder: Path) -> None:
            path = folder / "model.safetensors"
            content = safetensors_file.read(path)
            entry = content["chargpt"]
            (entry if key == "tokenizer" else entry["config"])[key] = value
            safetensors_file.save(content, path)

        return build

    model = {"_target_": "os.system", "command": f"touch {canary}"}
    return [
        HostileFolder("export: the model", edit("model", model), (EXPORT,)),
        HostileFolder("export: the tokenizer", edit("tokenizer", {"_target_": "evil.Tokenizer"}), (EXPORT,)),
    ]


def _data_sets(canary: Path) -> list[HostileFolder]:
    """Data sets that create their cache folder: read while the model is built, or with a folder that has no name."""
    data = "chargpt.data.datamodule.TextDataModule"
    corpus = {"_target_": f"{data}.from_tiny_shakespeare", "block_size": 1, "batch_size": 1}
    method = {"_target_": f"{data}.setup", "self": {**corpus, "cache_dir": str(canary)}, "stage": "fit"}

    def edit(checkpoint: dict) -> None:
        checkpoint["chargpt"]["config"]["data"] = {**corpus, "_args_": [str(canary)]}

    return [
        HostileFolder("model: a method of a data set", edit_model(method)),
        HostileFolder("model: a data set", edit_model({**corpus, "cache_dir": str(canary)})),
        HostileFolder("data: positional arguments", lambda folder: edit_checkpoints(folder, edit), (EVALUATE, RESUME)),
    ]


def _own_trust(canary: Path) -> HostileFolder:
    """The last checkpoint names a target where nothing builds it; the model of the best, which is sampled, is that."""
    target = {"_target_": "os.system"}

    def edit(checkpoint: dict) -> None:
        checkpoint["chargpt"]["config"]["model"]["_convert_"] = target
        checkpoint["callbacks"]["Curves"].update(best_val_loss=-9.0, best_score=-9.0, best_step=1)

    def build(folder: Path) -> None:
        edit_checkpoints(folder, edit)
        path = folder / "run" / "checkpoints" / "best.ckpt"
        checkpoint = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
        checkpoint["chargpt"]["config"]["model"] = {**target, "command": f"touch {canary}"}
        torch_file.save(checkpoint, path)

    return HostileFolder("best.ckpt: a target that last.ckpt names", build, (RESUME,))


def _links() -> list[HostileFolder]:
    """Links out of the run, to the user's files."""

    def link(name: str) -> Callable[[Path], None]:
        def build(folder: Path) -> None:
            path, outside = folder / "run" / name, folder / "outside"
            outside.mkdir()
            if not path.exists():
                path.mkdir()
            path.symlink_to(path.rename(outside / name))

        return build

    names = ("train.log", "checkpoints", "tensorboard", "history.csv", "pictures")
    return [HostileFolder(f"a link: {name}", link(name), (RESUME, VISUALIZE)) for name in names]


def _shadows() -> list[HostileFolder]:
    """Modules beside an intact run with the names of those that a command imports, or tries to import."""
    folders = [
        HostileFolder(f"./{name}.py", plant_nothing, (SAMPLE, RESUME), False, STARTS, (name,)) for name in SHADOWS
    ]
    for launcher, devices in (("basic", 1), ("basic", 2), ("gpus", 1), ("submitit_local", 1)):
        settings = [f"hydra/launcher={launcher}", f"trainer.devices={devices}"]
        commands = (("train", ["-m", *settings, "seed=1,2", *fork_server.tiny_run(Path("text.txt"))]),)
        name = f"all of these modules: a sweep with {' '.join(settings)}"
        folders.append(HostileFolder(name, plant_nothing, commands, False, ("module", "script"), SHADOWS))
    return folders


def plant_nothing(folder: Path) -> None:
    pass


def start(how: str, command: str, arguments: list[str], folder: Path, timeout: float = 300) -> fork_server.Outcome:
    """Runs a command in the folder, in a process of its own."""
    program = {
        "console": [str(_console_script(folder.parent)), command],
        "module": ["-P", "-m", "chargpt", command],
        "script": [str(REPO / f"{command}.py")],
    }[how]
    line = [sys.executable, *program, *arguments]
    try:
        done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return fork_server.Outcome(None, "", "", timeout)
    return fork_server.Outcome(done.returncode, done.stdout, done.stderr, 0.0)


def _console_script(folder: Path) -> Path:
    """The script that pip installs for the command `chargpt`."""
    script = folder / "bin" / "chargpt"
    script.parent.mkdir(exist_ok=True)
    script.write_text("import sys\nfrom chargpt.__main__ import main\nsys.exit(main())\n")
    return script
