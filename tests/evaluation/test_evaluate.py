"""Held-out metrics of real models: exact, alike however rows are batched or spread, and without side effects."""

from __future__ import annotations

import math
from contextlib import contextmanager

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from peftlab.data.dataset import load_data
from peftlab.errors import DataError
from peftlab.evaluation.evaluate import evaluate
from peftlab.evaluation.generate import generate_examples
from peftlab.recipe.schema import Data, Evaluation
from peftlab.tasks import TASKS
from tests.worlds import PretendedWorld

TEXT = Evaluation(
    metrics=("loss", "perplexity", "exact_match", "bleu", "rouge"),
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
    return measure(model, dataset, settings, tokenizer, batch_size, **options)[0]


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


def test_two_processes_measure_exactly_what_one_does(tiny, tokenizer, summaries):
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

    def measured(world):
        return run(tiny, summaries, TEXT, tokenizer, batch_size=3, world=world)

    alone = measured(PretendedWorld(gather=record_alone))
    assert measured(PretendedWorld(1, 2, record_second)) == alone
    assert measured(PretendedWorld(0, 2, join)) == alone
    assert not second


def test_class_metrics_are_those_of_each_row_alone(classifier, tokenizer, topics):
    settings = Evaluation(metrics=("accuracy", "loss", "f1", "matthews"))
    measured = run(classifier, topics, settings, tokenizer, batch_size=7)
    classifier.eval()
    with torch.no_grad():
        logits = [classifier(torch.tensor(r.input_ids[None], dtype=torch.long)).logits[0] for r in topics.evaluation]
    right = [one.argmax().item() == row.labels for one, row in zip(logits, topics.evaluation, strict=True)]
    losses = [-one.log_softmax(-1)[row.labels].item() for one, row in zip(logits, topics.evaluation, strict=True)]
    assert measured["accuracy"] == pytest.approx(sum(right) / 30)
    assert measured["loss"] == pytest.approx(sum(losses) / 30, rel=1e-5)
    assert list(measured) == ["accuracy", "loss", "f1", "matthews"]


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


def test_autocast_is_entered_for_losses_and_for_text(tiny, tokenizer, summaries):
    entered = []

    class Watched(PretendedWorld):
        @contextmanager
        def autocast(self, precision):
            entered.append(precision)
            yield

    settings = Evaluation(metrics=("loss", "bleu"), generation=TEXT.generation)
    run(tiny, summaries, settings, tokenizer, world=Watched())
    assert len(entered) == 2


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
    metrics, scores = measure(tiny, dataset, Evaluation(), tokenizer, part="test")
    assert (metrics, scores) == measure(tiny, twin, Evaluation(), tokenizer)
    assert len(scores.loss) == len(dataset.test) == 4 and scores.prediction is None and not scores.sums
    general, text_scores = measure(tiny, dataset, Evaluation(metrics=("bleu",)), tokenizer, part="general")
    assert list(general) == ["loss", "perplexity"] and text_scores.count == [63, 63, 63]


def test_scores_are_each_row_alone_and_in_the_order_of_the_rows(classifier, tokenizer, topics):
    _, scores = measure(classifier, topics, Evaluation(), tokenizer, batch_size=7)
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
