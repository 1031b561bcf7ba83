"""Every option in conf/, and every pair of options, composes and builds; recipes have the values of their sources.

The cases are collected from conf/, so that new files are tested automatically.
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

HARDWARE = ["gpu", "mps", "fsdp"]  # options of `trainer` that require hardware
SERVICES = ["wandb", "mlflow"]  # options of `logger` that require an extra
# Options with separate tests.
EXTRAS = {
    *product(["logger"], SERVICES),
    ("model", "adapted_nanogpt"),
    ("model", "adapted_huggingface"),
}  # other code
SEPARATE = {
    *EXTRAS,
    ("lecture", "scaled_up"),
    *product(["trainer"], HARDWARE),
}
COMPLETE = ("lecture", "grid", "speedrun", "experiment")  # they select the model and the recipe themselves
SMALL = {"n_layer": 2, "n_embd": 16, "n_head": 2, "block_size": 16}
CPU = ["trainer.accelerator=cpu", "trainer.devices=1", "trainer.strategy=auto"]

Options = dict[str, str]  # config group -> option


def prepare(config: DictConfig) -> Run:
    """The run of a composed config, as train.py builds it."""
    messages = MemoryHandler(10)
    run, _ = setup(OmegaConf.to_container(config, resolve=True), RunDirectory(HydraConfig.get().run.dir), messages)
    return run


def options_of_groups() -> dict[str, list[str]]:
    """The config groups of conf/ and their options."""
    options: dict[str, list[str]] = {}
    for file in sorted(CONF.rglob("*.yaml")):
        group = file.relative_to(CONF).parent.as_posix()
        if group != "." and not group.startswith("hydra"):
            options.setdefault(group, []).append(file.stem)
    return options


def keys_of_groups(*overrides: str) -> dict[str, str]:
    """The groups of train.py and the key that overrides each (`data/dataloader`: `data/dataloader@data`)."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("train", list(overrides), return_hydra_config=True)
    return {key.partition("@")[0]: key for key in config.hydra.runtime.choices}


GROUPS = options_of_groups()
KEYS = keys_of_groups()
MODEL_KEYS = {model: keys_of_groups(f"model={model}") for model in GROUPS["model"]}


def overrides_for(options: Options) -> list[str]:
    return [f"{KEYS[group]}={name}" if group in KEYS else f"+{group}={name}" for group, name in options.items()]


def compatible(one: tuple[str, str], other: tuple[str, str]) -> bool:
    """Whether two options can be combined: not every model has components, and some callbacks require a logger."""
    if {one, other} & {("callbacks", "lr_monitor"), ("callbacks", "device_stats")} and ("logger", "none") in (
        one,
        other,
    ):
        return False
    return not any(
        group == "model" and component.startswith("model/") and component not in MODEL_KEYS[name]
        for (group, name), (component, _) in ((one, other), (other, one))
    )


def pairwise_combinations(groups: dict[str, list[str]]) -> Iterator[Options]:
    """A small set of combinations that contains every compatible pair of options of different groups."""
    options = [[(group, name) for name in names] for group, names in groups.items()]
    missing = {frozenset(pair) for a, b in combinations(options, 2) for pair in product(a, b) if compatible(*pair)}
    while missing:
        row = dict(sorted(min(missing, key=sorted)))
        for names in sorted(options, key=len, reverse=True):
            if names[0][0] in row:
                continue
            allowed = [option for option in names if all(compatible(option, other) for other in row.items())]
            if allowed:
                group, name = max(allowed, key=lambda option: sum({option, other} in missing for other in row.items()))
                row[group] = name
        missing -= {frozenset(pair) for pair in combinations(row.items(), 2)}
        yield dict(sorted(row.items()))


PAIRED = {
    group: [name for name in names if (group, name) not in EXTRAS]
    for group, names in GROUPS.items()
    if group in KEYS and group not in COMPLETE
}
ROWS = list(pairwise_combinations(PAIRED))


@pytest.fixture
def build(compose, text, text_file, tmp_path, monkeypatch):
    """Builds a small run with these options on the small text, and runs a forward pass."""
    monkeypatch.setattr(TinyShakespeare, "read", lambda self: text)

    def build(options: Options, *overrides: str) -> Run:
        config = compose(*overrides_for(options), *overrides)
        config.model.update({key: size for key, size in SMALL.items() if key in config.model})
        config.data.batch_size *= config.model.get("members", 1)  # an equal share for each member with any recipe
        if OmegaConf.is_missing(config.data, "path"):
            config.data.path = str(text_file)
        run = prepare(config)
        tokens_BT = run.data.train_tokens_N[: run.model.block_size].long().repeat(run.model.batch_multiple, 1)
        logits_BTV = run.model(tokens_BT)
        assert logits_BTV.shape == (*tokens_BT.shape, run.data.tokenizer.vocab_size)
        assert logits_BTV.isfinite().all()
        assert not list(tmp_path.iterdir()), "set-up must write no files"
        return run

    return build


@pytest.mark.parametrize(
    ("group", "name"),
    [(group, name) for group, names in GROUPS.items() for name in names if (group, name) not in SEPARATE],
)
def test_every_option_builds(build, group, name):
    build({group: name}, *(["trainer.devices=1"] if group == "trainer" else []))
    selected = HydraConfig.get().runtime.choices
    assert selected[KEYS.get(group, group)] == name


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: " ".join(row.values()))
def test_every_pair_of_options_builds(build, row):
    build(row, *CPU)


def test_the_combinations_contain_every_compatible_pair():
    pairs = {frozenset(pair) for row in ROWS for pair in combinations(row.items(), 2)}
    for (one, names), (other, more) in combinations(PAIRED.items(), 2):
        for a, b in product(names, more):
            assert {(one, a), (other, b)} in pairs or not compatible((one, a), (other, b))
    assert len(ROWS) < 100


@pytest.mark.parametrize("trainer", HARDWARE)
def test_a_trainer_builds_or_reports_the_missing_hardware(build, compose, tiny, trainer):
    available = torch.backends.mps.is_available() if trainer == "mps" else torch.cuda.is_available()
    assert compose(f"trainer={trainer}").trainer.accelerator == ("mps" if trainer == "mps" else "gpu")
    if available:
        build({"trainer": trainer}, "trainer.devices=1")
    else:
        with pytest.raises(UserError, match="this machine has"):
            prepare(compose(*tiny, f"trainer={trainer}"))


@pytest.mark.parametrize("name", SERVICES)
def test_a_logger_of_a_service_is_built_or_reported_as_missing(compose, tiny, name):
    config = compose(*tiny, f"logger={name}")
    assert list(config.logger) == [name]
    if find_spec(name) is None:
        with pytest.raises(UserError, match="pip install"):
            prepare(config)


def test_several_loggers_and_callbacks_are_selected_by_a_list(compose):
    config = compose("logger=[csv,tensorboard]", "callbacks=[early_stopping,lr_monitor]")
    assert list(config.logger) == ["csv", "tensorboard"]
    assert list(config.callbacks) == ["samples", "progress", "early_stopping", "lr_monitor"]


@pytest.mark.parametrize(("model", "module"), [("adapted_nanogpt", "model"), ("adapted_huggingface", "transformers")])
def test_an_adapted_model_is_built_or_its_code_is_reported_as_missing(build, monkeypatch, tmp_path, model, module):
    monkeypatch.chdir(tmp_path)
    if find_spec(module):
        assert build({"model": model}, "recipe=default").model.module.lm_head.out_features > 1
    else:
        with pytest.raises(UserError, match=f"there is no module {module} in the installed packages"):
            build({"model": model}, "recipe=default")


@pytest.mark.parametrize("model", [name for name in GROUPS["model"] if ("model", name) not in EXTRAS])
def test_each_model_has_its_own_recipe(compose, model):
    compose(f"model={model}")
    assert HydraConfig.get().runtime.choices["recipe"] == model


def test_gpt_small_has_the_settings_of_the_lecture(compose):
    config = compose("model=gpt_small")
    model = config.model
    assert (model.n_layer, model.n_head, model.n_embd, model.block_size, model.dropout) == (6, 6, 384, 256, 0.2)
    assert (config.data.batch_size, config.trainer.max_steps, config.optimizer.lr) == (64, 5000, 3e-4)
    assert config.data.block_size == 256


def test_cfg_job_prints_the_values_of_the_recipe(run_cli):
    outcome = run_cli("train", "model=gpt_small", "--cfg", "job")
    config = OmegaConf.create(outcome.out)
    assert outcome.code == 0
    assert (config.model.block_size, config.data.batch_size) == (256, 64)


@pytest.mark.parametrize("model", ["gpt_small", "bigram"])
def test_the_command_line_overrides_model_and_recipe(compose, model):
    config = compose(f"model={model}", "model.block_size=64", "data.batch_size=7", "optimizer.lr=0.5")
    assert (config.model.block_size, config.data.block_size) == (64, 64)
    assert (config.data.batch_size, config.optimizer.lr) == (7, 0.5)


@pytest.mark.parametrize("optimizer", GROUPS["optimizer"])
def test_an_optimizer_has_its_own_settings(compose, optimizer):
    assert compose("model=gpt_small", f"optimizer={optimizer}").optimizer == compose_option(f"optimizer/{optimizer}")


@pytest.mark.parametrize("schedule", GROUPS["schedule"])
def test_a_schedule_has_its_own_settings(compose, schedule):
    config = compose("model=gpt_small", f"schedule={schedule}")
    assert config.schedule == compose_option(f"schedule/{schedule}")


def test_the_nanogpt_laptop_recipe_has_the_values_of_nanogpt(compose):
    """https://github.com/karpathy/nanoGPT: README, "I only have a macbook", and the defaults of train.py."""
    config = compose("model=gpt_nano", "recipe=nanogpt_laptop")
    optimizer, trainer, schedule = config.optimizer, config.trainer, config.schedule
    assert (config.data.batch_size, config.data.block_size, trainer.max_steps) == (12, 64, 2000)
    assert (config.model.n_layer, config.model.n_head, config.model.n_embd) == (4, 4, 128)
    assert (config.model.dropout, config.model.bias) == (0.0, False)
    assert (optimizer.lr, list(optimizer.betas), optimizer.weight_decay) == (1e-3, [0.9, 0.99], 0.1)
    assert (schedule.warmup_steps, trainer.gradient_clip_val) == (100, 1.0)
    assert optimizer.lr * schedule.final == pytest.approx(1e-4)


def test_seed_sets_all_seeds(compose):
    config = compose("seed=3")
    assert (config.data.seed, config.callbacks.samples.seed) == (3, 3)


def test_the_name_of_a_run_defaults_to_its_model(compose):
    assert compose("model=bigram").name == "bigram"
    assert compose("model=bigram", "name=mine").name == "mine"


def compose_option(config_name: str) -> DictConfig:
    """The config of one option."""
    group = config_name.partition("/")[0]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(config_name)[group]


def test_debug_overrides_all_other_groups_but_not_the_command_line():
    for other in ("lecture=residual", "grid=small", "speedrun=laptop", "experiment=muon_lecture", "model=gpt_small"):
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            config = hydra.compose("train", ["debug=overfit", other, "data.batch_size=7"], return_hydra_config=True)
        trainer = config.trainer
        assert (trainer.max_steps, trainer.val_check_interval, trainer.overfit_batches) == (200, 50, 3)
        assert config.data.batch_size == 7
        assert config.hydra.run.dir.startswith(f"outputs/debug/{config.name}/")
        assert config.hydra.sweep.dir == f"outputs/debug/{config.name}"


def test_an_option_of_an_optional_group_may_have_a_plus_sign(run_cli):
    outputs = [run_cli("train", f"{sign}lecture=head", "--cfg", "job").out for sign in ("", "+")]
    assert "n_layer: 1" in outputs[0]
    assert outputs[0] == outputs[1]
