"""llama.cpp's own converter, a program beside peftlab, for models that peftlab itself cannot write as GGUF."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from pathlib import Path

from peftlab.errors import ModelError, one_line
from peftlab.export.gguf_model import need_gguf

# As llama.cpp has it, and as a package of that script installs it.
NAMES = ("convert_hf_to_gguf.py", "convert-hf-to-gguf")
TYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "q8_0": "q8_0"}


def find_converter() -> str | None:
    """Return the path of llama.cpp's converter; None where there is none on the PATH."""
    return next((found for name in NAMES if (found := shutil.which(name)) is not None), None)


def convert(program: str, folder: Path, path: Path, dtype: str) -> dict[str, int]:
    """Let a converter write a transformers folder to a GGUF file; return how many tensors have which type.

    Raises ModelError with the converter's last line where it fails.
    """
    command = [program, str(folder), "--outfile", str(path), "--outtype", TYPES[dtype]]
    ended = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if ended.returncode or not path.is_file():
        lines = [line for line in (ended.stderr or ended.stdout).splitlines() if line.strip()] or ["no message"]
        raise ModelError(f"{program} cannot write this model: {one_line(lines[-1])}")
    reader = need_gguf().GGUFReader(path)
    return dict(Counter(tensor.tensor_type.name for tensor in reader.tensors))
