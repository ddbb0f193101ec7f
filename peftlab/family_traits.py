"""Families that differ from others in what they read or compute: a set of `config.model_type`s for each trait."""

from __future__ import annotations

from types import MappingProxyType

PREFIX_ENCODERS = frozenset(
    {
        *("bert", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert", "roberta"),
        *("roberta-prelayernorm", "roc_bert", "xlm-roberta", "xlm-roberta-xl", "xmod"),
    }
)
"""Encoders whose attention takes keys and values from outside."""

ENCODERS = PREFIX_ENCODERS | {
    *(
        "albert",
        "bert-generation",
        "big_bird",
        "convbert",
        "cpmant",
        "deberta",
        "deberta-v2",
        "distilbert",
        "esm",
        "esmc",
    ),
    *("eurobert", "flaubert", "fnet", "funnel", "gte", "ibert", "jina_embeddings_v3", "layoutlm", "layoutlmv3"),
    *("lilt", "longformer", "luke", "markuplm", "mobilebert", "modernbert", "modernvbert", "mpnet", "mra"),
    *(
        "nomic_bert",
        "nystromformer",
        "openai_privacy_filter",
        "roformer",
        "squeezebert",
        "tapas",
        "ultrabert",
        "ultravbert",
        "xlm",
        "yoso",
    ),
}
"""Families that read a token's neighbours on both sides, unless their configuration says `is_decoder`."""

MIXES_ROWS = frozenset({"convbert", "fnet", "funnel", "nystromformer", "prophetnet", "xlnet", "yoso"})
"""Families whose results change with the padding behind a row, whatever the attention mask says."""

MIXES_LAST = frozenset({"t5_gemma_module", "t5gemma2_decoder"})
"""Families whose classifier reads another token where padding follows a row (transformers 5.23)."""

NEEDS_MORE = MappingProxyType(
    {
        "bros": "the boxes of its words on a page",
        "canine": "characters, which it hashes itself",
        "gemma4_assistant": "the states of the model whose answers it drafts",
        "gemma4_unified_assistant": "the states of the model whose answers it drafts",
        "layoutlmv2": "the picture of its page",
        "musicgen": "the codes of a sound",
        "musicgen_melody": "the codes of a sound",
        "nemo_speechlm": "speech",
        "perceiver": "bytes",
        "reformer": "rows of whole chunks",
        "vibevoice_asr": "speech",
        "voxtral_realtime": "speech",
    }
)
"""Families that cannot read rows of token ids, and what they read instead."""


READS_FIRST_GLOBALLY = frozenset({"longformer"})
"""Families whose classifiers let the first token of a row read all others, which depends on values, not on shapes."""

CHOOSERS = frozenset({"indexer", "e_score_correction_bias", "expert_bias"})
"""Parts that choose which keys a query reads (DeepSeek V3.2, GLM-5, Qwen4), or a token's experts (ERNIE 4.5, AFMoE).

No gradient passes through a choice.
"""

CASTS_LAYERS = MappingProxyType({"switch_transformers": "router"})
"""Families that convert dense layers themselves to another type, and the part of these layers' names."""

NO_PROMPTS = MappingProxyType(
    {
        "fsmt": "reads token ids, and takes no embeddings in their place",
        "ibert": "has an embedding of its own kind, which PEFT cannot start a prompt from",
        "xlstm": "takes no attention mask, which PEFT gives it with a prompt",
    }
)
"""Families that prompt tuning cannot give embeddings, and why (transformers 5.23), where a pass does not show it."""

SEEKS_TOKENS = MappingProxyType(dict.fromkeys(("gemma4", "gemma4_text"), "embed_tokens_per_layer"))
"""Families that look for the token of each embedding, and the table for which they do; models without it do not."""

CLASSIFIES_IDS = frozenset({"longformer"})
"""Families whose classifiers read token ids even where they are given embeddings."""

OWN_EMBEDDING_SIZE = frozenset({"moshi"})
"""Families whose embedding has other rows than their vocabulary: PEFT's prompt tuning looks for it by their number."""

POSITIONS_BY_MASK = frozenset({"bloom"})
"""Decoders that are given no positions and count them by the attention mask.

MPT needs none, but behind a prefix its distances count padding as well.
"""

READS_PADDING = frozenset({"blt", "deepseek_v4", "git", "recurrent_gemma"})
"""Decoders that count positions by the mask, yet take padding before a prompt into patches, keys or a state.

GIT does so behind a prefix alone, where it counts from the batch's first column.
"""

ANSWERS_ALONE = frozenset({"fsmt", "rwkv"})
"""Decoders whose answers change with the other rows of a batch (measured with transformers 5.23)."""

EXPERTS_PER_TOKEN = {"switch_transformers": 1, "nllb-moe": 2}
"""How many experts a token passes where no configuration says it, by family."""

LOOKUPS_NOT_ACTIVE = frozenset({"gpt_oss"})
"""Families whose published active parameters leave out the input embedding; Mixtral's and Qwen3's include it."""


def learns(name: str) -> bool:
    """Whether a gradient of the loss reaches a parameter or a module of this name."""
    return CHOOSERS.isdisjoint(name.split("."))
