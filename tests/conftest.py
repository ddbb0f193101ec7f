"""What all tests share: no hub, quiet libraries, and where optional data is found."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PEFTLAB_CACHE" not in os.environ:  # parallel workers and processes of runs inherit it
    os.environ["PEFTLAB_CACHE"] = tempfile.mkdtemp(prefix="peftlab-cache-")
    atexit.register(shutil.rmtree, os.environ["PEFTLAB_CACHE"], ignore_errors=True)

import pytest  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[1]
# Parallel workers take whole groups of files, in this order; a file that is not named is a group of its own and comes
# after them. The longest come first, so that all workers end together. Files of one group share what is costly to
# make: the server that forks warm processes, and the reports of two comparisons.
GROUPS = {
    "processes": (
        "runs/test_launch.py",
        "runs/test_kills.py",
        "runs/test_verify.py",
        "runs/test_endings.py",
        "world/test_divided.py",
        "cli/test_processes.py",
        "methods/test_storage.py",
        "models/test_build.py",
        "memory/test_plan.py",
    ),
    "traits": ("gauntlet/test_traits.py",),
    "predictions": ("memory/test_predict.py",),
    "generation": ("memory/test_generation.py",),
    "answers": ("tasks/test_answer_runs.py",),
    "memory": ("memory/test_phases.py",),
    "lab": ("comparison/test_lab.py",),
    "reports": (
        "comparison/test_report.py",
        "comparison/test_report_browser.py",
        "comparison/test_tables.py",
        "comparison/test_findings.py",
    ),
    "resume": ("runs/test_resume.py",),
    "runs": ("runs/test_run.py",),
    "directories": ("faults/test_directories.py",),
}
GROUP_OF = {file: group for group, files in GROUPS.items() for file in files}
RANKS = {file: rank for rank, file in enumerate(GROUP_OF)}


def pytest_configure(config):
    """Hide CUDA devices before torch looks for them, unless their tests are asked for: the others are the CPU's."""
    if not re.search(r"(?<!not )\bgpu\b", config.option.markexpr):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `--dist loadfile`, give out the groups in their order.

    xdist gives out the files with most tests first, so that the longest, which have few, would come last. Its own
    `--dist loadgroup` (3.8) groups nothing under pytest 9.2, which ignores the names that it makes up for tests.
    """
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class GroupScheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return GROUP_OF.get(file_of(nodeid), file_of(nodeid))

    config.option.loadscopereorder = False
    return GroupScheduling(config, log)


def file_of(nodeid: str) -> str:
    """Return the path of a test's file below this folder."""
    return nodeid.partition("::")[0].removeprefix("tests/")


def pytest_collection_modifyitems(items):
    import torch

    items.sort(key=lambda item: RANKS.get(file_of(item.nodeid), len(RANKS)))
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and pytest -m gpu, which shows it")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def quiet():
    from peftlab.world.quiet import quiet_libraries

    quiet_libraries()


@pytest.fixture(scope="session", autouse=True)
def unknown_code():
    """Runs of this process make every evaluation and plan themselves: a test may make one fail, or count it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peftlab.runs.environment.source_commit", lambda: "a checkout with changes")
        yield


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with E2E and GSM8K: $PEFTLAB_DATA, or `shared/data` beside the repository."""
    folder = Path(os.environ.get("PEFTLAB_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "e2e_dev.csv").is_file():
        pytest.skip("E2E and GSM8K are not here; set PEFTLAB_DATA to a folder that holds e2e_dev.csv")
    return folder
