"""Libraries are quiet, and none is imported for that."""

from __future__ import annotations

import logging
import sys

import datasets
from datasets.config import ENV_VARS_TRUE_VALUES
from datasets.utils.logging import _get_default_logging_level

from peftlab.world.quiet import OF_DATASETS, quiet_libraries


def test_datasets_is_told_by_variables_where_it_is_not_imported(monkeypatch):
    for name in OF_DATASETS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "datasets")
    quiet_libraries()
    assert "datasets" not in sys.modules
    assert _get_default_logging_level() == logging.ERROR  # what it reads when it is imported
    assert OF_DATASETS["HF_DATASETS_DISABLE_PROGRESS_BARS"] in ENV_VARS_TRUE_VALUES


def test_datasets_is_quiet_where_it_is_imported_already():
    datasets.logging.set_verbosity_info()
    quiet_libraries()
    assert datasets.logging.get_verbosity() == logging.ERROR
    assert datasets.are_progress_bars_disabled()
