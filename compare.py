"""Compare runs: python compare.py --help"""

from chargpt.cli.commands import compare as main

if __name__ == "__main__":
    main()
