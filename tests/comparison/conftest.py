"""Comparisons that several tests read: a plain one, and one whose every name means harm."""

from __future__ import annotations

import pytest

from peftlab.comparison.report.write import write_report

from .folders import Maker

SCRIPT = "<script>window.harmed=1;alert(1)</script>\"'><img src=x onerror=alert(2)>"
HOSTILE = {
    "lora": SCRIPT,
    "adapters": "مقارنة \u202eسيئة",
    "prefix": "long" * 80,
    "bitfit": "_$x_1^2$ & 50% \\input{x} | #1\x1b[31m\x00",
}


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """The folder of a comparison of six methods, three seeds, two budgets, with a report."""
    folder = Maker(tmp_path_factory.mktemp("plain"), budgets=("trainable=200k", "memory=64MiB"), rows=120).write()
    return write_report(folder)


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    """The report of a comparison with hostile names, texts and one variant that failed."""
    folder = tmp_path_factory.mktemp("hostile")
    Maker(folder, names=HOSTILE, failed=("qlora",), rows=40, answer=f"</pre>{SCRIPT}", title=SCRIPT).write()
    return write_report(folder)
