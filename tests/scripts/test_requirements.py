"""What is missing is found without pip, in this Python or in a folder beside it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.scripts.conftest import SCRIPTS


def add_distribution(folder, name, version, requires=(), tag="py3-none-any"):
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    (info / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {one}" for one in requires)]) + "\n")
    (info / "WHEEL").write_text(f"Wheel-Version: 1.0\nTag: {tag}\n")


@pytest.fixture
def requirements(script):
    return script("requirements")


def test_this_environment_lacks_nothing(requirements):
    assert requirements.missing(requirements.own_requirements()) == []


def test_what_is_not_here_and_what_is_too_old_is_named_with_the_reason(requirements, tmp_path):
    add_distribution(tmp_path, "alpha-one", "1.4")
    lines = requirements.missing(["alpha_one>=2", "beta-two"], tmp_path)
    assert lines == ["alpha-one: 1.4 is installed, >=2 is needed", "beta-two: not installed"]


def test_needs_of_needs_are_followed_and_those_of_unused_extras_are_not(requirements, tmp_path):
    add_distribution(tmp_path, "alpha", "1", ["beta[fast]", 'gamma; extra == "slow"', 'delta; python_version < "3"'])
    add_distribution(tmp_path, "beta", "1", ['epsilon-x; extra == "fast"'])
    assert requirements.missing(["alpha"], tmp_path) == ["epsilon-x: not installed"]


def test_a_package_built_for_another_python_is_named(requirements, tmp_path):
    own = f"cp{sys.version_info.major}{sys.version_info.minor}"
    add_distribution(tmp_path, "alpha", "1", tag=f"{own}-{own}-manylinux_2_17_x86_64")
    add_distribution(tmp_path, "beta", "1", tag="cp38-abi3-manylinux_2_17_x86_64")
    add_distribution(tmp_path, "gamma", "1", tag="cp399-cp399-manylinux_2_17_x86_64")
    add_distribution(tmp_path, "delta", "1", tag="py312-none-any")
    assert requirements.unfit_builds(tmp_path) == [f"gamma: built for cp399, and this Python is {own}"]


def test_an_environment_that_suffices_asks_no_registry(tmp_path):
    """Oracle: a registry that does not exist, and no network at all for pip."""
    settings = {"PYTHON": sys.executable, "PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_NO_INDEX": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "PEFTLAB_VENV"} | settings
    # A copy without the repository's own .venv, which would come first.
    for name in ("environment", "requirements.py", "constraints.txt"):
        (tmp_path / "scripts").mkdir(exist_ok=True)
        (tmp_path / "scripts" / name).write_bytes((SCRIPTS / name).read_bytes())
    (tmp_path / "scripts" / "environment").chmod(0o755)
    (tmp_path / "pyproject.toml").write_bytes((SCRIPTS.parent / "pyproject.toml").read_bytes())
    command = [str(tmp_path / "scripts" / "environment"), "--extra", "test"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, sys.executable), done.stderr
    assert not (tmp_path / ".venv").exists()
