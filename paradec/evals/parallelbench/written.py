"""ParallelBench's written tasks, answered by a model."""

from __future__ import annotations

import dataclasses
from typing import Any

from paradec.evals.parallelbench import tasks
from paradec.evals.parallelbench.metrics import order
from paradec.lm import LanguageModel


@dataclasses.dataclass(frozen=True)
class Answered:
    """How a model and a method did on one task. `kendall` is between the order of committing and left to right."""

    operation: str
    rule: str
    samples: int
    accuracy: float
    strict: float  # with exact quoting where the task has it, else as `accuracy`
    error: float
    tokens_per_call: float
    kendall: float
    theory: None = None


def answer(
    lm: LanguageModel, task: str, method: str = "ar", *, limit: int = 100, items: int | None = None,
    method_args: dict[str, Any] | None = None, **request: Any,
) -> Answered:  # fmt: skip
    """Greedy answers to the task's first `limit` samples, scored. Keyword arguments are those of `lm.Request`.

    A list of more than six `items` gets its share more of tokens than the benchmark's cap.

    Raises what `tasks.make` raises.
    """
    samples, kind = tasks.make(task, limit, items=items), tasks.TASKS[task]
    most = kind.most_tokens * max(1, -(-(items or 0) // 6))
    ask = {"max_new_tokens": most, "method": method, "method_args": method_args} | request
    results = lm.generate([sample.prompt for sample in samples], **ask)
    mean = lambda values: sum(values) / len(values)
    scores = [kind.score(r.text, s) for r, s in zip(results, samples, strict=True)]
    exactly = kind.score_strict or kind.score
    p = mean(scores)
    return Answered(
        operation=task, rule=method, samples=len(samples), accuracy=p,
        strict=mean([exactly(r.text, s) for r, s in zip(results, samples, strict=True)]),
        error=(p * (1 - p) / len(samples)) ** 0.5,
        tokens_per_call=sum(r.new_tokens for r in results) / max(sum(r.calls for r in results), 1),
        kendall=mean([order(r.settled).kendall for r in results]),
    )  # fmt: skip
