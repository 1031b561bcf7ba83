"""Evaluate a trained model on a text: python evaluate.py --help"""

from chargpt.cli.commands import evaluate as main

if __name__ == "__main__":
    main()
