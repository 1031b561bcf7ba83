"""Mistakes that people make on the command line: each is told in a line, with exit code 2, and leaves nothing."""

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

from chargpt.checkpoint import torch_file
from tests.conftest import REPO

# What was typed, and a word that the answer must hold. RUN and FILES stand for paths.

SETTINGS = {
    # names
    "mistyped key": ("model.n_layers=3", "did you mean model.n_layer "),
    "key without its prefix": ("n_layer=3", "did you mean model.n_layer?"),
    "mistyped group": ("modle=gpt_nano", "did you mean mode or model?"),
    "mistyped choice": ("model=gpt_smal", "did you mean gpt_small or gpt_ensemble?"),
    "mistyped choice of a part": ("model/norm=rmsnorm", "rms_norm"),
    "choice of a part with a dot": ("model.norm=rms_norm", "model/norm=rms_norm"),
    "unknown key of a part": ("model/norm=rms_norm model.norm.epss=1e-5", "did you mean model.norm.eps "),
    "appended key that a part does not take": ("+model.norm.epss=1e-5", "did you mean eps?"),
    "a list for a choice of a part": ("model/norm=[1]", "model/norm is one of"),
    "a list for a choice of Hydra's": ("hydra/launcher=[1]", "hydra/launcher is one of"),
    "Hydra as a whole": ("hydra=look", "one by one"),
    # grammar
    "no equals sign": ("model.n_layer", "KEY=VALUE"),
    "no key": ("+=3", "not understood"),
    "a brace too few": ("model.n_embd=${", "model.n_embd=${"),
    "a sweep without -m": ("model.n_layer=2,4", "-m"),
    "a sweep over choices without -m": ("model=gpt_nano,gpt_mini", "-m"),
    "mistyped key in a sweep": ("-m model.n_layers=2,3", "did you mean model.n_layer "),
    # types
    "a word for a whole number": ("model.n_layer=many", "whole number"),
    "a fraction for a whole number": ("model.n_layer=2.5", "whole number"),
    "null for a whole number": ("model.n_layer=null", "not null"),
    "a word for a number": ("model.dropout=some", "a number"),
    "a word for true or false": ("model.residual=maybe", "true or false"),
    "a number for a list": ("optimizer.betas=0.9", "a list"),
    "a list too short": ("optimizer.betas=[0.9]", "optimizer"),
    # interpolations
    "an interpolation that says where it stands": ("optimizer.lr=${nope}", "(in optimizer.lr)"),
    "an interpolation in the run directory": ("hydra.run.dir=${nope}", "'nope'"),
    "an interpolation loop": ("model.n_embd=${model.n_head} model.n_head=${model.n_embd}", "ecursive"),
    "an interpolation to another type": ("trainer.max_steps=${trainer.max_time}", "whole number, not null"),
    "a setting of an interpolated number": ("+data.seed.x=1", "data.seed is a whole number"),
    "a setting of a number": ("+trainer.max_steps.x=1", "trainer.max_steps is a whole number"),
    # sizes
    "negative channels": ("model.n_embd=-16", "model.n_embd=-16"),
    "more channels than memory": ("model.n_embd=100000000000", "model"),
    "blocks longer than the text": ("model.block_size=1000000", "too short"),
    "blocks longer than the model's": ("data.block_size=32", "block_size"),
    "an empty batch": ("data.batch_size=0", "batch_size=0"),
    "heads that do not divide the channels": ("model.n_head=3", "model.n_embd"),
    "rotary positions on an odd head size": ("model/position=rotary model.n_embd=18 model.n_head=6", "even"),
    # ranges
    "dropout of more than all": ("model.dropout=1.5", "model.dropout=1.5"),
    "negative learning rate": ("optimizer.lr=-1", "optimizer.lr"),
    "learning rate that is no number": ("optimizer.lr=nan", "optimizer.lr"),
    "infinite learning rate": ("optimizer.lr=inf", "optimizer.lr=inf"),
    "negative weight decay": ("optimizer.weight_decay=-0.1", "weight_decay"),
    "negative warm-up": ("schedule.warmup_steps=-1", "schedule.warmup_steps=-1"),
    "a final share of two": ("schedule.final=2", "schedule.final=2"),
    "a training share of two": ("data.train_fraction=2", "train_fraction=2"),
    "negative validation batch": ("data.validation_tokens=-3", "validation_tokens"),
    "more time than there is": ("trainer.max_time={days:1e308}", "DD:HH:MM:SS"),
    "time in words": ("trainer.max_time=soon", "DD:HH:MM:SS"),
    "no steps": ("trainer.max_steps=0", "trainer.max_steps=0"),
    "negative steps": ("trainer.max_steps=-5", "trainer.max_steps=-5"),
    "no end at all": ("trainer.max_steps=-1", "trainer.max_time"),
    "negative clipping": ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=-1"),
    "a word for the average": ("trainer.ema_decay=some", "a number"),
    "an average of split weights": ("trainer=fsdp trainer.accelerator=cpu trainer.ema_decay=0.9", "FSDP"),
    "a negative warm-up of blocks": ("data.block_warmup=-1", "data.block_warmup=-1"),
    "token dropout of all": ("model=gpt_modern model.token_dropout=1.0", "model.token_dropout=1.0"),
    "a word for deterministic": ("trainer.deterministic=sometimes", "deterministic"),
    "negative length of the samples": ("callbacks.samples.max_new_tokens=-3", "max_new_tokens=-3"),
    # hardware
    "a thousand million devices": ("trainer.devices=1000000000", "no more than 1024"),
    "no devices": ("trainer.devices=0", "devices=0"),
    "99 devices": ("trainer.devices=99", "multiple of 99"),
    "a batch that the devices cannot share": ("trainer.devices=3", "multiple of 3"),
    "a batch that the members cannot share": ("model=gpt_ensemble data.batch_size=8", "make it a multiple of 3"),
    "no members": ("model=gpt_ensemble model.members=0", "model.members=0"),
    "processes that start themselves": ("trainer.strategy=ddp_notebook", "take ddp or fsdp"),
    "nonsense precision": ("trainer.precision=17", "bf16-mixed"),
    "nonsense accelerator": ("trainer.accelerator=quantum", "quantum"),
    # parts
    "a part that is not allowed": ("model._target_=os.system", "os.system"),
    "a position that is none": ("model.position._target_=torch.nn.Identity", "model"),
    "a tokenizer that is none": ("data.tokenizer._target_=torch.nn.Identity", "data"),
    "an optimizer that is none": ("optimizer._target_=torch.nn.Identity", "optimizer"),
    "a schedule that is none": ("schedule._target_=torch.nn.Identity", "schedule is a"),
    "a part that does not exist": ("model._target_=chargpt.model.transformer.Transfomer", "Transformer?"),
    "a callback that is none": ("+callbacks.mine._target_=torch.nn.Identity", "must be a Callback"),
    "a callback that does not exist": ("+callbacks.mine._target_=no_such.Callback", "there is no such module"),
    "neither less nor more": ("mode=best", "min, max"),
    "a figure that no validation measures": ("monitor=val_los", "did you mean val_loss?"),
    "a figure by its name in TensorBoard": ("monitor=val/loss", "did you mean val_loss?"),
    # where the run goes
    "a run directory that is taken": ("hydra.run.dir=RUN", "resume=RUN"),
    "a file in the way of the run directory": ("hydra.run.dir=FILES/empty.txt/run", "hydra.run.dir"),
    "a name that is too long": (f"name={'long' * 80} resume=auto", "cannot be created"),
    # what to go on with
    "a name that no run can have": (f"resume={'long' * 80}", "File name too long"),
    "nobody's run to go on with": ("resume=~nobody_at_all/run", "~nobody_at_all/run"),
    "no run to repeat": ("rerun=nowhere", "there is no such run"),
    "nobody's run to repeat": ("rerun=~nobody_at_all/run", "there is no such run"),
    "no run to go on with": ("resume=nowhere", "nowhere"),
    "a folder to go on with that is no run": ("resume=FILES/pictures", "checkpoint"),
}

FLAGS = {
    "two things at once": ("--cfg job --multirun seed=1,2", "do not go together"),
    "help for what is not there": ("--help model=gpt_smal", "did you mean gpt_small"),
    "a sign that is none": ("--info all seed=${", "not understood"),
    "completion of nothing": ("--shell-completion", "install=bash"),
    "words to be completed": ("--shell-completion seed=${", "not understood"),
    "a config of one's own that is not there": ("--config-dir=nowhere", "is not a folder"),
}

# Without further overrides: these name a text or a run of their own.
TEXTS = {
    "no text named": ("data=text_file", "data.path must be given"),
    "a text that does not exist": ("data=text_file data.path=missing.txt", "missing.txt does not exist"),
    "an empty name": ("data=text_file data.path=", "data.path is empty"),
    "an empty text": ("data=text_file data.path=FILES/empty.txt", "is empty"),
    "a Latin-1 text": ("data=text_file data.path=FILES/latin.txt", "not UTF-8"),
    "a UTF-16 text": ("data=text_file data.path=FILES/utf16.txt", "UTF-16"),
    "a folder without texts": ("data=text_file data.path=FILES/pictures", ".txt or .md"),
    "a text that is too short": ("data=text_file data.path=FILES/short.txt", "model.block_size"),
    "an endless device": ("data=text_file data.path=/dev/zero", "not a regular file"),
    "a file in the cache folder's place": ("data.cache_dir=FILES/empty.txt", "data.cache_dir"),
    "another size on resuming": ("resume=RUN model.n_layer=3", "model.n_layer=2"),
    "another learning rate on resuming": ("resume=RUN optimizer.lr=0.5", "optimizer.lr=0.001"),
    "another text on resuming": ("resume=RUN trainer.max_steps=30 +data.path=FILES/twice.txt", "another text"),
    "resuming what is done": ("resume=RUN", "trainer.max_steps=40"),
    "resuming from half a checkpoint": ("resume=FILES/half", "damaged"),
    "resuming from garbage": ("resume=FILES/garbage", "damaged"),
    "resuming from a pickle that runs code": ("resume=FILES/pickle", "nothing was loaded"),
    "resuming from a checkpoint that runs code": ("resume=FILES/code", "nothing was loaded"),
    "resuming with weights of another size": ("resume=FILES/misfit trainer.max_steps=30", "fit"),
}

SAMPLES = {
    "mistyped key": ("run=RUN promt=x", "did you mean prompt?"),
    "a prompt with an unknown character": ("run=RUN prompt=Zebra", "'Z'"),
    "an empty prompt": ("run=RUN prompt=", "prompt is empty"),
    "a prompt file that is missing": ("run=RUN prompt=@missing.txt", "missing.txt"),
    "nobody's prompt file": ("run=RUN prompt=@~nobody_at_all/x", "No such file"),
    "a prompt without an end": ("run=RUN prompt=@/dev/zero", "is a device"),
    "a pipe that nobody writes into": ("run=RUN prompt=@FILES/pipe", "prompt is empty"),
    "a prompt file that has no size": ("run=RUN prompt=@/proc/kmsg", "prompt is empty"),
    "a fraction for a device": ("run=RUN device=0.0", "a text or a whole number"),
    "a prompt file that is not UTF-8": ("run=RUN prompt=@FILES/latin.txt", "not UTF-8"),
    "negative temperature": ("run=RUN temperature=-1", "temperature=-1"),
    "a word for the temperature": ("run=RUN temperature=hot", "a number"),
    "top_k of none": ("run=RUN top_k=0", "null"),
    "top_p of nothing": ("run=RUN top_p=0", "top_p=0"),
    "top_p of more than all": ("run=RUN top_p=2", "top_p=2"),
    "no samples": ("run=RUN num_samples=0", "num_samples=0"),
    "an unknown window": ("run=RUN window=whole", "half, exact"),
    "an unknown rounding": ("run=RUN quantize=int3", "int8"),
    "rounding what cannot be": ("run=RUN quantize=int8", "multiples of 32"),
    "negative length": ("run=RUN max_new_tokens=-1", "max_new_tokens=-1"),
    "nonsense device": ("run=RUN device=nonsense", "device=cpu"),
    "a device that computes nothing": ("run=RUN device=meta", "device=cpu"),
    "several values": ("run=RUN seed=1,2", "more than one value"),
    "a sweep": ("-m run=RUN seed=1,2", "-m is for training"),
    "no such run": ("run=nowhere", "no run at nowhere"),
    "nobody's run": ("run=~nobody_at_all/run", "no run at ~nobody_at_all"),
    "a name that no run can have": (f"run={'long' * 80}", "File name too long"),
    "half a checkpoint": ("run=FILES/half", "damaged"),
    "garbage for a checkpoint": ("run=FILES/garbage", "damaged"),
    "another's checkpoint": ("run=FILES/others", "not a checkpoint of this bench"),
    "a checkpoint without config": ("run=FILES/no_config", "not a checkpoint of this bench"),
    "a pickle that runs code": ("run=FILES/pickle", "nothing was loaded"),
    "a checkpoint that runs code": ("run=FILES/code", "nothing was loaded"),
    "a config that runs code": ("run=FILES/target", "os.system"),
    "a config that writes a file": ("run=FILES/writer", "may be built"),
    "weights of another size": ("run=FILES/misfit", "fit"),
    "half an export": ("run=FILES/half.safetensors", "damaged"),
    "another's weights": ("run=FILES/others.safetensors", "not one of this bench"),
}

MEASURES = {
    "an unknown split": ("run=RUN split=test", "val"),
    "mistyped choice of a text": ("run=RUN data=text_fil", "did you mean text_file?"),
    "no text at all": ("run=RUN data=null", "data is one of"),
    "a file that has no size": ("run=RUN data=text_file data.path=/proc/kmsg", "is empty"),
    "a text without its path": ("run=RUN data=text_file", "data.path must be given"),
    "a path without its text": ("run=RUN data.path=FILES/other.txt", "add data=text_file"),
    "a text with unknown characters": ("run=RUN data=text_file data.path=FILES/other.txt", "'Z'"),
    "no run yet": ("", "train.py"),
}

EXPORTS = {
    "mistyped key": ("run=RUN fil=x", "did you mean file?"),
    "no run yet": ("", "train.py"),
    "no such run": ("run=nowhere", "no run at nowhere"),
    "no such folder": ("run=RUN file=nowhere/a.safetensors", "no folder nowhere"),
    "a folder in the file's place": ("run=RUN file=FILES", "file=FILES/model.safetensors"),
    "a text in the file's place": ("run=RUN file=FILES/short.txt", "choose another name"),
    "a checkpoint in the file's place": ("run=RUN file=RUN/checkpoints/best.ckpt", "choose another name"),
    "a file in the folder's place": ("run=RUN file=FILES/short.txt/a", "no folder FILES/short.txt"),
    "a device in the file's place": ("run=RUN file=/dev/null", "choose another name"),
    "a name that is too long": (f"run=RUN file={'long' * 80}", "File name too long"),
    "an empty name": ("run=RUN file=", "is a folder"),
    "a checkpoint that runs code": ("run=FILES/code", "nothing was loaded"),
    "weights of another size": ("run=FILES/misfit", "fit"),
    "a sweep": ("-m run=RUN", "-m is for training"),
}

COMPARISONS = {
    "mistyped key": ("run=RUN", "did you mean runs?"),
    "no outputs yet": ("", "outputs does not exist"),
    "no such folder": ("runs=nowhere", "nowhere does not exist"),
    "a folder without runs": ("runs=FILES/pictures", "contains no run"),
    "a file that is no run's": ("runs=FILES/empty.txt", "contains no run"),
    "a glob that matches nothing": ("runs=FILES/*.run", "matches nothing"),
    "nothing": ("runs=", "runs is empty"),
    "a list of nothing": ("runs=[]", "empty list"),
    "a list in which one is not there": ("runs=[RUN,nowhere]", "nowhere does not exist"),
    "null": ("runs=null", "runs is a text"),
    "a file in the folder's place": ("runs=RUN folder=FILES/empty.txt/here", "folder=FOLDER"),
    "a sweep": ("-m runs=RUN", "-m is for training"),
}


class Touch:
    """Unpickled without care, it makes a file."""

    def __init__(self, path: Path):
        self._path = path

    def __reduce__(self):
        return os.system, (f"touch {self._path}",)


@pytest.fixture(scope="session")
def files(text: str, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of texts and checkpoints that are wrong, each in its own way."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("files")
    (folder / "empty.txt").touch()
    (folder / "short.txt").write_text("to be")
    os.mkfifo(folder / "pipe")
    (folder / "twice.txt").write_text(2 * text)
    (folder / "other.txt").write_text("Zebras, quiz & vex 12 jackdaws!\n" * 300)
    (folder / "latin.txt").write_bytes("Où est le café ?\n".encode("latin-1") * 300)
    (folder / "utf16.txt").write_bytes(text.encode("utf-16"))
    (folder / "pictures").mkdir()
    (folder / "pictures" / "portrait.png").write_bytes(b"\x89PNG")
    whole = (finished / "checkpoints" / "last.ckpt").read_bytes()

    def edited(edit: Callable[[dict], object]) -> bytes:
        checkpoint = torch.load(io.BytesIO(whole), weights_only=True)
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
    wrong = {
        "hollow_file": b"",
        "half": whole[: len(whole) // 2],
        "garbage": b"garbage " * 1000,
        "others": saved({"state_dict": {"weight": torch.zeros(3)}}),
        "no_config": edited(lambda c: c.update(chargpt={})),
        "pickle": pickle.dumps(touch),
        "code": edited(lambda c: c | {"chargpt": touch}),
        "target": edited(lambda c: c["chargpt"]["config"]["model"].update(_target_="os.system")),
        "writer": edited(lambda c: c["chargpt"]["config"]["model"].update(norm=writer)),
        "misfit": edited(lambda c: c["chargpt"]["config"]["model"].update(n_embd=32)),
    }
    for name, content in wrong.items():
        checkpoints = folder / name / "checkpoints"
        checkpoints.mkdir(parents=True)
        (checkpoints / "last.ckpt").write_bytes(content)
        (checkpoints / "best.ckpt").write_bytes(content)
    save_file({"weight": torch.zeros(300)}, folder / "others.safetensors")
    (folder / "half.safetensors").write_bytes((folder / "others.safetensors").read_bytes()[:600])
    return folder


def tree(*folders: Path) -> dict[Path, str]:
    """All that lies in the folders, with a digest of its content."""
    found = sorted(path for folder in folders for path in folder.rglob("*"))
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder" for p in found}


@pytest.fixture
def refused(run_cli, tmp_path: Path, files: Path, finished: Path):
    """Asserts that a verb refuses these words, in one to three lines, and touches nothing."""

    def check(name: str, words: list[str], hint: str) -> None:
        def path(word: str) -> str:
            return word.replace("RUN", str(finished)).replace("FILES", str(files))

        before = tree(tmp_path, files, finished.parent.parent)
        outcome = run_cli(name, *map(path, words))
        lines = outcome.err.splitlines()
        assert outcome.code == 2, outcome.err
        assert outcome.out == ""
        assert "Traceback" not in outcome.err
        assert 1 <= len(lines) <= 3 and all(line.strip() for line in lines), outcome.err
        assert lines[-1].startswith(f"{name}.py: ")
        assert path(hint) in outcome.err
        assert tree(tmp_path, files, finished.parent.parent) == before

    return check


def cases(table: dict[str, tuple[str, str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("words", "hint"), [pytest.param(words.split(), hint, id=name) for name, (words, hint) in table.items()]
    )


@cases(FLAGS)
def test_train_refuses_flags(refused, words, hint):
    refused("train", words, hint)


@cases(SETTINGS)
def test_train_refuses_a_wrong_setting(refused, tiny, words, hint):
    refused("train", [*tiny, *words], hint)


@cases(TEXTS)
def test_train_refuses_a_wrong_text_or_run(refused, words, hint):
    refused("train", words, hint)


@cases(SAMPLES)
def test_sample_refuses(refused, words, hint):
    refused("sample", words, hint)


@cases(MEASURES)
def test_evaluate_refuses(refused, words, hint):
    refused("evaluate", words, hint)


@cases(EXPORTS)
def test_export_refuses(refused, words, hint):
    refused("export", words, hint)


@cases(COMPARISONS)
def test_compare_refuses(refused, words, hint):
    refused("compare", words, hint)


@pytest.mark.parametrize("choice", ["gpu", "mps", "fsdp"])
def test_train_refuses_hardware_that_is_not_there(refused, tiny, choice):
    import torch

    there = torch.backends.mps.is_available() if choice == "mps" else torch.cuda.is_available()
    if there:
        pytest.skip("the hardware is there")
    refused("train", [*tiny, f"trainer={choice}"], "this machine has")


def test_sample_refuses_a_gpu_that_is_not_there(refused):
    import torch

    if torch.cuda.is_available():
        pytest.skip("the hardware is there")
    refused("sample", ["run=RUN", "device=cuda"], "device=cpu")


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_a_logger_that_is_not_installed_comes_with_the_command_that_installs_it(refused, tiny):
    refused("train", [*tiny, "logger=wandb"], "pip install")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read anything")
def test_a_folder_that_may_not_be_read_is_told(refused, tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir()
    (folder / "a.txt").write_text("text")
    (folder / "a.txt").chmod(0)
    try:
        refused("train", ["data=text_file", f"data.path={folder}"], "cannot be read")
    finally:
        (folder / "a.txt").chmod(0o644)


def test_the_first_mistake_of_several_is_told(refused, tiny):
    refused("train", [*tiny, "model.n_layers=3", "model.n_head=many"], "model.n_layers")


def test_a_traceback_is_there_for_who_asks(run_cli, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match=r"model\.n_layers"):
        run_cli("train", "model.n_layers=3")


@pytest.mark.parametrize("words", ["model.n_layers=3", "model=gpt_smal", "model.n_layer=many", "--help", "--cfg job"])
def test_an_answer_that_needs_no_training_does_not_wait_for_torch(tmp_path, words):
    code = (
        "import runpy, sys\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as left: code = left.code or 0\n"
        "else: code = 0\n"
        "heavy = {'torch', 'lightning', 'numpy'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 10 + code)\n"
    )
    script = str(REPO / "train.py")
    start = f"import sys; sys.argv = {[script, *words.split()]!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", start + code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 10 + (0 if words[0] == "-" else 2), done.stderr
    assert not list(tmp_path.iterdir())
