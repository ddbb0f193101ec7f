"""Bases and adapters that are damaged, missing, of something else, or that would run code."""

from __future__ import annotations

import http.server
import json
import shutil
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

from .conftest import TINY, train_once

WEIGHTS = "model.safetensors"
ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "somebody/else", "r": 8, "target_modules": ["q_proj"]}


def change_weights(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def truncate(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:100_000])


def zero_header(folder):
    (folder / WEIGHTS).write_bytes(bytes(1000) + (folder / WEIGHTS).read_bytes()[1000:])


def lose_a_layer(folder):
    change_weights(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".layers.2." in name])


def widen(folder):
    change_weights(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(3)}))


DAMAGES = {
    "truncated": (truncate, "cannot be loaded"),
    "a broken header": (zero_header, "cannot be loaded"),
    "half downloaded": (lambda folder: (folder / WEIGHTS).unlink(), "cannot be loaded"),
    "a layer less": (lose_a_layer, "the checkpoint lacks 16 parameters of LlamaForCausalLM"),
    "another size": (widen, "or has them in other sizes (model.norm.weight, ...)"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "the folder has no config.json; available: "),
    "a broken config": (lambda folder: (folder / "config.json").write_text('{"model'), "is not a valid JSON file"),
    "an unknown kind": (lambda folder: (folder / "config.json").write_text('{"model_type": "lama"}'), "cannot be read"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "cannot be given a tokenizer"),
}


@pytest.mark.parametrize(("damage", "told"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_base_is_one_line(user, refused, damage, told):
    folder = user.model()
    damage(folder)
    assert told in refused(3, f"model.name={folder}")


@pytest.mark.parametrize("evaluation", ["data.evaluation=2", "data.evaluation=null"])
def test_a_base_that_holds_no_numbers_is_told_before_any_step(user, refused, evaluation):
    folder = user.model()
    change_weights(folder, lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))
    line = refused(6, f"model.name={folder}", evaluation, status="diverged")
    told = "data.evaluation: the loss of its rows is nan before any step: the base model's weights"
    assert (told if evaluation.endswith("2") else "nothing has been trained yet") in line


LAST_STEP = ["training.steps=1", "training.schedule=constant", "training.learning_rate=1e30"]


def test_a_last_step_that_diverges_is_no_success(user):
    answer = user.train(*LAST_STEP, "data.evaluation=2", method="bitfit")
    assert (answer.code, answer.status) == (6, "diverged")
    assert "after training, which diverged in its last steps; lower training.learning_rate" in answer.error


def test_weights_that_are_no_numbers_are_never_saved(user, refused):
    line = refused(6, *LAST_STEP, "training.weight_decay=1e30", "run.save_every=1", status="diverged")
    assert "step 1: " in line and "is not finite after the step; lower training.learning_rate or" in line
    assert not (user.output / "checkpoints").exists()


def test_a_record_with_numbers_that_json_lacks_reads_back(tmp_path):
    from peftlab.reports import RunResult

    metrics = {"after": {"loss": float("nan"), "perplexity": float("inf")}}
    text = RunResult(status="diverged", name="x", recipe={}, environment={}, metrics=metrics).model_dump_json()
    json.loads(text, parse_constant=pytest.fail)
    after = RunResult.model_validate_json(text, extra="ignore").metrics["after"]
    assert after["loss"] != after["loss"] and after["perplexity"] == float("inf")


METHODS = {
    "targets that half match": ("{type: lora, targets: [q_proj, query]}", "'query' matches no linear layer"),
    "rank above the dimension": ("{type: lora, rank: 193}", "so that rank 193 does not fit; use at most"),
    "biases that are not there": ("{type: bitfit}", "this llama model has no biases to train; set add_missing: true"),
    "a tied head": ("{type: lora, unfreeze: [lm_head]}", "lm_head is tied to the embedding, whose name trains both"),
    "a wide bottleneck": ("{type: adapters, reduction_factor: 1e-30}", "wider than 1,000,000,000; 2 to 64 are usual"),
}


@pytest.mark.parametrize(("method", "told"), METHODS.values(), ids=METHODS)
def test_a_method_that_cannot_work_is_told_before_weights_are_read(user, refused, method, told):
    config = json.loads((TINY / "config.json").read_text()) | {"attention_bias": False, "mlp_bias": False}
    folder = user.model(config=json.dumps(config))
    (folder / WEIGHTS).write_bytes(b"would fail if it were read")
    assert told in refused(5, f"model.name={folder}", f"method={method}", "model.init=random")


def test_more_virtual_tokens_than_positions_are_refused(refused):
    line = refused(5, "method.length=600", method="prefix")
    assert "method.length: 600 virtual tokens leave no room for text in the model's 512 positions" in line


def test_an_unknown_architecture_says_where_the_known_ones_are_and_what_to_name(user, refused):
    config = {"model_type": "mpt", "d_model": 32, "n_layers": 1, "n_heads": 2, "vocab_size": 5000}
    folder = user.model(config=json.dumps(config))
    line = refused(5, f"model.name={folder}", "model.init=random")
    assert "the layers of 'mpt' are of a build that peftlab does not know" in line and "name the modules" in line


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    """A LoRA run, its embedding trained through the one name that it shares with the head."""
    overrides = "method.unfreeze=[embed_tokens]", "data.evaluation=2"
    return train_once(tmp_path_factory.mktemp("trained"), *overrides, method="lora")


@pytest.fixture
def trained(user, trained_once):
    return shutil.copytree(trained_once, user.output)


def test_a_tied_embedding_that_trained_comes_back_in_both_places(user, trained):
    record = user.run("evaluate", trained, "--json")
    after = json.loads((trained / "result.json").read_text())["metrics"]["after"]["loss"]
    assert json.loads(record.out)["metrics"]["loss"] == pytest.approx(after, abs=1e-6)


def edit_adapter(change):
    def damage(run):
        file = run / "weights" / "adapter_model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, {"format": "pt"})

    return damage


def another_base(run):
    text = (run / "recipe.yaml").read_text()
    folder = shutil.copytree(TINY, run / "other")
    change_weights(folder, lambda tensors: tensors["model.norm.weight"].mul_(2))
    (run / "recipe.yaml").write_text(text.replace("builtin:tiny", str(folder)))


ADAPTERS = {
    "a key less": (edit_adapter(lambda tensors: tensors.pop(sorted(tensors)[3])), "does not fit this model and method"),
    "a key more": (edit_adapter(lambda tensors: tensors.update(more=torch.ones(1))), "it has unknown more"),
    "truncated": (lambda run: (run / "weights" / "adapter_model.safetensors").write_bytes(b"abc"), "cannot be read"),
    "of another base": (another_base, "was trained on builtin:tiny"),
}


def test_an_adapter_that_does_not_fit_is_never_used_as_the_bare_base(user, trained):
    for number, (damage, told) in enumerate(ADAPTERS.values()):
        run = shutil.copytree(trained, user.folder / f"copy-{number}")
        damage(run)
        for command in (["evaluate", run, "--no-verify"], ["generate", run, "the", "--no-verify"]):
            answer = user.run(*command)
            assert (answer.code, answer.out) == (8, "") and told in answer.error


def test_an_adapter_is_no_base_and_what_it_names_is_never_fetched(user, refused, trained, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.http_get", pytest.fail)
    assert "is an adapter, not a model; set model.name to its base" in refused_in(user, f"model.name={trained}/weights")
    both = user.model(adapter_config=json.dumps(ADAPTER))
    assert "is an adapter, not a model" in refused_in(user, f"model.name={both}")


def refused_in(user, override):
    answer = user.train(override, f"run.output={user.folder / 'other'}")
    assert (answer.code, answer.status) == (3, "failed")
    return answer.error


def test_an_adapter_config_beside_trained_weights_is_not_believed(user, trained):
    config = trained / "weights" / "adapter_config.json"
    config.write_text(json.dumps(ADAPTER))
    assert user.run("evaluate", trained, "--no-verify").code == 0


class Gate(http.server.BaseHTTPRequestHandler):
    """A hub that knows one model, and lets nobody at it."""

    def do_GET(self):
        gated = "somebody/gated" in self.path
        self.send_response(403 if gated else 200)
        if gated:
            self.send_header("X-Error-Code", "GatedRepo")
            self.send_header("X-Error-Message", "Access to model somebody/gated is restricted.")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


def test_a_gated_base_is_one_line_that_says_where_to_ask(user, refused, monkeypatch):
    from huggingface_hub import constants

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gate)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    try:
        line = refused(3, "model.name=somebody/gated")
    finally:
        server.shutdown()
        server.server_close()
    assert "gated" in line and "access" in line
