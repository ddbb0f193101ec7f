"""Which packages this Python lacks for peftlab: nothing is installed, and no registry is asked.

Usage: python scripts/requirements.py [--extra NAME] [--packages FOLDER]     ends with 1 if any is missing
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What these need in turn depends on the build for a kind of device: the build that is here has brought it.
COMPLETE = ("torch",)


def own_requirements(extra: str | None = None) -> list[str]:
    """Return the dependencies of pyproject.toml, with those of one extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *(project["optional-dependencies"][extra] if extra else ())]


def missing(requirements: Iterable[str], folder: Path | None = None) -> list[str]:
    """Return what is not here or not in a version that fits, as lines `name: reason`; empty if all is here.

    What the requirements need in turn is looked at too. `folder` is searched before this Python's own packages.
    """
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return ["packaging: not installed, so that versions cannot be compared"]
    path = [str(folder), *sys.path] if folder else sys.path
    found: dict[str, str] = {}
    waiting = [(Requirement(text), True) for text in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        wanted, direct = waiting.pop()
        name, extras = canonical(wanted.name), frozenset(wanted.extras)
        if (name, extras) in seen or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        seen.add((name, extras))
        here = next(iter(importlib.metadata.distributions(name=wanted.name, path=path)), None)
        if here is None:
            found[name] = "not installed"
            continue
        # Only our own bounds are checked: those of others are their authors' caution, and pip's to keep.
        if direct and not wanted.specifier.contains(here.version, prereleases=True):
            found[name] = f"{here.version} is installed, {wanted.specifier} is needed"
        if name not in COMPLETE:
            waiting += [(Requirement(text), False) for text in needs_of(here, extras)]
    return sorted(f"{name}: {reason}" for name, reason in found.items())


def needs_of(here: importlib.metadata.Distribution, extras: frozenset[str]) -> Iterator[str]:
    """Yield what a distribution requires on this Python, with the given extras."""
    from packaging.requirements import Requirement

    for text in here.requires or ():
        marker = Requirement(text).marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield text.partition(";")[0]


def unfit_builds(folder: Path) -> list[str]:
    """Return the packages in `folder` that were built for another Python, as lines `name: reason`."""
    own = f"cp{sys.version_info.major}{sys.version_info.minor}"
    found = []
    for path in sorted(folder.glob("*.dist-info/WHEEL")):
        tags = re.findall(r"^Tag: (\S+?)-(\S+?)-", path.read_text(encoding="utf-8"), re.MULTILINE)
        if tags and not any(own in python.split(".") or abi in ("none", "abi3") for python, abi in tags):
            found.append(f"{path.parent.name.partition('-')[0]}: built for {tags[0][0]}, and this Python is {own}")
    return found


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/requirements.py")
    parser.add_argument("--extra", choices=["test", "cluster"])
    parser.add_argument("--packages", type=Path)
    options = parser.parse_args()
    lines = missing(own_requirements(options.extra), options.packages)
    print("\n".join(lines), end="\n" if lines else "")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
