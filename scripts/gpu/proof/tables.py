"""Markdown tables from proofs and plans; each figure says that it is planned, or on what and when it was measured.

A proof is the JSON of scripts/gpu/prove, a plan that of scripts/reproduce_memory_savings. Later ones win, except that
a plan never replaces a measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from proof.cases.speed import CASES
from proof.parts import PARTS
from proof.titles import METHODS, OTHERS, SHAPES, method_title, shape_title, short_device

GIB, MIB = 2**30, 2**20
PLANNED = "planned"
MEMORY_PARTS = ("memory", "memory-8b")
STATE = ("frozen_weights", "quantisation_state", "trainable_weights", "gradients", "optimiser_state")

Content = dict[str, Any]


class Found(NamedTuple):
    """One case, and where and when it was found."""

    case: dict[str, Any]
    source: str


def source_of(content: Content) -> str:
    """Return where and when: `H100 80GB, 2026-12-01`; the CPU where there was no device."""
    devices = content["machine"]["devices"]
    where = short_device(devices[0]["name"]) if devices else "the CPU"
    return f"{f'{len(devices)} x ' if len(devices) > 1 else ''}{where}, {content['date']}"


def cases_of(contents: Iterable[Content], *parts: str) -> list[Found]:
    """Return the cases of some parts, each once; those of plans are of the memory part."""
    found: dict[str, Found] = {}
    for content in contents:
        source = source_of(content)
        listed = content.get("cases", []) if "memory" in parts else []
        for part in parts:
            listed = [*listed, *content.get("parts", {}).get(part, {}).get("cases", [])]
        for case in listed:
            former = found.get(case["case"])
            if former is None or "measured_bytes" in case or "measured_bytes" not in former.case:
                found[case["case"]] = Found(case, source)
    return list(found.values())


def render(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def overview(contents: Sequence[Content]) -> str:
    """Return one row for each part: what it shows, and `planned` or how many of its claims are true, where and when."""
    return render(("part", "what it shows", "result"), [(p.name, p.title, result_of(contents, p.name)) for p in PARTS])


def result_of(contents: Sequence[Content], part: str) -> str:
    ran = [(c["parts"][part], source_of(c)) for c in contents if c.get("parts", {}).get(part, {}).get("cases")]
    if not ran:
        return PLANNED
    (found, source), cases = ran[-1], ran[-1][0]["cases"]
    claims = [case for case in cases if "ok" in case]
    right = sum(case["ok"] is True for case in claims)
    end = "" if found["status"] == "done" else f" ({found['status']})"
    counted = f"{right} of {len(claims)} right" if claims else f"{len(cases)} measured"
    return f"{counted}{end}, measured on {source}"


def details(contents: Sequence[Content]) -> str:
    """Return a table of every case of the parts that have run; a line where none has."""
    tables = []
    for part in PARTS:
        if part.name in MEMORY_PARTS:
            continue
        listed = cases_of(contents, part.name)
        rows = [
            (case["case"].replace("_", " "), verdict(case), finding(case), source)
            for case, source in listed
            if "says" in case
        ]
        if rows:
            tables.append(f"**{part.title}**\n\n{render(('case', '', 'found', 'measured on'), rows)}")
    return "\n\n".join(tables) or "No part has run on a CUDA device yet."


def verdict(case: dict[str, Any]) -> str:
    return {True: "right", False: "not right", None: ""}[case.get("ok")]


def finding(case: dict[str, Any]) -> str:
    return " ".join(str(case["says"]).split()).replace("|", "/")


def memory(contents: Sequence[Content]) -> str:
    """Return predicted and measured peaks of training steps."""
    found = [one for one in cases_of(contents, *MEMORY_PARTS) if on_cuda(one.case)]
    return render(
        ("model, rows x tokens", "method", "predicted", "measured", "error", "reserved"),
        [memory_row(case, source) for case, source in sorted(found, key=place)],
    )


def on_cuda(case: dict[str, Any]) -> bool:
    return "predicted" in case and case["predicted"]["device"] == "cuda"


def place(found: Found) -> tuple[int, ...]:
    """Return the place of a case among the rows: small models first, plain before checkpointed."""
    case = found.case
    shapes, methods = list(SHAPES), [*METHODS, *OTHERS]
    shape = shapes.index(case["shape"]) if case["shape"] in shapes else len(shapes)
    method = methods.index(case["method"]) if case["method"] in methods else len(methods)
    return shape, case["rows"], case["length"], case["checkpointing"], method


def memory_row(case: dict[str, Any], source: str) -> tuple[str, ...]:
    method = method_title(case["method"]) + (", checkpointed" if case["checkpointing"] else "")
    model = f"{shape_title(case['shape'])}, {case['rows']} x {case['length']}"
    facts = (model, method, gib(case["predicted_bytes"]))
    if "measured_bytes" not in case:
        return (*facts, PLANNED, "", "")
    error = f"{case['predicted_bytes'] / case['measured_bytes'] - 1:+.1%}"
    phases = case["measured"].get("device_phases", {}).values()
    reserved = max((phase["reserved_bytes"] for phase in phases), default=0)
    return (*facts, f"{gib(case['measured_bytes'])} measured on {source}", error, gib(reserved) if reserved else "")


def savings_tables(contents: Sequence[Content]) -> str:
    """Return a table for every batch: state and peak of each model and method, and the peak's share of full's."""
    found = [one for one in cases_of(contents, *MEMORY_PARTS) if "predicted" in one.case]
    found = [one for one in found if not one.case["checkpointing"] and one.case["method"] in METHODS]
    tables = []
    for rows, length in sorted({(case["rows"], case["length"]) for case, _ in found}):
        group = [one for one in sorted(found, key=place) if (one.case["rows"], one.case["length"]) == (rows, length)]
        header = ("model", "method", "state at the peak", "peak of a step", "of full")
        tables.append(
            f"{rows} rows of {length} tokens:\n\n{render(header, [savings_row(one, group) for one in group])}"
        )
    return "\n\n".join(tables)


def savings_row(found: Found, group: Sequence[Found]) -> tuple[str, ...]:
    case, source = found
    where = f"measured on {source}" if "measured_bytes" in case else PLANNED
    full = [one.case for one in group if one.case["shape"] == case["shape"] and one.case["method"] == "full"]
    share = f"{peak(case) / peak(full[0]):.2f}" if full else ""
    held = state(case)
    cell = "-" if held is None else f"{gib(held)} {where}"
    return (shape_title(case["shape"]), method_title(case["method"]), cell, f"{gib(peak(case))} {where}", share)


def peak(case: dict[str, Any]) -> int:
    return case.get("measured_bytes", case["predicted_bytes"])


def state(case: dict[str, Any]) -> int | None:
    """Return the bytes that do not depend on the batch, at the peak; None where that is not a step's.

    Random weights are made at once, which takes more than a step of a large quantised model.
    """
    report = case["measured"] if "measured_bytes" in case else case["predicted"]
    if sum(report["categories"].values()) > peak(case):
        return None
    return sum(report["categories"][kind] for kind in STATE)


def gib(size: float) -> str:
    return f"{size / GIB:,.1f} GiB" if size >= GIB else f"{size / MIB:,.0f} MiB"


def constants(contents: Sequence[Content]) -> str:
    """Return what plans assume of CUDA beside tensors, and what was measured."""
    libraries = [
        one for one in cases_of(contents, "constants") if one.case["case"] == "libraries" and "assumed" in one.case
    ]
    names = {
        "context, with the libraries loaded": ("context", "context_loaded"),
        "context alone": (None, "context"),
        "cuBLAS workspace of the forward pass": ("cublas_workspace", "workspace_forward"),
        "cuBLAS workspace of the backward pass": ("cublas_workspace", "workspace_backward"),
    }
    if not libraries:
        return render(("constant", "measured"), [(name, PLANNED) for name in names])
    case, source = libraries[-1]
    rows = [
        (name, gib(case["assumed"][assumed]) if assumed else "", f"{gib(case[measured])} measured on {source}")
        for name, (assumed, measured) in names.items()
    ]
    return render(("constant", "in plans", "measured"), rows)


def speed(contents: Sequence[Content]) -> str:
    """Return tokens a second of training steps."""
    names = ("method", "checkpointing", "rows", "length")
    rows = [
        (
            *speed_facts(shape_title(case["shape"]), *(case[name] for name in names)),
            f"{case['tokens_per_second']:,.0f} measured on {source}",
            gib(case["peak_bytes"]),
        )
        for case, source in cases_of(contents, "speed")
        if "tokens_per_second" in case
    ]
    planned = [
        (*speed_facts(shape_title(one.shape), one.method, one.checkpointing, one.rows, one.length), PLANNED, "")
        for one in CASES
    ]
    return render(("model", "method", "rows x tokens", "tokens a second", "peak"), rows or planned)


def speed_facts(model: str, method: str, checkpointing: bool, rows: int, length: int) -> tuple[str, str, str]:
    return model, method_title(method) + (", checkpointed" if checkpointing else ""), f"{rows} x {length}"


TABLES: dict[str, Callable[[Sequence[Content]], str]] = {
    "overview": overview,
    "memory": memory,
    "constants": constants,
    "speed": speed,
    "details": details,
    "savings": savings_tables,
}
