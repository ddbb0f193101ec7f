"""A user at the command line: a small recipe of rows of their own, and what a command answered and left behind."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from peftlab.cli.app import run

CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}:\n{{ m['content'] }}\n{% endfor %}"
CHAT_TEMPLATE += "{% if add_generation_prompt %}assistant:\n{% endif %}"
TINY = Path(__file__).resolve().parents[2] / "peftlab" / "builtin" / "tiny"
ROWS = [{"prompt": f"the number {i} is", "completion": f" number {i} plus one"} for i in range(6)]
CHATS = [{"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a"}]} for i in range(6)]
RECIPE = """\
model: {{name: builtin:tiny}}
method: {{type: {method}}}
data: {{train: {train}, max_length: 64}}
training: {{steps: 2, batch_size: 2, learning_rate: 1e-3}}
run: {{output: {output}, device: cpu, plan: "off"}}
"""


@dataclass(frozen=True)
class Answer:
    """What one command gave: exit code, standard output, the lines of standard error, the run's record."""

    code: int
    out: str
    lines: list[str]
    record: dict[str, Any] | None

    @property
    def error(self) -> str:
        """The one line that says what is wrong; there is exactly one, and no traceback."""
        assert not any(line.startswith("Traceback") for line in self.lines)
        (line,) = [line for line in self.lines if line.startswith("peftlab: error: ")]
        return line.removeprefix("peftlab: error: ")

    @property
    def status(self) -> str | None:
        return self.record and self.record["status"]


class User:
    """Writes recipes, rows and models into a folder of its own and runs commands there, in this process."""

    def __init__(self, folder: Path, capture: Any):
        self.folder, self._capture = folder, capture
        self.output = folder / "run"

    def write(self, name: str, content: bytes | str) -> Path:
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def rows(self, rows: Iterable[Any] = ROWS, name: str = "rows.jsonl") -> Path:
        return self.write(name, "".join(json.dumps(row) + "\n" for row in rows))

    def recipe(self, method: str = "adapters", train: Path | None = None) -> Path:
        text = RECIPE.format(method=method, train=train or self.rows(), output=self.output)
        return self.write("recipe.yaml", text)

    def model(self, name: str = "model", **files: str) -> Path:
        """Return a copy of the shipped model with other files in it, such as `chat_template=TEXT`."""
        folder = Path(shutil.copytree(TINY, self.folder / name))
        for stem, text in files.items():
            (folder / {"chat_template": "chat_template.jinja"}.get(stem, f"{stem}.json")).write_text(text)
        return folder

    def train(self, *overrides: object, method: str = "adapters", **places: Any) -> Answer:
        return self.run("train", self.recipe(method, **places), *overrides)

    def run(self, *arguments: object) -> Answer:
        code = run([str(argument) for argument in arguments])
        captured = self._capture.readouterr()
        output = next((str(a)[11:] for a in arguments if str(a).startswith("run.output=")), self.output)
        record = Path(output) / "result.json"
        try:
            found = json.loads(record.read_text()) if os.path.isfile(record) else None
        except (ValueError, OSError, RecursionError):  # damaged on purpose
            found = None
        return Answer(code, captured.out, captured.err.splitlines(), found)


def train_once(folder: Path, *overrides: str, method: str = "adapters", code: int = 0) -> Path:
    """Return the directory of a run that ended with this exit code, for tests that change a copy of it."""
    user = User(folder, capture=None)
    assert run(["train", str(user.recipe(method)), *overrides]) == code
    return user.output


@pytest.fixture
def user(tmp_path, capfd) -> User:
    return User(tmp_path, capfd)


@pytest.fixture
def refused(user) -> Callable[..., str]:
    """Train with overrides, expect this exit code and a record that says so, and return the line."""

    def refuse(code: int, *overrides: object, status: str = "failed", **places: Any) -> str:
        answer = user.train(*overrides, **places)
        assert (answer.code, answer.status, answer.out) == (code, status, "")
        assert answer.record["error"] in answer.error
        assert not (user.output / "weights").exists()
        return answer.error

    return refuse
