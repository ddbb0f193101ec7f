"""Token classification: a tag for every word, such as the names in a text (BIO tags)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from peftlab.tasks.base import LIKELY, Loss, Prediction, Task, Tokenised, Tokenising, TokenRow
from peftlab.tasks.formats import Example, Format, as_texts

if TYPE_CHECKING:
    from torch import Tensor, nn

OUTSIDE = "O"
# What a tag says of its word's place in a span, as its first letter: begin, inside, end, single; last and unit are
# BILOU's names of the last two.
PLACES = {"B": "B", "I": "I", "E": "E", "L": "E", "S": "S", "U": "S"}
Span = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Tagged:
    """A text as words, and as many tags."""

    words: list[str]
    tags: list[str]

    def __post_init__(self):
        if len(self.words) != len(self.tags):
            raise ValueError(f"has {len(self.words)} words and {len(self.tags)} tags; give every word one tag")


TOKENS = Format(
    "tokens",
    "words and their tags",
    Tagged,
    {"words": as_texts, "tags": as_texts},
    template_refusal="format tokens takes the words as they are; remove the template",
    input_of=lambda example: " ".join(example.words),
)


class TokenClassification(Task):
    """The tag of a word is predicted at its first token; its other tokens are not supervised."""

    name: ClassVar[str] = "token-classification"
    title: ClassVar[str] = "token classification"
    auto_class: ClassVar[str] = "AutoModelForTokenClassification"
    model_suffix: ClassVar[str] = "ForTokenClassification"
    peft_type: ClassVar[str] = "TOKEN_CLS"
    formats = (TOKENS,)
    gives = ("loss", "spans")
    default_metric: ClassVar[str] = "span_f1"
    head_names = ("classifier", "score")
    has_labels: ClassVar[bool] = True
    answer_roles = ("tags",)
    row_columns = ("span_hits", "span_predicted", "span_true")

    @property
    def row_class(self) -> type[TokenRow]:
        from peftlab.data.token_rows import TagRow

        return TagRow

    def loss(self, model: nn.Module) -> Loss:
        from peftlab.losses.cross_entropy import PositionCrossEntropy

        return PositionCrossEntropy()

    def tokenise(self, examples: Sequence[Example], how: Tokenising) -> Tokenised:
        from peftlab.data.tokens import tokenise_tagged

        return Tokenised(tokenise_tagged(examples, how))

    def without_answer(self, inputs: Mapping[str, Any], labels: Sequence[str]) -> tuple[Example, Sequence[str]]:
        """Return the words, each with its own place as its tag: so a row says which words have a token."""
        places = [str(place) for place in range(len(inputs["words"]))]
        return Tagged(inputs["words"], places), places

    def predict(
        self, row: TokenRow, scores: Tensor, inputs: Mapping[str, Any], labels: Sequence[str], threshold: float
    ) -> Prediction:
        """Return a tag and its probability for every word, None for one that has no token or was cut off."""
        words = len(inputs["words"])
        tags: list[str | None] = [None] * words
        probabilities: list[float | None] = [None] * words
        values, classes = scores.softmax(-1).max(-1)
        for place, value, number in zip(
            row.labels[row.supervised_tokens], values.tolist(), classes.tolist(), strict=True
        ):
            tags[int(place)], probabilities[int(place)] = labels[number], value
        return Prediction(tags, probabilities)

    def labels_of(self, example: Example) -> Iterable[str]:
        return example.tags

    def list_labels(self, examples: Sequence[Example]) -> list[str]:
        """Return the tags that occur, the one outside of all spans first, then alphabetically."""
        return sorted({tag for example in examples for tag in example.tags}, key=lambda tag: (tag != OUTSIDE, tag))

    def doubt(self, labels: Sequence[str]) -> str | None:
        if OUTSIDE in labels:
            return None
        return (
            f"no tag is {OUTSIDE}, so that every word is in a span, and span metrics count runs of equal tags; where"
            f" tags are numbers, give their names, such as {OUTSIDE} and B-PER"
        )

    def score_row(
        self, row: TokenRow, predictions: Sequence[float], labels: Sequence[str] | None, threshold: float = LIKELY
    ) -> tuple[int, ...]:
        assert labels is not None, "a task with labels lists them"
        placed = are_placed(tuple(labels))
        true = find_spans([labels[number] for number in row.labels[row.supervised_tokens]], placed=placed)
        predicted = find_spans([labels[int(number)] for number in predictions], placed=placed)
        return len(true & predicted), len(predicted), len(true)


@lru_cache(maxsize=4)
def are_placed(labels: tuple[str, ...]) -> bool:
    """Return whether every tag but `O` begins with its place in a span, so that ends and single words are marked too.

    Some sets have no kinds: `B`, `I`, `O`.
    """
    return all(tag == OUTSIDE or tag.partition("-")[0] in PLACES for tag in labels)


def find_spans(tags: Sequence[str], *, placed: bool = False) -> set[Span]:
    """Return (kind, first word, word after the last) of every span in a row of tags.

    A span begins at `B-kind`, and at an `I-kind` that continues no span of its kind, as in CoNLL-2000's evaluation.
    Where tags are `placed` (BIOES, BILOU), it ends after `E` or `L`, and `S` or `U` is one by itself. A tag without a
    place, other than `O`, is a span of its own kind together with equal neighbours.
    """
    spans: set[Span] = set()
    begun: tuple[str, int] | None = None
    for word, tag in enumerate([*tags, OUTSIDE]):
        place, kind = _split_tag(tag, placed)
        if begun is not None and (place in "BS" or kind != begun[0]):
            spans.add((*begun, word))
            begun = None
        if begun is None and tag != OUTSIDE:
            begun = kind, word
        if begun is not None and place in "ES":
            spans.add((*begun, word + 1))
            begun = None
    return spans


def _split_tag(tag: str, placed: bool) -> tuple[str, str]:
    """Return a tag's place in a span, `I` where it has none, and its kind."""
    place, hyphen, kind = tag.partition("-")
    if placed and place in PLACES:
        return PLACES[place], kind
    return (place, kind) if hyphen and place in ("B", "I") else ("I", tag)
