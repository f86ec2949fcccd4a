"""The comparison in a terminal of any width."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from paradec.viz import Row, table

ROWS = [
    Row("ar", True, 1.0, 12_345, 31.2, 1.0, (200, 200)),
    Row("prompt_lookup", True, 2.89, 148, 1_074.9, 2.0, (199, 200)),
    Row("credit+local_leap+ada_block", False, 3.96, 108, 90.0, 0.5, (2, 200)),
    Row("unknown"),
]


def printed(width: int, rows=ROWS, title: str | None = "smollm2-135m, float32, batch 8", reference: str = "ar") -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(table(rows, title, reference))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [20, 40, 60, 70, 80, 100, 120])
def test_nothing_is_cut(width):
    out = printed(width)
    assert "…" not in out and all(len(line) <= width for line in out.splitlines())
    together = re.sub(r"\s", "", out)
    for word in ("exact", "tokens/", "call", "calls", "tok/s", "vsar", "identical", "200/200", "!199/200", "2/200"):
        assert word in together
    for number in ("1.00", "12,345", "31.2", "1.00×", "2.89", "1,074.9", "2.00×", "3.96", "0.50×"):
        assert number in out


def test_bars_get_shorter_before_anything_else_does():
    bars = [max(line.count("█") for line in printed(width).splitlines()) for width in (140, 100, 80)]
    assert bars[0] == 16 > bars[1] > bars[2] == 0
    assert "speedup vs ar" in printed(140) and "tokens/call" in printed(140)


def test_columns_stay_columns_at_sixty():
    """Parts of a long name stand below each other."""
    lines = [line.rstrip() for line in printed(60).splitlines()]
    assert any(line.startswith("credit+ ") and line.endswith(" 2/200") for line in lines)
    assert "local_leap+" in lines and "ada_block" in lines


def test_the_heading_says_what_is_compared_with():
    assert "speedup vs quota" in printed(120, reference="quota")


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.builds(
            Row,
            method=st.from_regex(r"[a-z_]{1,12}(\+[a-z_]{1,12}){0,3}", fullmatch=True),
            exact=st.sampled_from([None, True, False]),
            tokens_per_call=st.floats(0, 1e6),
            calls=st.integers(0, 10**9),
            tokens_per_second=st.floats(0, 1e9),
            speedup=st.floats(0, 1e4),
            identical=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)),
        ),
        max_size=4,
    ),
    width=st.integers(10, 140),
)
def test_every_number_is_there_at_any_width(rows, width):
    out = re.sub(r"\s", "", printed(width, rows))
    for row in rows:
        for number in (
            f"{row.tokens_per_call:.2f}",
            f"{row.calls:,d}",
            f"{row.tokens_per_second:,.1f}",
            f"{row.speedup:.2f}×",
        ):
            assert number in out
