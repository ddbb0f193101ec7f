"""Runs one part in this process: `python -m proof.child PART FINDINGS [--pretend]`."""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

from proof.bench import Bench
from proof.parts import BY_NAME


def main() -> None:
    name, findings, *rest = sys.argv[1:]
    warnings.filterwarnings("ignore")
    from peftlab.runs.jobs import die_with_parent

    die_with_parent()
    part = BY_NAME[name]
    if not part.starts_commands:
        from peftlab.world.quiet import quiet_libraries

        quiet_libraries()
    with tempfile.TemporaryDirectory(prefix="peftlab-prove-") as folder:
        part.run(Bench(Path(findings), Path(folder), pretend="--pretend" in rest))


if __name__ == "__main__":
    main()
