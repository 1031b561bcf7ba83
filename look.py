"""The former name of visualize.py, until 0.4."""

import sys

from visualize import main

if __name__ == "__main__":
    sys.stderr.write("look.py is now called visualize.py; the old name is accepted until 0.4\n")
    main()
