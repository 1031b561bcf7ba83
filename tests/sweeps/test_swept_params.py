"""The settings that vary between runs, each shown once as the key or group of an override."""

from chargpt.runs.record import read_run
from chargpt.sweeps.swept_params import ABSENT, swept_params

RMS = {"model.norm._target_": "torch.nn.RMSNorm", "model.norm.bias": False}


def columns(*paths):
    return swept_params([read_run(path) for path in paths])


def test_only_settings_that_differ_are_keys(run):
    first = run("a", "model.n_layer=2", "model.dropout=0.1", loss=2.0)
    second = run("b", "model.n_layer=4", "model.dropout=0.1", loss=2.0)
    assert columns(first, second) == {"model.n_layer": [2, 4]}
    assert columns(first) == {}


def test_the_hardware_and_the_cache_folder_are_not_keys(run):
    overrides = ("trainer.devices=2", 'trainer.accelerator="gpu"', 'data.cache_dir="/tmp"')
    assert columns(run("a", loss=2.0), run("b", *overrides, loss=2.0, choices={"trainer": "gpu"})) == {}


def test_an_interpolated_key_is_shown_once(run):
    paths = [run(f"{n}", f"model.block_size={n}", f"seed={n}", loss=2.0) for n in (8, 16)]
    assert columns(*paths) == {"model.block_size": [8, 16], "seed": [8, 16]}


def test_a_group_replaces_the_settings_that_follow_from_its_options(run):
    rms = run("rms", loss=2.0, choices={"model/norm": "rms_norm"}, settings=RMS)
    assert columns(run("a", loss=2.0), rms) == {"model/norm": ["layer_norm", "rms_norm"]}


def test_an_overridden_key_is_shown_even_if_it_follows_from_a_group(run):
    first = run("a", "model.n_layer=2", loss=2.0)
    second = run("b", "model/norm=rms_norm", "model.n_layer=4", loss=2.0, choices={"model/norm": "rms_norm"})
    assert list(columns(first, second)) == ["model/norm", "model.n_layer"]


def test_a_setting_that_varies_independently_of_a_group_is_shown(run):
    norms = {"layer_norm": {}, "rms_norm": RMS}
    paths = [
        run(f"{norm}{n}", f"model.n_head={n}", loss=2.0, choices={"model/norm": norm}, settings=settings)
        for norm, settings in norms.items()
        for n in (1, 2)
    ]
    assert list(columns(*paths)) == ["model/norm", "model.n_head"]


def test_a_model_replaces_its_recipe(run):
    bigram = {"choices": {"model": "bigram", "recipe": "bigram"}, "settings": {"optimizer.lr": 0.01}}
    assert list(columns(run("a", loss=2.0), run("b", loss=2.0, **bigram))) == ["model"]


def test_a_lecture_step_replaces_all_options_that_it_selects(run):
    bigram = {"model": "bigram", "recipe": "bigram", "lecture": "bigram"}
    first = run("a", "+lecture=head", loss=2.0, choices={"lecture": "head"})
    second = run("b", "+lecture=bigram", loss=2.0, choices=bigram, settings={"optimizer.lr": 0.01})
    assert columns(first, second) == {"lecture": ["head", "bigram"]}
    assert columns(run("c", loss=2.0), second) == {"lecture": [ABSENT, "bigram"]}


def test_a_run_without_a_config_has_absent_values(run):
    paths = [run(f"{n}", f"model.n_layer={n}", loss=2.0) for n in (2, 4, 6)]
    for name in ("config.yaml", "hydra.yaml"):
        (paths[2] / ".hydra" / name).write_text("{")
    assert columns(*paths) == {"model.n_layer": [2, 4, ABSENT]}
