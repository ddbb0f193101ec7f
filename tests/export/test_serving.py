"""The command for `transformers serve` that merging prints, run as it is and asked through the openai client."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess

import pytest

from peftlab.runs.generation import generate_all
from peftlab.runs.merge import merge
from peftlab.runs.requests import ask
from tests.export.peers import FOLDER, needs, run_peer
from tests.export.test_gguf import trained
from tests.runs.recipes import METHODS

ASK = """
import json, sys, time, urllib.request
from openai import OpenAI
address, model, prompts, tokens = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
for _ in range(600):
    try:
        urllib.request.urlopen(address + "/health", timeout=5)
        break
    except OSError:
        time.sleep(0.2)
client = OpenAI(base_url=address + "/v1", api_key="none", timeout=120, max_retries=0)
ask = client.completions.create
print(json.dumps([
    ask(model=model, prompt=one, temperature=0, max_tokens=tokens).choices[0].text for one in prompts
]))
"""
PROMPTS = ["def add(a, b):", "import os\n", "class Queue"]
TOKENS = 12


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.slow
@needs("serve")
def test_the_server_s_greedy_answers_are_those_of_generate(tmp_path):
    run = trained(tmp_path, METHODS["lora"], training={"steps": 4})
    report = merge(run, tmp_path / "my model")
    command = shlex.split(report.serve["transformers"])
    overrides = [f"evaluation.generation.max_new_tokens={TOKENS}"]
    wanted = generate_all(run, lambda recipe: [ask(recipe, prompt) for prompt in PROMPTS], overrides)
    port = free_port()
    found = [str(FOLDER / "serve" / "bin" / "python"), "-m", "transformers.cli.transformers", *command[1:]]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [*found, "--port", str(port)], stdout=log, stderr=log, env=environment, cwd=tmp_path, start_new_session=True
        )
        try:
            arguments = (command[-1], json.dumps([one.prompt for one in wanted]), str(TOKENS))
            printed = run_peer("serve", ASK, f"http://127.0.0.1:{port}", *arguments, folder=tmp_path)
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(20)
    answers = json.loads(printed.splitlines()[-1])
    assert [text.strip() for text in answers] == [one.text.strip() for one in wanted] and any(answers)
