"""What all tests share: no hub, quiet libraries, and where optional data is found."""

from __future__ import annotations

import os
import re
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

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
        "cli/test_processes.py",
        "methods/test_storage.py",
        "models/test_build.py",
        "memory/test_plan.py",
    ),
    "predictions": ("memory/test_predict.py",),
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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    spread_over_workers(items)
    skip_without_cuda(items)


def spread_over_workers(items) -> None:
    """Order the tests and mark their groups, for `--dist loadgroup --no-loadscope-reorder`."""
    items.sort(key=lambda item: RANKS.get(file_of(item), len(RANKS)))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(GROUP_OF.get(file_of(item), file_of(item))))


def file_of(item) -> str:
    """Return the path of a test's file below this folder."""
    return item.path.relative_to(Path(__file__).parent).as_posix()


def skip_without_cuda(items) -> None:
    import torch

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


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with E2E and GSM8K: $PEFTLAB_DATA, or `shared/data` beside the repository."""
    folder = Path(os.environ.get("PEFTLAB_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "e2e_dev.csv").is_file():
        pytest.skip("E2E and GSM8K are not here; set PEFTLAB_DATA to a folder that holds e2e_dev.csv")
    return folder
