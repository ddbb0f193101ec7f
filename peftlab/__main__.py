"""`peftlab` and `python -m peftlab`."""

from __future__ import annotations

import sys


def main() -> None:
    try:
        from peftlab.cli.app import run

        sys.exit(run(sys.argv[1:]))
    except KeyboardInterrupt:  # before a command has begun, while modules load
        sys.exit(130)


if __name__ == "__main__":
    main()
