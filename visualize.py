"""Visualize a trained model: python visualize.py --help"""

from omegaconf import DictConfig

from chargpt.cli.app import entry_point


@entry_point("visualize")
def main(config: DictConfig) -> None:
    from chargpt.cli.visualize import visualize  # noqa: PLC0415 - torch takes seconds to import

    visualize(**config)


if __name__ == "__main__":
    main()
