"""Held-out metrics of real models: exact, alike however rows are batched or spread, and without side effects."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import replace

import pytest
import sacrebleu
import torch
from transformers import BertConfig, BertForSequenceClassification

from peftlab.data.dataset import load_data
from peftlab.errors import DataError
from peftlab.evaluation.evaluate import evaluate, is_undefined
from peftlab.evaluation.generate import Answer, generate_examples
from peftlab.recipe.schema import Data, Evaluation
from peftlab.tasks import TASKS
from tests.worlds import PretendedWorld

TEXT = Evaluation(
    metrics=("loss", "perplexity", "bits_per_byte", "exact_match", "bleu", "rougeL"),
    generation={"max_new_tokens": 6, "rows": 5, "examples": 2},
)


@pytest.fixture(scope="module")
def summaries(tokenizer):
    data = Data(train="builtin:docstrings", evaluation="builtin:docstrings", train_rows=1, evaluation_rows=12)
    return load_data(data, tokenizer, TASKS["causal-lm"], 0)


@pytest.fixture(scope="module")
def topics(tokenizer):
    source = "builtin:topics"
    data = Data(train=source, evaluation=source, format="classification", evaluation_rows=30, train_rows=1)
    return load_data(data, tokenizer, TASKS["sequence-classification"], 0)


@pytest.fixture(scope="module")
def classifier(topics, tokenizer):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2
    )
    config.num_labels = len(topics.labels)
    return BertForSequenceClassification(config)


def run(model, dataset, settings, tokenizer, batch_size=4, **options):
    return measure(model, dataset, settings, tokenizer, batch_size, **options).metrics


def measure(model, dataset, settings, tokenizer, batch_size=4, **options):
    options = {"world": PretendedWorld(), "loss": dataset.task.loss(model)} | options
    return evaluate(model, dataset, settings, tokenizer=tokenizer, batch_size=batch_size, **options)


def test_loss_is_that_of_every_supervised_token_alone(tiny, tokenizer, summaries):
    total, count = 0.0, 0
    for row in summaries.evaluation:
        with torch.no_grad():
            logits = tiny(input_ids=torch.tensor(row.input_ids[None], dtype=torch.long)).logits[0].double()
        for place in range(1, len(row.labels)):
            if row.labels[place] >= 0:
                total -= logits[place - 1].log_softmax(-1)[row.labels[place]].item()
                count += 1
    measured = run(tiny, summaries, Evaluation(metrics=("loss", "perplexity")), tokenizer)
    assert measured["loss"] == pytest.approx(total / count, rel=1e-6)
    assert measured["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    assert list(measured) == ["loss", "perplexity"]


def test_batch_size_does_not_change_the_loss(tiny, tokenizer, summaries):
    losses = [run(tiny, summaries, Evaluation(), tokenizer, batch_size=size)["loss"] for size in (1, 5, 12)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_two_processes_measure_exactly_what_one_does(tiny, tokenizer, summaries, temperature):
    whole, second = [], []

    def record_alone(items):
        whole.append(items)
        return items

    def record_second(items):
        second.append(items)
        return whole[len(second) - 1]

    def join(items):
        other = second.pop(0)
        assert items and other
        return other + items

    generation = TEXT.generation.model_copy(update={"temperature": temperature})
    settings = TEXT.model_copy(update={"generation": generation})

    def measured(world):
        return run(tiny, summaries, settings, tokenizer, batch_size=3, world=world)

    alone = measured(PretendedWorld(gather=record_alone))
    assert measured(PretendedWorld(1, 2, record_second)) == alone
    assert measured(PretendedWorld(0, 2, join)) == alone
    assert not second


def test_class_metrics_are_those_of_each_row_alone(classifier, tokenizer, topics):
    settings = Evaluation(metrics=("accuracy", "loss", "f1_macro", "matthews"))
    measured = run(classifier, topics, settings, tokenizer, batch_size=7)
    classifier.eval()
    with torch.no_grad():
        logits = [classifier(torch.tensor(r.input_ids[None], dtype=torch.long)).logits[0] for r in topics.evaluation]
    right = [one.argmax().item() == row.labels for one, row in zip(logits, topics.evaluation, strict=True)]
    losses = [-one.log_softmax(-1)[row.labels].item() for one, row in zip(logits, topics.evaluation, strict=True)]
    assert measured["accuracy"] == pytest.approx(sum(right) / 30)
    assert measured["loss"] == pytest.approx(sum(losses) / 30, rel=1e-5)
    assert list(measured) == ["accuracy", "loss", "f1_macro", "matthews"]


def test_dropout_and_random_state_are_left_as_they_were(classifier, tokenizer, topics):
    classifier.train()
    classifier.bert.encoder.eval()
    state, modes = torch.get_rng_state(), [module.training for module in classifier.modules()]
    first = run(classifier, topics, Evaluation(), tokenizer)
    assert first == run(classifier, topics, Evaluation(), tokenizer)
    assert [module.training for module in classifier.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_no_gradient_is_kept(tiny, tokenizer, summaries):
    run(tiny, summaries, Evaluation(), tokenizer)
    assert all(parameter.grad is None for parameter in tiny.parameters())


def test_examples_show_prompt_reference_and_output(tiny, tokenizer, summaries):
    examples = generate_examples(tiny, summaries, TEXT, tokenizer)
    assert [one["prompt"] for one in examples] == [prompt.text for prompt in summaries.prompts[:2]]
    assert [one["reference"] for one in examples] == [prompt.references[0] for prompt in summaries.prompts[:2]]
    assert all(isinstance(one["output"], str) for one in examples)


def test_every_answer_is_kept_with_its_references_and_its_own_scores(tiny, tokenizer, summaries):
    found = measure(tiny, summaries, TEXT, tokenizer)
    rows = found.texts.rows
    assert [row["references"] for row in rows] == [list(prompt.references) for prompt in summaries.prompts[:5]]
    outputs, references = [row["output"] for row in rows], [row["references"] for row in rows]
    assert found.metrics["bleu"] == sacrebleu.corpus_bleu(outputs, [[known[0] for known in references]]).score
    assert found.metrics["rougeL"] == pytest.approx(sum(row["scores"]["rougeL"] for row in rows) / 5)
    assert found.signatures["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert found.texts.scores.rows == 5 and "bleu_hits_4" in found.texts.scores.sums


def always_one(model, tokenizer, prompts, *_, **__):
    return [Answer("one", True)] * len(prompts)


def test_a_metric_without_a_value_is_none_with_its_reason(tiny, tokenizer, summaries, monkeypatch):
    monkeypatch.setattr("peftlab.evaluation.evaluate.answer_prompts", always_one)
    short = replace(summaries, prompts=[replace(prompt, references=("one",)) for prompt in summaries.prompts])
    found = measure(tiny, short, TEXT, tokenizer)
    assert found.metrics["bleu"] is None and "four tokens" in found.undefined["bleu"]
    assert found.metrics["exact_match"] == 1.0 and found.texts.rows[4]["scores"]["bleu"] == pytest.approx(100)
    assert list(found.undefined) == ["bleu"] and not is_undefined("loss", math.nan)


def test_bits_per_byte_are_of_the_supervised_text(tiny, tokenizer, summaries):
    found = measure(tiny, summaries, Evaluation(metrics=("loss", "bits_per_byte", "word_perplexity")), tokenizer)
    texts = [tokenizer.decode([i for i in row.labels if i >= 0], skip_special_tokens=True)
             for row in summaries.evaluation]  # fmt: skip
    loss = sum(found.scores.loss)
    assert found.metrics["bits_per_byte"] == pytest.approx(loss / sum(len(t.encode()) for t in texts) / math.log(2))
    assert found.metrics["word_perplexity"] == pytest.approx(math.exp(loss / sum(len(t.split()) for t in texts)))


def test_autocast_is_entered_for_losses_and_for_text(tiny, tokenizer, summaries):
    entered = []

    class Watched(PretendedWorld):
        @contextmanager
        def autocast(self, precision):
            entered.append(precision)
            yield

    settings = Evaluation(metrics=("loss", "bleu"), generation=TEXT.generation)
    run(tiny, summaries, settings, tokenizer, world=Watched())
    assert len(entered) == 3, "the losses, and two batches of answers"


def test_without_evaluation_rows_there_is_nothing_to_measure(tiny, tokenizer):
    dataset = load_data(Data(train="builtin:docstrings", train_rows=2), tokenizer, TASKS["causal-lm"], 0)
    assert run(tiny, dataset, Evaluation(), tokenizer) == {}


def test_the_test_part_and_general_text_are_measured_by_themselves(tiny, tokenizer):
    source = "builtin:docstrings"
    data = Data(
        train=source,
        evaluation=source,
        evaluation_rows=3,
        test=f"{source}[test[-4:]]",
        train_rows=2,
        general="builtin:prose[test[:3]]",
        max_length=64,
    )
    dataset = load_data(data, tokenizer, TASKS["causal-lm"], 0)
    twin = load_data(
        Data(train=source, evaluation=f"{source}[test[-4:]]", train_rows=2, max_length=64),
        tokenizer,
        TASKS["causal-lm"],
        0,
    )
    found = measure(tiny, dataset, Evaluation(), tokenizer, part="test")
    scores = found.scores
    assert found == measure(tiny, twin, Evaluation(), tokenizer)
    assert len(scores.loss) == len(dataset.test) == 4 and scores.prediction is None and not scores.sums
    general = measure(tiny, dataset, Evaluation(metrics=("bleu", "bits_per_byte")), tokenizer, part="general")
    assert list(general.metrics) == ["loss", "perplexity", "bits_per_byte"] and len(dataset.general) > 3
    assert general.scores.count == [len(row.input_ids) - 1 for row in dataset.general]


def test_scores_are_each_row_alone_and_in_the_order_of_the_rows(classifier, tokenizer, topics):
    scores = measure(classifier, topics, Evaluation(), tokenizer, batch_size=7).scores
    columns = (scores.prediction, scores.label)
    for row, loss, prediction, label in zip(topics.evaluation, scores.loss, *columns, strict=True):
        with torch.no_grad():
            logits = classifier.eval()(torch.tensor(row.input_ids[None], dtype=torch.long)).logits[0]
        assert loss == pytest.approx(-logits.log_softmax(-1)[row.labels].item(), rel=1e-4)
        assert (prediction, label) == (logits.argmax().item(), row.labels)


def test_text_metric_without_a_prompt_is_one_line(tiny, tokenizer):
    data = Data(train="builtin:topics", evaluation="builtin:topics", format="text", train_rows=2, evaluation_rows=2)
    dataset = load_data(data, tokenizer, TASKS["causal-lm"], 0)
    with pytest.raises(DataError, match="text metrics need evaluation rows with a prompt and its answer"):
        run(tiny, dataset, Evaluation(metrics=("bleu",)), tokenizer)
