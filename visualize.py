"""Visualize a trained model: python visualize.py --help"""

from chargpt.cli.commands import visualize as main

if __name__ == "__main__":
    main()
