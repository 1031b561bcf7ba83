"""User errors on the command line: each is reported in one line with exit code 2, and no file is written."""

import hashlib
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from chargpt.checkpoint import torch_file
from tests.conftest import REPO

# Overrides, and a fragment of the expected message. RUN and FILES are replaced by paths.

SETTINGS = {
    # names
    "mistyped key": ("model.n_layers=3", "did you mean model.n_layer "),
    "key without its prefix": ("n_layer=3", "did you mean model.n_layer?"),
    "mistyped group": ("modle=gpt_nano", "did you mean mode or model?"),
    "mistyped option": ("model=gpt_smal", "did you mean gpt_small or gpt_ensemble?"),
    "mistyped option of a component": ("model/norm=rmsnorm", "rms_norm"),
    "option of a component with a dot": ("model.norm=rms_norm", "model/norm=rms_norm"),
    "unknown key of a component": ("model/norm=rms_norm model.norm.epss=1e-5", "did you mean model.norm.eps "),
    "added key that a component does not accept": ("+model.norm.epss=1e-5", "did you mean eps?"),
    "a list for an option of a component": ("model/norm=[1]", "The options of model/norm are"),
    "a list with an unknown logger": ("logger=[csv,cvs]", "did you mean csv?"),
    "an empty list of loggers": ("logger=[]", "use logger=none"),
    "Lightning's way to disable loggers": ("logger=False", "use logger=none"),
    "a list in a list of callbacks": ("callbacks=[[default]]", "The options of callbacks are"),
    "a callback without the logger that it requires": ("logger=none callbacks=lr_monitor", "requires a logger"),
    "a setting of a callback that is not selected": (
        "callbacks.early_stopping.patience=3",
        "add callbacks=early_stopping",
    ),
    "an empty run to resume": ("resume=", "resume is empty"),
    "an empty run to repeat": ("rerun=", "rerun is empty"),
    "checkpoints every 0 steps": ("checkpoint.every_n_steps=0", "more than 0"),
    "checkpoints every half step": ("checkpoint.every_n_steps=0.5", "an integer or null"),
    "checkpoints in the past": ("checkpoint.every_minutes=-1", "more than 0"),
    "an unknown selection of checkpoints": ("checkpoint.keep=some", "auto, all, best_only, weights_only"),
    "a list for an option of Hydra's": ("hydra/launcher=[1]", "The options of hydra/launcher are"),
    "hydra as a group": ("hydra=look", "one by one"),
    # grammar
    "no equals sign": ("model.n_layer", "KEY=VALUE"),
    "no key": ("+=3", "cannot be parsed"),
    "a missing brace": ("model.n_embd=${", "model.n_embd=${"),
    "a sweep without -m": ("model.n_layer=2,4", "-m"),
    "a sweep over options without -m": ("model=gpt_nano,gpt_mini", "-m"),
    "mistyped key in a sweep": ("-m model.n_layers=2,3", "did you mean model.n_layer "),
    # types
    "a string for an integer": ("model.n_layer=many", "an integer, not a string"),
    "a float for an integer": ("model.n_layer=2.5", "an integer, not a float"),
    "null for an integer": ("model.n_layer=null", "not null"),
    "a string for a number": ("model.dropout=some", "a number"),
    "a string for a boolean": ("model.residual=maybe", "true or false"),
    "a number for a list": ("optimizer.betas=0.9", "a list"),
    "a list that is too short": ("optimizer.betas=[0.9]", "optimizer"),
    # interpolations
    "an interpolation that cannot be resolved": ("optimizer.lr=${nope}", "(in optimizer.lr)"),
    "an interpolation in the run directory": ("hydra.run.dir=${nope}", "'nope'"),
    "an interpolation loop": ("model.n_embd=${model.n_head} model.n_head=${model.n_embd}", "ecursive"),
    "an interpolation to another type": ("trainer.max_steps=${trainer.max_time}", "an integer, not null"),
    "a setting below an interpolated number": ("+data.seed.x=1", "data.seed is an integer"),
    "a setting below a number": ("+trainer.max_steps.x=1", "trainer.max_steps is an integer"),
    # sizes
    "negative channels": ("model.n_embd=-16", "model.n_embd=-16"),
    "more channels than fit into memory": ("model.n_embd=100000000000", "model"),
    "blocks longer than the text": ("model.block_size=1000000", "too short"),
    "blocks longer than those of the model": ("data.block_size=32", "block_size"),
    "an empty batch": ("data.batch_size=0", "batch_size=0"),
    "heads that do not divide the channels": ("model.n_head=3", "model.n_embd"),
    "rotary positions on an odd head size": ("model/position=rotary model.n_embd=18 model.n_head=6", "even"),
    # ranges
    "dropout of more than 1": ("model.dropout=1.5", "model.dropout=1.5"),
    "negative learning rate": ("optimizer.lr=-1", "optimizer.lr"),
    "learning rate NaN": ("optimizer.lr=nan", "optimizer.lr"),
    "infinite learning rate": ("optimizer.lr=inf", "optimizer.lr=inf"),
    "negative weight decay": ("optimizer.weight_decay=-0.1", "weight_decay"),
    "negative warm-up": ("schedule.warmup_steps=-1", "schedule.warmup_steps=-1"),
    "a final fraction of 2": ("schedule.final=2", "schedule.final=2"),
    "a training fraction of 2": ("data.train_fraction=2", "train_fraction=2"),
    "negative validation batch": ("data.validation_tokens=-3", "validation_tokens"),
    "an infinite time limit": ("trainer.max_time={days:1e308}", "DD:HH:MM:SS"),
    "a string for a time limit": ("trainer.max_time=soon", "DD:HH:MM:SS"),
    "no steps": ("trainer.max_steps=0", "trainer.max_steps=0"),
    "negative steps": ("trainer.max_steps=-5", "trainer.max_steps=-5"),
    "no step limit and no time limit": ("trainer.max_steps=-1", "trainer.max_time"),
    "negative clipping": ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=-1"),
    "a string for ema_decay": ("trainer.ema_decay=some", "a number"),
    "EMA of sharded weights": ("trainer=fsdp trainer.accelerator=cpu trainer.ema_decay=0.9", "FSDP"),
    "negative block warm-up": ("data.block_warmup=-1", "data.block_warmup=-1"),
    "token dropout of 1": ("model=gpt_modern model.token_dropout=1.0", "model.token_dropout=1.0"),
    "a string for deterministic": ("trainer.deterministic=sometimes", "deterministic"),
    "negative length of samples": ("callbacks.samples.max_new_tokens=-3", "max_new_tokens=-3"),
    # hardware
    "no devices": ("trainer.devices=0", "devices=0"),
    "a batch that is not divisible by the members": ("model=gpt_ensemble data.batch_size=8", "use a multiple of 3"),
    "no members": ("model=gpt_ensemble model.members=0", "model.members=0"),
    "a strategy that starts processes": ("trainer.strategy=ddp_notebook", "use ddp or fsdp"),
    "invalid precision": ("trainer.precision=17", "bf16-mixed"),
    "invalid accelerator": ("trainer.accelerator=quantum", "quantum"),
    # components
    "a target that is not a model": ("model._target_=os.system", "system does not accept these settings"),
    "a position encoding of a wrong type": ("model.position._target_=torch.nn.Identity", "model"),
    "a tokenizer of a wrong type": ("data.tokenizer._target_=torch.nn.Identity", "data"),
    "an optimizer of a wrong type": ("optimizer._target_=torch.nn.Identity", "optimizer"),
    "a schedule of a wrong type": (
        "schedule._target_=torch.nn.Identity",
        "schedule: Identity is not a function of (step, max_steps, time)",
    ),
    "a target that does not exist": ("model._target_=chargpt.model.transformer.Transfomer", "Transformer?"),
    "a callback of a wrong type": ("+callbacks.mine._target_=torch.nn.Identity", "must be a Callback"),
    "a callback that does not exist": ("+callbacks.mine._target_=no_such.Callback", "there is no module no_such"),
    "invalid mode": ("mode=best", "min, max"),
    "a monitor that is not measured": ("monitor=val_los", "did you mean val_loss?"),
    "a monitor by its name in TensorBoard": ("monitor=val/loss", "did you mean val_loss?"),
    # where the run goes
    "a run directory that contains a run": ("hydra.run.dir=RUN", "resume=RUN"),
    "a file in place of a parent of the run directory": ("hydra.run.dir=FILES/empty.txt/run", "hydra.run.dir"),
    "the folder above as a name": ("name=..", "name='..': it must be the name of a directory"),
    "a name that changes the terminal": ("name='\x1b[31m'", r"name='\x1b[31m': it must be the name of a directory"),
    "a name that is too long": (f"name={'long' * 80} resume=auto", "cannot be created"),
    # the run to resume or repeat
    "a path that is too long": (f"resume={'long' * 80}", "File name too long"),
    "resuming a run of an unknown user": ("resume=~nobody_at_all/run", "~nobody_at_all/run"),
    "repeating a run that does not exist": ("rerun=nowhere", "there is no such run"),
    "repeating a run of an unknown user": ("rerun=~nobody_at_all/run", "there is no such run"),
    "resuming a run that does not exist": ("resume=nowhere", "nowhere"),
    "resuming a folder that is not a run": ("resume=FILES/pictures", "checkpoint"),
}

FLAGS = {
    "flags that cannot be combined": ("--cfg job --multirun seed=1,2", "cannot be combined"),
    "help with a mistyped option": ("--help model=gpt_smal", "did you mean gpt_small"),
    "info with an invalid override": ("--info all seed=${", "cannot be parsed"),
    "shell completion without an action": ("--shell-completion", "install=bash"),
    "shell completion with an invalid override": ("--shell-completion seed=${", "cannot be parsed"),
    "a config folder that does not exist": ("--config-dir=nowhere", "is not a folder"),
}

# Without the overrides of `tiny`.
TEXTS = {
    "no path of a text": ("data=text_file", "data.path must be given"),
    "a text that does not exist": ("data=text_file data.path=missing.txt", "missing.txt does not exist"),
    "an empty path": ("data=text_file data.path=", "data.path is empty"),
    "an empty file": ("data=text_file data.path=FILES/empty.txt", "is empty"),
    "a Latin-1 text": ("data=text_file data.path=FILES/latin.txt", "not UTF-8"),
    "a UTF-16 text": ("data=text_file data.path=FILES/utf16.txt", "UTF-16"),
    "a folder without text files": ("data=text_file data.path=FILES/pictures", ".txt or .md"),
    "a text that is too short": ("data=text_file data.path=FILES/short.txt", "model.block_size"),
    "a file in place of the cache folder": ("data.cache_dir=FILES/empty.txt", "data.cache_dir"),
    "resuming with another size": ("resume=RUN model.n_layer=3", "model.n_layer=2"),
    "resuming with another learning rate": ("resume=RUN optimizer.lr=0.5", "optimizer.lr=0.001"),
    "resuming with another text": ("resume=RUN trainer.max_steps=30 +data.path=FILES/twice.txt", "another text"),
    "resuming a finished run": ("resume=RUN", "trainer.max_steps=40"),
    "resuming from a truncated checkpoint": ("resume=FILES/half", "damaged"),
    "resuming from random bytes": ("resume=FILES/garbage", "damaged"),
    "resuming from a pickle that runs code": ("resume=FILES/pickle", "nothing was loaded"),
    "resuming from a checkpoint that runs code": ("resume=FILES/code", "nothing was loaded"),
    "resuming with weights of another size": ("resume=FILES/misfit trainer.max_steps=30", "fit"),
}

SAMPLES = {
    "mistyped key": ("run=RUN promt=x", "did you mean prompt?"),
    "a prompt with an unknown character": ("run=RUN prompt=Zebra", "'Z'"),
    "an empty prompt": ("run=RUN prompt=", "prompt is empty"),
    "a prompt file that is missing": ("run=RUN prompt=@missing.txt", "missing.txt"),
    "a prompt file of an unknown user": ("run=RUN prompt=@~nobody_at_all/x", "No such file"),
    "a float for a device": ("run=RUN device=0.0", "a string or an integer"),
    "a prompt file that is not UTF-8": ("run=RUN prompt=@FILES/latin.txt", "not UTF-8"),
    "negative temperature": ("run=RUN temperature=-1", "temperature=-1"),
    "a string for the temperature": ("run=RUN temperature=hot", "a number"),
    "top_k of 0": ("run=RUN top_k=0", "null"),
    "top_p of 0": ("run=RUN top_p=0", "top_p=0"),
    "top_p of more than 1": ("run=RUN top_p=2", "top_p=2"),
    "no samples": ("run=RUN num_samples=0", "num_samples=0"),
    "an unknown window": ("run=RUN window=whole", "half, exact"),
    "an unknown quantization": ("run=RUN quantize=int3", "int8"),
    "a model that cannot be quantized": ("run=RUN quantize=int8", "multiples of 32"),
    "negative length": ("run=RUN max_new_tokens=-1", "max_new_tokens=-1"),
    "invalid device": ("run=RUN device=nonsense", "device=cpu"),
    "the meta device": ("run=RUN device=meta", "device=cpu"),
    "several values": ("run=RUN seed=1,2", "more than one value"),
    "a sweep": ("-m run=RUN seed=1,2", "-m is only for training"),
    "no such run": ("run=nowhere", "no run at nowhere"),
    "a run of an unknown user": ("run=~nobody_at_all/run", "no run at ~nobody_at_all"),
    "a path that is too long": (f"run={'long' * 80}", "File name too long"),
    "a truncated checkpoint": ("run=FILES/half", "damaged"),
    "random bytes for a checkpoint": ("run=FILES/garbage", "damaged"),
    "a checkpoint of another program": ("run=FILES/others", "not a chargpt checkpoint"),
    "a checkpoint without config": ("run=FILES/no_config", "not a chargpt checkpoint"),
    "a pickle that runs code": ("run=FILES/pickle", "nothing was loaded"),
    "a checkpoint that runs code": ("run=FILES/code", "nothing was loaded"),
    "a config that runs code": ("run=FILES/target", "os.system"),
    "a config that writes a file": ("run=FILES/writer", "not a component that a file may contain"),
    "weights of another size": ("run=FILES/misfit", "do not match"),
    "a truncated export": ("run=FILES/half.safetensors", "damaged"),
    "weights of another program": ("run=FILES/others.safetensors", "not written by chargpt"),
}

EVALUATIONS = {
    "an unknown split": ("run=RUN split=test", "val"),
    "mistyped option of data": ("run=RUN data=text_fil", "did you mean text_file?"),
    "null for data": ("run=RUN data=null", "The options of data are"),
    "a text without its path": ("run=RUN data=text_file", "data.path must be given"),
    "a path without data=text_file": ("run=RUN data.path=FILES/other.txt", "add data=text_file"),
    "a text with unknown characters": ("run=RUN data=text_file data.path=FILES/other.txt", "'Z'"),
    "no run yet": ("", "train.py"),
}

EXPORTS = {
    "mistyped key": ("run=RUN fil=x", "did you mean file?"),
    "no run yet": ("", "train.py"),
    "no such run": ("run=nowhere", "no run at nowhere"),
    "no such folder": ("run=RUN file=nowhere/a.safetensors", "no folder nowhere"),
    "a folder in place of the file": ("run=RUN file=FILES", "file=FILES/model.safetensors"),
    "a text file in place of the export": ("run=RUN file=FILES/short.txt", "choose another name"),
    "a checkpoint in place of the export": ("run=RUN file=RUN/checkpoints/best.ckpt", "choose another name"),
    "a file in place of the folder": ("run=RUN file=FILES/short.txt/a", "no folder FILES/short.txt"),
    "a name that is too long": (f"run=RUN file={'long' * 80}", "File name too long"),
    "an empty path": ("run=RUN file=", "is a folder"),
    "a checkpoint that runs code": ("run=FILES/code", "nothing was loaded"),
    "weights of another size": ("run=FILES/misfit", "do not match"),
    "a sweep": ("-m run=RUN", "-m is only for training"),
}

COMPARISONS = {
    "mistyped key": ("run=RUN", "did you mean runs?"),
    "no outputs folder": ("", "outputs does not exist"),
    "no such folder": ("runs=nowhere", "nowhere does not exist"),
    "a folder without runs": ("runs=FILES/pictures", "contains no run"),
    "a file that does not belong to a run": ("runs=FILES/empty.txt", "contains no run"),
    "a glob that matches nothing": ("runs=FILES/*.run", "matches nothing"),
    "an empty string": ("runs=", "runs is empty"),
    "an empty list": ("runs=[]", "empty list"),
    "a list with a run that does not exist": ("runs=[RUN,nowhere]", "nowhere does not exist"),
    "null": ("runs=null", "must be a string"),
    "a file in place of the folder": ("runs=RUN folder=FILES/empty.txt/here", "folder=FOLDER"),
    "a sweep": ("-m runs=RUN", "-m is only for training"),
}


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self._path = path

    def __reduce__(self):
        return os.system, (f"touch {self._path}",)


@pytest.fixture(scope="session")
def files(text: str, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of invalid texts and checkpoints."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "empty.txt").touch()
    (folder / "short.txt").write_text("to be")
    (folder / "twice.txt").write_text(2 * text)
    (folder / "other.txt").write_text("Zebras, quiz & vex 12 jackdaws!\n" * 300)
    (folder / "latin.txt").write_bytes("Où est le café ?\n".encode("latin-1") * 300)
    (folder / "utf16.txt").write_bytes(text.encode("utf-16"))
    (folder / "pictures").mkdir()
    (folder / "pictures" / "portrait.png").write_bytes(b"\x89PNG")
    intact = (finished / "checkpoints" / "last.ckpt").read_bytes()

    def edited(edit: Callable[[dict], object]) -> bytes:
        checkpoint = torch.load(io.BytesIO(intact), weights_only=True)
        return saved(edit(checkpoint) or checkpoint)

    def saved(content: object) -> bytes:
        torch_file.save(content, folder / "saved.ckpt")
        return (folder / "saved.ckpt").read_bytes()

    touch = Touch(folder / "touched")
    writer = {
        "_target_": "chargpt.training.callbacks.checkpoint.ChecksumCheckpointIO.save_checkpoint",
        "self": None,
        "checkpoint": {},
        "path": str(folder / "written"),
    }
    invalid = {
        "half": intact[: len(intact) // 2],
        "garbage": b"garbage " * 1000,
        "others": saved({"state_dict": {"weight": torch.zeros(3)}}),
        "no_config": edited(lambda c: c.update(chargpt={})),
        "pickle": pickle.dumps(touch),
        "code": edited(lambda c: c | {"chargpt": touch}),
        "target": edited(lambda c: c["chargpt"]["config"]["model"].update(_target_="os.system")),
        "writer": edited(lambda c: c["chargpt"]["config"]["model"].update(norm=writer)),
        "misfit": edited(lambda c: c["chargpt"]["config"]["model"].update(n_embd=32)),
    }
    for name, content in invalid.items():
        checkpoints = folder / name / "checkpoints"
        checkpoints.mkdir(parents=True)
        (checkpoints / "last.ckpt").write_bytes(content)
        (checkpoints / "best.ckpt").write_bytes(content)
    save_file({"weight": torch.zeros(300)}, folder / "others.safetensors")
    (folder / "half.safetensors").write_bytes((folder / "others.safetensors").read_bytes()[:600])
    return folder


def tree(*folders: Path) -> dict[Path, str]:
    """All paths in the folders, with a checksum of each file."""
    paths = sorted(path for folder in folders for path in folder.rglob("*"))
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder" for p in paths}


@pytest.fixture
def assert_user_error(run_cli, tmp_path: Path, files: Path, finished: Path):
    """Asserts that a command rejects its arguments in one to three lines, and changes no file."""

    def check(name: str, arguments: list[str], message: str) -> None:
        def with_paths(text: str) -> str:
            return text.replace("RUN", str(finished)).replace("FILES", str(files))

        before = tree(tmp_path, files, finished.parent.parent)
        outcome = run_cli(name, *map(with_paths, arguments))
        lines = outcome.err.splitlines()
        assert outcome.code == 2, outcome.err
        assert outcome.out == ""
        assert "Traceback" not in outcome.err
        assert 1 <= len(lines) <= 3 and all(line.strip() for line in lines), outcome.err
        assert lines[-1].startswith(f"{name}.py: ")
        assert with_paths(message) in outcome.err
        assert tree(tmp_path, files, finished.parent.parent) == before

    return check


def cases(table: dict[str, tuple[str, str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("arguments", "message"),
        [pytest.param(arguments.split(), message, id=name) for name, (arguments, message) in table.items()],
    )


@cases(FLAGS)
def test_train_rejects_invalid_flags(assert_user_error, arguments, message):
    assert_user_error("train", arguments, message)


@cases(SETTINGS)
def test_train_rejects_invalid_settings(assert_user_error, tiny, arguments, message):
    assert_user_error("train", [*tiny, *arguments], message)


@cases(TEXTS)
def test_train_rejects_invalid_texts_and_runs(assert_user_error, arguments, message):
    assert_user_error("train", arguments, message)


@cases(SAMPLES)
def test_sample_rejects_invalid_arguments(assert_user_error, arguments, message):
    assert_user_error("sample", arguments, message)


@cases(EVALUATIONS)
def test_evaluate_rejects_invalid_arguments(assert_user_error, arguments, message):
    assert_user_error("evaluate", arguments, message)


@cases(EXPORTS)
def test_export_rejects_invalid_arguments(assert_user_error, arguments, message):
    assert_user_error("export", arguments, message)


@cases(COMPARISONS)
def test_compare_rejects_invalid_arguments(assert_user_error, arguments, message):
    assert_user_error("compare", arguments, message)


@pytest.mark.parametrize("trainer", ["gpu", "mps", "fsdp"])
def test_train_rejects_hardware_that_is_not_available(assert_user_error, tiny, trainer):
    if torch.backends.mps.is_available() if trainer == "mps" else torch.cuda.is_available():
        pytest.skip("the hardware is available")
    assert_user_error("train", [*tiny, f"trainer={trainer}"], "this machine has")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is available")
@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_error_of_the_lectures_last_model_names_the_one_for_a_laptop(assert_user_error, text_file):
    arguments = ["lecture=scaled_up", "data=text_file", f"data.path={text_file}"]
    assert_user_error("train", arguments, "lecture=scaled_up_cpu")


def test_sample_rejects_a_gpu_that_is_not_available(assert_user_error):
    assert_user_error("sample", ["run=RUN", "device=cuda"], "device=cpu")


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_logger_is_reported_with_its_installation_command(assert_user_error, tiny, name):
    if find_spec(name) is not None:
        pytest.skip("it is installed")
    assert_user_error("train", [*tiny, f"logger={name}"], "pip install")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read any file")
def test_a_folder_without_read_permission_is_reported(assert_user_error, tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir()
    (folder / "a.txt").write_text("text")
    (folder / "a.txt").chmod(0)
    try:
        assert_user_error("train", ["data=text_file", f"data.path={folder}"], "cannot be read")
    finally:
        (folder / "a.txt").chmod(0o644)


@pytest.mark.parametrize("content", ["model:\n  n_layer: 1\n", "defaults:\n  - override /model: gpt_nano\n"])
@pytest.mark.parametrize("group", ["experiment", "lecture"])
def test_an_experiment_below_its_own_name_is_refused(assert_user_error, tmp_path, group, content):
    (tmp_path / "my_conf" / group).mkdir(parents=True)
    (tmp_path / "my_conf" / group / "mine.yaml").write_text(content)
    arguments = [f"--config-dir={tmp_path / 'my_conf'}", f"{group}=mine"]
    assert_user_error("train", arguments, f"'{group}/mine': its first line must be `# @package _global_`")


def test_the_first_of_several_errors_is_reported(assert_user_error, tiny):
    assert_user_error("train", [*tiny, "model.n_layers=3", "model.n_head=many"], "model.n_layers")


def test_hydra_full_error_prints_a_traceback(run_cli, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match=r"model\.n_layers"):
        run_cli("train", "model.n_layers=3")


@pytest.mark.parametrize(
    "arguments", ["model.n_layers=3", "model=gpt_smal", "model.n_layer=many", "--help", "--cfg job"]
)
def test_help_and_user_errors_do_not_import_torch(tmp_path, arguments):
    code = (
        "import runpy, sys\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as error: code = error.code or 0\n"
        "else: code = 0\n"
        "heavy = {'torch', 'lightning', 'numpy'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 10 + code)\n"
    )
    script = str(REPO / "train.py")
    start = f"import sys; sys.argv = {[script, *arguments.split()]!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", start + code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 10 + (0 if arguments[0] == "-" else 2), done.stderr
    assert not list(tmp_path.iterdir())
