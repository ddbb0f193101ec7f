"""A batch of prompts is answered as each prompt alone, and as a plain loop over whole forward passes says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, GPT2Config, LlamaConfig, OPTConfig, Qwen2Config

from peftlab.errors import UsageError
from peftlab.evaluation.generate import (
    add_stop_ids,
    evaluation_mode,
    prompt_limit,
    save_generation,
)
from peftlab.methods import LoRA, Prefix, Prompting
from peftlab.recipe.schema import Generation
from tests.evaluation.texts import generate_text

VOCABULARY, EOS = 97, 96
COMMON = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": EOS, "pad_token_id": None}
LLAMA = COMMON | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "llama": lambda: LlamaConfig(num_key_value_heads=2, **LLAMA),
    "qwen2": lambda: Qwen2Config(num_key_value_heads=2, **LLAMA),
    "gpt2": lambda: GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **COMMON),
    "opt": lambda: OPTConfig(
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        max_position_embeddings=64,
        **COMMON | {"pad_token_id": 1},
    ),
}
WRAPPERS = {
    "plain": lambda model: model,
    "lora": lambda model: get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")),
    "prefix": lambda model: get_peft_model(model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)),
    "prompt": lambda model: get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)),
}
PROMPTING = {
    "plain": Prompting(),
    "lora": LoRA().prompting,
    "prefix": Prefix(length=4).prompting,
    "prompt": Prefix(kind="prompt", length=4).prompting,
}
PROMPTS = [np.random.default_rng(length).integers(3, EOS, length).tolist() for length in (3, 14, 5, 9, 5)]


class Numbers:
    """A tokenizer whose text is the ids; end-of-text is also padding."""

    eos_token_id = pad_token_id = EOS

    def decode(self, ids, skip_special_tokens):
        return " ".join(map(str, ids))


def build(family, wrapper):
    torch.manual_seed(0)
    model = WRAPPERS[wrapper](AutoModelForCausalLM.from_config(CONFIGS[family]()))
    for parameter in model.parameters():
        if parameter.dim() > 1:  # large, so that answers vary and every learned token matters
            nn.init.normal_(parameter, std=0.35)
    return model.eval()


@torch.no_grad()
def answer_by_loop(model, prompt, new_tokens):
    ids = list(prompt)
    for _ in range(new_tokens):
        inputs = torch.tensor([ids])
        token = model(input_ids=inputs, attention_mask=torch.ones_like(inputs)).logits[0, -1].argmax().item()
        if token == EOS:
            break
        ids.append(token)
    return " ".join(map(str, ids[len(prompt) :]))


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("family", CONFIGS)
def test_batch_is_answered_as_each_prompt_alone(family, wrapper):
    model = build(family, wrapper)
    settings = Generation(max_new_tokens=8)
    together = generate_text(model, Numbers(), PROMPTS, settings, batch_size=3, prompting=PROMPTING[wrapper])
    assert together == [generate_text(model, Numbers(), [prompt], settings)[0] for prompt in PROMPTS]
    assert together == [answer_by_loop(model, prompt, 8) for prompt in PROMPTS]
    assert len(set(together)) > 1


def test_answer_stops_before_end_of_text():
    model = build("llama", "plain")
    with torch.no_grad():
        model.lm_head.weight[EOS] = 0
    free = generate_text(model, Numbers(), PROMPTS[:1], Generation(max_new_tokens=6))[0].split()
    stop = int(free[3])
    model.generation_config.eos_token_id = [stop]
    cut = generate_text(model, Numbers(), PROMPTS[:1], Generation(max_new_tokens=6))[0].split()
    assert cut == free[: free.index(str(stop))]


def test_end_markers_of_training_stop_generation_beside_the_models_own(tmp_path):
    model = build("llama", "plain")
    with torch.no_grad():
        model.lm_head.weight[EOS] = 0
    settings = Generation(max_new_tokens=6)
    free = generate_text(model, Numbers(), PROMPTS[:1], settings)[0].split()
    add_stop_ids(model, [int(free[3])])
    assert set(model.generation_config.eos_token_id) == {EOS, int(free[3])}
    assert generate_text(model, Numbers(), PROMPTS[:1], settings)[0].split() == free[: free.index(free[3])]
    save_generation(model, tmp_path)
    assert set(GenerationConfig.from_pretrained(tmp_path).eos_token_id) == {EOS, int(free[3])}


def test_an_answer_ends_before_the_first_stop_text(tiny, tokenizer):
    prompt = "# math: sqrt\ndef sqrt(x):\n    return x\n# Summary:"
    (free,) = generate_text(tiny, tokenizer, [prompt], Generation(max_new_tokens=12))
    stop = free[len(free) // 2 : len(free) // 2 + 3]
    before = free[: free.index(stop)].strip()
    for settings, more in ((Generation(max_new_tokens=12, stop=(stop,)), ()), (Generation(max_new_tokens=12), (stop,))):
        assert generate_text(tiny, tokenizer, [prompt], settings, stop=more) == [before]


def test_a_prompt_of_too_many_tokens_keeps_its_lead():
    model, settings = build("llama", "plain"), Generation(max_new_tokens=4)
    long = [i % 90 for i in range(100)]
    kept = [*long[:5], *long[-55:]]
    alone = generate_text(model, Numbers(), [kept], settings)
    assert generate_text(model, Numbers(), [long], settings, leads=[5]) == alone


def test_real_model_writes_text_without_special_tokens(tiny, tokenizer):
    prompts = [f"# math: {name}\ndef {name}(x):\n    return {name}\n# Summary:" for name in ("sqrt", "floor_and_add")]
    answers = generate_text(tiny, tokenizer, prompts, Generation(max_new_tokens=12))
    assert all(answers) and not any("<|" in answer for answer in answers)
    assert answers == generate_text(tiny, tokenizer, prompts, Generation(max_new_tokens=12), batch_size=1)
    assert not any(answer.startswith(prompt) for answer, prompt in zip(answers, prompts, strict=True))


def test_model_defaults_do_not_change_answers():
    model = build("llama", "plain")
    settings = Generation(max_new_tokens=6)
    plain = generate_text(model, Numbers(), PROMPTS, settings)
    model.generation_config.do_sample = True
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.max_new_tokens = 1
    assert generate_text(model, Numbers(), PROMPTS, settings) == plain


@pytest.mark.parametrize("wrapper", ["plain", "lora"])
@pytest.mark.parametrize(
    "setting",
    [
        {"no_repeat_ngram_size": 1},
        {"forced_eos_token_id": 5},
        {"min_new_tokens": 6},
        {"exponential_decay_length_penalty": (1, 9.0)},
        {"encoder_repetition_penalty": 9.0},
        {"num_beams": 4, "length_penalty": -3.0},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_what_a_recipe_does_not_set_is_not_the_models_own(wrapper, setting):
    model = build("llama", wrapper)
    settings = Generation(max_new_tokens=9)
    plain = generate_text(model, Numbers(), PROMPTS, settings)
    base = model if wrapper == "plain" else model.get_base_model()
    for name, value in setting.items():
        setattr(base.generation_config, name, value)
        setattr(model.generation_config, name, value)
    assert generate_text(model, Numbers(), PROMPTS, settings) == plain
    assert all(getattr(base.generation_config, name) == value for name, value in setting.items())


def test_sampling_follows_its_seed_and_leaves_the_random_state():
    model = build("llama", "plain")
    settings = Generation(max_new_tokens=8, temperature=5.0, top_p=0.9)
    state = torch.get_rng_state()
    first, again, other = (generate_text(model, Numbers(), PROMPTS, settings, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_beam_search_is_at_least_as_likely_as_greedy():
    model = build("llama", "plain")

    def likelihood(beams):
        answer = generate_text(model, Numbers(), PROMPTS[:1], Generation(max_new_tokens=5, beams=beams))[0]
        ids = torch.tensor([PROMPTS[0] + [int(one) for one in answer.split()]])
        with torch.no_grad():
            scores = model(input_ids=ids).logits[0].log_softmax(-1)
        start = len(PROMPTS[0])
        return sum(scores[place - 1, ids[0, place]].item() for place in range(start, ids.shape[1]))

    assert likelihood(8) >= likelihood(1) - 1e-4


def test_long_prompt_loses_its_beginning_where_the_model_has_no_more_positions():
    model = build("gpt2", "plain")
    long = PROMPTS[1] * 10
    settings = Generation(max_new_tokens=4)
    assert generate_text(model, Numbers(), [long], settings) == generate_text(model, Numbers(), [long[-60:]], settings)
    with pytest.raises(UsageError, match="max_new_tokens: 64 leave no room for a prompt in the model's 64 positions"):
        generate_text(model, Numbers(), [long], Generation(max_new_tokens=64))


def test_a_methods_own_positions_leave_fewer_to_the_prompt():
    model = build("gpt2", "plain")
    settings, reserved = Generation(max_new_tokens=4), Prompting(reserved=20)
    assert prompt_limit(model, settings) == 60
    assert prompt_limit(model, settings, reserved) == 40
    with pytest.raises(UsageError, match="max_new_tokens: 44 leave no room for a prompt in the model's 64 positions"):
        prompt_limit(model, Generation(max_new_tokens=44), reserved)


@pytest.mark.parametrize("unlimited", [None, -1, 0])
def test_a_config_without_positions_sets_no_limit_to_a_prompt(unlimited):
    model = build("llama", "plain")
    vars(model.config)["max_position_embeddings"] = unlimited
    assert prompt_limit(model, Generation(max_new_tokens=4), Prompting(reserved=4)) > 10**9
    answer = generate_text(model, Numbers(), PROMPTS[:1], Generation(max_new_tokens=4))
    assert answer == [answer_by_loop(model, PROMPTS[0], 4)]


def test_every_module_gets_its_own_mode_back():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Dropout()))
    model.train()
    model[1][0].eval()
    with pytest.raises(KeyError), evaluation_mode(model):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert [module.training for module in model.modules()] == [True, True, True, False, True]
