"""The colours keep their promise: readable, told apart by everyone, and different wherever two calls meet."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from rich.color import Color, ColorSystem

from paradec.types import OPEN
from paradec.viz import Trace
from paradec.viz.palette import CALLS, METHODS, ink, places

# Machado, Oliveira and Fernandes (2009), full severity, on linear RGB.
EYES = {
    "usual": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "grey": np.full((3, 1), 1.0) * [0.2126, 0.7152, 0.0722],
}
LMS = np.array([[0.41222, 0.53633, 0.05145], [0.21190, 0.68070, 0.10740], [0.08830, 0.28172, 0.62998]])
LAB = np.array([[0.21045, 0.79362, -0.00407], [1.97800, -2.42859, 0.45059], [0.02590, 0.78277, -0.80868]])


def linear(colour: str) -> np.ndarray:
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def oklab(colour: str, eye: str) -> np.ndarray:
    return LAB @ np.cbrt(LMS @ np.clip(np.asarray(EYES[eye]) @ linear(colour), 0, 1))


def contrast(a: str, b: str) -> float:
    dark, light = sorted(linear(c) @ [0.2126, 0.7152, 0.0722] + 0.05 for c in (a, b))
    return float(light / dark)


def test_text_reads_on_every_background():
    assert min(contrast(ink(i), colour) for i, colour in enumerate(CALLS)) >= 5  # WCAG AA asks for 4.5


@pytest.mark.parametrize("eye", EYES)
def test_consecutive_calls_differ_to_every_eye(eye):
    for a, b in itertools.pairwise(CALLS + CALLS[:1]):
        assert np.linalg.norm(oklab(a, eye) - oklab(b, eye)) > 0.2, (a, b)


def test_lines_differ_to_every_eye():
    for eye in EYES.keys() - {"grey"}:  # lines also differ in marker and label
        for a, b in itertools.combinations(METHODS, 2):
            assert np.linalg.norm(oklab(a, eye) - oklab(b, eye)) > 0.06, (eye, a, b)


@pytest.mark.parametrize("system", [ColorSystem.EIGHT_BIT, ColorSystem.STANDARD])
def test_consecutive_calls_differ_on_old_terminals(system):
    numbers = [Color.parse(colour).downgrade(system).number for colour in CALLS]
    assert all(a != b for a, b in itertools.pairwise(numbers + numbers[:1]))


@settings(deadline=None)  # the machine may be busy
@given(...)
def test_no_colour_meets_itself(trace: Trace):
    place = places(trace)
    assert set(place) == set(trace.settled) - {int(OPEN)}
    for call in place:
        assert place[call] != place.get(call - 1)
    met = {(a, b) for (a, _), (b, _) in itertools.pairwise(trace.groups()) if OPEN not in (a, b)}
    # A call with eight neighbours may have to share a colour with one of them; a call with fewer never does.
    for a, b in met:
        crowd = {c for pair in met for c in pair if a in pair or b in pair}
        assert place[a] != place[b] or len(crowd) > len(CALLS)


def test_in_order_the_colours_simply_cycle():
    trace = Trace("ar", "", ("x",) * 20, tuple(range(1, 21)), calls=20)
    assert list(places(trace).values()) == [i % len(CALLS) for i in range(20)]


def test_calls_that_meet_in_the_text_leave_the_cycle():
    far = len(CALLS)  # call 1 and call 9 would share a colour, 2 and 10, …, and here each pair meets
    settled = tuple(call for i in range(1, far + 1) for call in (i, i + far))
    place = places(Trace("threshold", "", ("x",) * 2 * far, settled, calls=2 * far))
    assert all(place[a] != place[b] for a, b in itertools.pairwise(settled))
    assert all(place[call] != place[call - 1] for call in range(2, 2 * far + 1))
