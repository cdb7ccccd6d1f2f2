"""`tpcore` and `python -m tpcore`."""

import sys

from graph.errors import INTERRUPTED


def main() -> int:
    """Run one command; returns the exit status. Ctrl-C while modules load is no fault either."""
    try:
        from tpcore.cli import main as run

        return run()
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
