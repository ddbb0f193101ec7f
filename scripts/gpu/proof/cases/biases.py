"""QLoRA on a model with biases and LayerNorms in bfloat16: types of what trains, audit, saved file, resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from proof.bench import WITHOUT_EVALUATION, Bench, Settings

FORMATS = ("nf4", "fp4", "int8")
SHAPE = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": 4096,
    "n_positions": 512,
    "n_embd": 192,
    "n_layer": 2,
    "n_head": 3,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
# As a run on CUDA has it; said here so that the CPU can try it.
BFLOAT16 = {"training.precision": "bfloat16"}
COMPUTE_BFLOAT16 = {"method.compute_dtype": "bfloat16"}


def run(bench: Bench) -> None:
    folder = write_shape(bench.folder / "gpt2")
    for base_format in FORMATS:
        settings = {
            "model": f"{{name: {folder}, init: random, tokenizer: builtin:tiny, dtype: bfloat16}}",
            "method.quantization": base_format,
            "method.bias": "all",
            **BFLOAT16,
            **(COMPUTE_BFLOAT16 if base_format != "int8" else {}),
        }
        with bench.case(f"{base_format} types") as case:
            case |= look_at_types(bench, settings)
        for name, rows in (("with evaluation", {}), ("without", WITHOUT_EVALUATION)):
            if bench.pretend and (base_format == "fp4" or base_format == "nf4" and not rows):
                continue  # fp4 is nf4 with other codes; the rest is for the device
            with bench.case(f"{base_format} {name}") as case:
                case |= stop_and_resume(bench, f"{base_format}-{name.split()[0]}", settings | rows)


def write_shape(folder: Path) -> Path:
    """Write the configuration of a small GPT-2: biases everywhere, and LayerNorms that return float32 in autocast."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(SHAPE), encoding="utf-8")
    return folder


def look_at_types(bench: Bench, settings: Settings) -> dict[str, Any]:
    """Return the types of trained weights and moments before and after three steps, and biases that did not move."""
    from proof.training import build, trained, type_name

    built = build(bench.tiny("qlora", settings))
    before = {name: parameter.detach().clone() for name, parameter in trained(built.model).items()}
    for number in (1, 2, 3):
        built.step(number)
    after = trained(built.model)
    biases = [name for name in after if name.endswith("bias")]
    still = [name for name in biases if bool((before[name] == after[name]).all())]
    states = built.setup.optimizer.state.values()
    found = {
        "before": sorted({type_name(one) for one in before.values()}),
        "after": sorted({type_name(one) for one in after.values()}),
        "moments": sorted({type_name(value) for state in states for value in state.values() if value.ndim}),
    }
    right = found == dict.fromkeys(found, ["float32"])
    says = f"{len(biases)} biases; after three steps {', '.join(found['after'])}, moments {', '.join(found['moments'])}"
    return found | {"ok": right and bool(biases) and not still, "biases": len(biases), "unmoved": still, "says": says}


def stop_and_resume(bench: Bench, name: str, settings: Settings) -> dict[str, Any]:
    """Return how a run of four steps ended that was stopped after two, its audit, and the types in its saved file."""
    from peftlab.errors import StoppedError
    from peftlab.runs.display import NoDisplay
    from peftlab.runs.run import train
    from proof.training import fresh_world

    settings = {**settings, "training.steps": 4, "run.save_every": 2, "run.output": name}
    fresh_world(bench.device)
    try:
        train(bench.tiny("qlora", {**settings, "run.stop_after": 2}), display=NoDisplay())
    except StoppedError:
        pass
    result = train(bench.tiny("qlora", settings), resume=True, display=NoDisplay())
    saved = saved_types(bench.folder / name / "weights")
    says = f"{result.status}, audit {'clean' if result.audit.clean else 'not clean'}, saved {', '.join(saved)}"
    return {
        "ok": result.status == "finished" and result.audit.clean and saved == ["float32"],
        "resumes": [one.model_dump() for one in result.resumes],
        "audit": result.audit.model_dump(),
        "saved": saved,
        "says": says,
    }


def saved_types(folder: Path) -> list[str]:
    """Return the types of the tensors in a folder's safetensors files."""
    from safetensors.torch import load_file

    from proof.training import type_name

    return sorted({type_name(one) for path in folder.glob("*.safetensors") for one in load_file(path).values()})
