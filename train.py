"""Train a model: python train.py --help"""

from omegaconf import DictConfig

from chargpt.cli.app import entry_point
from chargpt.cli.train import train


@entry_point("train")
def main(config: DictConfig) -> None:
    train(config)


if __name__ == "__main__":
    main()
