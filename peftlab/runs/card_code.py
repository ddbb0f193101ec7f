"""The lines of a model card that load what a run made, in software that others have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from peftlab.methods.storage import read_context
from peftlab.models.build import build_meta
from peftlab.models.load import fit_tokenizer, load_saved_tokenizer
from peftlab.models.reference import Reference, resolve
from peftlab.recipe.schema import Recipe

# `{before}` are lines that make `base`, `{base}` is that name or the call that loads the base.
LOADS: dict[str, str] = {
    "plain": "from transformers import {auto}, AutoTokenizer\nmodel = {auto}.from_pretrained({place!r}{dtype})\n"
    "tokenizer = AutoTokenizer.from_pretrained({place!r})",
    "peft": "from peft import PeftModel; from transformers import {auto}, AutoTokenizer{imports}\n{before}"
    "model = PeftModel.from_pretrained({base}, {place!r})\n"
    "tokenizer = AutoTokenizer.from_pretrained({place!r})",
    "peftlab": "from peftlab import load_weights; from transformers import {auto}, AutoTokenizer{imports}\n{before}"
    "model = load_weights({base}, {place!r})\n"
    "tokenizer = AutoTokenizer.from_pretrained({place!r})",
    "adapters": "import adapters; from transformers import {auto}, AutoTokenizer{imports}\n{before}model = {base}\n"
    "adapters.init(model)\nmodel.load_adapter({place!r}, set_active=True, use_safetensors=True)\n"
    "tokenizer = AutoTokenizer.from_pretrained({place!r})",
    "sentence-transformers": "from sentence_transformers import SentenceTransformer\n"
    "vectors = SentenceTransformer({place!r}).encode(['a text'])",
    "gguf-adapter": "# beside the base in GGUF\nllama-server -m BASE.gguf --lora {file}",
    "gguf": "from transformers import {auto}\n# or: llama-server -m {file}\n"
    "model = {auto}.from_pretrained({place!r}, gguf_file={file!r})",
}
# What each of these can do without: a base of their own is not loaded.
WHOLE = ("plain", "sentence-transformers", "gguf", "gguf-adapter")
Build = Callable[[], PreTrainedModel]
"""Returns the base without weights."""


def write_code(recipe: Recipe, weights: Path, loads: str, place: str, file: str, dtype: str | None) -> str:
    """Return the lines that load a result from `place`; `loads` is a name in LOADS, `dtype` the type of the weights."""
    auto, typed = recipe.task.auto_class, f", dtype={dtype!r}" if dtype else ""
    facts = {"auto": auto, "place": place, "file": file, "dtype": typed}
    labels = read_context(weights).get("labels")
    if loads in WHOLE:
        return LOADS[loads].format(**facts)
    build: Build = cache(lambda: build_meta(recipe.model, labels)[0])  # most lines need none, some two parts
    before, named = _lines_before(recipe, labels)
    base = f"{auto}.from_pretrained({named}{_options(recipe, labels)}{typed})"
    if recipe.model.add_tokens:
        before += f"base = {base}\n{_add_tokens(recipe, build, loads)}\n"
        base = "base"
    imports = ", BitsAndBytesConfig" if "BitsAndBytesConfig" in base + before else ""
    return LOADS[loads].format(**facts | {"base": base, "before": before, "imports": imports}) + _padding(
        recipe, weights, build
    )


def _lines_before(recipe: Recipe, labels: Sequence[str] | None) -> tuple[str, str]:
    """Return the lines that the call to load the base needs, and how it names the base."""
    reference = resolve(recipe.model.name, recipe.model.revision)
    imported, place = _place(reference)
    named = "".join(f", {name}={value!r}" for name, value in reference.arguments.items())
    return ("from importlib.resources import files\n" if imported else "") + (
        f"labels = {list(labels)!r}\n" if labels else ""
    ), place + named


def _place(reference: Reference) -> tuple[bool, str]:
    """Return how code names a base, and whether that needs `files`: what is in a package has no path of its own."""
    kind, _, name = reference.label.partition(":")
    if reference.hub_id or kind not in ("builtin", "package"):
        own = Path(reference.label).expanduser()
        return False, repr(reference.hub_id or str(own.parent if reference.gguf_file else own))
    package, _, inside = name.partition("/") if kind == "package" else ("peftlab", "", f"builtin/{name}")
    inside = inside.removesuffix(reference.gguf_file or "").rstrip("/")
    return True, f"str(files({package!r}){f' / {inside!r}' if inside else ''})"


def _options(recipe: Recipe, labels: Sequence[str] | None) -> str:
    """Return what loading the base needs: the classes of its head, its code, and how it was quantised."""
    names = "id2label=dict(enumerate(labels)), label2id={name: place for place, name in enumerate(labels)}"
    options = f", {names}" if labels else ""
    if kind := getattr(recipe.task, "problem_type", None):
        options += f", problem_type={kind!r}"
    options += ", trust_remote_code=True" if recipe.model.trust_remote_code else ""
    storage = recipe.method.base_storage
    if (kind := storage["base_format"]) == "plain":
        return options
    quantised: dict[str, Any] = {"load_in_8bit": True}
    if kind in ("nf4", "fp4"):
        quantised = {"load_in_4bit": True, "bnb_4bit_quant_type": kind}
        quantised["bnb_4bit_use_double_quant"] = storage["double_quantization"]
    return f"{options}, quantization_config=BitsAndBytesConfig(**{quantised!r})"


def _padding(recipe: Recipe, weights: Path, build: Build) -> str:
    """Return the line by which a decoder with a head knows where a padded text ends; nothing for other tasks."""
    if not hasattr(recipe.task, "problem_type"):
        return ""
    model = build()
    fit_tokenizer(model, load_saved_tokenizer(weights, recipe.model))
    return f"\nmodel.config.pad_token_id = {model.config.get_text_config().pad_token_id}"


def _add_tokens(recipe: Recipe, build: Build, loads: str) -> str:
    """Return the lines that give `base` the rows of new tokens: PEFT reads which they are from its folder."""
    if loads == "peftlab":
        section = f"Model(name={recipe.model.name!r}, add_tokens={list(recipe.model.add_tokens)!r})"
        imports = "from peftlab.models.new_tokens import add_new_tokens; from peftlab.recipe.schema import Model"
        return f"{imports}\nadd_new_tokens(base, {section})"
    return f"base.resize_token_embeddings({build().get_input_embeddings().get_parameter('weight').shape[0]})"
