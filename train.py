"""Train a model: python train.py --help"""

from omegaconf import DictConfig

from chargpt.cli.app import entry_point


@entry_point("train")
def main(config: DictConfig) -> None:
    from chargpt.cli.train import train

    train(config)


if __name__ == "__main__":
    main()
