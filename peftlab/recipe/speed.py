"""The switches of speed-ups, each of which trains the same model in less time or memory."""

from __future__ import annotations

from typing import Literal

from peftlab.recipe.section import Section

Switch = Literal["auto", "on", "off"]


class Speed(Section):
    loss: Switch = "auto"
    """Loss without logits: the output head is applied to a few hundred positions at a time, gradients included."""
    liger: Switch = "auto"
    """The loss without logits by Liger's kernel, on CUDA where liger-kernel is installed and the head is frozen."""
    packing: Switch = "auto"
    """No padding is computed: the rows of a micro-batch lie end to end, and attention never leaves a row."""
    varlen: Switch = "auto"
    """Packed rows of several lengths in one call of attention, on CUDA in 16 bits."""
    linear: Switch = "auto"
    """LoRA layers in one function each, which saves its input once in its own type, and nothing for frozen weights."""
    feed_forward: Switch = "auto"
    """Gated feed-forwards (SwiGLU, GeGLU) in one function each, which computes the activation again backward."""
    activation: Switch = "auto"
    """GELU that a model writes as a formula, computed by torch's own function, which saves its input alone."""
    norm: Switch = "auto"
    """RMS norms in one function each, which saves its input in its own type, and no float32 copies of it."""
    rotary: Switch = "auto"
    """Rotary position embedding in three operations on queries and keys."""
    compile: Switch = "auto"
    """What norms, feed-forwards, rotations and the loss do between matrix products, compiled by torch."""
    token_cache: Switch = "auto"
    """Rows are tokenised once, and mapped by every later start with the same rows, tokenizer and settings."""
