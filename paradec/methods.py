"""From what a request names to a method for one model, and the weights that it needs besides the model's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxtyping import PyTree

from paradec import components, composition, engines
from paradec.decode.seams import Method, Part
from paradec.errors import InputError
from paradec.request import Request

if TYPE_CHECKING:
    from paradec.lm import LanguageModel


def method_for(lm: LanguageModel, ask: Request, options: dict[str, Any]) -> tuple[Method, dict[str, PyTree]]:
    """The method that a request names or holds, with these options of its own, for a language model.

    Raises `InputError` for a method of another kind than the model's, or built for another model, and what
    `composition.compose` raises.
    """
    if isinstance(ask.method, str):
        return _composed(lm, ask, ask.method, options)
    if isinstance(ask.method, Part):
        return _around(lm, ask, ask.method, options)
    method, name = ask.method, composition.title(ask.method)
    if method.target != lm.model:
        raise InputError(f"This {name} was built for another model than {lm.name}; build it for lm.model.")
    if ask.ignore_eos:
        raise InputError(f"This {name} was built with its own end-of-text ids; build it without eos to ignore them.")
    return _with_weights(lm, ask, method, options)


def _composed(lm: LanguageModel, ask: Request, names: str, options: dict[str, Any]) -> tuple[Method, dict[str, PyTree]]:
    engine = composition.engine_of(names, engines.of_model(lm.model))
    _check(lm, ask, engine, names)
    found = {}
    for row in composition.systems_of(names).values():
        for name in row.components:
            given = [options.pop(key) for key in (name, f"{row.name}.{name}") if key in options]
            component = components.opened(lm, name, next(iter(given), None))
            found |= {} if component is None else {name: component}
    options = lm.method_args.get(names, {}) | options
    method = composition.compose(lm.model, names, options, components=found, **_ends(lm, ask))
    return method, {} if engine.binds else {name: component.params for name, component in found.items()}


def _around(lm: LanguageModel, ask: Request, part: Part, options: dict[str, Any]) -> tuple[Method, dict[str, PyTree]]:
    engine = engines.of_slot(part.slot)
    _check(lm, ask, engine, type(part).__name__)
    settings = {key: options.pop(key) for key in [*options] if key in engine.options}
    return _with_weights(lm, ask, composition.around(lm.model, part, **_ends(lm, ask), **settings), options)


def _with_weights(
    lm: LanguageModel, ask: Request, method: Method, options: dict[str, Any]
) -> tuple[Method, dict[str, PyTree]]:
    """A method that is there, and the weights that its drafter needs; `options` may name those and nothing else."""
    engine, name = engines.ENGINES[method.kind], composition.title(method)
    engine.check_sampling(ask.every("repetition"))
    row, needs = composition.drafting(method), {}
    for kind in row.components if row else ():
        component = components.opened(lm, kind, options.pop(kind, None))
        if component is None:
            raise InputError(f"{name} needs {kind} weights: pass method_args={{{kind!r}: …}}.")
        needs[kind] = component.params
    if options:
        raise InputError(f"This {name} is built already; {', '.join(options)} cannot be set any more.")
    return method, needs


def _check(lm: LanguageModel, ask: Request, engine: engines.Engine, name: str) -> None:
    if engine.kind not in lm.model.kinds:
        raise InputError(engine.refusal(name, lm.name))
    engine.check_sampling(ask.every("repetition"))


def _ends(lm: LanguageModel, ask: Request) -> dict[str, Any]:
    """Which token ids end a text, and which exist."""
    return {"eos": () if ask.ignore_eos else lm.tokenizer.eos_ids, "vocab_limit": lm.tokenizer.vocab_size}
