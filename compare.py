"""Compare trained models: python compare.py --help"""

from omegaconf import DictConfig

from chargpt.cli.app import entry_point


@entry_point("compare")
def main(config: DictConfig) -> None:
    from chargpt.cli.compare import compare

    compare(**config)


if __name__ == "__main__":
    main()
