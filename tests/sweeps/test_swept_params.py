"""What varies, and that each thing is said once and in the words one would type."""

from chargpt.runs.record import read_run
from chargpt.sweeps.swept_params import ABSENT, swept_params

RMS = {"model.norm._target_": "torch.nn.RMSNorm", "model.norm.bias": False}


def columns(*paths):
    return swept_params([read_run(path) for path in paths])


def test_only_what_differs_is_a_key(run):
    one = run("a", "model.n_layer=2", "model.dropout=0.1", loss=2.0)
    other = run("b", "model.n_layer=4", "model.dropout=0.1", loss=2.0)
    assert columns(one, other) == {"model.n_layer": [2, 4]}
    assert columns(one) == {}


def test_the_hardware_and_the_place_are_no_keys(run):
    words = ("trainer.devices=2", 'trainer.accelerator="gpu"', 'data.cache_dir="/tmp"')
    assert columns(run("a", loss=2.0), run("b", *words, loss=2.0, choices={"trainer": "gpu"})) == {}


def test_interpolated_twins_are_shown_once(run):
    paths = [run(f"{n}", f"model.block_size={n}", f"seed={n}", loss=2.0) for n in (8, 16)]
    assert columns(*paths) == {"model.block_size": [8, 16], "seed": [8, 16]}


def test_a_choice_stands_for_the_settings_that_came_with_it(run):
    rms = run("rms", loss=2.0, choices={"model/norm": "rms_norm"}, came=RMS)
    assert columns(run("a", loss=2.0), rms) == {"model/norm": ["layer_norm", "rms_norm"]}


def test_what_was_typed_is_shown_even_where_a_choice_would_explain_it(run):
    one = run("a", "model.n_layer=2", loss=2.0)
    other = run("b", "model/norm=rms_norm", "model.n_layer=4", loss=2.0, choices={"model/norm": "rms_norm"})
    assert list(columns(one, other)) == ["model/norm", "model.n_layer"]


def test_a_setting_that_varies_within_a_choice_is_shown_too(run):
    norms = {"layer_norm": {}, "rms_norm": RMS}
    paths = [
        run(f"{norm}{n}", f"model.n_head={n}", loss=2.0, choices={"model/norm": norm}, came=came)
        for norm, came in norms.items()
        for n in (1, 2)
    ]
    assert list(columns(*paths)) == ["model/norm", "model.n_head"]


def test_a_model_stands_for_the_recipe_that_it_names(run):
    bigram = {"choices": {"model": "bigram", "recipe": "bigram"}, "came": {"optimizer.lr": 0.01}}
    assert list(columns(run("a", loss=2.0), run("b", loss=2.0, **bigram))) == ["model"]


def test_a_rung_stands_for_all_that_it_chose(run):
    bigram = {"model": "bigram", "recipe": "bigram", "lecture": "bigram"}
    first = run("a", "+lecture=head", loss=2.0, choices={"lecture": "head"})
    second = run("b", "+lecture=bigram", loss=2.0, choices=bigram, came={"optimizer.lr": 0.01})
    assert columns(first, second) == {"lecture": ["head", "bigram"]}
    assert columns(run("c", loss=2.0), second) == {"lecture": [ABSENT, "bigram"]}


def test_of_a_run_without_a_config_nothing_is_said(run):
    paths = [run(f"{n}", f"model.n_layer={n}", loss=2.0) for n in (2, 4, 6)]
    for name in ("config.yaml", "hydra.yaml"):
        (paths[2] / ".hydra" / name).write_text("{")
    assert columns(*paths) == {"model.n_layer": [2, 4, ABSENT]}
