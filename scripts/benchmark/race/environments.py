"""The Python of each peer: this one, or an environment on top of it with what the peer needs in addition."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[3] / ".benchmark"
# TRL without dependencies: the race is between the same torch, transformers and peft. AdapterHub's library has a
# transformers of its own.
PACKAGES = {
    "trl": ["--no-deps", "trl==1.16.0"],
    "liger": ["--no-deps", "liger-kernel==0.8.5"],
    "adapterhub": ["adapters==1.3.0", "numpy"],
}
MODULES = {"trl": "trl", "liger": "liger_kernel"}
"""What is imported of a peer whose libraries are this Python's."""


def python_of(peer: str) -> str | None:
    """Return the Python that runs a peer; None, with a line on standard error, where it cannot be installed."""
    packages = PACKAGES.get(peer)
    if packages is None or (peer in MODULES and find_spec(MODULES[peer])):
        return sys.executable
    folder = FOLDER / peer
    python = folder / "bin" / "python"
    if not (folder / ".complete").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        inside = subprocess.run(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        Path(inside, "base.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
        command = [str(python), "-m", "pip", "install", "--quiet", *packages]
        if subprocess.run(command, check=False).returncode:
            print(f"{peer}: {' '.join(packages)} cannot be installed here; it is left out", file=sys.stderr)
            return None
        (folder / ".complete").touch()
    return str(python)
