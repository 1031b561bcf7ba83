"""Export the weights of a trained model to a file: python export.py --help"""

from chargpt.cli.commands import export as main

if __name__ == "__main__":
    main()
