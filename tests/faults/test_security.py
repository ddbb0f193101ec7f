"""What is somebody else's runs no code here and fetches nothing, and no token is ever written or shown."""

from __future__ import annotations

import json
import os
import pickle
import zipfile

import pytest

from peftlab.runs import doctor
from peftlab.secrets import mask_secrets

from .conftest import CHATS, TINY

HOSTILE_TEMPLATES = {
    "attributes": "{{ messages.__class__.__mro__ }}",
    "globals": "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "changes": "{{ messages.append(1) }}",
    "files": "{% include '/etc/passwd' %}",
    "a flood": "{{ range(10**9) | list }}",
    "an error": "{{ 1 / 0 }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "syntax": "{% for",
}


@pytest.mark.parametrize("template", HOSTILE_TEMPLATES.values(), ids=HOSTILE_TEMPLATES)
def test_a_hostile_chat_template_is_stopped_by_the_sandbox(user, refused, template):
    canary = user.folder / "canary"
    folder = user.model(chat_template=template.replace("CANARY", str(canary)))
    line = refused(4, f"model.name={folder}", "data.format=chat", train=user.rows(CHATS))
    assert line.startswith("the chat that begins 'q0': the model's chat template ")
    assert not canary.exists()


class Opens:
    """A pickle of this touches a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_weights_that_are_a_program_are_not_run(user, refused):
    folder, canary = user.model(), user.folder / "canary"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"w": Opens(canary)}))
    assert "cannot be loaded" in refused(3, f"model.name={folder}")
    assert not canary.exists()


CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({canary!r}).touch()
class MineConfig(LlamaConfig):
    model_type = "mine"
class Mine(LlamaForCausalLM):
    config_class = MineConfig
"""


@pytest.fixture
def with_code(user):
    """A model that ships code, and the file that shows whether it ran."""
    canary = user.folder / "canary"
    config = json.loads((TINY / "config.json").read_text()) | {"model_type": "mine", "architectures": ["Mine"]}
    config["auto_map"] = {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.Mine"}
    folder = user.model(config=json.dumps(config))
    (folder / "mine.py").write_text(CODE.format(canary=str(canary)))
    return folder, canary


def test_code_of_a_model_runs_only_if_the_recipe_says_so_and_is_told(user, with_code, monkeypatch):
    folder, canary = with_code
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(user.folder / "modules"))
    monkeypatch.syspath_prepend(str(user.folder / "modules"))
    answer = user.train(f"model.name={folder}", method="lora")
    assert (answer.code, answer.status, canary.exists()) == (3, "failed", False)
    assert (
        "needs to run code from its repository; read that code, then set model.trust_remote_code=true" in answer.error
    )
    answer = user.train(f"model.name={folder}", "model.trust_remote_code=true", method="lora")
    told = f"model.trust_remote_code: runs the code that {folder} ships"
    assert answer.code == 0 and canary.exists() and told in answer.lines and told in answer.record["notes"]
    canary.unlink()
    answer = user.run("evaluate", user.output, f"data.evaluation={user.rows()}")
    assert answer.code == 2 and "add model.trust_remote_code=true" in answer.error


@pytest.fixture
def data_folder_of_others(user, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(user.folder / "cache"))
    folder = user.folder / "rows"
    folder.mkdir()
    return folder


def test_a_data_set_that_ships_a_program_is_refused_and_it_does_not_run(user, refused, data_folder_of_others):
    canary = user.folder / "canary"
    (data_folder_of_others / "rows.py").write_text(f"from pathlib import Path\nPath({str(canary)!r}).touch()\n")
    (data_folder_of_others / "x.pkl").write_bytes(pickle.dumps(Opens(canary)))
    assert f"{data_folder_of_others}" in refused(4, f"data.train={data_folder_of_others}")
    assert not canary.exists()


def test_an_archive_in_a_data_folder_is_not_unpacked(user, refused, data_folder_of_others):
    with zipfile.ZipFile(data_folder_of_others / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.csv", "prompt,completion\n" + " " * 10**7)
    line = refused(4, f"data.train={data_folder_of_others}")
    assert "x.zip: is an archive; unpack it and look at what it contains" in line
    assert not (user.folder / "cache").exists()


TOKEN = "hf_" + "Canary" * 6
SECRETS = {"HF_TOKEN": TOKEN, "WANDB_API_KEY": "wandb-canary-0123456789", "COMET_API_KEY": "comet-canary-0123456789"}


def test_no_token_is_in_anything_that_commands_print_or_write(user, monkeypatch, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    (home / "token").write_text(TOKEN)
    monkeypatch.setenv("HF_TOKEN_PATH", str(home / "token"))
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(doctor, "try_method", lambda *_: None)
    with_token = f"model.name=https://user:{SECRETS['WANDB_API_KEY']}@hub/x"
    monkeypatch.setattr("sys.argv", ["peftlab", "train", with_token])
    answers = [
        user.train("data.evaluation=2", "run.save_every=1", "run.stop_after=1"),
        user.train("data.evaluation=2", "run.save_every=1", "--resume", "--json"),
        user.run("evaluate", user.output),
        user.run("generate", user.output, "the", "--json"),
        user.run("doctor", "--json"),
        *(user.train(bad, f"run.output={user.folder / 'bad'}", "--json", "--debug")
          for bad in (with_token, f"model.name=user/{TOKEN}", f"data.train={TOKEN}.csv", f"x={TOKEN}")),
        user.run("check", user.recipe(), f"model.dtype={TOKEN}"),
        user.run("evaluate", user.folder / SECRETS["COMET_API_KEY"]),
    ]  # fmt: skip
    assert [answer.code for answer in answers] == [11, 0, 0, 0, 0, 2, 2, 2, 2, 2, 8]
    shown = "\n".join(answer.out + "\n".join(answer.lines) for answer in answers)
    written = [path for path in user.folder.rglob("*") if path.is_file()]
    assert len(written) > 15 and "***" in shown
    for secret in SECRETS.values():
        assert secret not in shown
        assert not [path for path in written if secret.encode() in path.read_bytes()]


ADDRESSES = [
    "https://me:MyPassword123@host/rows.jsonl", "s3://key:s3cr3t@bucket/rows.csv", "postgres://u:p@db:5432/x",
    "https://:onlypassword@host/x.jsonl", "hf://user:p@ss@host/x", "https://host/x.csv?token=abcdef&x=1",
    "https://bucket.s3.amazonaws.com/x.csv?X-Amz-Signature=0123abcd", "x/ghp_" + "a" * 36, "x/AKIA" + "B" * 16,
    "//me:MyPassword123@host/rows.jsonl",
]  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("field", ["data.train", "data.general", "model.name"])
def test_a_password_in_an_address_is_refused_and_never_shown(user, address, field):
    for command in ("check", "train"):
        answer = user.run(command, user.recipe(), f"{field}={address}")
        assert answer.code == 2 and "contains a secret" in answer.out + "\n".join(answer.lines)
        assert address not in answer.out + "\n".join(answer.lines)
    assert not user.output.exists()


@pytest.mark.parametrize("text", [
    "https://host:8080/a@b.csv", "git@github.com:x/y", "builtin:docstrings[train]", "http://localhost:8000/x",
    "https://host/x?page=3&keyword=cat", "s3://bucket/prefix@v2/x", "C:/data/x.csv", "user/model", "12:30@noon",
])  # fmt: skip
def test_an_ordinary_address_is_no_secret(text):
    assert mask_secrets(text) == text


@pytest.mark.parametrize("name", [
    "AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_KEY", "GITHUB_TOKEN", "OPENAI_API_KEY", "PGPASSWORD", "MYSQL_PWD",
    "DB_PASSWD", "GPG_PASSPHRASE", "STRIPE_SECRET_KEY",
])  # fmt: skip
def test_the_usual_secret_variables_are_masked(monkeypatch, name):
    monkeypatch.setenv(name, "value-of-a-secret")
    assert mask_secrets("x value-of-a-secret y") == "x *** y"


def test_the_present_folder_is_no_secret(monkeypatch):
    monkeypatch.setenv("PWD", "/home/somebody/project")
    monkeypatch.setenv("OLDPWD", "/home/somebody/another")
    assert mask_secrets("/home/somebody/project/x") == "/home/somebody/project/x"
