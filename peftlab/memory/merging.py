"""What merging takes over the loaded libraries, by phase: loading and observing, writing, comparing."""

from __future__ import annotations

from dataclasses import dataclass

# A model's logits are in memory as a list of batches while they become one tensor, beside those of the trained model.
COPIES_OF_LOGITS = 3
# Held-out rows, their tokenizer, and libraries that are loaded for them: resident bytes with SmolLM2-135M (49,152
# tokens) above what its tensors take.
READING_BYTES = 128 * 2**20


@dataclass(frozen=True)
class ShardBytes:
    """What merging a checkpoint file by file has in memory, in bytes.

    `stored` are the tensors that the run saved, `read` the base's largest file, which is mapped while its tensors are
    read, `written` the largest file of the result, `working` what the update of the largest tensor takes meanwhile.
    """

    stored: int
    read: int
    written: int
    working: int


@dataclass(frozen=True)
class ModelBytes:
    """The models that are built for a comparison, in bytes: `trained`, and `merged` as it is written and read back.

    `load` is the highest that loading the base takes, `forward` what a pass of a batch takes beside the weights,
    `logits` one model's at the targets that are compared. The trained model is kept while others are written only if
    it is `needed` for that.
    """

    trained: int
    merged: int
    load: int
    forward: int
    logits: int
    needed: bool


def plan_merge(shards: ShardBytes | None, models: ModelBytes | None) -> dict[str, int]:
    """Return the peak bytes of each phase; without shards the merged model is made of the trained one in memory."""
    stored = 0 if shards is None else shards.stored
    pieces = 0 if shards is None else shards.read + shards.written + shards.working
    if models is None:
        return {"write": stored + pieces}
    around = READING_BYTES + stored
    kept = around + (models.trained if models.needed else 0)
    observing = models.forward + COPIES_OF_LOGITS * models.logits
    return {
        "load": around + max(models.load, models.trained + observing),
        "write": kept + models.logits + (models.merged if shards is None else pieces),
        "compare": kept + models.merged + observing,
    }
