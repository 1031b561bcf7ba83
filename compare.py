"""Compare trained models: python compare.py --help"""

from omegaconf import DictConfig

from chargpt.cli.app import entry_point


@entry_point("compare")
def main(config: DictConfig) -> None:
    from chargpt.sweeps.compare import compare_asked

    compare_asked(**config)


if __name__ == "__main__":
    main()
