"""What TensorBoard shows of a run, requested from a TensorBoard server over its HTTP interface."""

import html
import importlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as PluginEventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from chargpt.runs.directory import RunDirectory
from chargpt.training.loggers.tensorboard import TensorBoard
from tests.training import run_artifacts

NAME = "run"  # the run directory, without the name of a subfolder

Get = Callable[..., Any]


@pytest.fixture(scope="module")
def get(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Get]:
    """`get("scalars/tags")`: a response of TensorBoard, started with the command that a run prints."""
    log = tmp_path_factory.mktemp("tensorboard") / "log"
    arguments = ["--logdir", str(finished.parent), "--host", "127.0.0.1", "--port", "0", "--load_fast=false"]
    with log.open("w") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "tensorboard.main", *arguments], stdout=file, stderr=file, env=os.environ
        )
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # ignores proxy settings
        address = wait_for(lambda: re.search(r"http://127\.0\.0\.1:\d+/", log.read_text()), server, log)[0]

        def get(route: str, body: dict | None = None, **query: str) -> Any:
            url = f"{address}data/plugin/{route}?{urllib.parse.urlencode(query)}"
            data = None if body is None else json.dumps(body).encode()
            request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
            with opener.open(request, timeout=30) as response:
                return json.load(response)

        # TensorBoard loads in the background; the point of the last validation is the last one in the file.
        steps = lambda: [step for _, step, _ in get("scalars/scalars", tag="val/loss", run=NAME)]  # noqa: E731
        wait_for(lambda: 20 in steps(), server, log)
        yield get
    finally:
        server.terminate()
        server.wait(timeout=30)


def wait_for(condition: Callable[[], Any], server: subprocess.Popen, log: Path) -> Any:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if result := condition():
                return result
        except urllib.error.HTTPError:  # nothing loaded yet
            pass
        time.sleep(0.1)
    raise AssertionError(f"TensorBoard does not respond:\n{log.read_text()}")


@pytest.mark.parametrize(
    ("tag", "column"),
    [
        ("train/loss", "train_loss"),
        ("val/loss", "val_loss"),
        ("loss/train", "train_loss"),
        ("loss/val", "val_loss"),
        ("train/lr", "lr"),
        ("train/grad_norm", "grad_norm"),
        ("train/tokens_per_second", "tokens_per_second"),
    ],
)
def test_the_scalars_are_those_of_history_csv(get, finished, tag, column):
    points = {step: value for _, step, value in get("scalars/scalars", tag=tag, run=NAME)}
    rows = {int(row["step"]): float(row[column]) for row in run_artifacts.history(finished) if row[column]}
    assert len(rows) >= 2
    assert points == pytest.approx(rows, rel=1e-6)


def test_there_are_no_other_scalars_than_the_metrics_and_derived_losses(get):
    training = {f"train/{name}" for name in ("loss", "lr", "grad_norm", "tokens_per_second")}
    tags = get("scalars/tags")[NAME].keys()
    validation = {f"val/{name}" for name in ("loss", "perplexity", "bits_per_character")}
    assert tags == training | validation | {"loss/train", "loss/val"}


def test_the_charts_of_both_losses_are_the_first(get):
    """TensorBoard sorts charts by their tags."""
    assert sorted(get("scalars/tags")[NAME])[:2] == ["loss/train", "loss/val"]


def test_the_losses_are_in_one_chart(get):
    (chart,) = get("custom_scalars/layout")["category"][0]["chart"]
    pattern = "|".join(f"({tag})" for tag in chart["multiline"]["tag"])
    shown = get("custom_scalars/scalars", run=NAME, tag=pattern)
    assert shown["regex_valid"]
    assert shown["tag_to_events"].keys() == {"train/loss", "val/loss"}


def text(get: Get, tag: str) -> dict[int, str]:
    """The texts of a tag by step, without markup."""
    shown = {event["step"]: event["text"] for event in get("text/text", run=NAME, tag=f"{tag}/text_summary")}
    return {step: html.unescape(re.sub(r"<[^>]*>", "", text)) for step, text in shown.items()}


def test_each_validation_logs_a_sample(get):
    samples = text(get, "sample")
    assert list(samples) == [10, 20]
    assert all(sample.strip() for sample in samples.values())
    assert samples[10] != samples[20]


def test_the_config_is_shown_verbatim(get, finished):
    (config,) = text(get, "config").values()
    assert config.strip() == (finished / ".hydra" / "config.yaml").read_text().strip()


def test_the_first_columns_of_the_hparams_tab_are_those_by_which_runs_are_usually_compared(get):
    names = [info["name"] for info in get("hparams/experiment", body={})["hparamInfos"]]
    assert names[:4] == ["lr", "model", "n_head", "n_layer"]


def test_the_metrics_of_the_hparams_tab_are_logged(get):
    metrics = {info["name"]["tag"] for info in get("hparams/experiment", body={})["metricInfos"]}
    assert metrics <= get("scalars/tags")[NAME].keys()


def test_the_hparams_tab_has_the_columns_of_a_transformer_even_if_a_bigram_is_the_first_run(tmp_path: Path):
    logger = TensorBoard(str(tmp_path))
    logger.open()
    logger.log_hyperparams({"model": "bigram", "lr": 0.01, "seed": 1})
    logger.save()
    contents = PluginEventAccumulator(str(tmp_path)).Reload().PluginTagToContent("hparams")
    experiment = HParamsPluginData.FromString(contents["_hparams_/experiment"]).experiment
    columns = {info.name for info in experiment.hparam_infos}
    assert columns >= {"n_layer", "n_head", "dropout", "seed"}


def test_the_hparams_tab_compares_runs_by_hyperparameters_and_validation_loss(get, finished):
    experiment = get("hparams/experiment", body={})
    names = {info["name"] for info in experiment["hparamInfos"]}
    assert {"n_layer", "n_head", "n_embd", "dropout", "block_size", "optimizer", "lr"} <= names
    metrics = {info["name"]["tag"]: info["name"] for info in experiment["metricInfos"]}
    request = {
        "allowedStatuses": [f"STATUS_{s}" for s in ("UNKNOWN", "SUCCESS", "FAILURE", "RUNNING")],
        "colParams": [{"metric": metrics["val/loss"]}],
        "startIndex": 0,
        "sliceSize": 10,
    }
    (group,) = get("hparams/session_groups", body=request)["sessionGroups"]
    settings = {"n_layer": 2, "n_head": 2, "n_embd": 16, "dropout": 0.2, "block_size": 16, "lr": 1e-3}
    settings |= {"model": "gpt_nano", "optimizer": "adamw", "batch_size": 4, "max_steps": 20, "seed": 1337}
    assert settings.items() <= group["hparams"].items()
    losses = {v["name"]["tag"]: v["value"] for v in group["metricValues"]}
    assert losses["val/loss"] == pytest.approx(run_artifacts.metrics(finished)["final_val_loss"])


@pytest.mark.parametrize("reader", ["event_accumulator", "plugin_event_accumulator"])
def test_points_that_a_resumed_run_logs_again_are_shown_once(tmp_path: Path, reader):
    """Both event readers of TensorBoard read a run that is resumed twice."""
    module = importlib.import_module(f"tensorboard.backend.event_processing.{reader}")
    for resumed_from, steps in ((None, (5, 10, 15)), (10, (15, 20, 25)), (20, (25, 30))):
        if resumed_from is None:
            logger = TensorBoard(str(tmp_path))
            logger.open()
        else:
            logger = TensorBoard(str(tmp_path), purge_step=resumed_from + 1)
            time.sleep(1.1)  # files of the same second are sorted by a counter as text, 10 before 9
            logger.open(first_step=resumed_from + 1)
        for step in steps:
            logger.log_metrics({"val/loss": float(step)}, step=step)
            logger.log_text("sample", f"after {step}", step)
        logger.save()
    events = module.EventAccumulator(str(tmp_path)).Reload()
    if reader == "event_accumulator":
        points = events.Scalars("val/loss")
    else:
        points = events.Tensors("val/loss")
        assert [event.step for event in events.Tensors("sample/text_summary")] == [5, 10, 15, 20, 25, 30]
    assert [point.step for point in points] == [5, 10, 15, 20, 25, 30]


def test_a_resumed_run_of_an_earlier_version_continues_its_subfolder(tmp_path: Path):
    """TensorBoard would show event files in two folders as two runs."""
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events.out.tfevents.1.host.1.0").touch()
    logger = TensorBoard(str(tmp_path), purge_step=11)
    logger.open(first_step=11)
    logger.save()
    assert len(run_artifacts.event_files(tmp_path / "tensorboard")) == 2
    assert len(run_artifacts.event_files(tmp_path)) == 2, "none elsewhere"


def test_a_run_that_starts_again_has_no_points_of_its_earlier_start(tmp_path: Path):
    TensorBoard(str(tmp_path)).open()
    assert run_artifacts.event_files(tmp_path)
    RunDirectory(tmp_path).clear()
    assert not run_artifacts.event_files(tmp_path)
