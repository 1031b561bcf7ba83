"""Evaluate a trained model on a text: python evaluate.py --help"""

from omegaconf import DictConfig

from chargpt.cli.app import entry_point


@entry_point("evaluate")
def main(config: DictConfig) -> None:
    from chargpt.cli.evaluate import evaluate  # noqa: PLC0415 - torch takes seconds to import

    evaluate(config.run, config.split, config.device, config.get("data"))


if __name__ == "__main__":
    main()
