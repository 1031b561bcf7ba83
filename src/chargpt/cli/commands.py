"""The commands, each with its config. What a command needs is imported when it runs, so that --help is fast."""
# ruff: noqa: PLC0415

from typing import Any

from omegaconf import DictConfig

from chargpt.cli.app import entry_point


@entry_point("train")
def train(config: DictConfig) -> None:
    from chargpt.cli.train import train

    train(config)


@entry_point("sample")
def sample(config: DictConfig) -> None:
    from chargpt.cli.sample import sample

    sample(**_arguments(config))


@entry_point("evaluate")
def evaluate(config: DictConfig) -> None:
    from chargpt.cli.evaluate import evaluate

    evaluate(config.run, config.split, config.device, config.get("data"), list(config.trust))


@entry_point("compare")
def compare(config: DictConfig) -> None:
    from chargpt.cli.compare import compare

    compare(config.runs, config.folder)  # reads no code: `trust` has no effect


@entry_point("visualize")
def visualize(config: DictConfig) -> None:
    from chargpt.cli.visualize import visualize

    visualize(**_arguments(config))


@entry_point("export")
def export(config: DictConfig) -> None:
    from chargpt.cli.export import export

    export(**_arguments(config))


def _arguments(config: DictConfig) -> dict[str, Any]:
    """The settings as keyword arguments."""
    return {str(key): value for key, value in config.items()} | {"trust": list(config.trust)}


COMMANDS = {
    "train": (train, "train a model, or sweep over settings"),
    "sample": (sample, "generate text with a trained model"),
    "evaluate": (evaluate, "measure the loss of a trained model on a text"),
    "compare": (compare, "compare runs in a table and a figure"),
    "visualize": (visualize, "plot a model's predictions and attention on a text"),
    "export": (export, "write the weights of a model to a safetensors file"),
}
