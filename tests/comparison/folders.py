"""Folders of comparisons as the lab writes them, made of invented runs in a moment."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path

import numpy as np
from ruamel.yaml import YAML

from peftlab.recipe.load import load_recipe
from peftlab.reports import (
    BudgetReport,
    ComparisonReport,
    InferenceReport,
    MemoryReport,
    ParameterReport,
    RunResult,
    TrialReport,
    VariantReport,
)
from peftlab.runs.directory import MARKER

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "tiny"
TITLES = {
    "full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA", "adapters": "bottleneck adapters",
    "prefix": "prefix tuning", "bitfit": "BitFit",
}  # fmt: skip
TRAINABLE = {
    "full": 3_455_040, "lora": 175_104, "qlora": 175_104, "adapters": 76_224, "prefix": 46_080, "bitfit": 11_904
}  # fmt: skip
LOSS = {"full": 3.60, "lora": 3.62, "qlora": 3.63, "adapters": 3.66, "prefix": 3.95, "bitfit": 4.10}
RATES = (3e-4, 1e-3, 3e-3)
TOTAL = 3_455_040
PROMPT = "# heapq: heappush\ndef heappush(heap, item):\n    heap.append(item)\n# Summary:"
ERROR = "loss is not finite at step 3"
ENVIRONMENT = {
    "python": "3.11.7", "platform": "Linux-6.1-x86_64", "versions": {"peftlab": "0.1.0", "torch": "2.13.0"},
    "commit": "0123456789abcdef", "device": "cpu (x86_64, 2 cores)", "threads": 1, "processes": 1,
}  # fmt: skip


@cache
def own_recipe(method: str) -> tuple[dict, str]:
    """Return a method's recipe as sections and as YAML, with a learning rate and a seed to be replaced."""
    recipe = load_recipe(RECIPES / f"{method}.yaml", ["training.learning_rate=0.123", "run.seed=123"]).model_dump()
    text = io.StringIO()
    YAML().dump(recipe, text)
    return recipe, text.getvalue()


class Maker:
    """Writes one comparison; every piece can be left out, and any variant renamed or made to fail."""

    def __init__(
        self, folder: Path, *, methods=tuple(TITLES), budgets=(None,), seeds=(0, 1, 2), rows=150, metric="loss",
        names=None, failed=(), without=(), answer="Push an item onto the heap.", title="six methods on docstrings",
    ):  # fmt: skip
        self.folder, self.methods, self.budgets, self.seeds, self.rows = folder, methods, budgets, seeds, rows
        self.metric, self.names, self.failed, self.without = metric, names or {}, failed, without
        self.answer, self.title = answer, title
        self.random = np.random.default_rng(0)
        self.difficulty = self.random.gamma(4.0, 0.25, rows)
        self.count = self.random.integers(4, 30, rows)
        self.label = self.random.integers(7, size=rows)

    def write(self) -> Path:
        variants = [
            self.variant(method, budget, place)
            for place, budget in enumerate(self.budgets) for method in self.methods
        ]  # fmt: skip
        report = ComparisonReport(
            name=self.title, metric=self.metric, higher_is_better=self.metric != "loss",
            seeds=list(self.seeds), variants=variants, notes=["invented numbers"],
        )  # fmt: skip
        (self.folder / "comparison.json").write_text(report.model_dump_json(), encoding="utf-8")
        return self.folder

    def variant(self, method: str, budget: str | None, place: int) -> VariantReport:
        name = self.names.get(method, method)
        sweep = [] if "sweep" in self.without else [self.trial(method, place, rate, 0) for rate in RATES]
        trials = [self.trial(method, place, RATES[1], seed) for seed in self.seeds]
        asked = 175_000
        solution = BudgetReport(
            kind="trainable", asked=asked, reached=TRAINABLE[method], solved={"method.rank": 16}, met=method == "lora",
            reason=None if method == "lora" else "the nearest size",
        )  # fmt: skip
        return VariantReport(
            name=name, method=method, title=TITLES[method], budget=budget, solution=solution if budget else None,
            learning_rate=RATES[1], sweep=sweep, trials=trials,
        )  # fmt: skip

    def trial(self, method: str, place: int, rate: float, seed: int) -> TrialReport:
        run = f"{method}-{place}-{rate:g}-{seed}"
        if method in self.failed:
            self.run(run, method, rate, status="diverged", seed=seed)
            return TrialReport(run=run, learning_rate=rate, seed=seed, status="diverged", error=ERROR)
        offset = LOSS[method] - 0.1 * place + 0.3 * abs(np.log10(rate / RATES[1])) + self.random.normal(0, 0.01)
        metrics = self.run(run, method, rate, loss=offset, seed=seed)
        return TrialReport(
            run=run, learning_rate=rate, seed=seed, status="finished",
            validation=metrics["after"][self.metric], test=metrics["test_after"][self.metric],
        )  # fmt: skip

    def run(self, run: str, method: str, rate: float, *, loss: float = 9.9, status="finished", seed=0) -> dict:
        folder = self.folder / "runs" / run
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).write_text('{"schema": 1}\n')
        recipe, text = own_recipe(method)
        recipe = recipe | {
            "training": recipe["training"] | {"learning_rate": rate},
            "run": recipe["run"] | {"seed": seed},
        }
        text = text.replace("learning_rate: 0.123\n", f"learning_rate: {rate!r}\n").replace(
            "seed: 123\n", f"seed: {seed}\n"
        )
        (folder / "recipe.yaml").write_text(text, encoding="utf-8")
        result = RunResult(status=status, name=run, recipe=recipe, environment=ENVIRONMENT)
        if status == "finished":
            self.fill(result, folder, method, loss)
        else:
            result.error = ERROR
        (folder / "result.json").write_text(result.model_dump_json(), encoding="utf-8")
        return result.metrics

    def fill(self, result: RunResult, folder: Path, method: str, loss: float) -> None:
        trainable = TRAINABLE[method]
        result.parameters = ParameterReport(
            total=TOTAL, trainable=trainable, active=TOTAL, stored_bytes=4 * trainable, kinds=[], layers=[]
        )
        if "memory" not in self.without:
            result.memory = {source: self.memory(source, trainable) for source in ("predicted", "measured")}
        if "examples" not in self.without:
            result.examples = [
                {"prompt": PROMPT, "reference": "Push item onto heap.", "before": "Return the", "after": self.answer},
                {"prompt": "def f(): pass", "reference": "Do nothing.", "before": "_", "after": f"Nothing ({method})."},
            ]
        if "inference" not in self.without:
            result.inference = InferenceReport(
                rows=1, tokens=32, extra_parameters=trainable, extra_parameters_merged=0,
                seconds={"base": 0.010, "unmerged": 0.012, "merged": 0.0101},
            )  # fmt: skip
        result.seconds = {"load": 1.2, "training": 20 + trainable / 3e5 + self.random.normal(0, 0.4), "total": 31.0}
        scores = {"test_before": self.scores(5.05), "test_after": self.scores(loss)}
        if "general" not in self.without:
            forgotten = 4.2 + 0.01 * trainable**0.2
            scores |= {"general_before": self.scores(4.2), "general_after": self.scores(forgotten)}
        result.metrics = {name: self.metrics(one) for name, one in scores.items()}
        result.metrics |= {"before": result.metrics["test_before"], "after": result.metrics["test_after"]}
        if "scores" not in self.without:
            (folder / "scores.json").write_text(json.dumps(scores))
        steps = [0, 10, 20, 30, 40]
        lines = [{"event": "evaluation", "step": s, "loss": loss + 1.4 * np.exp(-s / 12)} for s in steps]
        lines += [{"event": "train", "step": s, "loss": loss + 1.5 * np.exp(-s / 10)} for s in steps[1:]]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def memory(self, source: str, trainable: int) -> MemoryReport:
        categories = {
            "frozen_weights": 4 * (TOTAL - trainable), "trainable_weights": 4 * trainable, "gradients": 4 * trainable,
            "optimiser_state": 8 * trainable, "saved_activations": 24_828_384, "logits_and_loss": 13_565_972,
        }  # fmt: skip
        return MemoryReport(source=source, device="cpu", peak_bytes=sum(categories.values()), categories=categories)

    def scores(self, loss: float) -> dict:
        noise = self.random.normal(0, 0.2, self.rows)
        losses = np.maximum(self.difficulty + loss - 1 + noise, 0.01) * self.count
        if self.metric == "loss":
            return {"loss": losses.tolist(), "count": self.count.tolist(), "prediction": None, "label": None}
        wrong = self.random.uniform(size=self.rows) < loss / 10
        prediction = np.where(wrong, (self.label + 1) % 7, self.label)
        return {
            "loss": losses.tolist(), "count": [1] * self.rows,
            "prediction": prediction.tolist(), "label": self.label.tolist(),
        }  # fmt: skip

    def metrics(self, scores: dict) -> dict[str, float]:
        metrics = {"loss": sum(scores["loss"]) / sum(scores["count"])}
        if scores["label"]:
            metrics["accuracy"] = float(np.mean(np.array(scores["label"]) == scores["prediction"]))
        return metrics
