"""Train a model: python train.py --help"""

from omegaconf import DictConfig

from chargpt.config.entry import entry_point


@entry_point("train")
def main(config: DictConfig) -> None:
    from chargpt.training.run import train  # torch and Lightning take seconds: only once the config is right

    train(config)


if __name__ == "__main__":
    main()
