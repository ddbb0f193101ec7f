"""Answers of a conversation: as JSON lines, as plain text, or in a terminal, side by side where it is wide."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from peftlab.runs.chat import Conversation, Reply

NARROWEST = 36
GREETING = "/help lists the commands, Ctrl-C stops an answer, Ctrl-D ends."


class PlainScreen:
    """Answers as they are written, and nothing else on standard output; a run's name only where several answer."""

    stops_answers = False

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation

    def greet(self) -> None:
        """Nothing."""

    def note(self, lines: Sequence[str]) -> None:
        """Print what a command says, which is not an answer, to standard error."""
        for line in lines:
            print(line, file=sys.stderr)

    def answer(self, text: str) -> None:
        """Print the answers to a message."""
        self._last = ""
        replies = self.conversation.say(text, self._piece)
        for reply in replies:
            if not reply.text:
                self._head(reply.run)
            note_cut(reply)
        print(flush=True)

    def _piece(self, name: str, piece: str) -> None:
        self._head(name)
        print(piece, end="", flush=True)

    def _head(self, name: str) -> None:
        if len(self.conversation.active) > 1 and name != self._last:
            print(f"{chr(10) if self._last else ''}[{name}] ", end="")
            self._last = name


class JsonScreen(PlainScreen):
    """Each answer as one JSON object on a line."""

    def answer(self, text: str) -> None:
        for reply in self.conversation.say(text):
            row = {"run": reply.run, "prompt": text, "output": reply.text, "ended": reply.ended}
            print(json.dumps(row, ensure_ascii=False), flush=True)
            note_cut(reply)


class TerminalScreen(PlainScreen):
    """Answers in a terminal: several in columns, or below one another where these would be narrow."""

    stops_answers = True

    def __init__(self, conversation: Conversation) -> None:
        super().__init__(conversation)
        self.console = Console(highlight=False, markup=False, emoji=False)

    def greet(self) -> None:
        names = ", ".join(self.conversation.runs)
        self.console.print(f"{names}; answering: {', '.join(self.conversation.active)}. {GREETING}", style="dim")

    def note(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.console.print(line, style="dim")

    def answer(self, text: str) -> None:
        active = self.conversation.active
        if len(active) == 1:
            super().answer(text)
            return
        found = dict.fromkeys(active, "")
        with Live(self._side_by_side(found), console=self.console, transient=True) as live:

            def piece(name: str, part: str) -> None:
                found[name] += part
                live.update(self._side_by_side(found))

            replies = self.conversation.say(text, piece)
        self.console.print(self._side_by_side({reply.run: reply.text for reply in replies}))
        for reply in replies:
            note_cut(reply)

    def _side_by_side(self, found: dict[str, str]) -> Any:
        wide = self.console.width // len(found) >= NARROWEST
        table = Table.grid(padding=(0, 3 if wide else 1), expand=wide)
        if wide:
            for _ in found:
                table.add_column(ratio=1, overflow="fold")
            table.add_row(*(Text(name, style="bold") for name in found))
            table.add_row(*(Text(text) for text in found.values()))
            return table
        table.add_column(overflow="fold")
        for name, text in found.items():
            table.add_row(Text.assemble((name, "bold"), f"  {text}"))
        return table


def note_cut(reply: Reply) -> None:
    """Say on standard error that the model did not see all of a conversation."""
    if reply.cut:
        print(
            f"peftlab: note: {reply.run}: the oldest {reply.cut:,} tokens of the conversation were cut to fit the "
            "model's positions; /reset begins again",
            file=sys.stderr,
        )
