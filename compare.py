"""Compare runs: python compare.py --help"""

from omegaconf import DictConfig

from chargpt.cli.app import entry_point


@entry_point("compare")
def main(config: DictConfig) -> None:
    from chargpt.cli.compare import compare  # noqa: PLC0415 - matplotlib takes long to import

    compare(**config)


if __name__ == "__main__":
    main()
