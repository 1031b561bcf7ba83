"""Train a model: python train.py --help"""

from chargpt.cli.commands import train as main

if __name__ == "__main__":
    main()
