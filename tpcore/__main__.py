"""`python -m tpcore`."""

import sys

from tpcore.cli import main

if __name__ == "__main__":
    sys.exit(main())
