"""The figure of a comparison: a bar and its number for every method, and a word where tokens differ."""

import statistics

import pytest

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("agg")

from paradec.comparison import Comparison, Entry
from paradec.viz import speed_bars

LONG = "credit+local_leap+ada_block+freedave"


def entry(name, speedups, tokens_per_call, exact=True, identical=8):
    speedup = statistics.median(speedups) if speedups else None
    return Entry(name, exact, tokens_per_call, 100, 512, 1.0, 512.0, speedup, tuple(speedups), identical, 8, None, (),
                 1.0, 0, 1.0)  # fmt: skip


def report(*methods, repeats=3, asked=8, model="tiny"):
    settings = {"repeats": repeats, "prompts": 8, "dtype": "float32", "batch_size": 4, "max_new_tokens": 64,
                "temperature": 0.0}  # fmt: skip
    return Comparison(model, "cpu", {}, settings, {"prompts": asked, "repeats": repeats}, methods, {})


AR = entry("ar", [1.0, 1.0, 1.0], 1.0)


def words(axes):
    return [text.get_text() for text in axes.texts]


def test_two_panels_of_bars(tmp_path):
    told = report(AR, entry("prompt_lookup", [1.9, 1.6, 1.7], 2.31), entry("jacobi", [0.5, 0.4, 0.6], 1.2))
    figure = told.figure(tmp_path / "bars.png")
    speed, calls = figure.axes
    assert [bar.get_width() for bar in speed.patches] == [1.0, 1.7, 0.5]
    assert [bar.get_width() for bar in calls.patches] == [1.0, 2.31, 1.2]
    assert {"1.00×", "1.70×", "0.50×", "prompt_lookup", "jacobi"} <= {*words(speed)}
    assert words(calls) == ["1.00", "2.31", "1.20"]
    lines = [[*line.get_xdata()] for line in speed.get_lines()]
    assert lines == [[1.6, 1.9], [0.4, 0.6], [1, 1]], "spread, and where plain decoding is"
    assert len({bar.get_facecolor() for bar in speed.patches}) == 3, "reference, faster, slower"
    assert speed.get_ylim() == (2.5, -0.5), "in the order of the table, from above"
    assert figure.get_supxlabel().splitlines() == [
        "tiny, float32, greedy, batch 4, up to 64 new tokens",
        "8 prompts, 3 rounds (thin lines: slowest to fastest), on cpu",
    ]
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")


def test_without_rounds_there_is_no_panel_of_speed():
    figure = report(entry("ar", [], 1.0), entry("jacobi", [], 1.2), repeats=0).figure()
    (calls,) = figure.axes
    assert [bar.get_width() for bar in calls.patches] == [1.0, 1.2] and "jacobi" in words(calls)
    assert "round" not in figure.get_supxlabel()


def test_tokens_that_differ_are_marked():
    figure = report(AR, entry("lookahead", [1.1], 1.5, identical=6), entry(LONG, [3.0], 6.0, False, 5),
                    entry("threshold", [2.0], 4.0, False)).figure()  # fmt: skip
    said = {text.get_text(): text for text in figure.axes[0].texts}
    broken, lossy = said["other tokens in 2 of 8 rows"], said["lossy: other tokens in 3 of 8 rows"]
    assert broken.get_color() != lossy.get_color() == said["lossy, here the same tokens"].get_color()
    assert "plain decoding" in said and "credit+local_leap+ada_block+\nfreedave" in said


def test_a_partial_one_says_so():
    assert "partial: 8 of 200 prompts, 3 of 3 rounds" in report(AR, asked=200).figure().get_supxlabel()


@pytest.mark.parametrize("count", [2, 10])
def test_nothing_lies_on_anything_else(count):
    """Names, numbers and caption stand inside the figure and clear of each other, however long the names are."""
    names = [f"{LONG}{i}" if i % 2 else f"$x_{i}" for i in range(count - 1)]
    many = [entry(name, [0.9 + i, 1.0 + i, 1.3 + i], 2.0 + i, i % 3 > 0, 4) for i, name in enumerate(names)]
    figure = report(AR, *many, model="/home/of/somebody/" * 5).figure()
    figure.draw_without_rendering()
    texts = [text for axes in figure.axes for text in axes.texts] + [figure._supxlabel]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert len(boxes) > 4 * count
    for i, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, texts[i]
        assert not [texts[j] for j, other in enumerate(boxes[:i]) if box.shrunk(0.98, 0.9).overlaps(other)], texts[i]


def test_pyplot_keeps_nothing():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    speed_bars(report(AR))
    assert plt.get_fignums() == before
