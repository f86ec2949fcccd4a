"""Our decodes take the path of the published procedures: the same tokens, committed in the same calls."""

import numpy as np
import pytest

from paradec.composition import compose
from tests.decode import numpy_dllm
from tests.decode.canvases import LENGTHS, LIMITS, MASK, decode, denoiser, prompts

RULES = {
    "quota": ({"steps": 3}, lambda: numpy_dllm.quota_rule(3)),
    "threshold": ({"tau": 0.4}, lambda: numpy_dllm.threshold_rule(0.4)),
    "factor": ({"f": 1.3, "compat": True}, lambda: numpy_dllm.factor_rule_as_published(1.3)),
}


@pytest.mark.parametrize(
    ("rule", "cache"),
    [("quota", "none"), ("quota", "prefix"), ("quota", "dual"), ("threshold", "dual"), ("factor", "none"),
     ("factor", "prefix")],
)  # fmt: skip
def test_the_path_is_that_of_the_published_procedure(rule, cache):
    options, choose = RULES[rule]
    target, params = denoiser(2)
    state = decode(compose(target, rule, options, block=8, cache=cache), params)
    model, prompt = numpy_dllm.NumpyTransformer(target.base, params["target"]), prompts()
    texts = []
    for b in range(len(LENGTHS)):
        text = np.asarray(prompt.token)[b, : LENGTHS[b]]
        new = int(LIMITS[b] - LENGTHS[b])
        tokens, when, calls = numpy_dllm.generate(model, text, new, 8, choose(), MASK, cache)
        span = slice(int(LENGTHS[b]), int(LIMITS[b]))
        assert np.array_equal(np.asarray(state.tokens)[b, span], tokens), f"row {b}: tokens"
        assert np.array_equal(np.asarray(state.committed_at)[b, span], when), f"row {b}: order"
        assert int(state.calls[b]) == calls
        texts.append(tokens)
        assert calls < new
    assert len(set(np.concatenate(texts).tolist())) > 10, "dull texts prove little"


def test_the_published_factor_rule_is_another_one():
    target, params = denoiser(2)
    counts = []
    for compat in (True, False):
        state = decode(compose(target, "factor", {"f": -1.0, "compat": compat}, block=8), params)
        counts.append(np.asarray(state.calls))
    new = LIMITS - LENGTHS
    assert (counts[1] == new).all(), "a factor below 0 is one position a call"
    # As published the last two of each block go together: one call fewer for every block of two and more.
    assert (new - counts[0] == [5, 5, 6, 2, 4]).all()
