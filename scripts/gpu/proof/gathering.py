"""Packages for another machine: downloaded as wheels for its Python, unpacked, and cut to what a CUDA device needs."""

from __future__ import annotations

import argparse
import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from requirements import ROOT, canonical

CONSTRAINTS = ROOT / "scripts" / "constraints.txt"
# What an image with torch, transformers, accelerate, peft and pytest mostly lacks.
USUAL = (
    "bitsandbytes datasets dill multiprocess pydantic pydantic-core annotated-types typing-inspection ruamel.yaml "
    "gguf rouge-score nltk defusedxml liger-kernel"
).split()
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17)] + [
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
]
MOST_BYTES = 64 * 2**20
SOURCE, UNMET = 2, 9  # exit codes, as peftlab's own


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/gpu/gather", description="Collects packages for scripts/gpu/prove.")
    usual = ", ".join(USUAL)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"packages beside the usual ones, which are {usual}")
    parser.add_argument("--python", default="3.12", metavar="X.Y", help="Python of the machine with the card (3.12)")
    parser.add_argument("--cuda", default="130", metavar="XYZ", help="CUDA that its torch was built for (130)")
    parser.add_argument("--output", type=Path, default=ROOT / ".gpu", metavar="FOLDER", help="(.gpu)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if not re.fullmatch(r"3\.\d+", options.python):
        print(f"scripts/gpu/gather: --python {options.python!r} is not a version such as 3.12", file=sys.stderr)
        return SOURCE
    wanted = pinned([*USUAL, *options.names])
    with tempfile.TemporaryDirectory(prefix="peftlab-gather-") as folder:
        failures = [line for name, text in wanted.items() if (line := fetch(name, text, options.python, Path(folder)))]
        if failures:
            print("\n".join(failures), file=sys.stderr)
            return UNMET
        fresh = Path(folder) / "packages"
        for wheel in sorted(Path(folder).glob("*.whl")):
            unpack(wheel, fresh, options.cuda)
        total = report(fresh)
        if total > MOST_BYTES:
            print(
                f"scripts/gpu/gather: more than {MOST_BYTES / 2**20:.0f} MiB; {options.output} unchanged",
                file=sys.stderr,
            )
            return UNMET
        replace(fresh, options.output)
    print(f"{total / 2**20:.1f} MiB in {options.output}, for Python {options.python} and CUDA {options.cuda}")
    return 0


def pinned(names: Iterable[str]) -> dict[str, str]:
    """Return `name==version` by name, in the version of the constraints; the newest where there is none."""
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    pins = {canonical(line.partition("==")[0]): line for line in lines if "==" in line}
    return {canonical(name): pins.get(canonical(name), name) for name in names}


def fetch(name: str, requirement: str, python: str, folder: Path) -> str | None:
    """Put the wheel of one package, without its dependencies, into `folder`; return what is wrong, else None.

    A package that is published as source only is built here, and used if it has no compiled code.
    """
    target = ["--python-version", python, "--implementation", "cp", "--only-binary=:all:"]
    target += [part for platform in PLATFORMS for part in ("--platform", platform)]
    for command in (["download", *target, "-d"], ["wheel", "-w"]):
        done = pip(*command, str(folder), "--no-deps", requirement)
        found = [path for path in folder.glob("*.whl") if canonical(path.name.partition("-")[0]) == name]
        if done.returncode == 0 and found:
            built_here = command[0] == "wheel" and "-none-any" not in found[0].name
            return f"{requirement}: only its source is published, and it has compiled code" if built_here else None
    return f"{requirement}: {last_error(done.stderr)}"


def pip(*arguments: str) -> subprocess.CompletedProcess:
    settings = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return subprocess.run(
        [sys.executable, "-m", "pip", *arguments, "--quiet"], env=settings, capture_output=True, text=True
    )


def last_error(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("ERROR")] or text.splitlines() or ["pip failed"]
    return lines[-1][:200]


def unpack(wheel: Path, folder: Path, cuda: str) -> None:
    """Unpack a wheel as an import path needs it, without other devices' libraries and without tests."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if is_needed(name, cuda):
                archive.extract(name, folder)
    for data in folder.glob("*.data"):  # what an installer would put elsewhere
        for part in ("purelib", "platlib"):
            if (data / part).is_dir():
                shutil.copytree(data / part, folder, dirs_exist_ok=True)
        shutil.rmtree(data)


def is_needed(name: str, cuda: str) -> bool:
    """Whether a file of a wheel is needed on a device of this CUDA; of bitsandbytes two libraries of sixteen are."""
    library = fnmatch.fnmatch(name, "bitsandbytes/libbitsandbytes_*.so")
    kept = (f"bitsandbytes/libbitsandbytes_cuda{cuda}.so", "bitsandbytes/libbitsandbytes_cpu.so")
    return name in kept if library else not re.search(r"(^|/)tests?/", name)


def report(folder: Path) -> int:
    """Print the bytes of every package, and return their sum."""
    sizes: dict[str, int] = {}
    for path in folder.rglob("*"):
        if path.is_file():
            top = path.relative_to(folder).parts[0]
            name = canonical(re.sub(r"-[^-]*\.dist-info$|\.so$|\.py$", "", top).partition(".cpython")[0])
            sizes[name] = sizes.get(name, 0) + path.stat().st_size
    for name, size in sorted(sizes.items(), key=lambda item: -item[1]):
        print(f"{name:<24} {size / 2**20:>6.1f} MiB")
    return sum(sizes.values())


def replace(fresh: Path, target: Path) -> None:
    """Put the new folder in place of an earlier one, which only this command makes.

    Raises SystemExit for a folder of something else.
    """
    if target.exists() and any(target.iterdir()) and not list(target.glob("*.dist-info")):
        print(f"scripts/gpu/gather: {target} has other files; choose another --output", file=sys.stderr)
        raise SystemExit(SOURCE)
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(fresh, target)
