"""Keeps the libraries' progress bars and advice off the terminal."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Any

# datasets reads them when it is imported, which takes a second and which most runs do not need.
OF_DATASETS = {"DATASETS_VERBOSITY": "error", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}


def quiet_libraries() -> None:
    """Keep the libraries' progress bars and advice off the user's terminal; their errors still raise."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("bitsandbytes", "accelerate", "peft", "httpx", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name, value in OF_DATASETS.items():
        os.environ.setdefault(name, value)
    datasets: Any = sys.modules.get("datasets")
    if datasets is not None:
        datasets.logging.set_verbosity_error()
        datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", module=r"(transformers|peft|bitsandbytes|datasets|accelerate|deepspeed|torch)\b")
