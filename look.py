"""Look into a trained model: python look.py --help"""

from omegaconf import DictConfig

from chargpt.config.entry import entry_point


@entry_point("look")
def main(config: DictConfig) -> None:
    from chargpt.looking.look import look

    look(**config)


if __name__ == "__main__":
    main()
