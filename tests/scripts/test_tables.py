"""Tables of proofs made by hand: every figure says that it is planned, or on what and when it was measured."""

from __future__ import annotations

import json

import pytest

GIB = 2**30
H100 = {"devices": [{"name": "NVIDIA H100 80GB HBM3", "bytes": 85 * 10**9, "capability": [9, 0]}]}
ON_H100 = "H100 80GB, 2026-12-01"


@pytest.fixture
def tables(script):
    return script("proof.tables")


@pytest.fixture
def pages(script):
    return script("proof.pages")


def report(peak: float, state: float) -> dict:
    kinds = ("frozen_weights", "quantisation_state", "trainable_weights", "gradients", "optimiser_state")
    categories = dict.fromkeys(kinds, 0) | {"frozen_weights": state * GIB, "saved_activations": (peak - state) * GIB}
    return {"device": "cuda", "categories": categories}


def memory_case(method: str, predicted: float, state: float, measured: float | None = None) -> dict:
    case = {"case": f"1b {method}", "shape": "llama-3.2-1b", "method": method, "rows": 4, "length": 1024}
    case |= {"checkpointing": False, "predicted": report(predicted, state), "predicted_bytes": predicted * GIB}
    if measured is not None:
        phases = {"first_step": {"reserved_bytes": 30 * GIB}, "steady_step": {"reserved_bytes": 31 * GIB}}
        case |= {"measured": report(measured, state) | {"device_phases": phases}, "measured_bytes": measured * GIB}
    return case


def plan() -> dict:
    cases = [memory_case("full", 25.0, 20.0), memory_case("lora", 10.0, 2.5)]
    return {"machine": {"devices": []}, "date": "2026-11-28", "cases": cases}


def proof(date: str = "2026-12-01", **parts: list[dict]) -> dict:
    described = {name: {"status": "done", "title": name, "cases": cases} for name, cases in parts.items()}
    return {"format": 1, "machine": H100, "date": date, "pretended": False, "parts": described}


def cells_of(table: str, first: str) -> list[str]:
    """Return the cells of the row that starts with a text."""
    (line,) = (line for line in table.splitlines() if line.startswith(f"| {first} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_state_at_another_moment_than_a_steps_is_left_out(tables):
    """Random weights of 12 GiB are made before they are quantised; a step takes 10."""
    case = memory_case("qlora", 10.0, 2.5) | {"predicted": report(12.0, 12.0)}
    savings = tables.savings_tables([plan() | {"cases": [case]}])
    assert cells_of(savings, "Llama-3.2-1B | QLoRA")[2:4] == ["-", "10.0 GiB planned"]


def test_without_a_proof_every_part_and_every_figure_is_planned(tables):
    assert all(line.endswith(" planned |") for line in tables.overview([]).splitlines()[2:])
    assert all(line.endswith(" planned |") for line in tables.constants([]).splitlines()[2:])
    assert all("| planned |" in line for line in tables.speed([]).splitlines()[2:])
    assert tables.details([]) == "No part has run on a CUDA device yet."
    savings = tables.savings_tables([plan()])
    assert cells_of(savings, "Llama-3.2-1B | full") == [
        "Llama-3.2-1B",
        "full",
        "20.0 GiB planned",
        "25.0 GiB planned",
        "1.00",
    ]
    assert cells_of(savings, "Llama-3.2-1B | LoRA")[2:] == ["2.5 GiB planned", "10.0 GiB planned", "0.40"]


def test_a_measurement_replaces_the_plan_in_its_cell_alone_and_says_on_what_and_when(tables):
    measured = proof(memory=[memory_case("lora", 10.0, 2.5, measured=10.5)])
    table = tables.savings_tables([plan(), measured])
    assert cells_of(table, "Llama-3.2-1B | full")[2:] == ["20.0 GiB planned", "25.0 GiB planned", "1.00"]
    sizes = [f"{size} GiB measured on {ON_H100}" for size in ("2.5", "10.5")]
    assert cells_of(table, "Llama-3.2-1B | LoRA")[2:] == [*sizes, "0.42"]
    (row,) = (line for line in tables.memory([plan(), measured]).splitlines() if "LoRA" in line)
    assert f"| Llama-3.2-1B, 4 x 1024 | LoRA | 10.0 GiB | 10.5 GiB measured on {ON_H100} | -4.8% | 31.0 GiB |" == row


def test_a_later_plan_does_not_replace_a_measurement_and_a_later_measurement_does(tables):
    first, second = (
        proof(date, memory=[memory_case("lora", 10, 2, peak)])
        for date, peak in (("2026-12-01", 10), ("2026-12-05", 12))
    )
    assert "10.0 GiB measured" in tables.memory([first, plan()])
    table = tables.memory([first, second])
    assert "12.0 GiB measured on H100 80GB, 2026-12-05" in table and "2026-12-01" not in table


def test_a_part_says_how_many_of_its_claims_are_true_and_that_it_was_cut(tables):
    cases = [{"case": "lora", "ok": True, "says": "equal"}, {"case": "full", "ok": False, "says": "3e-2 | far"}]
    content = proof(
        parity=[*cases, {"case": "note", "says": "a remark"}], doctor=[{"case": "versions", "says": "none"}]
    )
    content["parts"]["parity"]["status"] = "time limit"
    table = tables.overview([content])
    assert cells_of(table, "parity")[-1] == f"1 of 2 right (time limit), measured on {ON_H100}"
    assert cells_of(table, "doctor")[-1] == f"1 measured, measured on {ON_H100}"
    assert cells_of(tables.details([content]), "full") == ["full", "not right", "3e-2 / far", ON_H100]


def test_constants_stand_beside_those_of_the_plans(tables):
    case = {"case": "libraries", "assumed": {"context": 550 * 2**20, "cublas_workspace": 32 * 2**20}}
    case |= {
        "context": 500 * 2**20,
        "context_loaded": 700 * 2**20,
        "workspace_forward": 33 * 2**20,
        "workspace_backward": 34 * 2**20,
    }
    rows = tables.constants([proof(constants=[case])])
    assert f"| context, with the libraries loaded | 550 MiB | 700 MiB measured on {ON_H100} |" in rows
    assert f"| cuBLAS workspace of the backward pass | 32 MiB | 34 MiB measured on {ON_H100} |" in rows


def test_a_block_of_a_page_is_replaced_and_the_rest_is_kept(pages):
    page = "# Title\n\n<!-- table details -->\nold\n<!-- end -->\n\nText.\n"
    assert pages.refresh(page, []) == (
        "# Title\n\n<!-- table details -->\n\nNo part has run on a CUDA device yet.\n\n<!-- end -->\n\nText.\n"
    )
    with pytest.raises(pages.TableError, match="there is no table 'detail'"):
        pages.refresh("<!-- table detail -->\n<!-- end -->", [])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "is neither a proof"),
        (json.dumps(proof() | {"format": 99}), "newer version"),
        (json.dumps(proof() | {"pretended": True}), "only tried on the CPU"),
    ],
)
def test_what_no_table_can_be_made_from_is_refused_in_one_line(pages, tmp_path, capsys, content, reason):
    path = tmp_path / "proof.json"
    path.write_text(content)
    assert pages.main([str(path)]) == 8
    error = capsys.readouterr().err
    assert reason in error and str(path) in error and error.count("\n") == 1


def test_the_pages_have_the_tables_of_the_committed_results(pages):
    contents, blocks = pages.read_all(pages.committed()), 0
    for path in pages.DOCS.glob("*.md"):
        text = path.read_text(encoding="utf-8")
        assert pages.refresh(text, contents) == text, "run scripts/gpu/tables"
        blocks += len(pages.BLOCK.findall(text))
    assert blocks >= 5
