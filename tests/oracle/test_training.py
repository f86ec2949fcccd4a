"""The training step against a float64 loop in torch on the same numbers: accumulation, clip, AdamW, schedule, EMA."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paradec.learn import step as learn
from paradec.learn.step import DECAYS, Loss, Plan, Share

torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.oracle, pytest.mark.mixed_dtypes]  # optax raises a float to an int32 step

LAYERS, WIDTH, VOCAB, ROWS, STEPS = 2, 8, 11, 12, 12


def weights() -> dict[str, np.ndarray]:
    """A network with all that the decay must tell apart, stacked as ours are."""
    rng = np.random.default_rng(0)
    shapes = {
        "embed": (VOCAB, WIDTH), "up": (LAYERS, WIDTH, WIDTH), "up_bias": (LAYERS, WIDTH), "mlp_norm": (LAYERS, WIDTH),
        "norm": (WIDTH,), "head": (VOCAB, WIDTH), "head_bias": (VOCAB,),
    }  # fmt: skip
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


VECTORS = {"up_bias", "mlp_norm", "norm", "head_bias"}


def batches() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Token, target and how much each counts: unevenly, so that means of micro-batches would be wrong."""
    rng = np.random.default_rng(1)
    count = lambda: (rng.random((ROWS, 1)) * np.linspace(0, 1, ROWS)[:, None]).astype(np.float32)
    return [(*rng.integers(VOCAB, size=(2, ROWS, 1)).astype(np.int32), count()) for _ in range(STEPS)]


def logits(w: Any, token: Any, tanh: Any) -> Any:
    """The network, in either library."""
    x = w["embed"][token[:, 0]]
    for layer in range(LAYERS):
        x = x + tanh(x * w["mlp_norm"][layer][None] @ w["up"][layer] + w["up_bias"][layer][None])
    return (x * w["norm"][None]) @ w["head"].T + w["head_bias"][None]


def objective(trainable: Any, frozen: Any, batch: Any, key: Any) -> Loss:
    token, target, count = batch
    law = jax.nn.log_softmax(logits(trainable, token, jnp.tanh))
    loss = -jnp.take_along_axis(law, target, axis=1)
    right = (jnp.argmax(law, axis=1)[:, None] == target).astype(jnp.float32)
    return Loss(jnp.sum(loss * count), jnp.sum(count), {"accuracy": Share(jnp.sum(right), jnp.float32(len(token)))})


def rate(plan: Plan, step: int) -> float:
    """The learning rate of one step, by its definition."""
    if step < plan.warmup:
        return plan.learning_rate * (step + 1) / plan.warmup
    part, low = (step - plan.warmup) / (plan.steps - plan.warmup), plan.floor
    match plan.decay:
        case "constant":
            share = 1.0
        case "linear":
            share = 1 - part * (1 - low)
        case "cosine":
            share = low + (1 - low) * (1 + math.cos(math.pi * part)) / 2
        case _:
            tail = min(plan.steps // 5, plan.steps - plan.warmup)
            share = 1 - max(step - (plan.steps - tail), 0) / tail * (1 - low)
    return plan.learning_rate * share


def in_torch(plan: Plan) -> tuple[list[dict[str, float]], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Metrics of every step, the weights and their average."""
    w = {name: torch.tensor(x, dtype=torch.float64, requires_grad=True) for name, x in weights().items()}
    groups = [
        {"params": [x for name, x in w.items() if (name in VECTORS) == plain], "weight_decay": decay}
        for plain, decay in ((False, plan.weight_decay), (True, 0.0))
    ]
    adam = torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(plan.beta1, plan.beta2), eps=1e-8)
    average, seen = {name: x.detach().clone() for name, x in w.items()}, []
    for step, batch in enumerate(batches()):
        total = weight = right = 0.0
        for part in range(plan.micro):
            token, target, count = (torch.tensor(x[part :: plan.micro]) for x in batch)
            law = torch.log_softmax(logits(w, token.long(), torch.tanh), dim=1)
            loss = -(torch.gather(law, 1, target.long()) * count.double()).sum()
            loss.backward()
            total, weight = total + float(loss.detach()), weight + float(count.double().sum())
            right += float((law.argmax(1)[:, None] == target).sum())
        for x in w.values():
            x.grad /= weight
        norm = torch.nn.utils.clip_grad_norm_(w.values(), plan.clip or math.inf)
        for group in adam.param_groups:
            group["lr"] = rate(plan, step)
        adam.step()
        adam.zero_grad()
        for name, x in w.items():
            average[name] = plan.average * average[name] + (1 - plan.average) * x.detach()
        said = {"loss": total / weight, "weight": weight, "accuracy": right / ROWS}
        seen.append(said | {"gradient_norm": float(norm), "learning_rate": rate(plan, step)})
    plain = lambda tree: {name: x.detach().numpy() for name, x in tree.items()}
    return seen, plain(w), plain(average)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(("micro", "clip", "warmup"), [(1, 0.0, 0), (3, 0.3, 4), (4, 1.0, 11)])
def test_the_step_is_a_loop_in_torch(decay: str, micro: int, clip: float, warmup: int) -> None:
    plan = Plan(
        steps=STEPS, learning_rate=5e-3, warmup=warmup, decay=decay, floor=0.2, weight_decay=0.5, beta2=0.98, clip=clip,
        micro=micro, average=0.8,
    )  # fmt: skip
    seen, trained, averaged = in_torch(plan)
    state = learn.init(plan, jax.tree.map(jnp.asarray, weights()), jax.random.key(0))
    for batch, wanted in zip(batches(), seen, strict=True):
        state, metrics = learn.step(plan, objective, state, None, batch)
        for name, value in wanted.items():
            np.testing.assert_allclose(metrics[name], value, rtol=2e-5, atol=1e-6, err_msg=name)
    for found, wanted in ((state.trainable, trained), (state.average, averaged)):
        for name, truth in wanted.items():
            off = np.abs(np.asarray(found[name]) - truth) / np.maximum(np.abs(truth), 1)
            assert off.max() <= 1e-6, f"{name}: {off.max()}"
    assert not clip or any(said["gradient_norm"] > clip for said in seen)
