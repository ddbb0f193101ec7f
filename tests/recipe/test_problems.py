"""What a recipe's problems say: file, line, key path, what is wrong, and the nearest known name."""

from __future__ import annotations

import pytest

from .texts import VALID, changed, only_problem, problems_of


def test_the_valid_recipe_has_no_problem():
    assert problems_of(VALID) == []


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("rank: 8", "rank: 0", "5: method.rank: must be a whole number of at least 1, got 0"),
        ("rank: 8", "rank: true", "5: method.rank: must be a whole number of at least 1, got true"),
        ("rank: 8", "rank: 8.5", "5: method.rank: must be a whole number of at least 1, got 8.5"),
        ("rank: 8", "rank: null", "5: method.rank: must be a whole number of at least 1, got null"),
        ("rank: 8", "rank:", "5: method.rank: must be a whole number of at least 1, got null"),
        ("rank: 8", "alpha: 0", "5: method.alpha: must be a number greater than 0, got 0"),
        ("rank: 8", "alpha: -1.5", "5: method.alpha: must be a number greater than 0, got -1.5"),
        ("rank: 8", "alpha: .nan", "5: method.alpha: must be a number greater than 0, got nan"),
        ("rank: 8", "alpha: .inf", "5: method.alpha: must be a number greater than 0, got inf"),
        ("rank: 8", "dropout: 1", "5: method.dropout: must be a number of at least 0 and below 1, got 1"),
        ("rank: 8", "dora: no", "5: method.dora: must be true or false, got 'no'"),
        ("rank: 8", "dora: 1", "5: method.dora: must be true or false, got 1"),
        (
            "rank: 8",
            "targets: 3",
            "5: method.targets: must be one of all-linear, attention or a list, each text, got",
        ),
        ("rank: 8", "targets: [a, 3]", "5: method.targets[1]: must be text, got 3"),
        (
            "rank: 8",
            "targets: atention",
            "5: method.targets: must be one of all-linear, attention or a list, each text, got 'atention'; "
            "did you mean 'attention'?",
        ),
        ("1e-4", "-1e-4", "11: training.learning_rate: must be a number greater than 0, got -0.0001"),
        ("1e-4", "1e999", "11: training.learning_rate: must be a number greater than 0, got inf"),
        (
            "1e-4",
            "'1e-4'",
            "11: training.learning_rate: must be a number greater than 0, got '1e-4'; without quotes it is a number",
        ),
        (
            "steps: 10",
            "steps: 1e1",
            "10: training.steps: must be a whole number of at least 1 or null, got 10.0",
        ),
        ("builtin:tiny", "''", "2: model.name: must be text that is not empty, got ''"),
        ("builtin:tiny", "[a]", "2: model.name: must be text that is not empty, got ['a']"),
        (
            "model:\n  name: builtin:tiny",
            "model: x",
            "1: model: must be a mapping with the keys name, tokenizer, revision, ",
        ),
        ("rank: 8", "rnak: 8", "5: method.rnak: unknown key; did you mean 'rank'?"),
        ("rank: 8", "length: 8", "5: method.length: not a field of method lora, only of prefix"),
        ("rank: 8", "max_length: 8", "5: method.max_length: unknown key; 'max_length' belongs under `data`"),
        ("rank: 8", "zzz: 8", "5: method.zzz: unknown key; known here: type, from, unfreeze, freeze, rank, "),
        ("steps: 10", "step: 10\n  epochs: 1", "10: training.step: unknown key; did you mean 'steps'?"),
        (
            "type: lora",
            "type: lroa",
            "4: method.type: must be one of full, lora, qlora, adapters, prefix, bitfit, ",
        ),
        (
            "type: lora",
            "kind: lora",
            "3: method.type: is required: one of full, lora, qlora, adapters, prefix, bitfit",
        ),
        (
            "type: lora",
            "type: 3",
            "4: method.type: must be one of full, lora, qlora, adapters, prefix, bitfit, got 3",
        ),
    ],
)
def test_each_fault_is_one_line_with_its_place(old, new, line):
    assert only_problem(changed(old, new)).startswith(f"r.yaml:{line}")


@pytest.mark.parametrize(
    ("betas", "line"),
    [
        ("[0.9]", "betas: must be a list of 2, each a number of at least 0 and below 1, got [0.9]"),
        ("[0.9, 0.9, 0.9]", "betas: must be a list of 2, each a number of at least 0 and below 1, got [0.9, 0.9, 0.9]"),
        ("0.9", "betas: must be a list of 2, each a number of at least 0 and below 1, got 0.9"),
        ("[0.9, 2]", "betas[1]: must be a number of at least 0 and below 1, got 2"),
    ],
)
def test_a_list_of_fixed_length_is_described_as_a_whole_or_by_its_wrong_item(betas, line):
    text = changed("steps: 10", f"steps: 10\n  optimizer: {{betas: {betas}}}")
    assert only_problem(text) == f"r.yaml:11: training.optimizer.{line}"


def test_an_unknown_method_is_reported_with_the_nearest_one():
    assert only_problem(changed("type: lora", "type: lroa")).endswith("got 'lroa'; did you mean 'lora'?")


def test_a_missing_section_and_a_missing_field_are_reported():
    lines = [str(problem) for problem in problems_of("model: {}\nmethod: {type: full}\ndata: {train: x}\n")]
    assert lines == [
        "r.yaml:1: model.name: is required: text that is not empty",
        "r.yaml:1: training: is required: a mapping with the keys steps, epochs, batch_size, gradient_accumulation, "
        "learning_rate, schedule, warmup, weight_decay, optimizer, clip, optimizer_in_backward, "
        "gradient_checkpointing, fit, precision, "
        "average, frozen_dropout, speed",
    ]


@pytest.mark.parametrize(("written", "told"), [
    ("8", "memory '8' has no unit; write 8GiB or 8MiB"),
    ("-1.5", "memory '-1.5' must be more than zero"),
    ("true", "must be text that is not empty or null, got true"),
])  # fmt: skip
def test_memory_that_is_a_number_lacks_a_unit(written, told):
    assert told in only_problem(VALID + f"run:\n  memory: {written}\n")


def test_a_union_complains_once_and_says_all_that_it_takes():
    line = only_problem(changed("builtin:docstrings[test]", "-3"))
    assert line == (
        "r.yaml:8: data.evaluation: must be text that is not empty or a list, each text that is not empty or a mapping "
        "with the keys source, weight, columns, template or a whole number of at least 1 or a number greater than 0 "
        "and below 1 or null, got -3"
    )


def test_all_problems_are_reported_together_in_the_order_of_lines():
    text = VALID.replace("rank: 8", "rank: 0").replace("1e-4", "-1").replace("name:", "nmae:")
    text = text.replace("steps: 10", "steps: 3\n  epochs: 2")
    assert [(problem.line, problem.path) for problem in problems_of(text + "sede: 1\n")] == [
        (1, "model.name"),
        (2, "model.nmae"),
        (5, "method.rank"),
        (11, "training.epochs"),
        (12, "training.learning_rate"),
        (13, "sede"),
    ]


def test_no_contradiction_is_reported_for_a_field_that_is_already_wrong():
    text = changed("steps: 10", "steps: 0\n  epochs: 2")
    assert [problem.path for problem in problems_of(text)] == ["training.steps"]


def test_long_values_are_shown_short():
    line = only_problem(changed("rank: 8", f"rank: {'x' * 500}"))
    assert len(line) < 150


def test_every_problem_is_one_line():
    for problem in problems_of(changed("rank: 8", 'rank: "a\\nb"\n  "k\\ney": 3')):
        assert "\n" not in str(problem)


def test_a_wrong_key_of_one_of_several_sources_is_named_alone():
    line = only_problem(changed("builtin:docstrings[train]", "[{source: a.csv, weigth: 2}, b.csv]"))
    assert line == "r.yaml:7: data.train[0].weigth: unknown key; did you mean 'weight'?"
