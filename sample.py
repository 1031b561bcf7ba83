"""Generate text with a trained model: python sample.py --help"""

from chargpt.cli.commands import sample as main

if __name__ == "__main__":
    main()
