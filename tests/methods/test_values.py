"""What the methods compute, against layers recomputed by hand and against peer code on equal weights."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from peftlab.methods import Adapters, BitFit, Full, LoRA, Prefix
from peftlab.parameters.trainable import named_parameters, trainable_parameters
from tests.methods.tiny import head_names, tiny_batch, tiny_model

CLASSIFY = "sequence-classification"


def randomise(model) -> None:
    """Give what trains random values, so that it matters."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.copy_(0.3 * torch.randn_like(parameter))


def bottleneck(weights, name, x):
    d, u = (f"{name}.adapter.{part}" for part in ("down", "up"))
    inner = F.gelu(x @ weights[f"{d}.weight"].T + weights[f"{d}.bias"])
    return inner @ weights[f"{u}.weight"].T + weights[f"{u}.bias"]


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_lora_adds_scaled_products_to_the_weights(family, rslora):
    rank, alpha = 4, 6.0
    model = LoRA(rank=rank, alpha=alpha, rslora=rslora).apply(tiny_model(family)).eval()
    randomise(model)
    weights, merged = named_parameters(model), tiny_model(family)
    scale = alpha / (math.sqrt(rank) if rslora else rank)
    with torch.no_grad():
        for name, parameter in merged.named_parameters():
            owner = name.removesuffix(".weight")
            if f"{owner}.lora_A.weight" in weights:
                update = scale * weights[f"{owner}.lora_B.weight"] @ weights[f"{owner}.lora_A.weight"]
                parameter.add_(update.T if family == "gpt2" else update)
    torch.testing.assert_close(model(**tiny_batch()).logits, merged(**tiny_batch()).logits, rtol=1e-4, atol=1e-5)


def test_dora_scales_each_output_to_its_trained_magnitude():
    model = LoRA(rank=2, alpha=3.0, dora=True).apply(tiny_model("llama")).eval()
    randomise(model)
    weights, merged = named_parameters(model), tiny_model("llama")
    with torch.no_grad():
        for name, parameter in merged.named_parameters():
            owner = name.removesuffix(".weight")
            if f"{owner}.lora_A.weight" in weights:
                a, b = (weights[f"{owner}.lora_{part}.weight"] for part in "AB")
                direction = parameter + 1.5 * b @ a
                magnitude = weights[f"{owner}.lora_magnitude_vector.weight"]
                parameter.copy_(magnitude[:, None] * direction / direction.norm(dim=1, keepdim=True))
    torch.testing.assert_close(model(**tiny_batch()).logits, merged(**tiny_batch()).logits, rtol=1e-4, atol=1e-5)


def llama_by_hand(model, method, ids):
    """Recompute a tiny Llama with adapters; attention itself is the model's own code."""
    weights, inner = named_parameters(model), model.model
    hidden = weights["model.embed_tokens.weight"][ids]
    positions = torch.arange(ids.shape[1])[None]
    rotary = inner.rotary_emb(hidden, positions)
    causal = torch.full((ids.shape[1], ids.shape[1]), float("-inf")).triu(1)[None, None]
    for index, layer in enumerate(inner.layers):
        base = f"model.layers.{index}"
        attention, _ = layer.self_attn(layer.input_layernorm(hidden), position_embeddings=rotary, attention_mask=causal)
        hidden = hidden + attention
        x = layer.post_attention_layernorm(hidden)
        w = {part: weights[f"{base}.mlp.{part}_proj.weight"] for part in ("gate", "up", "down")}
        y = (F.silu(x @ w["gate"].T) * (x @ w["up"].T)) @ w["down"].T
        y = y + bottleneck(weights, f"{base}.mlp", x if method.placement == "parallel" else y)
        hidden = hidden + y
    return model.lm_head(inner.norm(hidden))


@pytest.mark.parametrize("placement", ["pfeiffer", "parallel"])
def test_llama_adapters_are_the_hand_computed_layers(placement):
    method = Adapters(bottleneck=5, placement=placement)
    model = method.apply(tiny_model("llama")).eval()
    randomise(model)
    ids = tiny_batch()["input_ids"][:1]
    torch.testing.assert_close(model(input_ids=ids).logits, llama_by_hand(model, method, ids), rtol=1e-4, atol=1e-5)


def test_houlsby_on_llama_also_changes_the_attentions_output():
    model = Adapters(bottleneck=5).apply(tiny_model("llama")).eval()
    randomise(model)
    seen = {}
    attention = model.model.layers[0].self_attn
    attention.o_proj.base_layer.register_forward_hook(lambda m, i, o: seen.update(projected=o))
    attention.register_forward_hook(lambda m, i, o: seen.update(output=o[0]))
    model(**tiny_batch())
    name, projected = "model.layers.0.self_attn.o_proj", seen["projected"]
    torch.testing.assert_close(seen["output"], projected + bottleneck(named_parameters(model), name, projected))


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer", "parallel"])
def test_bert_adapters_are_the_hand_computed_layer(placement):
    model = Adapters(bottleneck=5, placement=placement).apply(tiny_model("bert", "sequence-classification")).eval()
    randomise(model)
    weights, seen = named_parameters(model), {}
    layer, base = model.bert.encoder.layer[0], "bert.encoder.layer.0"
    layer.register_forward_pre_hook(lambda m, args: seen.update(x=args[0]))
    layer.attention.self.register_forward_hook(lambda m, i, o: seen.update(context=o[0]))
    layer.register_forward_hook(lambda m, i, o: seen.update(output=o[0] if isinstance(o, tuple) else o))
    model(input_ids=tiny_batch()["input_ids"])

    def dense(name, x):
        return x @ weights[f"{base}.{name}.weight"].T + weights[f"{base}.{name}.bias"]

    def norm(name, x):
        return F.layer_norm(x, (32,), weights[f"{base}.{name}.weight"], weights[f"{base}.{name}.bias"], 1e-12)

    attended = dense("attention.output.dense", seen["context"])
    if placement == "houlsby":
        attended = attended + bottleneck(weights, f"{base}.attention.output.dropout", attended)
    x = norm("attention.output.LayerNorm", attended + seen["x"])
    y = dense("output.dense", F.gelu(dense("intermediate.dense", x)))
    y = y + bottleneck(weights, f"{base}.output.dropout", x if placement == "parallel" else y)
    torch.testing.assert_close(seen["output"], norm("output.LayerNorm", y + x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["opt", "gpt_neox", "phi", "distilbert", "gpt2"])
def test_parallel_adapter_reads_what_the_feed_forward_reads(family):
    task = "sequence-classification" if family == "distilbert" else "causal-lm"
    model = Adapters(bottleneck=5, placement="parallel").apply(tiny_model(family, task)).eval()
    first = {"opt": "fc1", "gpt_neox": "dense_h_to_4h", "phi": "fc1", "distilbert": "lin1", "gpt2": "c_fc"}[family]
    read, calls = {}, []
    for name, module in model.named_modules():
        if name.endswith(first) or name.endswith(".adapter"):
            module.register_forward_pre_hook(lambda m, args, name=name: read.update({name: args[0]}))
            calls.append(name)
    model(**tiny_batch())
    projections = [name for name in calls if name.endswith(first)]
    adapters = [name for name in calls if name.endswith(".adapter")]
    assert len(projections) == len(adapters) == 2
    for projection, adapter in zip(projections, adapters, strict=True):
        assert torch.equal(read[projection], read[adapter])


def test_named_modules_adapt_an_unknown_architecture():
    model = torch.nn.ModuleDict({"encoder": torch.nn.Linear(6, 4), "decoder": torch.nn.Linear(4, 6)})
    model.forward = lambda x: model["decoder"](model["encoder"](x))
    x, plain = torch.randn(3, 6), copy.deepcopy(model)
    adapted = Adapters(bottleneck=2, modules=("encoder",)).apply(model)
    randomise(adapted)
    hidden = plain["encoder"](x)
    hidden = hidden + bottleneck(named_parameters(adapted), "encoder", hidden)
    torch.testing.assert_close(adapted(x), plain["decoder"](hidden))


def loss_of(model):
    return model(**tiny_batch()).logits.square().mean()


@pytest.mark.parametrize(("family", "task"), [("gpt2", "causal-lm"), ("bert", "sequence-classification")])
def test_bitfit_gradients_are_those_of_the_biases_in_full_fine_tuning(family, task):
    partial, full = (method.apply(tiny_model(family, task)) for method in (BitFit(), Full()))
    loss_of(partial).backward()
    loss_of(full).backward()
    everything, biases = trainable_parameters(full), trainable_parameters(partial)
    assert set(biases) == {name for name in everything if name.endswith("bias")}
    for name, bias in biases.items():
        torch.testing.assert_close(bias.grad, everything[name].grad)


def test_added_biases_shift_the_outputs_of_their_layers():
    model = BitFit(add_missing=True).apply(tiny_model("llama")).eval()
    projection = model.model.layers[1].mlp.up_proj
    randomise(model)
    x = torch.randn(2, 32)
    torch.testing.assert_close(projection(x), x @ projection.weight.T + projection.bias)
    assert projection.bias.requires_grad and not projection.weight.requires_grad


def test_prefix_is_keys_and_values_before_the_tokens():
    """The oracle is the plain model on its own cache: a prefix that holds real tokens' keys and values."""
    base, ids = tiny_model("gpt2"), tiny_batch()["input_ids"][:1]
    start, rest = ids[:, :4], ids[:, 4:]
    cache = base(input_ids=start, use_cache=True).past_key_values
    expected = tiny_model("gpt2")(input_ids=ids).logits[:, 4:]
    model = Prefix(length=4).apply(base).eval()
    flat = [t[0].permute(1, 0, 2).reshape(4, -1) for layer in cache.layers for t in (layer.keys, layer.values)]
    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight.copy_(torch.cat(flat, dim=1))
    logits = model(input_ids=rest, attention_mask=torch.ones_like(rest)).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("family", "task"), [("llama", "causal-lm"), ("gemma", CLASSIFY), ("gpt_neox", "causal-lm")])
def test_prefix_starts_as_tokens_before_the_input(family, task):
    """The oracle is the plain model that reads the drawn tokens first."""
    base, ids = tiny_model(family, task), tiny_batch()["input_ids"][:1]
    prefixed = tiny_model(family, task)
    torch.manual_seed(4)
    drawn = torch.randint(0, 67, (3,))
    torch.manual_seed(4)
    model = Prefix(length=3).apply(prefixed).eval()
    expected = base(input_ids=torch.cat([drawn[None], ids], dim=1)).logits
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(logits, expected[:, 3:] if task == "causal-lm" else expected, rtol=1e-4, atol=1e-5)


def test_encoder_prefix_starts_as_keys_and_values_of_tokens():
    base = tiny_model("bert", CLASSIFY)
    torch.manual_seed(4)
    drawn = torch.randint(0, 67, (3,))
    hidden = base.bert.embeddings(drawn[None])[0]
    attention = base.bert.encoder.layer[0].attention.self
    expected = torch.cat([attention.key(hidden), attention.value(hidden)], dim=1)
    torch.manual_seed(4)
    model = Prefix(length=3).apply(base)
    torch.testing.assert_close(model.prompt_encoder["default"].embedding.weight[:, :64], expected)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_prefix_classifier_is_the_body_with_a_prefix_and_the_head(family):
    model = tiny_model(family, "sequence-classification")
    model = Prefix(length=3).apply(model, head_names(model)).eval()
    batch = tiny_batch()
    body, head = model.get_submodule(f"base_model.{family}"), model.base_model.classifier
    mask = torch.cat([torch.ones(3, 3, dtype=torch.long), batch["attention_mask"]], dim=1)
    output = body(input_ids=batch["input_ids"], attention_mask=mask, past_key_values=model.get_prompt(3))
    expected = head(output.pooler_output if family == "bert" else output.last_hidden_state)
    torch.testing.assert_close(model(**batch).logits, expected)


def test_prompt_is_embeddings_before_the_tokens():
    base, ids = tiny_model("llama"), tiny_batch()["input_ids"][:1]
    expected = tiny_model("llama")(input_ids=ids).logits[:, 4:]
    model = Prefix(kind="prompt", length=4).apply(base).eval()
    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight.copy_(base.model.embed_tokens.weight[ids[0, :4]])
    rest = ids[:, 4:]
    logits = model(input_ids=rest, attention_mask=torch.ones_like(rest)).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_start_follows_the_seed(kind):
    def start(seed):
        base = tiny_model("llama")
        torch.manual_seed(seed)
        return Prefix(kind=kind).apply(base).prompt_encoder["default"].embedding.weight

    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_generation_with_a_cache_is_greedy_search_without_one(kind):
    model = Prefix(kind=kind, length=3).apply(tiny_model("llama")).eval()
    ids = tiny_batch()["input_ids"][:1]
    expected = ids
    for _ in range(5):
        logits = model(input_ids=expected, attention_mask=torch.ones_like(expected)).logits
        expected = torch.cat([expected, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    written = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, eos_token_id=None
    )
    assert torch.equal(written, expected)
