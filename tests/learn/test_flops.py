"""The count of operations, against formulas written by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from paradec import params
from paradec.learn import flops
from paradec.learn.objectives.next_token import NextToken
from paradec.learn.step import Plan, accumulate
from paradec.models.transformer import Transformer
from paradec.types import TextBatch


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def test_products_loops_and_branches():
    product = lambda a, b: jnp.einsum("bij,bjk->bik", a, b)
    a, b = shape(3, 4, 5), shape(3, 5, 6)
    assert flops.count(product, a, b) == 2 * 3 * 4 * 5 * 6
    square = shape(4, 4)
    loop = lambda x: lax.scan(lambda c, _: (c @ x, None), x, None, length=7)[0]
    assert flops.count(loop, square) == 7 * 2 * 4**3
    branch = lambda x: lax.cond(x[0, 0] > 0, lambda y: y @ y @ y, lambda y: y @ y, x)
    assert flops.count(jax.jit(branch), square) == 2 * 2 * 4**3
    assert flops.count(lambda x: lax.fori_loop(0, x.shape[0], lambda i, c: c @ x, x), square) == 4 * 2 * 4**3
    with pytest.raises(ValueError, match="nobody knows"):
        flops.count(lambda x: lax.while_loop(lambda c: c[0, 0] < 1, lambda c: c @ c, x), square)
    conv = lambda x, k: lax.conv(x, k, (1, 1), "SAME")
    assert flops.count(conv, shape(2, 3, 8, 8), shape(5, 3, 3, 3)) == 2 * 2 * 5 * 64 * 27


@pytest.mark.parametrize("remat", [False, True])
def test_a_training_step_is_six_times_weights_times_tokens_and_attention(remat):
    model = Transformer(
        vocab_size=50, width=32, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, mlp_width=48, tied=False
    )
    B, T = 2, 16
    weights = params.abstract(model.specs())
    text = TextBatch(token=shape(B, T + 1, dtype=jnp.int32), learn=shape(B, T + 1, dtype=bool))
    frozen = jax.tree.map(lambda x: None, weights)
    step = lambda w, b: accumulate(Plan(), NextToken(model, remat=remat), w, frozen, b, jax.random.key(0))
    dense = 3 * (32 * 2 * 4 * 8 + 32 * 32 + 3 * 32 * 48)
    attention = 2 * 2 * B * T * T * 32 * 3  # scores and mix, all pairs
    layers = 2 * B * T * dense + attention
    head = 2 * B * T * 50 * 32
    again = layers - 2 * B * T * 3 * 32 * 48  # a layer's last product is nobody's input in the backward pass
    assert flops.count(step, weights, text) == 3 * (layers + head) + (again if remat else 0)
