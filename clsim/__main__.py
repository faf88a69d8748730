"""`python -m clsim` is `clsim`."""

import sys

from clsim.cli import main

if __name__ == "__main__":
    sys.exit(main())
