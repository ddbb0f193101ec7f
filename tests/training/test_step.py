from __future__ import annotations

import pytest
import torch

from peftlab.data.batches import Padded
from peftlab.data.rows import BatchesAhead, ShuffledRows
from peftlab.errors import DivergedError, StorageError
from peftlab.optimization.finite import FiniteGuard
from peftlab.optimization.step import StepResult, clip_gradients, optimizer_step
from peftlab.parameters.trainable import trainable_parameters
from tests.training.small import ragged_rows, small_setup, tiny_llama


def gradients_of_first_step(**training) -> dict[str, torch.Tensor]:
    setup = small_setup(**training)
    found: dict[str, torch.Tensor] = {}

    def keep(result: StepResult) -> None:
        found.update({name: p.grad.clone() for name, p in trainable_parameters(setup.model).items()})

    optimizer_step(setup, setup.rows.batches(1), setup.rows.count(1).targets, before_update=keep)
    return found


def test_four_micro_batches_of_two_give_the_gradients_of_one_batch_of_eight():
    whole = gradients_of_first_step(batch_size=8)
    split = gradients_of_first_step(batch_size=2, gradient_accumulation=4)
    assert whole.keys() == split.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(split[name], gradient, rtol=1e-5, atol=1e-7)


def test_the_gradient_is_that_of_the_mean_over_all_supervised_tokens():
    """Oracle: rows one by one, unpadded, their summed losses divided by their tokens together."""
    setup = small_setup(batch_size=4)
    model = setup.model
    losses, tokens = [], 0
    for i in setup.rows.indices(1, 0, 0):
        row = setup.rows.rows[i]
        ids, labels = (torch.tensor(x[None].astype("int64")) for x in (row.input_ids, row.labels))
        logits = model(input_ids=ids).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum", ignore_index=-100))
        tokens += int((labels[0, 1:] != -100).sum())
    (sum(losses) / tokens).backward()
    for name, gradient in gradients_of_first_step(batch_size=4).items():
        torch.testing.assert_close(gradient, trainable_parameters(model)[name].grad, rtol=1e-5, atol=1e-7)


def test_a_step_has_the_same_rows_however_it_is_split_over_processes_and_micro_batches():
    rows = ragged_rows(13)

    def rows_of(step, batch_size, accumulation, processes):
        splits = [
            ShuffledRows(rows, Padded(0), batch_size, accumulation, p, processes, seed=3) for p in range(processes)
        ]
        assert len({split.count(step) for split in splits}) == 1
        return sorted(i for s in splits for m in range(accumulation) for i in s.indices(step, m, s.process))

    for step in (1, 2, 5):
        assert rows_of(step, 4, 1, 1) == rows_of(step, 2, 2, 1) == rows_of(step, 2, 1, 2) == rows_of(step, 1, 2, 2)


def test_an_epoch_of_steps_has_every_row_once():
    rows = ShuffledRows(ragged_rows(12), Padded(0), 2, 2, 0, 1, seed=0)
    taken = [i for step in (1, 2, 3) for micro in (0, 1) for i in rows.indices(step, micro, 0)]
    assert sorted(taken) == list(range(12))


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_its_rows():
    model = tiny_llama()
    setup = small_setup(model, batch_size=2, gradient_accumulation=2)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    guard = FiniteGuard(setup, setup.rows)
    rows = sorted(i for micro in (0, 1) for i in setup.rows.indices(1, micro, 0))
    with pytest.raises(DivergedError, match=f"step 1: the loss.*rows {', '.join(map(str, rows))}"):
        optimizer_step(
            setup,
            setup.rows.batches(1),
            setup.rows.count(1).targets,
            before_update=lambda result: guard.observe(1, result),
        )
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name], rtol=0, atol=0, equal_nan=True)


def test_only_the_bad_micro_batch_is_named():
    setup = small_setup(batch_size=2, gradient_accumulation=2)
    losses = torch.tensor([1.0, float("inf")])
    bad = sorted(setup.rows.indices(1, 1, 0))
    with pytest.raises(DivergedError, match=f"rows {bad[0]}, {bad[1]}\\."):
        FiniteGuard(setup, setup.rows).observe(1, StepResult(losses, torch.tensor(1.0)))


def test_clipping_scales_to_the_limit_and_reports_the_norm_before():
    setup = small_setup(batch_size=4, clip=0.01)
    (batch,) = setup.rows.batches(1)
    (setup.loss.total(setup.model, batch) / len(batch["targets"])).backward()
    gradients = [p.grad.clone() for p in setup.model.parameters()]
    norm = clip_gradients(setup)
    expected = torch.sqrt(sum((g.double() ** 2).sum() for g in gradients))
    torch.testing.assert_close(norm.double(), expected, rtol=1e-5, atol=0)
    after = torch.sqrt(sum((p.grad.double() ** 2).sum() for p in setup.model.parameters()))
    assert after == pytest.approx(0.01, rel=1e-3)


@pytest.fixture
def broken_from_the_third_step(monkeypatch):
    """A setup with a fused optimiser as on a GPU, whose third step's rows make the loss not finite."""
    monkeypatch.setattr("peftlab.optimization.skipping.READ_AT_ONCE", ())
    setup = small_setup(batch_size=2)
    parameters = list(setup.model.parameters())
    setup.optimizer = torch.optim.AdamW([{"params": parameters}], lr=1e-2, fused=True)
    total = setup.loss.total
    bad = setup.rows.batches(3)[0]["input_ids"]

    def spoiled(model, batch):
        same = batch["input_ids"].shape == bad.shape and torch.equal(batch["input_ids"], bad)
        return total(model, batch) * (float("nan") if same else 1.0)

    setup.loss.total = spoiled
    return setup


def test_a_bad_step_is_read_later_and_neither_it_nor_any_after_it_changes_a_weight(broken_from_the_third_step):
    """Oracle: the weights after the second step; torch's fused optimisers skip an update by a flag on the device."""
    setup = broken_from_the_third_step
    guard = FiniteGuard(setup, setup.rows)
    assert guard.deferred
    kept = []
    for step in range(1, 6):
        optimizer_step(
            setup,
            setup.rows.batches(step),
            setup.rows.count(step).targets,
            before_update=lambda result, step=step: guard.observe(step, result),
        )
        if step <= 2:
            guard.check()
        kept.append([p.detach().clone() for p in setup.model.parameters()])
    for later in kept[2:]:
        for before, after in zip(kept[1], later, strict=True):
            torch.testing.assert_close(after, before, rtol=0, atol=0)
    rows = ", ".join(map(str, sorted(setup.rows.numbers(3)[0])))
    with pytest.raises(DivergedError, match=f"step 3: the loss is not finite .*rows {rows}\\. No weight was changed"):
        guard.check()


def test_a_bad_step_on_the_cpu_ends_the_run_at_once_and_changes_no_weight():
    setup = small_setup(batch_size=2)
    assert all(group["fused"] for group in setup.optimizer.param_groups)
    before = [parameter.detach().clone() for parameter in setup.model.parameters()]
    guard, total = FiniteGuard(setup, setup.rows), setup.loss.total
    setup.loss.total = lambda model, batch: total(model, batch) * float("nan")
    with pytest.raises(DivergedError, match="step 1: the loss is not finite"):
        optimizer_step(setup, setup.rows.batches(1), 1, before_update=lambda result: guard.observe(1, result))
    assert all(torch.equal(one, other) for one, other in zip(setup.model.parameters(), before, strict=True))


def test_batches_collated_ahead_are_those_of_their_step():
    rows = small_setup(batch_size=2, gradient_accumulation=2).rows
    staged = []

    def stage(batch):
        staged.append(batch)
        return batch

    with BatchesAhead(rows, 4, stage) as ahead:
        for step in (2, 3, 4):
            for found, expected in zip(ahead.take(step), rows.batches(step), strict=True):
                assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert len(staged) == 6  # nothing beyond the last step


def test_an_error_in_the_thread_that_collates_is_raised_at_its_step():
    rows = small_setup(batch_size=2).rows
    rows.rows = [*rows.rows[:1], *([None] * 11)]
    with BatchesAhead(rows, 4, lambda batch: batch) as ahead, pytest.raises(AttributeError):
        ahead.take(1)


def test_rows_restore_only_their_own_order():
    rows = ShuffledRows(ragged_rows(12), Padded(0), 2, 2, 0, 1, seed=0)
    rows.restore(rows.state())
    with pytest.raises(StorageError, match="another order of rows"):
        ShuffledRows(ragged_rows(12), Padded(0), 2, 2, 0, 1, seed=1).restore(rows.state())
