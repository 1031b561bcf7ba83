"""Every choice in conf/, and every pair of choices, composes and builds; recipes say what they are known for.

The cases are found by walking conf/: a new file there is tried without a word here.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from itertools import combinations, product
from logging.handlers import MemoryHandler

import hydra
import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from chargpt.data.corpus import TinyShakespeare
from chargpt.errors import UserError
from chargpt.runs.directory import RunDirectory
from chargpt.training.loop import setup
from chargpt.training.setup import Run
from tests.config.conftest import CONF

HARDWARE = ["gpu", "mps", "fsdp"]  # choices of `trainer` that not every machine can build
# Tried by tests of their own.
ELSEWHERE = {
    ("logger", "wandb"),
    ("lecture", "scaled_up"),
    *product(["trainer"], HARDWARE),
}
SMALL = {"n_layer": 2, "n_embd": 16, "n_head": 2, "block_size": 16}
ANYWHERE = ["trainer.accelerator=cpu", "trainer.devices=1", "trainer.strategy=auto"]

Choices = dict[str, str]


def prepare(config: DictConfig) -> Run:
    """The run that a composed config describes, as train.py builds it."""
    messages = MemoryHandler(10)
    run, _ = setup(OmegaConf.to_container(config, resolve=True), RunDirectory(HydraConfig.get().run.dir), messages)
    return run


def choices() -> dict[str, list[str]]:
    """The groups of conf/ and the names in them."""
    found: dict[str, list[str]] = {}
    for file in sorted(CONF.rglob("*.yaml")):
        group = file.relative_to(CONF).parent.as_posix()
        if group != "." and not group.startswith("hydra"):
            found.setdefault(group, []).append(file.stem)
    return found


def keys_in_the_defaults(*words: str) -> dict[str, str]:
    """Groups of train.py -> the key that overrides each (`data/dataloader` -> `data/dataloader@data`)."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("train", list(words), return_hydra_config=True)
    return {key.partition("@")[0]: key for key in config.hydra.runtime.choices}


GROUPS = choices()
KEYS = keys_in_the_defaults()
PARTS = {model: keys_in_the_defaults(f"model={model}") for model in GROUPS["model"]}


def words_of(chosen: Choices) -> list[str]:
    return [f"{KEYS[group]}={name}" if group in KEYS else f"+{group}={name}" for group, name in chosen.items()]


def fit_together(one: tuple[str, str], other: tuple[str, str]) -> bool:
    """Whether two choices can stand side by side: a model without parts has none to choose."""
    return not any(
        group == "model" and part.startswith("model/") and part not in PARTS[name]
        for (group, name), (part, _) in ((one, other), (other, one))
    )


def rows_that_hold_every_pair(groups: dict[str, list[str]]) -> Iterator[Choices]:
    """Few combinations in which each two choices of different groups that fit together meet."""
    options = [[(group, name) for name in names] for group, names in groups.items()]
    missing = {frozenset(pair) for a, b in combinations(options, 2) for pair in product(a, b) if fit_together(*pair)}
    while missing:
        row = dict(sorted(min(missing, key=sorted)))
        for names in sorted(options, key=len, reverse=True):
            if names[0][0] in row:
                continue
            fitting = [choice for choice in names if all(fit_together(choice, other) for other in row.items())]
            if fitting:
                group, name = max(fitting, key=lambda choice: sum({choice, other} in missing for other in row.items()))
                row[group] = name
        missing -= {frozenset(pair) for pair in combinations(row.items(), 2)}
        yield dict(sorted(row.items()))


PAIRED = {
    group: [name for name in names if (group, name) != ("logger", "wandb")]
    for group, names in GROUPS.items()
    if group in KEYS
}
ROWS = list(rows_that_hold_every_pair(PAIRED))


@pytest.fixture
def build(compose, text, text_file, tmp_path, monkeypatch):
    """Builds all of a run from the choices, small and on the small text, and passes tokens through it."""
    monkeypatch.setattr(TinyShakespeare, "read", lambda self: text)

    def build(chosen: Choices, *words: str) -> Run:
        config = compose(*words_of(chosen), *words)
        config.model.update({key: size for key, size in SMALL.items() if key in config.model})
        config.data.batch_size *= config.model.get("members", 1)  # whatever the recipe, each has a share
        if OmegaConf.is_missing(config.data, "path"):
            config.data.path = str(text_file)
        run = prepare(config)
        tokens_BT = run.data.train_tokens_N[: run.model.block_size].long().repeat(run.model.batch_multiple, 1)
        logits_BTV = run.model(tokens_BT)
        assert logits_BTV.shape == (*tokens_BT.shape, run.data.tokenizer.vocab_size)
        assert logits_BTV.isfinite().all()
        assert not list(tmp_path.iterdir()), "set-up must leave nothing on the disk"
        return run

    return build


@pytest.mark.parametrize(
    ("group", "name"),
    [(group, name) for group, names in GROUPS.items() for name in names if (group, name) not in ELSEWHERE],
)
def test_every_choice_builds(build, group, name):
    build({group: name}, *(["trainer.devices=1"] if group == "trainer" else []))
    chosen = HydraConfig.get().runtime.choices
    assert chosen[KEYS.get(group, group)] == name


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: " ".join(row.values()))
def test_every_pair_of_choices_builds(build, row):
    build(row, *ANYWHERE)


def test_the_rows_hold_every_pair():
    together = {frozenset(pair) for row in ROWS for pair in combinations(row.items(), 2)}
    for (one, names), (other, more) in combinations(PAIRED.items(), 2):
        for a, b in product(names, more):
            assert {(one, a), (other, b)} in together or not fit_together((one, a), (other, b))
    assert len(ROWS) < 100


@pytest.mark.parametrize("trainer", HARDWARE)
def test_a_trainer_for_other_hardware_composes_and_says_what_is_missing(build, compose, tiny, trainer):
    there = torch.backends.mps.is_available() if trainer == "mps" else torch.cuda.is_available()
    assert compose(f"trainer={trainer}").trainer.accelerator == ("mps" if trainer == "mps" else "gpu")
    if there:
        build({"trainer": trainer}, "trainer.devices=1")
    else:
        with pytest.raises(UserError, match="this machine has"):
            prepare(compose(*tiny, f"trainer={trainer}"))


def test_wandb_is_made_or_asked_for(compose, tiny):
    config = compose(*tiny, "logger=wandb")
    assert {"tensorboard", "wandb"} <= config.logger.keys()
    if find_spec("wandb") is None:
        with pytest.raises(UserError, match="pip install"):
            prepare(config)


@pytest.mark.parametrize("model", GROUPS["model"])
def test_each_model_names_its_own_recipe(compose, model):
    compose(f"model={model}")
    assert HydraConfig.get().runtime.choices["recipe"] == model


def test_the_scaled_up_model_is_the_lectures_run(compose):
    config = compose("model=gpt_small")
    model = config.model
    assert (model.n_layer, model.n_head, model.n_embd, model.block_size, model.dropout) == (6, 6, 384, 256, 0.2)
    assert (config.data.batch_size, config.trainer.max_steps, config.optimizer.lr) == (64, 5000, 3e-4)
    assert config.data.block_size == 256


def test_cfg_job_shows_the_recipes_values(run_cli):
    outcome = run_cli("train", "model=gpt_small", "--cfg", "job")
    shown = OmegaConf.create(outcome.out)
    assert outcome.code == 0
    assert (shown.model.block_size, shown.data.batch_size) == (256, 64)


@pytest.mark.parametrize("model", ["gpt_small", "bigram"])
def test_the_command_line_wins_over_model_and_recipe(compose, model):
    config = compose(f"model={model}", "model.block_size=64", "data.batch_size=7", "optimizer.lr=0.5")
    assert (config.model.block_size, config.data.block_size) == (64, 64)
    assert (config.data.batch_size, config.optimizer.lr) == (7, 0.5)


@pytest.mark.parametrize("optimizer", GROUPS["optimizer"])
def test_an_optimizer_brings_its_own_settings_and_not_the_recipes(compose, optimizer):
    assert compose("model=gpt_small", f"optimizer={optimizer}").optimizer == alone(f"optimizer/{optimizer}")


@pytest.mark.parametrize("schedule", GROUPS["schedule"])
def test_a_schedule_on_the_command_line_is_taken(compose, schedule):
    config = compose("model=gpt_small", f"schedule={schedule}")
    assert config.schedule == alone(f"schedule/{schedule}")


def test_nanogpts_laptop_recipe_has_nanogpts_values(compose):
    """https://github.com/karpathy/nanoGPT: README, "I only have a macbook", and the defaults of train.py."""
    config = compose("model=gpt_nano", "recipe=nanogpt_laptop")
    optimizer, trainer, schedule = config.optimizer, config.trainer, config.schedule
    assert (config.data.batch_size, config.data.block_size, trainer.max_steps) == (12, 64, 2000)
    assert (config.model.n_layer, config.model.n_head, config.model.n_embd) == (4, 4, 128)
    assert (config.model.dropout, config.model.bias) == (0.0, False)
    assert (optimizer.lr, list(optimizer.betas), optimizer.weight_decay) == (1e-3, [0.9, 0.99], 0.1)
    assert (schedule.warmup_steps, trainer.gradient_clip_val) == (100, 1.0)
    assert optimizer.lr * schedule.final == pytest.approx(1e-4)


def test_one_seed_seeds_all(compose):
    config = compose("seed=3")
    assert (config.data.seed, config.callbacks.samples.seed) == (3, 3)


def test_the_name_of_a_run_is_its_models(compose):
    assert compose("model=bigram").name == "bigram"
    assert compose("model=bigram", "name=mine").name == "mine"


def alone(config_name: str) -> DictConfig:
    """One choice, composed by itself."""
    group = config_name.partition("/")[0]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(config_name)[group]
