"""The table of the gauntlet's outcomes: a file that `peftlab check` reads, and a page of the documentation."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from peftlab.families import FILE
from tests.gauntlet.cases import method_variants

PAGE = FILE.parent / "docs" / "families.md"
LIBRARIES = ("transformers", "torch", "peft", "bitsandbytes")


def write_table(out: Path) -> str:
    """Write both files from the last outcome of each case; return the number of cases by outcome."""
    last = {row["key"]: row for row in map(json.loads, out.read_text(encoding="utf-8").splitlines())}
    table = make_table(sorted(last.values(), key=lambda row: row["key"]))
    FILE.write_text(json.dumps(table, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(make_page(table), encoding="utf-8")
    return ", ".join(f"{count:,} {outcome}" for outcome, count in table["run"]["outcomes"].items())


def make_table(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the outcomes by type and task."""
    types: dict[str, Any] = {}
    unbuilt: dict[str, str] = {}
    for row in rows:
        model_type, task, form = row["key"].split()
        if row["outcome"] == "unbuilt":
            unbuilt[f"{model_type} {task}"] = row["reason"]
            continue
        entry = types.setdefault(model_type, {}).setdefault(task, {"works": [], "refused": {}, "fails": {}})
        if row["outcome"] == "works":
            entry["works"].append(form)
        else:
            entry[row["outcome"]][form] = row["reason"]
    run = {
        "date": datetime.date.today().isoformat(),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "outcomes": dict(sorted(Counter(row["outcome"] for row in rows if row["outcome"] != "unbuilt").items())),
        "types": len(types),
    }
    return {"run": run, "types": types, "unbuilt": unbuilt}


def make_page(table: dict[str, Any]) -> str:
    """Return the page in Markdown."""
    run = table["run"]
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    counts = ", ".join(f"{count:,} {outcome}" for outcome, count in run["outcomes"].items())
    return "\n".join(
        [
            "# Families",
            "",
            "Which model types work, with which task and method. `scripts/gauntlet` builds a small model of each type",
            "and runs each method: check, plan, three steps, evaluation, generation (alone and with others), a",
            "checkpoint, resuming, saving, loading with transformers or PEFT alone, and merging. A case works if each",
            "stage agrees with its oracle; one that cannot work is refused in a line before weights are loaded.",
            "",
            f"Run until {run['date']} with {versions}: {run['types']} types; {counts}.",
            f"{sum(run['outcomes'].values()):,} of {count_cases(table):,} cases of these types were run; a method that",
            "is in neither column was not.",
            "",
            "| type and task | works | refused |",
            "|---|---|---|",
            *(
                f"| {model_type} {task.replace('-', ' ')} | {_works(entry)} | {_refused(entry)} |"
                for model_type, tasks in table["types"].items()
                for task, entry in tasks.items()
            ),
            "",
            "## Why",
            "",
            *(f"- {reason}: {', '.join(names)}" for reason, names in _reasons(table).items()),
            "",
            "## Not run",
            "",
            "Types of which no small model could be built from the configuration alone:",
            "",
            *_unbuilt(table),
            "",
        ]
    )


def count_cases(table: dict[str, Any]) -> int:
    """Return the number of cases that the table's types and tasks have."""
    return sum(len(tasks) for tasks in table["types"].values()) * len(method_variants())


def _works(entry: dict[str, Any]) -> str:
    return "all" if set(entry["works"]) == set(method_variants()) else ", ".join(entry["works"]) or "-"


def _refused(entry: dict[str, Any]) -> str:
    return f"{', '.join(entry['refused']) or '-'}{_fails(entry)}"


def _fails(entry: dict[str, Any]) -> str:
    return f"; fails: {', '.join(entry['fails'])}" if entry["fails"] else ""


def _unbuilt(table: dict[str, Any]) -> list[str]:
    """Return a line for each type that could not be built, and why; one that was built with a task is none."""
    reasons = {key.split()[0]: reason for key, reason in table["unbuilt"].items()}
    return [f"- {name}: {reason[:150]}" for name, reason in reasons.items() if name not in table["types"]] or ["None."]


def _reasons(table: dict[str, Any]) -> dict[str, list[str]]:
    """Return the types by the reason of their refusals and failures, without the type's own name."""
    found: dict[str, list[str]] = {}
    for model_type, tasks in table["types"].items():
        for entry in tasks.values():
            for reason in (entry["refused"] | entry["fails"]).values():
                names = found.setdefault(_plain(reason, model_type), [])
                if model_type not in names:
                    names.append(model_type)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def _plain(reason: str, model_type: str) -> str:
    """Return a reason without what differs from case to case: folders and names of types."""
    reason = re.sub(r"; did you mean [^;]*|; it knows [^;]*", "", reason)  # differ from type to type, and are long
    words = [("MODEL" if word.startswith(("'/", "/")) else word) for word in reason.split()]
    return " ".join("TYPE" if word.strip("';,") == model_type else word for word in words).replace("|", "/")
