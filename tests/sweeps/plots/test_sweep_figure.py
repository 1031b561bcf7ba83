"""sweep.png: its panels and axes, and that labels do not overlap."""

from itertools import combinations, product

import pytest
from omegaconf import OmegaConf

from chargpt.runs.record import read_run
from chargpt.runs.score import Monitor
from chargpt.sweeps.plots.axis import LOSS_LABEL, make_scale
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
    """Runs over two keys and two seeds, with one cell missing."""
    return [
        run(f"{n}_{d}_{s}", f"model.n_layer={n}", f"model.dropout={d}", f"seed={s}", loss=2 / n + d + s / 100,
            flops_per_token=1000 * n)
        for n, d, s in product((1, 2, 4), (0, 0.1, 0.2), (1, 2))
        if (n, d) != (4, 0.2)
    ]  # fmt: skip


def test_each_key_has_a_panel_with_all_runs_and_their_means(grid):
    panels = axes_of(*grid)
    panel = panels["n_layer"]
    assert panel.get_ylabel() == LOSS_LABEL
    assert [label.get_text() for label in panel.get_xticklabels()] == ["1", "2", "4"]
    assert len(panel.collections[0].get_offsets()) == len(grid)
    (line,) = panel.lines
    assert line.get_xydata()[-1] == pytest.approx([4, 0.5 + 0.05 + 0.015])


def test_two_keys_have_a_heat_map_with_numbers_and_an_empty_cell(grid):
    panel = next(axes for name, axes in axes_of(*grid).items() if axes.images)
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("dropout", "n_layer")
    assert panel.images[0].get_array().mask.sum() == 1
    texts = {text.get_position(): text.get_text() for text in panel.texts}
    assert len(texts) == 8
    assert texts[1, 2] == "0.615\n± 0.007"


def test_the_points_of_the_front_have_labels_that_do_not_overlap(grid):
    panel = axes_of(*grid)["training FLOPs"]
    assert panel.get_xscale() == "log"
    assert [text.get_text() for text in panel.texts] == [f"n_layer={n} dropout=0" for n in (1, 2, 4)]
    assert_labels_are_separate(panel)


def test_labels_of_a_crowded_front_do_not_overlap(run):
    paths = [
        run(f"{n}", f"optimizer.lr={n / 1000}", loss=2 - n / 1000, flops_per_token=10_000 + n) for n in range(1, 13)
    ]
    panel = axes_of(*paths)["training FLOPs"]
    assert len(panel.texts) == 12
    assert_labels_are_separate(panel)


def test_long_labels_are_wrapped_and_stay_in_the_panel(run):
    options = {"model/feed_forward": "squared_relu", "model/position": "rotary", "optimizer": "adamw_nanogpt"}
    choices = [{group: f"{option}_{n}" for group, option in options.items()} for n in range(6)]
    paths = [
        run(f"{n}", f"optimizer.lr={n + 1}", loss=2 - n / 50, choices=choices[n], flops_per_token=9**n + 1)
        for n in range(6)
    ]
    panel = axes_of(*paths)["training FLOPs"]
    assert len(panel.texts) == 6
    assert_labels_are_separate(panel)


def assert_labels_are_separate(panel):
    boxes = [type(text).__mro__[1].get_window_extent(text) for text in panel.texts]  # without the arrow
    assert not any(first.overlaps(second) for first, second in combinations(boxes, 2))
    frame = panel.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 for box in boxes)


def test_option_names_are_evenly_spaced_worst_first(run):
    losses = {"swiglu": 1.8, "relu": 2.1, "gelu": 1.9}
    paths = [run(name, loss=loss, choices={"model/feed_forward": name}) for name, loss in losses.items()]
    panel = axes_of(*paths)["feed_forward"]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["relu", "gelu", "swiglu"]


def test_runs_without_flops_are_named_below_the_front(run):
    bigram = run("a", loss=3.0, choices={"model": "bigram"}, flops_per_token=0)
    others = [run(f"{n}", f"model.n_layer={n}", loss=2.0 / n, flops_per_token=1000 * n) for n in (1, 2)]
    panel = axes_of(bigram, *others)["training FLOPs"]
    assert "bigram" in panel.get_xlabel()


def test_there_is_no_front_of_runs_of_the_same_cost(run):
    """Its points would lie on one vertical line."""
    paths = [run(f"{rate}", f"optimizer.lr={rate}", loss=2 - rate) for rate in (0.0001, 0.001, 0.01)]
    panels = axes_of(*paths)
    assert list(panels) == ["lr"]
    assert panels["lr"].get_xscale() == "log"
    assert [label.get_text() for label in panels["lr"].get_xticklabels()] == ["0.0001", "0.001", "0.01"]


def test_a_single_run_and_failed_runs_are_plotted(run):
    history = [(10, 3.0), (20, 2.0)]
    panels = axes_of(run("a", loss=2.0, history=history))
    assert list(panels) == ["optimizer steps"]
    assert list(axes_of(run("no curve", loss=2.0))) == ["training FLOPs"]
    figure = plot_sweep(rank([read_run(run(n, state="failed", reason="no $ left")) for n in "bc"]), "sweep")
    figure.draw_without_rendering()
    assert "no run has finished" in figure.get_suptitle()
    assert r"no \$ left (2)" in figure.get_suptitle()


@pytest.fixture
def accuracies(accurate):
    """Runs whose accuracy increases with their FLOPs, except the last."""
    paths = []
    for n, name, score in ((1, "relu", 0.1), (2, "gelu", 0.2), (3, "swiglu", 0.3), (4, "waste", 0.05)):
        overrides = ["model.dropout=0.1", f"model.n_layer={n}"]
        arguments = {"choices": {"model/feed_forward": name}, "flops_per_token": 10_000 * n, "loss": n}
        paths.append(accurate(name, score, *overrides, **arguments))
    return paths


def test_if_higher_is_better_the_front_rises_and_its_labels_are_above(accuracies):
    panel = axes_of(*accuracies)["training FLOPs"]
    assert panel.get_ylabel() == "accuracy"
    assert [text.get_text().split()[0] for text in panel.texts] == ["relu", "gelu", "swiglu"]
    assert_labels_are_separate(panel)
    for text in panel.texts:
        assert type(text).__mro__[1].get_window_extent(text).y0 > panel.transData.transform(text.xy)[1]


def test_if_higher_is_better_the_lowest_score_is_first(accuracies):
    panels = axes_of(*accuracies)
    labels = [label.get_text() for label in panels["feed_forward"].get_xticklabels()]
    assert labels == ["waste", "relu", "gelu", "swiglu"]


def test_if_higher_is_better_the_lowest_cell_is_the_darkest(accurate):
    scores = {(1, 0.1): 0.1, (1, 0.2): 0.2, (2, 0.1): 0.3, (2, 0.2): 0.05}
    paths = [accurate(f"{n}_{d}", s, f"model.n_layer={n}", f"model.dropout={d}") for (n, d), s in scores.items()]
    heat_map = next(axes for axes in axes_of(*paths).values() if axes.images)
    image = heat_map.images[0]
    worst, best = (sum(image.cmap(image.norm(value))[:3]) for value in (0.05, 0.3))
    assert worst < best
    colors = {text.get_text(): text.get_color() for text in heat_map.texts}
    assert (colors["0.050"], colors["0.300"]) == ("white", "black")


def test_runs_with_different_tokenizers_are_plotted_by_bits_per_character_without_those_that_lack_it(run):
    paths = [run("characters", "model.n_layer=1", loss=1.5, val_bpc=2.16)]
    paths += [run("pieces", "model.n_layer=2", loss=4.0, val_bpc=1.9, settings=WORD_PIECES)]
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
        ([1e-4, 1e-3, 1e-2], "log"),
        ([1, 2, 4, 8, 16, 32], "log"),
        ([0.00031, 0.00033, 0.0011, 0.0019, 0.0021, 0.0064, 0.0067], "log"),
        ([0.011, 0.014, 0.13, 0.15, 0.19, 0.24, 0.29], "linear"),
        ([0, 1e-4, 1e-3, 1e-2, 1e-1], "even"),
        ([n / 40 for n in range(1, 21)], "linear"),
        ([10 ** (-n / 10) for n in range(20)], "log"),
        (["a", "b"], "even"),
        ([None, 1.0], "even"),
    ],
)
def test_the_kind_of_a_scale_follows_from_the_values(values, kind):
    assert make_scale([(value, 2.0) for value in values], Monitor()).kind == kind


@pytest.mark.parametrize("values", [[3e-4, 5e-4, 1e-3], [0.01, 0.02, 0.021, 0.022, 0.023, 0.024, 0.04]])
def test_learning_rates_are_compared_by_factors(values):
    points = [(value, 2.0) for value in values]
    assert make_scale(points, Monitor(), "optimizer.lr").kind == "log"
    assert make_scale(points, Monitor(), "optimizer.embedding_lr").kind == "log"
    assert make_scale(points, Monitor(), "model.dropout").kind == "linear"


def test_no_cheaper_point_is_better_than_a_point_of_the_front():
    assert pareto_front([(3, 1.0), (1, 3.0), (2, 3.5), (2, 2.0), (1, 4.0), (4, 1.0)], Monitor()) == [1, 3, 0]
    assert pareto_front([], Monitor()) == []
    assert pareto_front([(3, 3.0), (1, 1.0), (2, 0.5), (2, 2.0), (1, 0.1)], Monitor("accuracy", "max")) == [
        1,
        3,
        0,
    ]


def test_a_key_that_follows_from_another_has_no_heat_map_of_mostly_empty_cells(run):
    names = {"bigram": "bigram", "head": "small", "multi_head": "small", "residual": "small", "scaled_up": "large"}
    paths = [
        run(name, f"lecture={name}", f"model={model}", loss=2.0, choices={"lecture": name, "model": model})
        for name, model in names.items()
    ]
    assert not any(axes.images for axes in axes_of(*paths).values())


def test_keys_that_do_not_occur_together_have_no_heat_map(run):
    paths = [run(f"n{n}", f"model.n_layer={n}", loss=2.0 / n) for n in (1, 2)]
    paths += [run(f"s{n}", f"+model.std={n}", loss=3.0 / n, settings={"model": {"std": n}}) for n in (1, 2)]
    for path in paths[2:]:
        file = path / ".hydra" / "config.yaml"
        config = OmegaConf.load(file)
        del config.model.n_layer
        OmegaConf.save(config, file)
    panels = axes_of(*paths)
    assert list(panels) == ["n_layer", "std"]
    assert not any(axes.images for axes in panels.values())
