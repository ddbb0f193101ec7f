"""`peftlab` and `python -m peftlab`."""

from __future__ import annotations

import os
import sys

# What decides how threads of OpenMP wait for each other: the standard's variable, GNU's and Intel's.
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# How often a thread looks whether the others are ready before it sleeps. GNU's default is 300,000.
SPINS = 10_000


def main() -> None:
    try:
        limit_spinning()
        from peftlab.cli.app import run

        sys.exit(run(sys.argv[1:]))
    except KeyboardInterrupt:  # before a command has begun, while modules load
        sys.exit(130)


def limit_spinning() -> None:
    """Have the threads of torch sleep soon while they wait for each other, unless the user has said how they wait.

    By default they spin for long, and where other work has their cores each operation waits for threads that do
    nothing. torch reads the variable when it is loaded.
    """
    if not any(name in os.environ for name in WAITING):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)


if __name__ == "__main__":
    main()
