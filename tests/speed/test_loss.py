"""The loss without logits against the plain one: equal losses and gradients, and every fallback with its reason."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, BertForTokenClassification

from peftlab.data.token_rows import ANSWERS, POSITIONS, TARGETS
from peftlab.errors import UsageError
from peftlab.losses.after_head import AfterHead, UnknownHeadError
from peftlab.losses.chunked import ChunkedCrossEntropy
from peftlab.losses.head_cross_entropy import CPU_TILE, Head, HeadCrossEntropy, Tile, position_losses, tile_of
from peftlab.losses.without_logits import without_logits
from peftlab.methods import METHODS
from peftlab.recipe.schema import Recipe
from peftlab.speed.apply import speed_up
from peftlab.speed.loss import loss_of
from peftlab.tasks import TASKS
from tests.methods.tiny import tiny_config

VOCABULARY = 67
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCABULARY}
GATED = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2}
FAMILIES = {
    "llama": GATED,
    "qwen2": GATED,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY},
    "gemma2": {**GATED, "head_dim": 8, "final_logit_softcapping": 0.5},
    "phi": {**SIZES, "intermediate_size": 48},
    "mixtral": {**GATED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "opt": {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "cohere": {**GATED, "logit_scale": 0.4},
    "granite": {**GATED, "logits_scaling": 3.0},
}
METHOD_FIELDS = {
    "full": {},
    "lora": {"rank": 4},
    "qlora": {"rank": 4},
    "adapters": {"bottleneck": 8},
    "prefix": {"length": 3},
    "bitfit": {"add_missing": True},
}
CAUSAL = TASKS["causal-lm"]
TILE = Tile(4, 16)


def build(family: str, **changes) -> nn.Module:
    torch.manual_seed(0)
    settings = {**FAMILIES[family], "pad_token_id": 0, "max_position_embeddings": 64, "initializer_range": 0.3}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings | changes)).eval()


def make_batch(positions: int = 9) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, VOCABULARY, (2, 9), generator=generator)
    places = torch.randperm(18, generator=generator)[:positions].sort().values
    targets = torch.randint(3, VOCABULARY, (positions,), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), POSITIONS: places, TARGETS: targets}


def make_recipe(switch: str, method: str = "full", **fields) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"name": "-"},
            "method": {"type": method, **fields},
            "data": {"train": "-"},
            "training": {"steps": 1, "learning_rate": 1e-3, "speed": {"loss": switch}},
        }
    )


def loss_and_gradients(loss, model, batch):
    model.zero_grad()
    torch.manual_seed(7)  # dropout
    total = loss.total(model, batch)
    total.backward()
    return total.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal_to_plain(model, batch, task=CAUSAL, tile=TILE, tolerance=1e-5):
    plain = task.loss(model)
    chunked = without_logits(plain, model)
    chunked.tile = tile
    (total, gradients), (other, found) = (loss_and_gradients(one, model, batch) for one in (plain, chunked))
    assert other == pytest.approx(total, rel=tolerance)
    assert gradients.keys() == found.keys() and gradients
    # A key's bias has no gradient but rounding: softmax does not see it.
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    for name, gradient in gradients.items():
        limit = tolerance * gradient.abs().max().item() + 1e-6 * largest
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=limit), name


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_of_a_trained_model_equal_the_plain_ones(family):
    assert_equal_to_plain(build(family), make_batch())


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradients_of_every_method_equal_the_plain_ones(family, method):
    model = METHODS[method](**METHOD_FIELDS[method]).apply(build(family))
    assert_equal_to_plain(model.train(), make_batch())


def test_a_frozen_head_with_a_bias_gets_no_gradient_and_the_hidden_states_get_theirs():
    model = METHODS["lora"](rank=4).apply(build("phi"))
    assert model.get_output_embeddings().bias is not None
    assert_equal_to_plain(model, make_batch())


@pytest.mark.parametrize("tile", [Tile(1, 1), Tile(2, 66), Tile(9, 67), Tile(512, 2048)], ids=str)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_every_tile_gives_the_plain_loss_and_gradients(method, tile):
    model = METHODS[method](**METHOD_FIELDS[method]).apply(build("gemma2"))
    assert_equal_to_plain(model, make_batch(), tile=tile)


def test_the_gradient_of_a_token_that_the_model_is_sure_of_is_exact():
    """1 - p is from 1e-4 down to 1e-10, which a difference of float32 numbers would lose."""
    torch.manual_seed(0)
    weight, hidden = torch.randn(VOCABULARY, 32), torch.randn(6, 32)
    targets = (hidden @ weight.t()).argmax(1)
    hidden = (hidden + 0.4 * weight[targets]).requires_grad_()
    total = HeadCrossEntropy.apply(hidden, weight, None, targets, AfterHead(), TILE)
    (found,) = torch.autograd.grad(total, hidden)
    exact = hidden.detach().double().requires_grad_()
    loss = torch.nn.functional.cross_entropy(exact @ weight.double().t(), targets, reduction="sum")
    (wanted,) = torch.autograd.grad(loss, exact)
    assert (exact @ weight.double().t()).softmax(1).gather(1, targets[:, None]).min() > 1 - 1e-4
    assert ((found - wanted).norm(dim=1) / wanted.norm(dim=1)).max() < 1e-4


def test_of_equally_likely_tokens_the_first_is_predicted_whatever_the_tiles():
    hidden, weight = torch.ones(2, 1), torch.tensor([[0.0], [1.0], [0.5], [1.0], [1.0]])
    for tile in (Tile(1, 1), Tile(2, 2), Tile(2, 5)):
        head = Head(weight, None, AfterHead())
        losses, likeliest = position_losses(hidden, torch.tensor([3, 0]), head, tile, predicts=True)
        expected = torch.nn.functional.cross_entropy(hidden @ weight.t(), torch.tensor([3, 0]), reduction="none")
        assert likeliest.tolist() == [1, 1] and torch.allclose(losses, expected)


def test_a_tied_head_adds_its_gradient_to_the_embeddings():
    model = build("gpt2")
    assert model.lm_head.weight is model.transformer.wte.weight
    assert_equal_to_plain(model, make_batch())


def test_an_answer_of_a_decoder_beside_an_encoder_is_scored_alike():
    settings = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": VOCABULARY}
    torch.manual_seed(0)
    config = AutoConfig.for_model("t5", **settings, pad_token_id=0, decoder_start_token_id=0, initializer_factor=3.0)
    batch = make_batch() | {ANSWERS: make_batch()["input_ids"]}
    assert_equal_to_plain(AutoModelForSeq2SeqLM.from_config(config), batch, TASKS["sequence-to-sequence"])


def test_losses_of_rows_equal_the_plain_ones():
    model, batch, counts = build("gemma2"), make_batch(), [4, 0, 5]
    plain = CAUSAL.loss(model)
    chunked = without_logits(plain, model)
    chunked.tile = Tile(2, 16)
    with torch.no_grad():
        expected, found = (one.rows(model, batch, counts).losses for one in (plain, chunked))
    assert torch.allclose(found, expected, rtol=1e-6) and found[1] == 0
    plain.predicts = True
    with torch.no_grad():
        assert chunked.rows(model, batch, counts).predictions.equal(plain.rows(model, batch, counts).predictions)


def test_sixteen_bit_computation_agrees_within_its_rounding():
    model, batch = METHODS["lora"](rank=4).apply(build("llama")), make_batch()
    plain = CAUSAL.loss(model)
    with torch.autocast("cpu", torch.bfloat16):
        expected = plain.total(model, batch)
        found = without_logits(plain, model).total(model, batch)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5) and found.dtype == torch.float32


def test_micro_batch_without_targets_sums_to_zero_and_has_gradients():
    model, batch = build("llama"), make_batch(positions=0)
    total, gradients = loss_and_gradients(without_logits(CAUSAL.loss(model), model), model, batch)
    assert total == 0.0 and not any(gradient.any() for gradient in gradients.values())


def test_no_more_logits_than_one_chunk_exist():
    model, batch, seen = build("llama"), make_batch(), []
    chunked = without_logits(CAUSAL.loss(model), model)
    chunked.tile = Tile(2, 16)

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            head = (FAMILIES["llama"]["hidden_size"], VOCABULARY)
            if isinstance(result, torch.Tensor) and result.shape[-1:] == (VOCABULARY,) and result.shape != head:
                seen.append(result.shape[0])
            return result

    with Watch():
        chunked.total(model, batch).backward()
    assert seen and max(seen) <= 2


def test_a_model_is_as_it_was_afterwards():
    model, batch = build("cohere"), make_batch()
    before = [set(vars(module)) for module in model.modules()]
    model.train()
    state = torch.get_rng_state()
    loss = without_logits(CAUSAL.loss(model), model)
    assert torch.get_rng_state().equal(state) and all(module.training for module in model.modules())
    loss.total(model, batch)
    assert [set(vars(module)) for module in model.modules()] == before
    assert model(input_ids=batch["input_ids"]).logits.shape == (2, 9, VOCABULARY)


def test_the_gradient_is_there_once():
    hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4)
    after = without_logits(CAUSAL.loss(model := build("llama")), model).after
    total = HeadCrossEntropy.apply(hidden, weight, None, torch.tensor([0, 1, 2]), after, Tile(2, 3))
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        total.backward()


def test_logits_that_a_model_writes_into_are_not_taken_for_the_heads():
    model = build("llama")
    forward = model.forward

    def masked(*args, **kwargs):
        found = forward(*args, **kwargs)
        found.logits[..., 0] = -1e4
        return found

    model.forward = masked
    with pytest.raises(UnknownHeadError, match="after its head is not known"):
        without_logits(CAUSAL.loss(model), model)


def test_a_head_with_an_adapter_keeps_the_plain_loss_and_the_report_says_so():
    model = get_peft_model(build("llama"), LoraConfig(target_modules=["lm_head", "q_proj"]))
    report = speed_up(model, make_recipe("auto"))
    (switch,) = [one for one in report.switches if one.name == "loss"]
    assert not switch.used and "not a plain linear layer" in switch.reason
    assert "no loss: the output head is not a plain linear layer" in report.describe()
    assert not isinstance(loss_of(CAUSAL, make_recipe("auto").training.speed, model), ChunkedCrossEntropy)
    with pytest.raises(UsageError, match="training.speed.loss: it is on, but the output head"):
        speed_up(model, make_recipe("on"))


def test_tags_keep_the_plain_loss_because_their_logits_are_small():
    config = tiny_config("bert")
    model, task = BertForTokenClassification(config), TASKS["token-classification"]
    with pytest.raises(UnknownHeadError, match="cost little"):
        without_logits(task.loss(model), model)


def test_a_switch_decides():
    model = build("llama")
    for switch, used in (("auto", True), ("on", True), ("off", False)):
        recipe = make_recipe(switch)
        (one,) = [one for one in speed_up(model, recipe).switches if one.name == "loss"]
        assert one.used is used
        assert isinstance(loss_of(CAUSAL, recipe.training.speed, model), ChunkedCrossEntropy) is used


def test_tiles_are_smaller_for_larger_vocabularies_and_trained_heads():
    assert tile_of(49152, "cpu", trained=False) == CPU_TILE
    assert tile_of(4096, "cpu", trained=True) == Tile(1536, CPU_TILE.outputs)
    assert tile_of(49152, "cpu", trained=True).positions == tile_of(151936, "cpu", trained=True).positions == 128
    assert tile_of(32000, "cuda", trained=False) == Tile(2080, 32000)
    assert tile_of(128256, "cuda", trained=True) == Tile(512, 128256)
