"""Hub ids without a hub: an answer in seconds, in one line, and the cache where there is one."""

from __future__ import annotations

import json
import time

import pytest
from huggingface_hub import constants

from peftlab.errors import ModelError
from peftlab.models import hub
from peftlab.models.build import build_meta
from peftlab.models.load import load_model, load_tokenizer
from peftlab.models.reference import resolve
from peftlab.parameters.report import parameter_report
from peftlab.recipe.schema import Model
from tests.parameters.families import build

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def unreachable(monkeypatch):
    """An online machine whose hub refuses connections (the discard port of this machine)."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A Hugging Face cache that holds the hub model owner/tiny."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    build("llama").save_pretrained(repository / "snapshots" / COMMIT)
    return "owner/tiny"


@pytest.fixture
def impatient(monkeypatch):
    """Whoever waits for another try fails; seconds would not tell it from a busy machine."""
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waited {seconds} s"))


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("open_model", [build_meta, load_model, load_tokenizer])
def test_offline_hub_id_fails_at_once_and_says_what_to_do(open_model):
    with pytest.raises(ModelError) as caught:
        open_model(Model(name="owner/none"))
    message = str(caught.value)
    assert "\n" not in message
    for part in ("owner/none", "HF_HUB_OFFLINE is set", "local folder", "builtin:tiny", "HF_HOME"):
        assert part in message


@pytest.mark.usefixtures("unreachable", "impatient")
def test_unreachable_hub_is_not_retried():
    with pytest.raises(ModelError, match=r"hub http://127.0.0.1:9 cannot be reached \(\w+\)"):
        build_meta(Model(name="owner/none"))


@pytest.mark.usefixtures("unreachable")
def test_cached_model_is_used_where_the_hub_cannot_be_reached(cached):
    model, fresh = build_meta(Model(name=cached))
    assert parameter_report(model).total == parameter_report(build("llama")).total and fresh == frozenset()


def test_cached_model_loads_offline_and_is_known_by_its_commit(cached):
    loaded = load_model(Model(name=cached))
    assert loaded.fresh == frozenset() and loaded.source["revision"] == COMMIT


def test_other_revision_of_a_cached_model_is_missing(cached):
    with pytest.raises(ModelError, match="not in the Hugging Face cache"):
        hub.must_stay_local(resolve(cached, "v9"))


def test_reachable_hub_is_asked(monkeypatch):
    class Answers:
        def head(self, url, timeout):
            return json.dumps({"url": url, "timeout": timeout})

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_session", Answers)
    assert hub.must_stay_local(resolve("owner/none")) is False
