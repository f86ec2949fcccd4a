"""Methods by name: `credit+local_leap+ada_block` is one system for each of three slots, `medusa` one with the rest
filled by default. One parser, one check and one composer serve every engine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from paradec import catalog, engines
from paradec.decode.seams import Method, Part
from paradec.engines import LONGEST, Engine
from paradec.errors import InputError, UnknownName, as_kind, shown
from paradec.system import COMPONENTS, Component, Option, System

MOST = 3.4028234e38
"""The greatest number of float32; what is beyond it, and finite, is a slip."""

MISSING: Mapping[str, str] = {
    "draft": "a second model: pass draft=… (a preset, a folder, a hub id or layers:N).",
    "heads": "heads trained for the model: pass heads=FILE, a safetensors file.",
    "filter": "a filter trained for the model: pass filter=FILE, a safetensors file.",
}


def systems_of(names: str) -> dict[str, System]:
    """The systems that names joined by "+" mean, by slot. Raises `UnknownName`; `InputError` for two of one slot."""
    chosen: dict[str, System] = {}
    for name in filter(None, (n.strip() for n in names.split("+"))):
        row = catalog.find(name)
        if row.slot in chosen:
            first = chosen[row.slot].name
            raise InputError(f"{first!r} and {name!r} both fill the slot {row.slot!r}; leave one out.")
        chosen[row.slot] = row
    return chosen


def engine_of(names: str, default: Engine = engines.CANVAS) -> Engine:
    """The engine that these systems are parts of; `default` where there are none.

    Raises `InputError` for systems of two engines, and what `systems_of` raises.
    """
    found: dict[str, System] = {}
    for row in systems_of(names).values():
        kind = row.made.kind if row.slot == "wrap" else engines.of_slot(row.slot).kind
        found.setdefault(kind, row)
    if len(found) > 1:
        first, second = (row.name for row in found.values())
        raise InputError(f"{first} and {second} are parts of two kinds of decoding, and do not go together.")
    return engines.ENGINES[next(iter(found))] if found else default


def known_options(names: str) -> dict[str, Option]:
    """Every option of a method by name: those of its engine, and its systems' own, also under their system's name."""
    known = dict(engine_of(names).options)
    for row in systems_of(names).values():
        own = [*row.options.values(), *(Option(name, "", str) for name in row.components)]
        known |= {key: option for option in own for key in (option.name, f"{row.name}.{option.name}")}
    return known


def takes(names: str, option: str) -> bool:
    """Whether a method has an option of that name."""
    return option in known_options(names)


def parse(names: str, pairs: Iterable[str]) -> dict[str, Any]:
    """Options from `key=value` strings, typed as the factories say; a list of token ids reads 198,271.

    Raises `UnknownName` for an option that the method does not have, `InputError` for one that cannot be read.
    """
    known, out = known_options(names), {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise InputError(f"A method option reads key=value; {shown(pair)} has no '='.")
        if key not in known:
            raise UnknownName(f"option of {names}", key, known)
        try:
            out[key] = _typed(known[key].kind, text)
        except (ValueError, KeyError):
            raise InputError(f"Option {key} of {names} cannot be {shown(text)}: {_wanted(known[key])}.") from None
    return out


def _typed(kind: type | None, text: str) -> Any:
    if kind is None:  # what has no plain kind and can be said on a command line is a list of token ids
        return tuple(whole(i) for i in text.split(","))
    if kind is bool:
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
    return whole(text) if kind is int else kind(text)


def whole(text: str) -> int:
    """A whole number that an array of the device can hold. Raises `ValueError`."""
    if abs(number := int(text)) > LONGEST:
        raise ValueError(text)
    return number


def _wanted(option: Option) -> str:
    kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
    kind = kinds.get(option.kind, "token ids, such as 198,271")  # pyright: ignore[reportArgumentType]
    default = option.unset if option.default is None else option.default
    return f"it is {kind}" if option.required else f"it is {kind}, and its default is {default}"


def check_options(names: str, options: Mapping[str, Any]) -> None:
    """Raise `InputError` for what no model could make right: a number out of its range, options at odds, two systems
    of one slot. What a model or a file has to say on them comes later."""
    engine = engine_of(names)
    own, settings = _split(names, engine, options)
    rows = _filled(names, engine, settings)
    engine.check_options(settings)
    engine.check_rows(rows)
    for row in rows.values():
        given = _own(row, rows, own, engine)
        if not set(row.needs) - {"eos"}:
            _make(row, given | ({"eos": (0,)} if "eos" in row.needs else {}))


def compose(
    target: Any,
    names: str,
    options: Mapping[str, Any] | None = None,
    *,
    eos: Iterable[int] = (),
    vocab_limit: int = 0,
    components: Mapping[str, Component] | None = None,
    **settings: Any,
) -> Any:
    """The method that `names`, joined by "+", describe, for one model.

    A slot that no name fills is filled as its engine does: without a select rule it is static decoding, one position a
    call, and without an accept rule drafts are matched. `options` are the systems' own: "tau", or "threshold.tau" where
    several systems have one. `components` are what systems need besides the target (draft, heads, filter). `eos` ends a
    text; token ids from `vocab_limit` on do not exist (0: all do).

    `settings` are the engine's options; they may stand among `options` as well. Of the prefix engine: `accept`, the
    name of an accept rule. Of the canvas engine: `block`, the block length (None: the model's own, or the whole
    answer), `cache`, one of `decode.canvas_cache.POLICIES`, `synchronous_blocks`, whether rows wait for each other at
    block borders under it, `eos_policy` and `temper_confidence`, which are `Canvas`' own (`temper_confidence` None: as
    the select rule was published). Raises `UnknownName` for a system or an option that does not exist, `InputError` for
    what does not go together.
    """
    of_model = engines.of_model(target)
    engine = engine_of(names, of_model)
    if engine.kind not in target.kinds:
        raise InputError(f"{names} {engine.does}, and a {type(target).__name__} {of_model.does}; {engine.wants}.")
    own, settings = _split(names, engine, {**(options or {}), **{k: v for k, v in settings.items() if v is not None}})
    rows = _filled(names, engine, settings)
    settings = {key: value for key, value in settings.items() if key not in engine.by_name}
    engine.check_options(settings)
    engine.check_rows(rows)
    supplied: dict[str, Any] = {"target": target, "eos": tuple(eos)} | _structures(engine, rows, components or {})
    made: dict[str, Any] = {}
    for slot in (slot for slot in engine.slots if slot in rows):
        row = rows[slot]
        made[slot] = supplied[slot] = _make(row, _own(row, rows, own, engine) | {n: supplied[n] for n in row.needs})
    name = "+".join(row.name for row in systems_of(names).values()) or engine.plain
    method = engine.assemble(target, rows, made, name=name, eos=supplied["eos"], vocab_limit=vocab_limit, **settings)
    if (wrap := rows.get("wrap")) is not None:
        method = _make(wrap, _own(wrap, rows, own, engine) | {"base": method})
    return method


def build(name: str, target: Any, eos: Iterable[int], *, draft: Any = None, heads: Any = None, **options: Any) -> Any:
    """`compose` for one name and its options as keywords, with the structure of what it needs: `draft`, a draft model,
    or `heads`, a pair (`MedusaHeads`, tree). The method's parameters are {"target": …} and theirs, under their names.

    A draft's vocabulary may be padded otherwise than the target's; that both share a tokenizer only a caller can know.
    """
    given = {"draft": draft, "heads": heads}
    components = {key: Component(structure, None) for key, structure in given.items() if structure is not None}
    return compose(target, name, options, eos=eos, components=components)


def around(target: Any, part: Part | Method, *, eos: Iterable[int] = (), vocab_limit: int = 0, **settings: Any) -> Any:
    """The method that one object makes for one model: a drafter, an accept rule or an unmasking rule, the other slots
    filled as the engine fills them; a method is returned as it is. `settings` are the engine's options.

    Raises `InputError` for what does not go together, and for an object that fills no slot.
    """
    if isinstance(part, Method):
        return part
    if not isinstance(part, Part):
        raise InputError(f"A method is a name, or an object of decode.seams; a {type(part).__name__} was given.")
    engine = engines.of_slot(part.slot)
    _, settings = _split("+".join(engine.fill.values()), engine, settings)
    rows = _filled("", engine, settings) | {part.slot: catalog.row_for(part)}
    settings = {key: value for key, value in settings.items() if key not in engine.by_name}
    engine.check_options(settings)
    engine.check_rows(rows)
    made = {slot: part if slot == part.slot else _make(row, {}) for slot, row in rows.items()}
    return engine.assemble(target, rows, made, name=rows[part.slot].name, eos=eos, vocab_limit=vocab_limit, **settings)


def _structures(engine: Engine, rows: Mapping[str, System], given: Mapping[str, Component]) -> dict[str, Any]:
    """What the factories get of each component: a drafter its structure, whose weights come with the parameters; a rule
    of a canvas, which is a leaf itself, all of it."""
    out: dict[str, Any] = {}
    for row in rows.values():
        for name in row.components:
            if name not in given:
                raise InputError(f"{row.name} needs {MISSING[name]}")
            out[name] = given[name] if engine.binds else given[name].structure
    return out


def _split(names: str, engine: Engine, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The systems' own options, and the engine's. Raises `UnknownName`; `InputError` for a value of another kind."""
    known, label = known_options(names), names or engine.plain
    own: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for key, value in options.items():
        if key not in known:
            raise UnknownName(f"option of {label}", key, known)
        if key in engine.by_name:
            catalog.find(str(value), key)
        elif known[key].kind is not None and not (value is None and known[key].default is None):
            if not isinstance(value, jax.core.Tracer) and known[key].name not in COMPONENTS:
                value = as_kind(f"Option {key} of {label}", value, known[key].kind)
        (settings if key in engine.options else own)[key] = value
    return own, settings


def _filled(names: str, engine: Engine, settings: Mapping[str, Any]) -> dict[str, System]:
    """The systems by slot, with those that fill what the names leave open."""
    rows = systems_of(names)
    for slot, name in engine.fill.items():
        if slot in engine.by_name and slot in settings:
            if slot in rows and rows[slot].name != settings[slot]:
                raise InputError(f"{rows[slot].name} and {slot}={settings[slot]} were given; leave one out.")
            name = str(settings[slot])
        rows.setdefault(slot, catalog.find(name, slot))
    return rows


def _own(row: System, rows: Mapping[str, System], options: Mapping[str, Any], engine: Engine) -> dict[str, Any]:
    """The options of one system. Raises `InputError` where it is unclear whose an option is, or one is missing."""
    known, own = row.options, {}
    for key, value in options.items():
        owner, _, field = key.rpartition(".")
        if field not in known or owner not in ("", row.name):
            continue
        sharing = [other.name for other in rows.values() if field in other.options]
        if not owner and len(sharing) > 1:
            raise InputError(f"{' and '.join(sharing)} all have an option {field}; write {row.name}.{field}.")
        if known[field].kind is int and isinstance(value, int):
            _check_size(f"Option {field} of {row.name}", value, *engine.whole_numbers(row.slot))
        if known[field].kind is float and isinstance(value, float) and MOST < abs(value) < math.inf:
            raise InputError(f"Option {field} of {row.name} must be a number of float32; {value} was given.")
        own[field] = value
    missing = [option.name for option in known.values() if option.required and option.name not in own]
    if missing:
        raise InputError(f"{row.name} needs the option {row.name}.{missing[0]}.")
    return own


def _check_size(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InputError(f"{name} must be at least {least} and at most {most}; {shown(value)} was given.")


def _make(row: System, given: Mapping[str, Any]) -> Any:
    try:
        made = row.make(**given)
    except ValueError as error:
        raise InputError(str(error)) from None
    for field, value in given.items():
        if isinstance(value, float) and math.isnan(value):
            raise InputError(f"Option {field} of {row.name} must be a number; nan was given.")
    return made


def drafting(method: Method) -> System | None:
    """The row of a method's drafter; None: it has none, or is in no row."""
    return catalog.of_object(method.parts["draft"]) if "draft" in method.parts else None


def title(method: str | Method | Part) -> str:
    """What results call a method: its name, or of one that was built by hand, or a part, that of its row or rules."""
    if isinstance(method, str):
        return method
    if isinstance(method, Part):
        return catalog.row_for(method).name
    row, own = drafting(method), method.parts.get("draft", method)
    return row.name if row else method.name or type(own).__name__.lower()


def promises(method: str | Method | Part, options: Mapping[str, Any], temperature: float) -> bool:
    """Whether a method, with these options, promises the tokens of plain decoding at this temperature.

    A method that was built by hand promises what the rows of its drafter and its accept rule promise. A rule of a
    canvas promises nothing unless it is plain decoding itself; what wraps plain decoding may promise its text.
    """
    which = 0 if temperature <= 0 else 1
    if isinstance(method, Part):
        return bool(row := catalog.of_object(method)) and row.exact_to[which] == "ar"
    if not isinstance(method, str):
        rows = [catalog.of_object(part) for part in method.parts.values()]
        return bool(rows) and all(row is not None and row.exact_to[which] == "ar" for row in rows)
    engine = engine_of(method)
    rows = _filled(method, engine, options)
    wraps = [row for row in rows.values() if row.exact_to[which] == "base"]
    rest = [row for row in rows.values() if row not in wraps]
    if all(row.exact_to[which] == "ar" for row in rest):
        return True
    theirs = {key for row in wraps for field in row.options for key in (field, f"{row.name}.{field}")}
    return [row.name for row in rest] == [engine.plain] and not {*options} - theirs
