"""The figure draws every committed token of every method."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("agg")

from paradec.types import OPEN
from paradec.viz import Trace, decode_order


def test_a_staircase_and_a_cloud(trace, tmp_path):
    cloud = Trace("threshold", "", ("x",) * 5, (2, 1, int(OPEN), 1, 2), calls=2)
    figure = decode_order([trace, cloud], tmp_path / "order.png")
    stairs, points = figure.axes[0].get_lines()
    np.testing.assert_array_equal(stairs.get_xydata(), [(1, 1), (2, 1), (3, 2), (4, 3), (5, 3), (6, 3)])
    np.testing.assert_array_equal(points.get_xydata(), [(1, 2), (2, 1), (4, 1), (5, 2)])
    assert stairs.get_drawstyle() == "steps-pre" and points.get_linestyle() == "None"
    assert stairs.get_color() != points.get_color() and stairs.get_marker() != points.get_marker()
    assert [label.get_text().split("\n")[0] for label in figure.axes[0].texts] == ["threshold", "medusa"]
    assert (tmp_path / "order.png").read_bytes().startswith(b"\x89PNG")


def test_pyplot_keeps_nothing(trace):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    decode_order([trace])
    assert plt.get_fignums() == before


@settings(max_examples=8, deadline=None)
@given(st.lists(st.from_type(Trace), min_size=1, max_size=9))
def test_labels_never_collide(traces):
    figure = decode_order(traces)
    heights = sorted(label.get_position()[1] for label in figure.axes[0].texts)
    assert len(heights) == len(traces)
    assert all(b - a > 0.09 for a, b in itertools.pairwise(heights))
    figure.canvas.draw()


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="at least one trace"):
        decode_order([])
