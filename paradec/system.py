"""One row of the catalogue: a published system, how it is made, what it needs, what it promises and which laws test it.

A row stands beside its factory, in the file of the method. `catalog.py` names the files. A factory is a class or a
classmethod of the class whose objects it makes. Its signature is the only place where options and their defaults are
written down: a parameter that `needs` names is handed in by whoever composes a method; every other one is an option.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxtyping import PyTree

SLOTS: Mapping[str, str] = {
    "draft": "where the drafts of the prefix engine come from",
    "accept": "which drafted tokens are kept",
    "select": "which positions of a canvas a call commits",
    "rewrite": "what happens to the logits before that",
    "region": "where a block ends",
    "stop": "when all that is masked is committed at once",
    "cut": "where a text ends",
    "wrap": "what is done to a whole method",
}
"""The places that a system may fill in a method. A method has one system in each at most."""

SUPPLIED = ("target", "eos", "accept", "base")
"""What a factory may need that is always there: the model, end-of-text ids, the accept rule, the wrapped method."""

TRAINED = ("heads", "filter")
"""Components that must be trained for the target. A draft model is a component too, and may be any model."""

COMPONENTS = ("draft", *TRAINED)

LAWS: Mapping[str, str] = {
    "exact": "the target's own tokens, greedy and sampled, and a lawful trace (testing.laws.exactness)",
    "greedy": "the target's own tokens at temperature 0",
    "law": "sampled texts follow the target's law (chi-square against the enumerated one)",
    "rows": "a row has the same text and the same trace in any company and at any padding",
    "loops": "stream is run, a turn at a time, and shows nothing that changes later",
    "trace": "every position is committed once, by a call that the row made, and the row ends within its limit",
    "budget": "no row takes more calls than its rule declares",
    "base": "the text of the method that it wraps, from no more calls",
}
"""The shared laws, by name. `paradec.testing` holds them as functions, and its `check_method` runs those of a row."""

EXACT = ("exact", "rows", "loops")
RULE = ("trace", "budget", "rows", "loops")


class ExactTo(NamedTuple):
    """What the tokens of a method equal, greedy and sampled: "ar", plain decoding of the same model; "base", those of
    the method that it wraps; None, nothing in general."""

    greedy: str | None = None
    sampled: str | None = None


class Component(NamedTuple):
    """Something that a method needs besides its target: its `structure`, static, and the `params` that go with it."""

    structure: Any
    params: PyTree


class Option(NamedTuple):
    """An option of a factory. `default` is `inspect.Parameter.empty` where it must be given."""

    name: str
    default: Any
    kind: type | None
    """bool, int, float or str; None where it is something else, which the factory looks at itself."""
    unset: str = "unset"
    """What it is where it is None."""

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


@dataclasses.dataclass(frozen=True)
class System:
    """A published system. `make` and `needs` are described at the top of this file.

    `meanings` says what each option means, `cost` what a call costs beside plain decoding's, `proof` is the command
    that repeats its small-scale proof; what the system does is the docstring of the class that it makes. Raises
    `ValueError` for a row that contradicts itself, such as one without laws.
    """

    name: str
    title: str
    slot: str
    make: Callable[..., Any]
    laws: tuple[str, ...]
    proof: str
    arxiv: str | None = None
    family: str = "unmasking"
    needs: tuple[str, ...] = ()
    exact_to: ExactTo = ExactTo()
    cost: str = ""
    meanings: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for problem in problems(self):
            raise ValueError(f"The row of {self.name}: {problem}")

    @property
    def made(self) -> type:
        """The class of what `make` returns."""
        return self.make if isinstance(self.make, type) else self.make.__self__  # pyright: ignore[reportFunctionMemberAccess]

    @property
    def about(self) -> str:
        """What it does, with its equation, its source and where it departs from it: the docstring of its class."""
        return inspect.getdoc(self.made) or ""

    @property
    def components(self) -> tuple[str, ...]:
        """What it needs besides its target, by name."""
        return tuple(name for name in self.needs if name in COMPONENTS)

    @property
    def trained(self) -> bool:
        """Whether something that it needs must be trained for the target."""
        return any(name in TRAINED for name in self.needs)

    @functools.cached_property
    def options(self) -> dict[str, Option]:
        """Its options by name, from the signature of its factory. Read once: a composition asks for them many times."""
        found = inspect.signature(self.make).parameters.values()
        return {p.name: Option(p.name, p.default, _kind(p)) for p in found if p.name not in self.needs}

    def public(self) -> dict[str, Any]:
        """The row as JSON has it."""
        row = {"name": self.name, "title": self.title, "arxiv": self.arxiv, "family": self.family}
        row |= {} if self.slot == "draft" else {"slot": self.slot}
        exact = {"exact_greedy": bool(self.exact_to.greedy), "exact_sampled": bool(self.exact_to.sampled)}
        return row | exact | {"trained": self.trained, "status": "ready"}


def _kind(parameter: inspect.Parameter) -> type | None:
    """The plain kind of an option: its default's, or, of None, the first one that its annotation names."""
    plain = {"bool": bool, "int": int, "float": float, "str": str}
    if parameter.default is None:
        said = parameter.annotation if isinstance(parameter.annotation, str) else parameter.annotation.__name__
        return plain.get(said.partition(" | ")[0])
    return type(parameter.default) if type(parameter.default) in plain.values() else None


def problems(row: System) -> list[str]:
    """What is wrong with a row, a sentence each; none for a good one."""
    wrong, known = [], (*SUPPLIED, *COMPONENTS)
    if row.slot not in SLOTS:
        wrong.append(f"there is no slot {row.slot!r}; there are {', '.join(SLOTS)}.")
    if not row.laws:
        wrong.append("it names no law, so nothing would test it.")
    wrong += [f"there is no law {law!r}; there are {', '.join(LAWS)}." for law in row.laws if law not in LAWS]
    wrong += [
        f"nobody hands in {name!r}; a factory may need {', '.join(known)}." for name in row.needs if name not in known
    ]
    if not isinstance(row.make, type) and not isinstance(getattr(row.make, "__self__", None), type):
        wrong.append("make must be a class, or a classmethod of the class whose objects it makes.")
    wanted = {(None, None): (), ("ar", "ar"): ("exact",), ("ar", None): ("greedy",), ("base", "base"): ("base",)}
    promised = wanted.get(tuple(row.exact_to))
    if promised is None:
        wrong.append(f"{tuple(row.exact_to)} is no promise; give one of {', '.join(map(str, wanted))}.")
    claimed = {law for law in row.laws if law in ("exact", "greedy", "base")}
    if promised is not None and claimed != set(promised):
        wrong.append(
            f"it promises {tuple(row.exact_to)} and is put through the laws {sorted(claimed)}: they must agree."
        )
    return wrong
