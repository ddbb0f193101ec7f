"""What a run predicts for rows: of a head a label, tags or a number, of a language model a text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from peftlab.data.batches import collate, evaluation_batches
from peftlab.data.parts import NUMBER_LABELS, TRAINED_ON, refuse_other_roles
from peftlab.data.recognise import open_reader, recognise
from peftlab.data.row_reader import Header, Reader, Wanted
from peftlab.data.token_rows import TokenRow
from peftlab.errors import DataError, PeftlabError
from peftlab.evaluation.generate import evaluation_mode, find_pad_id
from peftlab.models.load import fit_tokenizer, load_saved_tokenizer
from peftlab.parameters.trainable import find_base
from peftlab.quantities import number
from peftlab.recipe.schema import Recipe
from peftlab.runs.bench import find_read_end
from peftlab.runs.directory import RunDirectory
from peftlab.runs.loaded import LoadedRun, as_loaded
from peftlab.runs.loading import load_trained
from peftlab.runs.reopen import optional_roles, run_labels
from peftlab.runs.requests import requests_of, takes_chats
from peftlab.tables.files import Table
from peftlab.tasks import possible_formats
from peftlab.tasks.base import Tokenising
from peftlab.tasks.formats import Format, without_answers
from peftlab.tasks.sequence_classification import WHOLE_NUMBER
from peftlab.world.base import World
from peftlab.world.dtypes import resolve_types

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Predicted:
    """What is added to one row: columns by the ending of their names (the value's is empty); or why nothing is."""

    columns: dict[str, Any]
    error: str | None = None


class Predictor(ABC):
    """A loaded run that predicts. `open` must be called with the header of each file before its rows."""

    batch_size: int
    long = 0
    """How many of the rows so far are longer than `data.max_length`."""

    def note_long(self) -> str:
        """Return how many rows are long, what was read of them, and how evaluation differs."""
        one = self.long == 1
        return f"{number(self.long, 'row')} {'is' if one else 'are'} longer than data.max_length"

    @abstractmethod
    def open(self, header: Header) -> None:
        """Prepare for the rows of a file. Raises DataError where it lacks a column."""

    @abstractmethod
    def predict(self, rows: Sequence[Row]) -> list[Predicted]:
        """Return what is predicted for each of some rows, in their order."""


class HeadPredictor(Predictor):
    """Predicts by a head: classes, sets of labels, numbers, tags."""

    def __init__(self, directory: RunDirectory, recipe: Recipe, world: World) -> None:
        self.recipe, self.task, self.world = recipe, recipe.task, world
        result = directory.read_result()
        self.labels, self.roles = run_labels(directory.weights, result) or [], optional_roles(result)
        known = result.data.get("train", {}).get(NUMBER_LABELS) and all(map(WHOLE_NUMBER.fullmatch, self.labels))
        self._value: Callable[[str], Any] = int if known else str
        self.tokenizer = load_saved_tokenizer(directory.weights, recipe.model)
        self.model = load_trained(recipe, directory.weights, world.device, self.labels)
        plain: Any = find_base(self.model)[1]
        fit_tokenizer(plain, self.tokenizer)
        self.loss = self.task.loss(self.model)
        self._read_end = find_read_end(self.task, plain)
        self.pad_id = find_pad_id(self.tokenizer)
        self.batch_size = recipe.evaluation.batch_size or recipe.training.batch_size
        self._reader: Reader | None = None

    def open(self, header: Header) -> None:
        section = self.recipe.data
        formats = [_inputs_of(one, self.task.answer_roles) for one in possible_formats(self.task, section.format)]
        named = {role: name for role, name in section.columns.items() if role not in self.task.answer_roles}
        wanted = Wanted(named, section.template)
        reader = open_reader(recognise(formats, section.format, header, wanted), header, wanted)
        if self.roles is not None:
            refuse_other_roles(frozenset(self.roles), TRAINED_ON, reader.optional_roles, header.name)
        self._reader = reader

    def predict(self, rows: Sequence[Row]) -> list[Predicted]:
        found: list[Predicted | tuple[TokenRow, Row]] = [self._tokenise(row) for row in rows]
        places = [place for place, one in enumerate(found) if not isinstance(one, Predicted)]
        tokens = [one[0] for one in found if not isinstance(one, Predicted)]
        for numbers, scores in self._scores(tokens):
            for place, own in zip(numbers, scores, strict=True):
                row, inputs = found[places[place]]  # type: ignore[misc]  # these places have tokens
                found[places[place]] = self._describe(row, own, inputs)
        return found  # type: ignore[return-value]  # every place has its prediction now

    def _tokenise(self, row: Row) -> Predicted | tuple[TokenRow, Row]:
        assert self._reader is not None, "a file is opened before its rows"
        try:
            if self._reader.is_empty(row):
                raise ValueError("the row is empty")
            inputs = self._reader.read(row)
            example, labels = self.task.without_answer(inputs, self.labels)
            section = self.recipe.data.model_copy(update={"long": None})  # every row gets a prediction
            how = Tokenising(self.tokenizer, section, self.task.formats[0], Counter(), labels)
            tokenised = self.task.tokenise([example], how).rows
            self.long += how.counts["truncated"] > 0
        except (ValueError, DataError) as error:
            return Predicted({}, str(error))
        return (tokenised[0], inputs) if tokenised else Predicted({}, "no token of it is left")

    def _scores(self, rows: Sequence[TokenRow]) -> list[tuple[list[int], Sequence[torch.Tensor]]]:
        precision = resolve_types(
            self.recipe.model.dtype, self.recipe.training.precision, self.world.device
        ).computation
        found = []
        with evaluation_mode(self.model), torch.no_grad(), self.world.autocast(precision):
            for numbers in self._batches(rows):
                batch = self.world.move(collate([rows[i] for i in numbers], self.pad_id))
                scores = self.loss.scores(self.model, batch).float().cpu()
                found.append((numbers, scores.split([rows[i].outputs for i in numbers])))
        return found

    def _batches(self, rows: Sequence[TokenRow]) -> Iterator[list[int]]:
        """Yield the numbers of each batch's rows.

        A text may contain the end token at which BART's and T5's classifiers read its class. Those take the last one,
        and refuse a batch whose rows have different numbers of them.
        """
        ends = [0 if self._read_end is None else int((row.input_ids == self._read_end).sum()) for row in rows]
        for count in sorted(set(ends)):
            numbers = [place for place, own in enumerate(ends) if own == count]
            for _, batch in evaluation_batches([rows[place] for place in numbers], self.batch_size):
                yield [numbers[place] for place in batch]

    def _describe(self, row: TokenRow, scores: torch.Tensor, inputs: Row) -> Predicted:
        threshold = self.recipe.evaluation.threshold
        one = self.task.predict(row, scores, inputs, self.labels, threshold)
        columns = {
            "": self._as_in_data(one.value),
            "_probability": one.probability,
            "_probabilities": one.probabilities,
        }
        return Predicted({name: value for name, value in columns.items() if name == "" or value is not None})

    def _as_in_data(self, value: Any) -> Any:
        """Return labels in the type that the training rows have them in; numbers and what is not there as they are."""
        if isinstance(value, list):
            return [self._as_in_data(one) for one in value]
        return self._value(value) if isinstance(value, str) else value

    def note_long(self) -> str:
        data = self.recipe.data
        evaluation = "evaluation leaves such rows out" if data.long == "skip" else "as in evaluation"
        return f"{super().note_long()} ({data.max_length}): their end was not read, {evaluation}"


class TextPredictor(Predictor):
    """Predicts texts: the answers that `peftlab generate --prompts` gives, with their log-probabilities."""

    def __init__(self, directory: RunDirectory, recipe: Recipe, world: World) -> None:
        self.recipe = recipe
        model: nn.Module = load_trained(recipe, directory.weights, world.device)
        self.run: LoadedRun = as_loaded(directory.path.name, directory, recipe, model, world, recipe.method.prompting)
        self.batch_size = recipe.evaluation.batch_size or recipe.training.batch_size
        self._name = ""

    def open(self, header: Header) -> None:
        self._name = header.name

    def predict(self, rows: Sequence[Row]) -> list[Predicted]:
        asked = [self._encode(row) for row in rows]
        good = [one for one in asked if not isinstance(one, str)]
        self.long += sum(len(one.ids) > self.recipe.data.max_length for one in good)
        answers = iter(self.run.answer(good, self.recipe.evaluation.generation, likelihoods=True))
        return [Predicted({}, one) if isinstance(one, str) else _as_text(next(answers)) for one in asked]

    def note_long(self) -> str:
        return (
            f"{super().note_long()} ({self.recipe.data.max_length}), to which evaluation shortens rows: read whole here"
        )

    def _encode(self, row: Row) -> Any:
        """Return what the model reads of a row, or why it cannot be read."""
        asked = self._without_answer(row)
        if takes_chats(self.recipe) and asked.get(self._messages) == []:
            return "has no message to answer"
        try:
            (request,) = requests_of(
                Table(self._name, {name: [value] for name, value in asked.items()}), self.recipe, ""
            )
            return self.run.encode(request)
        except PeftlabError as error:
            return _reason(str(error), self._name)

    def _without_answer(self, row: Row) -> Row:
        """Return a row of chats without the answers at its end, which are what is to be predicted."""
        name = self._messages
        return {**row, name: without_answers(row[name])} if takes_chats(self.recipe) and name in row else row

    @property
    def _messages(self) -> str:
        return self.recipe.data.columns.get("messages", "messages")


def open_predictor(directory: RunDirectory, recipe: Recipe, world: World) -> Predictor:
    """Return a run, loaded, that predicts."""
    return (TextPredictor if recipe.task.generates else HeadPredictor)(directory, recipe, world)


def _reason(message: str, name: str) -> str:
    """Return what is wrong with a row of a table of one, which is in no place, and need not be correct."""
    for before in (f"{name}: ", ": ", "row 1: "):
        message = message.removeprefix(before)
    return message.removesuffix("; correct such rows, or set data.on_error: skip")


def _as_text(answer: Any) -> Predicted:
    columns = {"": answer.text, "_log_probability": answer.log_probability, "_ended": answer.ended}
    return Predicted({name: value for name, value in columns.items() if value is not None})


def _inputs_of(layout: Format, answers: Sequence[str]) -> Format:
    """Return a format whose rows have no answer: each is read as its inputs by role."""
    roles = {role: read for role, read in layout.roles.items() if role not in answers}

    def example(*values: Any) -> dict[str, Any]:
        return dict(zip(roles, values, strict=True))

    return replace(layout, roles=roles, example=example)  # type: ignore[arg-type]  # it is only called
