"""The parameter report of any `nn.Module`: totals, and rows by kind and by layer."""

from __future__ import annotations

import re
from typing import Any, Literal

from torch import nn

from peftlab.family_traits import EXPERTS_PER_TOKEN, LOOKUPS_NOT_ACTIVE
from peftlab.parameters.kinds import layer_titles, parameter_sites
from peftlab.parameters.trainable import find_base
from peftlab.reports import CountRow, ParameterReport
from peftlab.shapes import KINDS, ParameterSite

OUTSIDE = "outside"
EXPERTS = re.compile(r"(?:^|\.)experts\.")
# What configurations call the experts that a token passes, and all of a layer.
USED = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts")
ALL = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def parameter_report(model: nn.Module, *, stored: Literal["trainable", "all"] = "trainable") -> ParameterReport:
    """Return the parameter counts of `model`; the rows by kind and those by layer each add up to the totals.

    `stored` is what the result of a run contains: the trainable tensors, or `all` for full fine-tuning. Biases of
    dense layers and convolutions are of the kind `bias`; those of norms, heads and adapters are of theirs.
    """
    counted = list(parameter_sites(model))
    trainable = {site.name for site, parameter in counted if parameter.requires_grad}
    sites = [site for site, _ in counted]
    base: Any = find_base(model)[1]
    titles = layer_titles(model) | {None: OUTSIDE}
    share = _active_share(getattr(base, "config", None))
    return ParameterReport(
        total=sum(site.count for site in sites),
        trainable=sum(site.count for site in sites if site.name in trainable),
        active=sum(_active_count(site, share) for site in sites) - _looked_up(base, sites),
        stored_bytes=sum(p.nbytes for site, p in counted if stored == "all" or site.name in trainable),
        kinds=_rows([(site.kind, site) for site in sites], trainable, list(KINDS)),
        layers=_rows([(titles[site.layer], site) for site in sites], trainable, list(titles.values())),
    )


def _rows(groups: list[tuple[str, ParameterSite]], trainable: set[str], order: list[str]) -> list[CountRow]:
    totals: dict[str, list[int]] = {name: [0, 0] for name in order}
    for name, site in groups:
        totals[name][0] += site.count
        totals[name][1] += site.count if site.name in trainable else 0
    return [CountRow(name=name, total=t, trainable=n) for name, (t, n) in totals.items() if t]


def _active_share(config: Any) -> tuple[int, int] | None:
    """Return (experts per token, all experts) of a mixture of experts, else None."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    places = config, getattr(config, "ffn_config", None)
    fixed = EXPERTS_PER_TOKEN.get(getattr(config, "model_type", ""))
    used = fixed or next((count for place in places for name in USED if (count := _count(place, name))), None)
    experts = next((count for place in places for name in ALL if (count := _count(place, name))), None)
    return (used, experts) if used and experts else None


def _count(config: Any, name: str) -> int | None:
    """Return a number of a config; None where it is absent, or differs between layers."""
    try:
        found = getattr(config, name, None)
    except (AttributeError, ValueError):  # a config whose layers differ refuses to be asked for one value
        return None
    found = found[0] if isinstance(found, list) and len(set(found)) == 1 else found
    return found if isinstance(found, int) else None


def _looked_up(base: Any, sites: list[ParameterSite]) -> int:
    """Return the size of an embedding that its family's published active counts leave out: it is only looked up."""
    config: Any = getattr(base, "config", None)
    if getattr(config, "model_type", "") not in LOOKUPS_NOT_ACTIVE or config.tie_word_embeddings:
        return 0
    rows: int = config.vocab_size
    return sum(site.count for site in sites if site.kind == "embedding" and site.shape[0] == rows)


def _active_count(site: ParameterSite, share: tuple[int, int] | None) -> int:
    if share is None or not EXPERTS.search(site.name):
        return site.count
    used, experts = share
    return site.count * used // experts
