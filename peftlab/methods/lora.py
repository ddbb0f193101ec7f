"""LoRA (https://arxiv.org/abs/2106.09685): h = W·x + (alpha/rank)·B·A·x. Trains A and B."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

from pydantic import Field

from peftlab.errors import MethodError
from peftlab.family_traits import learns
from peftlab.methods.base import Method, Problems, Sizes
from peftlab.methods.candidates import describe_candidates
from peftlab.methods.new_tokens import ROWS, copy_with_rows
from peftlab.methods.peft_folder import WEIGHTS, base_tensors, is_renamed, names_of_experts, stored_head, write_config
from peftlab.patterns import canonical_name, matching, unmatched
from peftlab.shapes import LinearSite, ModelShape, ParameterSite
from peftlab.tasks import task_of

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor, nn

IDLE = "no text reaches them"
CHOICE = "they choose keys, and no gradient passes through a choice"
TAKEN = "PEFT takes their names for the fused weights of experts"
RENAMED = "PEFT renames their saved updates when it reads them, and loses them"
REFUSED = "PEFT trains no such projection of this family"
# peft 0.21, tuners_utils: the fused kernels of these families read these weights without calling the layers.
MAMBA = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
MAMBA_REFUSED = (".out_proj", ".conv1d")
ATTENTION_ROLES = ("query", "key", "value", "query-key-value", "attention-output")
# LoRA Without Regret (Thinking Machines, 2025): with this alpha, ten times the learning rate of full fine-tuning.
RULE_FACTOR, RULE_ALPHA = 10.0, 32.0
NO_LAYER = "the model has no linear layer that LoRA could change; use type: full"


class LoRA(Method):
    """Low-rank updates beside frozen projections, through PEFT's LoRA layers.

    Dense layers and GPT-2's Conv1D are targets; the head is not. A mixture's fused expert weights are not dense
    layers and stay as they are. Left out too, with a note: what a text does not reach (a vision tower), gates of
    fewer outputs than the rank, and the projections that PEFT refuses in Mamba.
    """

    title: ClassVar[str] = "LoRA"
    mergeable: ClassVar[bool] = True
    suggested_when_memory_is_short: ClassVar[bool] = True
    pattern_fields: ClassVar[tuple[str, ...]] = (*Method.pattern_fields, "targets")
    weights_file: ClassVar[str] = WEIGHTS

    type: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1)
    """Rank r of the update; each target adds r·(n_in + n_out) parameters."""
    alpha: float = Field(16.0, gt=0)
    """Scale of the update: it is multiplied by alpha/rank (alpha/√rank with `rslora`)."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the update's input."""
    targets: Literal["all-linear", "attention"] | tuple[str, ...] = "all-linear"
    """Which projections: every linear layer but the head, the attention's, or names and patterns."""
    bias: Literal["none", "all", "lora-only"] = "none"
    """Which biases train as well."""
    init: Literal["default", "gaussian", "orthogonal", "pissa", "olora"] = "default"
    """How A and B start; `pissa` and `olora` also move the base's principal part into them."""
    rslora: bool = False
    """Scale by alpha/√rank (https://arxiv.org/abs/2312.03732)."""
    dora: bool = False
    """Train a magnitude per output beside the direction (https://arxiv.org/abs/2402.09353)."""

    @property
    def learning_rate_factor(self) -> float | None:
        """Ten times, at every rank, with alpha 32; twice as much with half of alpha, as a step moves h by alpha."""
        if self.init in ("pissa", "olora"):  # they start from other sizes of A and B
            return None
        scale = self.alpha * self.rank**0.5 if self.rslora else self.alpha
        return RULE_FACTOR * RULE_ALPHA / scale

    def targets_of(self, shape: ModelShape) -> list[LinearSite]:
        """Return the projections that get an update."""
        left_out = {site.name for sites in self._left_out(shape).values() for site in sites}
        return [site for site in self._named(shape) if site.name not in left_out]

    def _named(self, shape: ModelShape) -> list[LinearSite]:
        """Return what `targets` names, whether it can have an update or not."""
        linears = [site for site in shape.linears if site.role != "head"]
        if self.targets == "all-linear":
            return linears
        if self.targets == "attention":
            return [site for site in linears if site.role in ATTENTION_ROLES]
        wanted = set(matching(self.targets, [site.name for site in linears]))
        return [site for site in linears if site.name in wanted]

    def _left_out(self, shape: ModelShape) -> dict[str, list[LinearSite]]:
        """Return the named projections that get no update, by the reason.

        A pattern is left what it names only of a tower: then the tower is meant.
        """
        named = self._named(shape)
        idle = [site for site in named if site.name in shape.passage.idle]
        taken = [site for site in named if site.name.endswith(names_of_experts(shape.model_type))]
        lost = [site for site in named if is_renamed(shape.model_type, site.name)]
        if not isinstance(self.targets, str):
            meant = {site.name for pattern in self.targets for site in _only_idle(pattern, named, idle)}
            return {IDLE: [site for site in idle if site.name not in meant], TAKEN: taken, RENAMED: lost}
        narrow = [site for site in named if site.role == "other" and min(site.n_in, site.n_out) < self.rank]
        narrow = narrow if len(narrow) < len(named) else []  # then the rank is wrong, not some gates
        refused = [site for site in named if shape.model_type in MAMBA and site.name.endswith(MAMBA_REFUSED)]
        choosers = [site for site in named if not learns(site.name)]
        narrower = f"fewer inputs or outputs than rank {self.rank}"
        return {IDLE: idle, CHOICE: choosers, narrower: narrow, REFUSED: refused, TAKEN: taken, RENAMED: lost}

    def notes(self, shape: ModelShape) -> list[str]:
        """Return what gets no update: projections that are left out, and the fused weights of experts."""
        lines = [
            f"method.targets: {len(sites)} projection{'s are' if len(sites) > 1 else ' is'} left out "
            f"({reason}): {sites[0].name}{', ...' if len(sites) > 1 else ''}"
            for reason, sites in self._left_out(shape).items()
            if sites
        ]
        return [*super().notes(shape), *lines, *self._note_experts(shape)]

    def _note_experts(self, shape: ModelShape) -> list[str]:
        count = sum(site.count for site in shape.fused_experts)
        if not count:
            return []
        return [f"method: {self._fate_of_experts(count, count / shape.total)}"]

    def _fate_of_experts(self, count: int, share: float) -> str:
        return f"the experts' {count:,} parameters ({share:.0%} of the model) are not dense layers: they get no update"

    def check_settings(self) -> Problems:
        problems = super().check_settings()
        if self.targets == ():
            problems.append(("targets", "an empty list adapts nothing; write all-linear, attention or names"))
        if self.init == "orthogonal" and self.rank % 2:
            problems.append(("init", f"orthogonal needs an even rank, not {self.rank}"))
        return problems

    def check_own(self, shape: ModelShape) -> Problems:
        targets = self.targets_of(shape)
        problems = self._check_targets(shape, targets)
        narrowest = min(targets, key=lambda site: min(site.n_in, site.n_out), default=None)
        if narrowest is not None and self.rank > min(narrowest.n_in, narrowest.n_out):
            problems.append(("rank", _too_large(self.rank, narrowest)))
        if self.init == "olora" and shape.model_type == "gpt2":
            problems.append(("init", "olora fails in peft on GPT-2's transposed projections; use pissa or default"))
        if self.bias != "none" and targets and not self._biases(shape):
            problems.append(("bias", f"{self.bias} trains nothing: this model has no such bias"))
        return problems

    def _check_targets(self, shape: ModelShape, targets: list[LinearSite]) -> Problems:
        names = [site.name for site in shape.linears if site.role != "head"]
        heads = [site.name for site in shape.linears if site.role == "head"]
        if isinstance(self.targets, str):
            if not names:
                return [("targets", NO_LAYER)]
            what = "linear layer" if self.targets == "all-linear" else "attention projection that peftlab knows"
            return [] if targets else [("targets", f"no {what} here; {describe_candidates('', names)}")]
        problems = []
        for pattern in unmatched(self.targets, names):
            head = "it is the head, which trains through `unfreeze`; " if matching([pattern], heads) else ""
            message = f"{pattern!r} matches no linear layer; {head}{describe_candidates(pattern, names)}"
            problems.append(("targets", message))
        return problems

    def _biases(self, shape: ModelShape) -> set[str]:
        owners = {f"{site.name}.bias" for site in self.targets_of(shape)}
        biases = {site.name for site in shape.parameters if site.name.endswith("bias")}
        return {"none": set(), "all": biases, "lora-only": biases & owners}[self.bias]

    def trained_base(self, shape: ModelShape) -> set[str]:
        return self._biases(shape)

    def added_parameters(self, shape: ModelShape) -> tuple[ParameterSite, ...]:
        return tuple(site for target in self.targets_of(shape) for site in self._added_to(target))

    def _added_to(self, target: LinearSite) -> list[ParameterSite]:
        shapes: dict[str, tuple[int, ...]] = {
            "lora_A.weight": (self.rank, target.n_in),
            "lora_B.weight": (target.n_out, self.rank),
        }
        if self.dora:
            shapes["lora_magnitude_vector.weight"] = (target.n_out,)
        return [ParameterSite(f"{target.name}.{name}", s, "adapter", target.layer) for name, s in shapes.items()]

    def sizes(self, shape: ModelShape) -> Sizes:
        kept = [site for site in self.targets_of(shape) if site.role != "other" or not isinstance(self.targets, str)]
        largest = min((min(site.n_in, site.n_out) for site in kept or self.targets_of(shape)), default=0)
        step = 2 if self.init == "orthogonal" else 1
        return Sizes("rank", range(step, largest + 1, step))

    def resized(self, field: str, value: Any) -> Self:
        """Return the same method with another rank and the alpha that keeps the update's scale."""
        growth = value / self.rank
        alpha = self.alpha * (growth**0.5 if self.rslora else growth)
        return self.model_copy(update={field: value, "alpha": alpha})

    def stored_sites(self, shape: ModelShape) -> list[ParameterSite]:
        return stored_head(super().stored_sites(shape), shape)

    @property
    def reads_base(self) -> bool:
        return self.dora or self.init in ("pissa", "olora")

    def insert(self, model: nn.Module, shape: ModelShape) -> nn.Module:
        from peft import LoraConfig, get_peft_model
        from transformers.pytorch_utils import Conv1D

        names = [site.name for site in self.targets_of(shape)]
        on_meta = any(parameter.is_meta for parameter in model.parameters())
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # peft scales by it and takes any number
            lora_dropout=self.dropout,
            target_modules=names,
            bias="lora_only" if self.bias == "lora-only" else self.bias,
            # Principal parts need real weights; on the meta device only the sizes count.
            init_lora_weights=True if self.init == "default" or on_meta else self.init,
            use_rslora=self.rslora,
            use_dora=self.dora,
            fan_in_fan_out=any(isinstance(model.get_submodule(name), Conv1D) for name in names),
        )
        return get_peft_model(model, config, low_cpu_mem_usage=on_meta)

    def as_stored(self, shape: ModelShape, names: Iterable[str], modules: Iterable[str]) -> Self:
        names = list(names)
        updated = {name.partition(".lora_")[0] for name in names if ".lora_" in name}
        known = {site.name for site in shape.linears if site.role != "head"}
        if strange := sorted(updated - known):
            raise MethodError(f"target_modules: {strange[0]} has an update there; LoRA has none for it here")
        method = self._with_targets(shape, updated)
        trained = method.trained_base(shape)
        extra = [name for name in names if ".lora_" not in name and name not in trained | shape.fresh]
        return method.model_copy(update={"unfreeze": name_modules(extra, modules, shape)})

    def _with_targets(self, shape: ModelShape, updated: set[str]) -> Self:
        """Return this method with the shortest `targets` that are these projections."""
        endings = tuple(sorted({name.rpartition(".")[2] for name in updated}))
        for targets in ("all-linear", "attention", endings, tuple(sorted(updated))):
            method = self.model_copy(update={"targets": targets})
            if {site.name for site in method.targets_of(shape)} == updated:
                return method
        raise MethodError(f"target_modules: {min(updated, default='none')}, ... cannot be targets of LoRA here")

    def outputs_depend_on(self) -> dict[str, Any]:
        fields = {"rank", "alpha", "rslora", "dora", *(() if self.keeps_base else ("init",))}
        return self.model_dump(mode="json", include=fields)

    def merge(self, model: nn.Module, base: nn.Module | None = None) -> nn.Module:
        """Return the plain model with the updates added to its weights, rounded to their type; `model` is copied."""
        return cast("PeftModel", copy_with_rows(model)).merge_and_unload()

    @property
    def keeps_base(self) -> bool:
        return self.init not in ("pissa", "olora")  # their principal parts leave the base when they start

    @property
    def merges_by_tensor(self) -> bool:
        return self.keeps_base

    def read_stored(self, folder: Path) -> dict[str, Tensor]:
        return {canonical_name(name): one for name, one in super().read_stored(folder).items()}

    def merge_tensor(self, name: str, weight: Tensor, stored: dict[str, Tensor], *, transposed: bool) -> Tensor | None:
        """Return W + s·B·A, with DoRA m·(W + s·B·A) / ‖W + s·B·A‖ for each output, s as in `alpha` and `rslora`."""
        module = name.removesuffix(".weight")
        down, up = (stored.get(f"{module}.lora_{side}.weight") for side in "AB")
        if name in stored or down is None or up is None:
            return stored.get(name)
        scale = self.alpha / (self.rank**0.5 if self.rslora else self.rank)
        plain = weight.float().T if transposed else weight.float()
        merged = plain + scale * (up.float() @ down.float())
        if (magnitude := stored.get(f"{module}.lora_magnitude_vector")) is not None:
            merged *= (magnitude.float() / merged.norm(dim=1))[:, None]
        return merged.T if transposed else merged

    def merges_away(self, name: str) -> bool:
        return ".lora_" in name or super().merges_away(name)

    def updated_weights(self, tensors: Mapping[str, Tensor]) -> set[str]:
        ending = ".lora_B.weight"
        return {
            f"{name.removesuffix(ending)}.weight"
            for name, one in tensors.items()
            if name.endswith(ending) and one.any()
        }

    def stored_tensors(self, model: nn.Module) -> dict[str, Tensor]:
        from peft import get_peft_model_state_dict

        wrapped = cast("PeftModel", model)
        own = {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name or ROWS in name}
        own = get_peft_model_state_dict(wrapped, state_dict=own, save_embedding_layers=False)
        of_base = base_tensors(wrapped, task_of(model)).items()
        return {**own, **{name: one for name, one in of_base if ".lora_" not in name and ROWS not in name}}

    def save(self, model: nn.Module, folder: Path, context: dict[str, Any]) -> None:
        super().save(model, folder, context)
        write_config(cast("PeftModel", model), folder, task_of(model), context)


def name_modules(names: Sequence[str], modules: Iterable[str], shape: ModelShape) -> tuple[str, ...]:
    """Return patterns for the parameters among `names` that belong to PEFT's `modules_to_save`.

    PEFT takes every module whose name ends so; a pattern names whole components.
    """
    found: list[str] = []
    for module in modules:
        own = [name for name in names if name.rpartition(".")[0].endswith(module)]
        same = set(matching([module], shape.by_name)) == set(own)
        found += [module] if own and same else sorted({name.rpartition(".")[0] for name in own})
    return tuple(dict.fromkeys(found))


def _only_idle(pattern: str, named: list[LinearSite], idle: list[LinearSite]) -> list[LinearSite]:
    """Return what a pattern matches if all of it is idle."""
    found = set(matching([pattern], [site.name for site in named]))
    return [site for site in idle if site.name in found] if found <= {site.name for site in idle} else []


def _too_large(rank: int, site: LinearSite) -> str:
    """Say which side of a projection is smaller than the rank, and what helps."""
    narrow, side = min((site.n_in, "input"), (site.n_out, "output"))
    has = f"{site.name} has {'one' if narrow == 1 else narrow} {side}{'' if narrow == 1 else 's'}"
    remedy = f"use at most {narrow}, or leave it out of `targets`" if narrow > 1 else "leave it out of `targets`"
    return f"{has}, so that rank {rank} does not fit; {remedy}"
