"""`python -m paradec` is the command line."""

import sys

from paradec.cli import main

if __name__ == "__main__":
    sys.exit(main())
