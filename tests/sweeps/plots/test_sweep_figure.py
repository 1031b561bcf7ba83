"""sweep.png: which panels there are, what stands on their axes, and that no label lies on another."""

from itertools import combinations, product

import pytest
from omegaconf import OmegaConf

from chargpt.runs.record import read_run
from chargpt.runs.score import Monitor
from chargpt.sweeps.plots.axis import LOSS, make_scale
from chargpt.sweeps.plots.pareto import pareto_front
from chargpt.sweeps.plots.sweep_figure import plot_sweep
from chargpt.sweeps.ranking import rank
from tests.sweeps.conftest import WORD_PIECES


def axes_of(*paths):
    figure = plot_sweep(rank([read_run(path) for path in paths]), "a $weep\udcff in \x0b")
    figure.draw_without_rendering()
    return {axes.get_xlabel().partition("\n")[0]: axes for axes in figure.axes if axes.get_xlabel()}


@pytest.fixture
def grid(run):
    """Runs of two keys and two seeds, one corner missing."""
    return [
        run(f"{n}_{d}_{s}", f"model.n_layer={n}", f"model.dropout={d}", f"seed={s}", loss=2 / n + d + s / 100,
            flops_per_token=1000 * n)
        for n, d, s in product((1, 2, 4), (0, 0.1, 0.2), (1, 2))
        if (n, d) != (4, 0.2)
    ]  # fmt: skip


def test_each_key_has_a_panel_with_every_run_and_the_mean(grid):
    panels = axes_of(*grid)
    panel = panels["n_layer"]
    assert panel.get_ylabel() == LOSS
    assert [label.get_text() for label in panel.get_xticklabels()] == ["1", "2", "4"]
    assert len(panel.collections[0].get_offsets()) == len(grid)
    (line,) = panel.lines
    assert line.get_xydata()[-1] == pytest.approx([4, 0.5 + 0.05 + 0.015])


def test_two_keys_make_a_heat_map_with_its_numbers_and_a_gap(grid):
    panel = next(axes for name, axes in axes_of(*grid).items() if axes.images)
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("dropout", "n_layer")
    assert panel.images[0].get_array().mask.sum() == 1
    texts = {text.get_position(): text.get_text() for text in panel.texts}
    assert len(texts) == 8
    assert texts[1, 2] == "0.615\n± 0.007"


def test_the_front_is_named_and_no_name_lies_on_another(grid):
    panel = axes_of(*grid)["training FLOPs"]
    assert panel.get_xscale() == "log"
    assert [text.get_text() for text in panel.texts] == [f"n_layer={n} dropout=0" for n in (1, 2, 4)]
    assert_apart(panel)


def test_names_stay_apart_on_a_crowded_front(run):
    paths = [
        run(f"{n}", f"optimizer.lr={n / 1000}", loss=2 - n / 1000, flops_per_token=10_000 + n) for n in range(1, 13)
    ]
    panel = axes_of(*paths)["training FLOPs"]
    assert len(panel.texts) == 12
    assert_apart(panel)


def test_long_names_are_broken_and_stay_in_the_panel(run):
    choices = {"model/feed_forward": "squared_relu", "model/position": "rotary", "optimizer": "adamw_nanogpt"}
    long = [{group: f"{choice}_{n}" for group, choice in choices.items()} for n in range(6)]
    paths = [
        run(f"{n}", f"optimizer.lr={n + 1}", loss=2 - n / 50, choices=long[n], flops_per_token=9**n + 1)
        for n in range(6)
    ]
    panel = axes_of(*paths)["training FLOPs"]
    assert len(panel.texts) == 6
    assert_apart(panel)


def assert_apart(panel):
    boxes = [type(text).__mro__[1].get_window_extent(text) for text in panel.texts]  # without the line to the point
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    frame = panel.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 for box in boxes)


def test_names_stand_side_by_side_the_worst_first(run):
    losses = {"swiglu": 1.8, "relu": 2.1, "gelu": 1.9}
    paths = [run(name, loss=loss, choices={"model/feed_forward": name}) for name, loss in losses.items()]
    panel = axes_of(*paths)["feed_forward"]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["relu", "gelu", "swiglu"]


def test_runs_without_flops_are_named_below_the_front(run):
    table = run("a", loss=3.0, choices={"model": "bigram"}, flops_per_token=0)
    panel = axes_of(table, run("b", loss=2.0))["training FLOPs"]
    assert "bigram" in panel.get_xlabel()


def test_one_run_and_runs_that_all_failed_still_make_a_picture(run):
    history = [(10, 3.0), (20, 2.0)]
    one = axes_of(run("a", loss=2.0, history=history))
    assert list(one) == ["optimizer steps", "training FLOPs"]
    figure = plot_sweep(rank([read_run(run(n, state="failed", reason="no $ left")) for n in "bc"]), "sweep")
    figure.draw_without_rendering()
    assert "no run has finished" in figure.get_suptitle()
    assert r"no \$ left (2)" in figure.get_suptitle()


@pytest.fixture
def more(accurate):
    """Runs of which those with more FLOPs have more accuracy, and a name each."""
    paths = []
    for n, name, score in ((1, "relu", 0.1), (2, "gelu", 0.2), (3, "swiglu", 0.3), (4, "waste", 0.05)):
        words = ["model.dropout=0.1", f"model.n_layer={n}"]
        settings = {"choices": {"model/feed_forward": name}, "flops_per_token": 10_000 * n, "loss": n}
        paths.append(accurate(name, score, *words, **settings))
    return paths


def test_where_more_is_better_the_front_rises_and_its_names_stand_above(more):
    panel = axes_of(*more)["training FLOPs"]
    assert panel.get_ylabel() == "accuracy"
    assert [text.get_text().split()[0] for text in panel.texts] == ["relu", "gelu", "swiglu"]
    assert_apart(panel)
    for text in panel.texts:
        assert type(text).__mro__[1].get_window_extent(text).y0 > panel.transData.transform(text.xy)[1]


def test_where_more_is_better_the_lowest_is_the_worst_of_names_and_the_darkest_of_cells(more):
    panels = axes_of(*more)
    labels = [label.get_text() for label in panels["feed_forward"].get_xticklabels()]
    assert labels == ["waste", "relu", "gelu", "swiglu"]
    heat = next(axes for axes in panels.values() if axes.images)
    image = heat.images[0]
    worst, best = (sum(image.cmap(image.norm(value))[:3]) for value in (0.05, 0.3))
    assert worst < best
    colors = {text.get_text(): text.get_color() for text in heat.texts}
    assert (colors["0.050"], colors["0.300"]) == ("white", "black")


def test_different_tokenizers_are_drawn_by_bits_and_who_has_none_is_left_out(run):
    paths = [run("characters", "model.n_layer=1", loss=1.5, val_bpc=2.16)]
    paths += [run("pieces", "model.n_layer=2", loss=4.0, val_bpc=1.9, came=WORD_PIECES)]
    paths += [run("older", "model.n_layer=3", loss=1.0, val_bpc=None)]
    panel = axes_of(*paths)["n_layer"]
    assert panel.get_ylabel() == "val_bpc"
    assert sorted(y for _, y in panel.collections[0].get_offsets()) == [1.9, 2.16]
    figure = plot_sweep(rank([read_run(run("a", loss=1.0, val_bpc=None)), read_run(paths[1])]), "sweep")
    assert "best val_bpc 1.9000" in figure.get_suptitle()


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([2, 4, 8], "linear"),
        ([0, 0.1, 0.2, 0.5], "linear"),
        ([1e-4, 3e-4, 1e-3, 1e-2], "log"),
        ([0, 1e-4, 1e-3, 1e-2, 1e-1], "even"),
        ([n / 40 for n in range(1, 21)], "linear"),
        ([10 ** (-n / 10) for n in range(20)], "log"),
        (["a", "b"], "even"),
        ([None, 1.0], "even"),
    ],
)
def test_values_stand_where_they_can_be_told_apart(values, kind):
    assert make_scale([(value, 2.0) for value in values], Monitor()).kind == kind


def test_the_front_is_what_nothing_cheaper_beats():
    assert pareto_front([(3, 1.0), (1, 3.0), (2, 3.5), (2, 2.0), (1, 4.0), (4, 1.0)], Monitor()) == [1, 3, 0]
    assert pareto_front([], Monitor()) == []
    assert pareto_front([(3, 3.0), (1, 1.0), (2, 0.5), (2, 2.0), (1, 0.1)], Monitor("accuracy", "max")) == [
        1,
        3,
        0,
    ]


def test_keys_that_no_run_has_both_of_make_no_heat_map(run):
    paths = [run(f"n{n}", f"model.n_layer={n}", loss=2.0 / n) for n in (1, 2)]
    paths += [run(f"s{n}", f"+model.std={n}", loss=3.0 / n, came={"model": {"std": n}}) for n in (1, 2)]
    for path in paths[2:]:
        file = path / ".hydra" / "config.yaml"
        config = OmegaConf.load(file)
        del config.model.n_layer
        OmegaConf.save(config, file)
    panels = axes_of(*paths)
    assert list(panels) == ["n_layer", "std", "training FLOPs"]
    assert not any(axes.images for axes in panels.values())
