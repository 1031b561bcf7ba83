"""Generate text with a trained model: python sample.py --help"""

from omegaconf import DictConfig

from chargpt.cli.app import entry_point


@entry_point("sample")
def main(config: DictConfig) -> None:
    from chargpt.cli.sample import sample  # noqa: PLC0415 - torch takes seconds to import

    sample(**config)


if __name__ == "__main__":
    main()
