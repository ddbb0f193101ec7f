"""What all tests share: no hub, quiet libraries, and where optional data is found."""

from __future__ import annotations

import os
import re
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_configure(config):
    """Hide CUDA devices before torch looks for them, unless their tests are asked for: the others are the CPU's."""
    if not re.search(r"(?<!not )\bgpu\b", config.option.markexpr):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items):
    import torch

    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and pytest -m gpu, which shows it")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def quiet():
    from peftlab.device import quiet_libraries

    quiet_libraries()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with E2E and GSM8K: $PEFTLAB_DATA, or `shared/data` beside the repository."""
    folder = Path(os.environ.get("PEFTLAB_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "e2e_dev.csv").is_file():
        pytest.skip("E2E and GSM8K are not here; set PEFTLAB_DATA to a folder that holds e2e_dev.csv")
    return folder
