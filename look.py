"""Look into a trained model: python look.py --help"""

from omegaconf import DictConfig

from chargpt.cli.app import entry_point


@entry_point("look")
def main(config: DictConfig) -> None:
    from chargpt.cli.visualize import look

    look(**config)


if __name__ == "__main__":
    main()
