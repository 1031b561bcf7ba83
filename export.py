"""Export the weights of a trained model to a file: python export.py --help"""

from omegaconf import DictConfig

from chargpt.cli.app import entry_point


@entry_point("export")
def main(config: DictConfig) -> None:
    from chargpt.cli.export import export  # noqa: PLC0415 - torch takes seconds to import

    export(**config)


if __name__ == "__main__":
    main()
