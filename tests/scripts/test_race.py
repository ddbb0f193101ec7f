"""The benchmark against peers: its floor and its medians by hand, and a whole race at a tiny size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "peftlab" / "builtin" / "tiny"


def run(wall: list[float], losses: list[float], peak: int = 100) -> dict:
    operations = {"products": 1.5, "attention": 0.6, "all": 2.5, "step": 6.0}
    found = {
        "begun": [0.0, *wall[:-1]],
        "wall": wall,
        "processor": [2 * one for one in wall],
        "losses": losses,
        "peak_bytes": peak,
    }
    return found | {"operations": operations}


def a_race(**stamps) -> dict:
    return {"warm_up": 1, "tokens": 80, "targets": 40, "flops_of_a_step": 6.0, "stamps": stamps}


def test_medians_leave_out_the_warm_up_and_ratios_are_against_ours(script):
    pages = script("race.pages")
    ours = [run([10.0, 12.0, 14.0], [3.0, 2.0, 1.0]), run([8.0, 12.0, 16.0], [3.0, 2.0, 1.0])]
    peer = [run([5.0, 11.0, 17.0], [3.0, 2.0, 1.5], peak=300), run([5.0, 11.0, 17.0], [3.0, 2.0, 1.5], peak=300)]
    found = pages.summarise(a_race(peftlab=ours, loop=peer), peak_flops=2.0)
    assert found["floor_seconds"] == 3.0
    medians = found["medians"]
    assert medians["peftlab"]["step_seconds"] == 3.0  # 2 and 4 seconds a step in its two runs
    assert medians["peftlab"]["tokens_per_second"] == pytest.approx(80 / 2 / 3)
    assert medians["peftlab"]["first_step_seconds"] == 9.0
    assert medians["loop"] | {"share_of_floor": 0.5, "loss_difference": 0.5, "peak_bytes": 300} == medians["loop"]
    lines = pages.describe("uniform:lora", {"title": "t", "precision": "float32"} | found | a_race()).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1].split()[:3] == ["loop", "3", "2.25"]  # 3 times as long in the first turn, 1.5 times in the second
    assert lines[-1].split()[-2] == "35%"  # 2.1 of the profiled step's 6 seconds


def test_a_peer_that_fails_is_named_with_its_error(script):
    pages = script("race.pages")
    found = pages.summarise(a_race(peftlab=[run([1.0, 2.0, 3.0], [1.0] * 3)], trl=[{"error": "no\nsuch option"}]), 1.0)
    assert found["medians"]["trl"] == {"error": "no\nsuch option"}
    assert "trl      failed: such option" in pages.describe("x", {"title": "", "precision": ""} | found)


def test_all_methods_of_a_case_are_raced_by_one_name(script):
    assert script("race.cases").expand(["half:all", "ragged:lora"]) == [
        *(f"half:{method}" for method in ("lora", "full", "qlora", "adapters", "prefix", "bitfit")),
        "ragged:lora",
    ]


def test_no_turn_starts_that_would_end_too_late_but_the_first(script):
    """A turn takes 10 seconds: of 35 seconds three fit, of 5 none would."""
    turns = script("race.turns").Turns
    for until, expected in ((35.0, 3), (5.0, 1), (float("inf"), 4)):
        passed = 0.0
        found = []
        for turn in turns(4, until, lambda: passed):  # noqa: B023
            found.append(turn)
            passed += 10
        assert found == list(range(expected))


def test_peers_take_part_where_they_have_the_method(script):
    have = script("race.turns").peers_that_have
    assert have("adapters", ["peftlab", "trl", "adapterhub"]) == ["peftlab", "adapterhub"]
    assert have("lora", ["peftlab", "trl", "adapterhub"]) == ["peftlab", "trl"]
    assert have("bitfit", ["peftlab", "loop", "trainer", "trl"]) == ["peftlab", "loop", "trainer"]
    assert have("prefix", ["peftlab", "trl"]) == ["peftlab", "trl"]


def test_peers_whose_kernels_need_cuda_are_left_out_elsewhere(script):
    on = script("race.turns").peers_on
    assert on("cpu", ["peftlab", "liger", "trl"]) == ["peftlab", "trl"]
    assert on("cuda", ["peftlab", "liger", "trl"]) == ["peftlab", "liger", "trl"]


@pytest.fixture
def job(script, tmp_path):
    """Return a maker of jobs of three steps, one of them timed, with one row of four tokens, two of them supervised."""
    jobs = script("race.job")
    (tmp_path / "model").mkdir()
    config = {"model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 10}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    row = {"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4]}
    (tmp_path / "rows.json").write_text(json.dumps({"steps": [[row]] * 3, "pad_id": 0}))

    def make(method: str):
        save_file({name: torch.zeros(size) for name, size in TRAINED[method].items()}, tmp_path / "start")
        return jobs.Job(
            str(tmp_path / "model"),
            method,
            "",
            [],
            str(tmp_path / "rows.json"),
            str(tmp_path / "start"),
            3,
            1,
            "cpu",
            "float32",
            fields={"length": 3},
        )

    return make


LAYER = "model.layers.0."
TRAINED = {
    "full": {"model.embed_tokens.weight": (10, 8)},
    "lora": {
        f"{LAYER}self_attn.q_proj.lora_A.default.weight": (2, 8),
        f"{LAYER}mlp.down_proj.lora_B.default.weight": (8, 2),
    },
    "adapters": {f"{LAYER}self_attn.adapter.down.weight": (2, 8), f"{LAYER}self_attn.adapter.up.weight": (8, 2)},
    "bitfit": {f"{LAYER}self_attn.q_proj.bias": (8,)},
    "prefix": {"prompt_encoder.default.embedding.weight": (3, 32)},
}
# Two layers: query and output 8·8, key and value 8·4, three matrices 8·16 each. Attention: 2 · 4 tokens · 8 · 2.
QKV, OUT, GATED, HEAD, ATTENTION = 64 + 2 * 32, 64, 3 * 128, 80, 2 * 4 * 8 * 2
BODY = 2 * (QKV + OUT + GATED)


@pytest.mark.parametrize(
    ("method", "by_hand"),
    [
        ("full", 4 * (6 * BODY + 3 * ATTENTION) + 2 * 6 * HEAD),
        ("lora", 4 * (4 * BODY - 2 * QKV + 6 * 32 + 3 * ATTENTION) + 2 * 4 * HEAD),
        ("adapters", 4 * (4 * BODY - 2 * (QKV + OUT) + 6 * 32 + 3 * ATTENTION) + 2 * 4 * HEAD),
        ("bitfit", 4 * (4 * BODY - 2 * QKV + 3 * ATTENTION) + 2 * 4 * HEAD),
        ("prefix", 4 * (4 * BODY - 2 * QKV + 3 * (ATTENTION + 4 * 3 * 8 * 2)) + 2 * 4 * HEAD),
    ],
)
def test_the_floor_counts_the_operations_of_the_formulas(script, job, method, by_hand):
    assert script("race.floor").step_flops(job(method)) == by_hand


def test_the_step_after_the_timed_ones_is_profiled_and_not_stamped(script):
    clock = script("race.clock").Clock(0.0, timed=2)
    matrix = torch.randn(64, 64)
    for loss in (3.0, 2.0, 1.0):
        matrix.exp() @ matrix
        clock.step(loss)
    found = clock.report()
    assert found["losses"] == [3.0, 2.0]
    assert len(found["wall"]) == len(found["processor"]) == 2
    assert found["peak_bytes"] > 0
    operations = found["operations"]
    assert 0 < operations["products"] < operations["tensors"] <= operations["all"]
    assert operations["attention"] == 0 and operations["all"] <= operations["step"]


def test_a_peer_that_trains_other_parameters_is_refused(script, job):
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="other parameters train here"):
        script("race.models").load_start(model, job("lora"))


def test_peers_get_labels_and_masks_of_padded_rows(script):
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8], "labels": [8]}]
    batch = script("race.loop").collate(rows, pad_id=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]


def test_runs_take_turns_step_by_step(script, tmp_path):
    """Two processes note when they work: their steps alternate, whoever is faster, and one that fails stops nobody."""
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); from race.in_turn import wait_of_child\n"
        "wait, name, count = wait_of_child(), sys.argv[2], int(sys.argv[3])\n"
        "for step in range(count):\n"
        "    time.sleep(0.02 if name == 'slow' else 0)\n"
        "    print(name, step, file=open('log', 'a'), flush=True); wait()\n"
        "sys.exit(3 if name == 'short' else 0)\n"
    )
    turns = script("race.in_turn")
    names = {"slow": 4, "fast": 4, "short": 2}
    with (tmp_path / "errors").open("wb") as errors:
        command = [sys.executable, "-c", code, str(ROOT / "scripts" / "benchmark")]
        children = [
            turns.Child.start([*command, name, str(count)], dict(os.environ), str(tmp_path), errors)
            for name, count in names.items()
        ]
    turns.run_in_turns(children)
    assert [child.close() for child in children] == [0, 0, 3]
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(lines) == sorted([name, str(step)] for name, count in names.items() for step in range(count))
    assert [step for _, step in lines] == sorted(step for _, step in lines)  # nobody is a step ahead


@pytest.mark.slow
@pytest.mark.parametrize("step_by_step", [False, True])
def test_every_method_has_the_loop_s_losses(tmp_path, step_by_step):
    rows = [json.dumps({"question": f"What is {n}?" * (n % 3 + 1), "answer": f"It is {n}."}) for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    races = [
        f"{case}:{method}"
        for case, method in zip(
            ("uniform", "half", "ragged") * 2, ("lora", "full", "qlora", "adapters", "prefix", "bitfit"), strict=True
        )
    ]
    command = [
        sys.executable,
        str(ROOT / "scripts" / "benchmark" / "speed"),
        *races,
        "--model",
        str(TINY),
        "--rounds",
        "1",
        "--steps",
        "2",
        "--warm-up",
        "1",
        "--peers",
        "peftlab,loop",
        *(["--step-by-step"] if step_by_step else []),
        "--file",
        str(tmp_path / "rows.jsonl"),
        "--output",
        str(tmp_path / "out.json"),
        "--threads",
        "1",
    ]
    subprocess.run(command, check=True, cwd=tmp_path)
    found = json.loads((tmp_path / "out.json").read_text())["runs"]
    assert set(found) == set(races)
    for race in found.values():
        assert race["medians"]["loop"]["loss_difference"] < 1e-4
