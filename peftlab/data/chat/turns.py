"""Which characters of a rendered chat the assistant wrote, as the template itself shows them.

A template with generation marks is rendered with a sentinel inside each mark. Any other is rendered with a sentinel
in place of a turn's content, which shows where the content and what follows it are. Each finding is proved against
the real text; nothing is found by searching that text for an answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from peftlab.data.chat.settings import ChatSettings, is_supervised
from peftlab.data.chat.template import ChatTemplate, unused_word
from peftlab.tasks.formats import Chat

THINKING_ENDS = ("</think>", "</thinking>", "</reasoning>", "[/THINK]")


class Unclear(Exception):
    """The reason why it cannot be proved which characters of a chat the assistant wrote."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Supervised characters of one assistant turn: `message` is its number, `marker` the end marker among them.

    An empty marker says that the template writes none, None that it is not known where the answer ends. `prompted`
    says that the text before it ends as the generation prompt that the template would write for it; before the last
    answer it is that prompt. `asked` is where that prompt ends, if a generation mark begins inside it.
    """

    message: int
    start: int
    end: int
    marker: str | None
    prompted: bool = True
    asked: int | None = None


def find_turns(template: ChatTemplate, chat: Chat, text: str, settings: ChatSettings) -> list[Turn]:
    """Return the supervised turns of a chat that is rendered as `text`, in order. Raises Unclear."""
    rendering = Rendering(template, chat, text)
    rendering.check_calls()
    marks = rendering.marks()
    turns = [rendering.turn(i) for i in rendering.answers] if marks is None else list(rendering.own(marks))
    supervised = [turn for turn in turns if is_supervised(chat.messages[turn.message]) and turn.start < turn.end]
    if settings.supervise == "last":
        last = rendering.answers[-1:]
        supervised = [turn for turn in supervised if turn.message in last]
    if not settings.thinking:
        supervised = [replace(turn, start=max(turn.start, rendering.said(turn.message))) for turn in supervised]
    return [turn for turn in supervised if turn.start < turn.end]


class Rendering:
    """One chat, its real text, and the renderings that show where its parts stand."""

    def __init__(self, template: ChatTemplate, chat: Chat, text: str) -> None:
        self.template, self.messages, self.tools, self.text = template, chat.messages, chat.tools, text
        self.sentinel = unused_word(text, *(str(message) for message in chat.messages))

    @cached_property
    def answers(self) -> list[int]:
        """The numbers of the assistant's messages."""
        return [i for i, message in enumerate(self.messages) if message["role"] == "assistant"]

    def check_calls(self) -> None:
        """Raise Unclear unless the template writes the last tool call of each supervised answer that has any."""
        for i in self.answers:
            if self.messages[i].get("tool_calls") and is_supervised(self.messages[i]):
                sites = [self.template.try_write(self._with(i, one), self.tools) for one, _ in self._call_sites(i)]
                if sites and sites[0] is not None and not any(self.sentinel in one for one in sites if one):
                    raise Unclear("the template leaves out the tool calls of an answer")

    # Templates with generation marks.

    def marks(self) -> list[tuple[int, int]] | None:
        """Return the spans inside the template's generation marks, empty ones too; None for a template without marks.

        Raises Unclear unless the marked text is the real one but for the sentinels.
        """
        begin, end = f"{self.sentinel}1", f"{self.sentinel}2"
        source = self.template.marked_source(self.tools, begin, end)
        if source is None:
            return None
        marked = self.template.try_write(self.messages, self.tools, source=source) or ""
        spans: list[tuple[int, int]] = []
        plain, opened, depth = [], 0, 0
        length = 0
        for piece in re.split(f"({begin}|{end})", marked):
            if piece == begin:
                opened, depth = (opened if depth else length), depth + 1
            elif piece == end:
                depth -= 1
                if not depth:
                    spans.append((opened, length))
            else:
                plain.append(piece)
                length += len(piece)
        if "".join(plain) != self.text:
            raise Unclear("the template changes what is inside its generation marks")
        return spans

    def own(self, marks: Sequence[tuple[int, int]]) -> Iterator[Turn]:
        """Yield the marked spans as turns: one mark for each answer, or each mark by the answer that it is part of."""
        if len(marks) == len(self.answers):
            owners = self.answers
        else:
            found = [(i, self._content_end(i)) for i in range(len(self.messages))]
            ends = [(i, end) for i, end in found if end is not None]
            owners = [self._owner(mark, ends) for mark in marks]
        asked = False
        for owner, (start, end) in zip(owners, marks, strict=True):
            turn = Turn(owner, start, end, self._marked_end(owner, start, end))
            begins = owner == self.answers[-1] and start < end and not asked
            asked = asked or begins
            yield self._asked(turn) if begins else turn

    def _asked(self, turn: Turn) -> Turn:
        """Return the first mark of the last answer with what the template's generation prompt says of its beginning."""
        prompt = self.template.try_write(self.messages[: turn.message], self.tools, prompt=True)
        if prompt is None or not self.template.has_prompt:
            return turn
        asked = len(prompt) if self.text.startswith(prompt) else -1
        if turn.start < asked < turn.end:
            return replace(turn, asked=asked)
        return replace(turn, prompted=asked == turn.start)

    def _owner(self, mark: tuple[int, int], ends: Sequence[tuple[int, int]]) -> int:
        """Return the answer whose content ends inside a mark, else the one that the mark is inside."""
        inside = [i for i, end in ends if i in self.answers and mark[0] <= end <= mark[1]]
        last = max((i for i, end in ends if end <= mark[0]), default=-1)
        later = [i for i in self.answers if i >= last]
        if not (inside or later):
            raise Unclear("a generation mark belongs to no message of the assistant")
        return (inside or later)[0]

    def _marked_end(self, i: int, start: int, end: int) -> str | None:
        """Return what a mark contains after the content of its message; None where that is not the marker alone."""
        place = None if self.messages[i].get("tool_calls") else self._content_end(i)
        return self.text[place:end].strip() if place is not None and start <= place <= end else None

    # Templates without marks.

    def turn(self, i: int) -> Turn:
        """Return an assistant turn: from the end of the generation prompt to the end of its end marker."""
        (start, prompted), (content_end, marker) = self._start(i), self._end(i)
        end = content_end + len(marker or "")
        if not (start <= end and self.text.startswith(marker or "", content_end)):
            raise Unclear("the template writes this turn in another way than it writes others")
        called = self.messages[i].get("tool_calls")  # calls stand after the content, before the marker
        return Turn(i, start, end, None if called or marker is None else marker.strip(), prompted)

    def _start(self, i: int) -> tuple[int, bool]:
        """Return where a turn's generation prompt ends, and whether that is all of the prompt."""
        prompt = self.template.try_write(self.messages[:i], self.tools, prompt=True)
        asked = self.template.has_prompt and prompt is not None
        if self.template.has_prompt and prompt is not None and self.text.startswith(prompt):
            return len(prompt), True
        if asked and (begun := self._start_after(i)) is not None:
            return begun, i != self.answers[-1]  # the last answer's prompt is the one that evaluation gives, whole
        before = self._before(i) or self._before_call(i)
        if before is None:
            raise Unclear("the template leaves out an answer")
        if not self.text.startswith(before):
            raise Unclear("the template rewrites earlier turns, so that an answer's beginning is not certain")
        # Without a generation prompt, what the template writes before the answer is what it is asked with.
        asks_so = i != self.answers[-1] or prompt is None or self.text.startswith(prompt)
        return len(before), not asked and asks_so

    def _start_after(self, i: int) -> int | None:
        """Return the end of the generation prompt from what the template writes after the message before it."""
        altered = self._altered(i - 1)
        prompt = self.template.try_write([*self.messages[: i - 1], altered], self.tools, prompt=True)
        place = self._content_end(i - 1)
        if prompt is None or place is None or self.sentinel not in prompt:
            return None
        opening = prompt.rpartition(self.sentinel)[2]
        return place + len(opening) if self.text.startswith(opening, place) else None

    def _before(self, i: int) -> str | None:
        """Return the text before a message's content."""
        written = self._write_with(i, self._altered(i))
        return written.partition(self.sentinel)[0] if written else None

    def _before_call(self, i: int) -> str | None:
        """Return the text before a message of calls whose content the template leaves out.

        The message begins with as much of an answer's header as it has in common with it.
        """
        earlier = self.template.try_write(self.messages[:i], self.tools)
        if earlier is None or not self.messages[i].get("tool_calls") or not self.text.startswith(earlier):
            return None
        header = self.template.write_prompt(self.messages[:i], self.tools)
        shared = self.template.common_beginning([header, self.text])
        return max(shared, earlier, key=len)

    def _end(self, i: int) -> tuple[int, str | None]:
        """Return where a turn's content ends, and the end marker that the template writes after it.

        The marker is None where the end is that of the whole turn.
        """
        for altered, original in self._sites(i):
            after = self._after(i, altered, original)
            if after is not None:
                return len(self.text) - len(after), self._marker(i, altered, after)
        alone = self.template.try_write(self.messages[: i + 1], self.tools)
        if alone and self.text.startswith(alone.rstrip()):  # an empty turn can lack what a sentinel would show
            return len(alone.rstrip()), None
        raise Unclear("the template rewrites or leaves out an answer, so that its end is not certain")

    def _marker(self, i: int, altered: Mapping[str, Any], after: str) -> str:
        """Return what stands after a turn's content whatever follows it, without the whitespace at its end.

        A template that only ends the whole chat, not each turn, has the chat's end as the last turn's marker; one
        that ends the last turn in another way has a marker for the turns before it too.
        """
        turns = [*self.messages[:i], altered]
        ended, continued = (self._write_after(turns, prompt=prompt) for prompt in (False, True))
        followers = [text for text in (after, ended, continued) if text is not None]
        shared = self.template.common_beginning(followers).rstrip()
        if shared or ended is None:
            return shared
        if i == len(self.messages) - 1:
            return ended.rstrip()
        found = (self._between(turns), self._end_of_questions(turns)) if ended.strip() else ()
        return next((marker for marker in found if marker and after.startswith(marker)), "")

    def _between(self, turns: Sequence[Mapping[str, Any]]) -> str:
        """Return what the template writes between the end of these turns and the header of a question after them."""
        question = {"role": "user", "content": unused_word(self.sentinel, self.text)}
        first, later = (self.template.try_write(chat, self.tools) for chat in ([question], [*turns, question]))
        if first is None or later is None or self.sentinel not in later:
            return ""
        header, before = (text.rpartition(question["content"])[0] for text in (first, later))
        return self.template.without_end(before.rpartition(self.sentinel)[2], header)

    def _end_of_questions(self, turns: Sequence[Mapping[str, Any]]) -> str:
        """Return what ends a question at a chat's end, if a text of the template's own may have hidden it before.

        A template that begins with a system text ends that as it ends turns, so that all that is between an answer and
        the next question stands before a first question too.
        """
        place = max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=None)
        if place is None:
            return ""
        ended = self._write_after([*turns[:place], {"role": "user", "content": self.sentinel}], prompt=False)
        continued = self._write_after(turns, prompt=True)
        return self.template.common_beginning([ended, continued]).rstrip() if ended and continued else ""

    def _write_after(self, turns: Sequence[Mapping[str, Any]], *, prompt: bool) -> str | None:
        written = self.template.try_write(turns, self.tools, prompt=prompt)
        return written.rpartition(self.sentinel)[2] if written and self.sentinel in written else None

    def said(self, i: int) -> int:
        """Return where the answer begins after its thinking part. Raises Unclear."""
        content = self.messages[i].get("content") or ""
        mark = next((mark for mark in THINKING_ENDS if mark in content), None)
        thought, found, answer = content.rpartition(mark) if mark else ("", "", content)
        blank = answer[: len(answer) - len(answer.lstrip())]
        written = self._write_with(i, {**self.messages[i], "content": thought + found + blank + self.sentinel})
        before = written.partition(self.sentinel)[0] if written else None
        if before is None or not self.text.startswith(before):
            raise Unclear("the end of an answer's thinking part is not certain")
        return len(before)

    # Sentinels.

    def _altered(self, i: int) -> dict[str, Any]:
        return {**self.messages[i], "content": self.sentinel}

    def _sites(self, i: int) -> Iterator[tuple[dict[str, Any], str]]:
        """Yield a message with a sentinel in each place that can show its end, and what stood there."""
        yield from self._call_sites(i)
        yield self._altered(i), str(self.messages[i].get("content") or "")

    def _call_sites(self, i: int) -> Iterator[tuple[dict[str, Any], str]]:
        """Yield the sites of the last tool call: its name, and its id, which some templates write in place of it."""
        message = self.messages[i]
        calls = message.get("tool_calls")
        if not isinstance(calls, list) or not calls or not isinstance(calls[-1], dict):
            return
        last, function = calls[-1], calls[-1].get("function")
        for call, key in ((function, "name"), (last, "name"), (last, "id")):
            if isinstance(call, dict) and key in call:
                altered = {**call, key: self.sentinel}
                changed = {**last, "function": altered} if call is function else altered
                yield {**message, "tool_calls": [*calls[:-1], changed]}, str(call[key])

    def _with(self, i: int, altered: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        return [*self.messages[:i], altered, *self.messages[i + 1 :]]

    def _write_with(self, i: int, altered: Mapping[str, Any]) -> str | None:
        """Return the chat with one message altered; None where the template does not write the sentinel."""
        written = self.template.try_write(self._with(i, altered), self.tools)
        return written if written and self.sentinel in written else None

    def _after(self, i: int, altered: Mapping[str, Any], original: str = "") -> str | None:
        """Return the text after the sentinel of an altered message, where the real text ends with it too.

        Later messages can repeat what the sentinel replaced, as a result names the function that was called.
        """
        written = self._write_with(i, altered)
        if written is None:
            return None
        after = written.split(self.sentinel, self._count(i, altered, written))[-1].replace(self.sentinel, original)
        return after if self.text.endswith(after) else None

    def _count(self, i: int, altered: Mapping[str, Any], written: str) -> int:
        """Return how many of the sentinels in a chat are in the altered message itself."""
        found = written.count(self.sentinel)
        if found == 1:
            return found
        alone = self.template.try_write([*self.messages[:i], altered], self.tools) or ""
        return min(alone.count(self.sentinel), found)

    def _content_end(self, i: int) -> int | None:
        after = self._after(i, self._altered(i), str(self.messages[i].get("content") or ""))
        return None if after is None else len(self.text) - len(after)
