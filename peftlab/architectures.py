"""The module names in the layers of each known model family: plain data, keyed by `config.model_type`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from peftlab.errors import MethodError, nearest
from peftlab.shapes import ModelShape, ParameterSite

ATTENTION_ROLES = ("query", "key", "value", "query-key-value", "attention-output")
FEED_FORWARD_ROLES = ("feed-forward-input", "feed-forward-gate", "feed-forward-output")


@dataclass(frozen=True)
class Architecture:
    """The module names in one layer of a family, relative to the layer.

    `roles` maps each dense projection to its role (those of `shapes.LinearSite`; a fused gate and input is a
    feed-forward-input). The output of `attention_exit` is the attention sub-layer's output and the output of
    `feed_forward_exit` the feed-forward's: a single tensor, before the residual addition, so before the norm
    that follows it in post-norm families (BERT). The first input of `feed_forward_entry` is what the
    feed-forward sub-layer reads; entry and exit are one module wherever the family has a feed-forward module.
    `decoder` are the layers of the decoder of a family that has an encoder too; their `cross_attention_exit` is the
    output of the attention to what the encoder read.
    """

    roles: Mapping[str, str]
    attention_exit: str
    feed_forward_entry: str
    feed_forward_exit: str
    norms: tuple[str, ...]
    cross_attention_exit: str | None = None
    decoder: Architecture | None = None

    @property
    def every_role(self) -> dict[str, str]:
        """The role of each projection, those of the decoder's layers too."""
        return {**self.roles, **(self.decoder.every_role if self.decoder else {})}

    def named(self, *roles: str) -> tuple[str, ...]:
        """Return the projections that have one of the roles."""
        return tuple(name for name, role in self.roles.items() if role in roles)


def _decoder(
    attention: Mapping[str, str],
    feed_forward: Mapping[str, str],
    exits: tuple[str, str],
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm"),
) -> Architecture:
    """Return a family whose attention is `self_attn` and whose feed-forward is `mlp`."""
    roles = {f"self_attn.{name}": role for name, role in attention.items()}
    roles |= {f"mlp.{name}": role for name, role in feed_forward.items()}
    return Architecture(MappingProxyType(roles), exits[0], "mlp", exits[1], norms)


_QUERY_KEY_VALUE = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}
_SEPARATE = {**_QUERY_KEY_VALUE, "o_proj": "attention-output"}
_GATED = {
    "gate_proj": "feed-forward-gate",
    "up_proj": "feed-forward-input",
    "down_proj": "feed-forward-output",
}
_TWO_LAYERS = {"fc1": "feed-forward-input", "fc2": "feed-forward-output"}
_LLAMA_EXITS = ("self_attn.o_proj", "mlp")
_NORMED_EXITS = ("post_attention_layernorm", "post_feedforward_layernorm")
_GEMMA2_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
_HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")

_LLAMA = _decoder(_SEPARATE, _GATED, _LLAMA_EXITS)
_QWEN3 = _decoder(_SEPARATE, _GATED, _LLAMA_EXITS, (*_LLAMA.norms, *_HEAD_NORMS))
_BERT = Architecture(
    roles=MappingProxyType(
        {
            "attention.self.query": "query",
            "attention.self.key": "key",
            "attention.self.value": "value",
            "attention.output.dense": "attention-output",
            "intermediate.dense": "feed-forward-input",
            "output.dense": "feed-forward-output",
        }
    ),
    attention_exit="attention.output.dropout",
    feed_forward_entry="intermediate",
    feed_forward_exit="output.dropout",
    norms=("attention.output.LayerNorm", "output.LayerNorm"),
)


def _t5(decoder: bool) -> Architecture:
    """Return the encoder's or the decoder's layers of T5: sub-layers in a list, the feed-forward being the last."""
    last = 2 if decoder else 1
    attentions = ("layer.0.SelfAttention", "layer.1.EncDecAttention") if decoder else ("layer.0.SelfAttention",)
    roles = {f"{one}.{name}": role for one in attentions for name, role in _T5_ATTENTION.items()}
    roles |= {f"layer.{last}.DenseReluDense.{name}": role for name, role in _T5_FEED_FORWARD.items()}
    return Architecture(
        MappingProxyType(roles),
        attention_exit="layer.0.dropout",
        feed_forward_entry=f"layer.{last}.DenseReluDense",
        feed_forward_exit=f"layer.{last}.dropout",
        norms=tuple(f"layer.{number}.layer_norm" for number in range(last + 1)),
        cross_attention_exit="layer.1.dropout" if decoder else None,
        decoder=None if decoder else _t5(decoder=True),
    )


_T5_ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "attention-output"}
_T5_FEED_FORWARD = {
    "wi": "feed-forward-input",
    "wi_0": "feed-forward-gate",
    "wi_1": "feed-forward-input",
    "wo": "feed-forward-output",
}


def _bart(decoder: bool) -> Architecture:
    """Return the encoder's or the decoder's layers of BART and the families that are built like it."""
    attentions = ("self_attn", "encoder_attn") if decoder else ("self_attn",)
    projections = {**_QUERY_KEY_VALUE, "out_proj": "attention-output"}
    roles = {f"{one}.{name}": role for one in attentions for name, role in projections.items()}
    return Architecture(
        MappingProxyType(roles | _TWO_LAYERS),
        attention_exit="self_attn.out_proj",
        feed_forward_entry="fc1",
        feed_forward_exit="fc2",
        norms=(*(f"{one}_layer_norm" for one in attentions), "final_layer_norm"),
        cross_attention_exit="encoder_attn.out_proj" if decoder else None,
        decoder=None if decoder else _bart(decoder=True),
    )


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "llama": _LLAMA,
        "mistral": _LLAMA,
        "qwen2": _LLAMA,
        "qwen3": _QWEN3,
        "gemma": _LLAMA,
        # Gemma 2 and 3 normalise a sub-layer's output before adding it: the exit is that norm.
        "gemma2": _decoder(_SEPARATE, _GATED, _NORMED_EXITS, _GEMMA2_NORMS),
        "gemma3_text": _decoder(_SEPARATE, _GATED, _NORMED_EXITS, (*_GEMMA2_NORMS, *_HEAD_NORMS)),
        # Phi applies one dropout module to both attention and feed-forward, so it cannot be the exit of either.
        "phi": _decoder(
            {**_QUERY_KEY_VALUE, "dense": "attention-output"},
            _TWO_LAYERS,
            ("self_attn.dense", "mlp"),
            ("input_layernorm",),
        ),
        "phi3": _decoder(
            {"qkv_proj": "query-key-value", "o_proj": "attention-output"},
            {"gate_up_proj": "feed-forward-input", "down_proj": "feed-forward-output"},
            _LLAMA_EXITS,
        ),
        # The experts' projections are fused parameters, not dense layers: they have no roles.
        "mixtral": _decoder(_SEPARATE, {}, _LLAMA_EXITS),
        "qwen3_moe": _decoder(_SEPARATE, {}, _LLAMA_EXITS, _QWEN3.norms),
        "gpt2": Architecture(
            roles=MappingProxyType(
                {
                    "attn.c_attn": "query-key-value",
                    "attn.c_proj": "attention-output",
                    "mlp.c_fc": "feed-forward-input",
                    "mlp.c_proj": "feed-forward-output",
                }
            ),
            attention_exit="attn.resid_dropout",
            feed_forward_entry="mlp",
            feed_forward_exit="mlp",
            norms=("ln_1", "ln_2"),
        ),
        "gpt_neox": Architecture(
            roles=MappingProxyType(
                {
                    "attention.query_key_value": "query-key-value",
                    "attention.dense": "attention-output",
                    "mlp.dense_h_to_4h": "feed-forward-input",
                    "mlp.dense_4h_to_h": "feed-forward-output",
                }
            ),
            attention_exit="post_attention_dropout",
            feed_forward_entry="mlp",
            feed_forward_exit="post_mlp_dropout",
            norms=("input_layernorm", "post_attention_layernorm"),
        ),
        "opt": Architecture(
            roles=MappingProxyType(
                {
                    **{f"self_attn.{name}": role for name, role in _QUERY_KEY_VALUE.items()},
                    "self_attn.out_proj": "attention-output",
                    **_TWO_LAYERS,
                }
            ),
            attention_exit="self_attn.out_proj",
            feed_forward_entry="fc1",
            feed_forward_exit="fc2",
            norms=("self_attn_layer_norm", "final_layer_norm"),
        ),
        "bert": _BERT,
        "roberta": _BERT,
        "xlm-roberta": _BERT,
        "electra": _BERT,
        **dict.fromkeys(("t5", "mt5"), _t5(decoder=False)),
        **dict.fromkeys(("bart", "mbart", "marian", "pegasus", "m2m_100", "blenderbot"), _bart(decoder=False)),
        "distilbert": Architecture(
            roles=MappingProxyType(
                {
                    "attention.q_lin": "query",
                    "attention.k_lin": "key",
                    "attention.v_lin": "value",
                    "attention.out_lin": "attention-output",
                    "ffn.lin1": "feed-forward-input",
                    "ffn.lin2": "feed-forward-output",
                }
            ),
            attention_exit="attention.out_lin",
            feed_forward_entry="ffn",
            feed_forward_exit="ffn",
            norms=("sa_layer_norm", "output_layer_norm"),
        ),
    }
)


def architecture_of(model_type: str) -> Architecture:
    """Return the module names of a family. Raises MethodError, with the known families, for another one."""
    if model_type not in ARCHITECTURES:
        raise MethodError(
            f"unknown architecture {model_type!r}{nearest(model_type, ARCHITECTURES)}; "
            f"known: {', '.join(sorted(ARCHITECTURES))}"
        )
    return ARCHITECTURES[model_type]


def find_architecture(shape: ModelShape) -> Architecture | None:
    """Return the module names of a model's family, or those of Llama's where every layer is built like its layers.

    None for others. Such a layer has an attention `self_attn` whose output is `o_proj`, a feed-forward `mlp` of dense
    layers alone, and the norms before each: a mixture of experts, or a norm behind either, is of another build.
    """
    if shape.model_type in ARCHITECTURES:
        return ARCHITECTURES[shape.model_type]
    layers: dict[int, dict[str, ParameterSite]] = {}
    places: set[str] = set()
    for site in shape.parameters:
        if site.layer is not None and site.kind != "adapter":
            place, _, inside = site.name.partition(f".{site.layer}.")
            places.add(place)
            layers.setdefault(site.layer, {})[inside.rpartition(".")[0]] = site
    dense = {one.name for one in shape.linears} - shape.passage.read
    alike = all(_is_plain(layer, dense, shape.hidden_size) for layer in layers.values())
    return _LLAMA if alike and len(places) == 1 and len(layers) == shape.layers > 0 else None


def _is_plain(layer: Mapping[str, ParameterSite], dense: set[str], width: int) -> bool:
    """Return whether a decoder's layer, its modules with parameters by their names inside it, is built like Llama's."""
    named = {name: site.name.rpartition(".")[0] in dense for name, site in layer.items()}
    attention = {f"self_attn.{name}" for name in _SEPARATE}
    feed_forward = {name for name in named if name.startswith("mlp.")}
    others = {name for name in named if not name.startswith(("mlp.", "self_attn."))}
    return (
        all(named.get(name, False) for name in attention)
        and len(feed_forward) > 1
        and all(named[name] and name.count(".") == 1 for name in feed_forward)
        and others == set(_LLAMA.norms)
        and layer["self_attn.o_proj"].shape[0] == width
    )


def _roles_by_last_part() -> dict[str, str]:
    """Return the role of each projection name that has the same role in every family (`dense` does not)."""
    roles: dict[str, set[str]] = {}
    for architecture in ARCHITECTURES.values():
        for name, role in architecture.every_role.items():
            roles.setdefault(name.rpartition(".")[2], set()).add(role)
    return {name: next(iter(found)) for name, found in roles.items() if len(found) == 1}


_ROLES_BY_LAST_PART = MappingProxyType(_roles_by_last_part())


def role_of(model_type: str, name_in_layer: str) -> str:
    """Return the role of a dense projection; in an unknown family, that of equal names elsewhere, else `other`."""
    if model_type in ARCHITECTURES:
        return ARCHITECTURES[model_type].every_role.get(name_in_layer, "other")
    return _ROLES_BY_LAST_PART.get(name_in_layer.rpartition(".")[2], "other")
