"""A language model to use from a notebook: weights, tokenizer and compiled decoders behind `generate` and `stream`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from paradec import catalog, parts
from paradec.decode import loop
from paradec.decode.sampling import row_keys, sampling
from paradec.decode.unmasking.compose import ENGINE, compose
from paradec.errors import InputError, check_fields
from paradec.io.detokenize import Detokenizer
from paradec.io.tokenizer import Tokenizer
from paradec.parts import Part
from paradec.types import DecodeState, Method, Model, Prompt
from paradec.viz.trace import Trace

Text = str | Sequence[int]
CHUNK = 256  # prompt tokens read per call, at most
CHECK_STOP = 8  # turns between two looks for stop strings


@dataclasses.dataclass(frozen=True)
class Generation:
    """What became of one prompt. `settled[i]` is the model call that fixed new token i; `finish` says why it ended."""

    prompt: str
    text: str
    token_ids: tuple[int, ...]
    new_tokens: int
    calls: int
    tokens_per_call: float
    seconds: float
    method: str
    finish: str  # "eos", "length" or "stop"
    settled: tuple[int, ...]
    pieces: tuple[str, ...]

    def public(self) -> dict[str, Any]:
        """The fields of the command line's JSON."""
        fields = dataclasses.asdict(self)
        return {k: v for k, v in fields.items() if k not in ("settled", "pieces")}

    def trace(self) -> Trace:
        """The decode, to be drawn."""
        return Trace(
            method=self.method,
            prompt=self.prompt,
            pieces=self.pieces,
            settled=self.settled,
            calls=self.calls,
            seconds=self.seconds,
        )


@dataclasses.dataclass(frozen=True)
class Request:
    """Everything about a decode that is not the prompt."""

    method: str = "ar"
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition: float = 1.0
    seed: int = 0
    batch_size: int = 1
    raw: bool = False
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        """Raise `InputError` for a number out of its range."""
        ranges = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (0 <= self.temperature < float("inf"), "0 (greedy) or more"),
            "top_k": (self.top_k >= 0, "0 (off) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1 (off)"),
            "min_p": (0 <= self.min_p <= 1, "between 0 (off) and 1"),
            "repetition": (0 < self.repetition < float("inf"), "above 0 (1 is off)"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "seed": (0 <= self.seed < 2**32, "between 0 and 4294967295"),
        }
        check_fields(self, ranges)
        if any(not s for s in self.stop):
            raise InputError("A stop string is empty: it would stop every text at once. Leave it out.")


@dataclasses.dataclass
class Decoder:
    """A method ready to run on one model: compiled once per shape, and timed without its compilation."""

    name: str
    method: Method
    params: PyTree
    options: Any = None  # as given, held so that nothing else gets the id of one
    compiled: dict[Any, Any] = dataclasses.field(default_factory=dict)
    compile_seconds: float = 0.0

    def start(
        self, prompt: Prompt, limit: np.ndarray, key: jax.Array, sample: Any, slots: int, chunk: int
    ) -> DecodeState:
        """The state after the prompt."""
        args = (self.method, self.params, prompt, jnp.asarray(limit, jnp.int32), key, sample)
        return self._call(loop.start, ("start", prompt.token.shape, slots, chunk), *args, slots=slots, chunk=chunk)

    def run(self, state: DecodeState, turns: int = int(loop.OPEN)) -> DecodeState:
        """The state after at most `turns` turns; the given one is consumed."""
        return self._call(loop.run, ("run", state.tokens.shape), self.method, self.params, state, np.int32(turns))

    def _call(self, fn: Any, key: Any, *args: Any, **static: Any) -> Any:
        if key not in self.compiled:
            begin = time.perf_counter()
            with precision(self.params):
                self.compiled[key] = fn.lower(*args, **static).compile()
            self.compile_seconds += time.perf_counter() - begin
        return self.compiled[key](*args)


@dataclasses.dataclass
class LanguageModel:
    """A model, its weights and its tokenizer. Decoders are built on first use and kept.

    `defaults` are the fields of a `Request` that the model's own files ask for; a caller who wants them passes them on.
    """

    name: str
    model: Model
    params: PyTree
    tokenizer: Tokenizer
    defaults: dict[str, Any] = dataclasses.field(default_factory=dict)
    decoders: dict[Any, Decoder] = dataclasses.field(default_factory=dict, repr=False)
    parts: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False)

    def generate(
        self, prompts: Text | Sequence[Text], *, method_args: dict[str, Any] | None = None, **request: Any
    ) -> list[Generation]:
        """Continue each prompt (a string, or token ids); results come in the order of the prompts.

        Keyword arguments are those of `Request`; `method_args` reaches the method (see `paradec methods`). A row's
        randomness depends on the seed and its index in `prompts`, never on the batch it fell into.
        """
        ask = Request(**request)
        texts = [prompts] if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)) else list(prompts)
        if not texts:
            raise InputError("There are no prompts; give at least one.")
        encoded = [self.encode(p, raw=ask.raw) for p in texts]
        decoder = self.decoder(ask, method_args)
        shown = [p if isinstance(p, str) else self.tokenizer.decode(list(p)) for p in texts]
        out: list[Generation] = []
        for first in range(0, len(encoded), ask.batch_size):
            rows = range(first, min(first + ask.batch_size, len(encoded)))
            out += self.decode(decoder, [encoded[r] for r in rows], ask, rows, [shown[r] for r in rows])
        return out

    def stream(
        self, prompt: Text, *, method_args: dict[str, Any] | None = None, every: int = 1, **request: Any
    ) -> Iterator[Generation]:
        """The growing result of one prompt, after every `every` model calls."""
        ask = Request(**{**request, "batch_size": 1})
        decoder = self.decoder(ask, method_args)
        ids = self.encode(prompt, raw=ask.raw)
        shown = prompt if isinstance(prompt, str) else self.tokenizer.decode(list(prompt))
        begin, before = time.perf_counter(), decoder.compile_seconds
        state = self.begin(decoder, [ids], ask, [0])
        cuts: dict[int, int] = {}
        while True:
            state = decoder.run(state, every)
            state = self.stop_rows(state, ask, cuts)
            now = loop.snapshot(state)
            spent = time.perf_counter() - begin - (decoder.compile_seconds - before)
            yield self.result(decoder, now, 0, len(ids), shown, spent, cuts, ask)
            if now.done[0]:
                return

    def encode(self, prompt: Text, raw: bool = False) -> list[int]:
        """Token ids of a prompt, through the chat template unless `raw`; ids are checked and passed on."""
        if isinstance(prompt, str):
            if not prompt.strip():
                raise InputError("The prompt is empty; give at least one word.")
            text = prompt if raw else self.tokenizer.chat([{"role": "user", "content": prompt}])
            ids = self.tokenizer.encode(text, special=raw)
        else:
            ids = [int(i) for i in prompt]
        if not ids:
            raise InputError("The prompt has no tokens; give at least one.")
        wrong = next((i for i in ids if not 0 <= i < self.model.vocab_size), None)
        if wrong is not None:
            raise InputError(f"Token id {wrong} lies outside the vocabulary of {self.model.vocab_size} tokens.")
        longest = getattr(self.model, "max_length", None)
        if longest is not None and len(ids) >= longest:
            raise InputError(
                f"The prompt has {len(ids)} tokens and {self.name} reads at most {longest - 1}; shorten it."
            )
        return ids

    def decoder(self, ask: Request, method_args: dict[str, Any] | None = None) -> Decoder:
        """The compiled-once decoder of a method with these options."""
        if catalog.unmasks(ask.method) or catalog.denoises(self.model):
            return self._unmasking(ask, dict(method_args or {}))
        options, kind = dict(method_args or {}), catalog.find(ask.method).part
        part = self.part(kind, options.pop(kind, None)) if kind else None
        key = (ask.method, tuple(sorted(options.items())), id(part), ask.ignore_eos)
        if key not in self.decoders:
            eos = () if ask.ignore_eos else self.tokenizer.eos_ids
            structure = {} if part is None else {kind: part.structure}
            method = catalog.build(ask.method, self.model, eos, **structure, **options)
            params = {"target": self.params} | ({} if part is None else {kind: part.params})
            self.decoders[key] = Decoder(ask.method, method, params)
        return self.decoders[key]

    def _unmasking(self, ask: Request, options: dict[str, Any]) -> Decoder:
        if not catalog.denoises(self.model):
            raise InputError(f"{ask.method} fills a canvas and {self.name} continues a text; take ar or lookahead.")
        if not catalog.unmasks(ask.method):
            raise InputError(f"{self.name} is a diffusion model: choose an unmasking rule, such as quota or threshold.")
        if ask.repetition != 1:
            raise InputError("A canvas has no order of its own, so there is no repetition penalty; leave it at 1.")
        plain = lambda value: value if isinstance(value, (bool, int, float, str, tuple)) else id(value)
        key = (ask.method, tuple(sorted((name, plain(v)) for name, v in options.items())), ask.ignore_eos)
        if key not in self.decoders:
            eos = () if ask.ignore_eos else self.tokenizer.eos_ids
            given = parts.opened(self, options)
            engine = {name: given[name] for name in ENGINE if name in given}
            rules = {name: value for name, value in given.items() if name not in ENGINE}
            method = compose(self.model, ask.method, rules, eos=eos, words=self.tokenizer.vocab_size, **engine)
            self.decoders[key] = Decoder(ask.method, method, {"target": self.params}, options)
        return self.decoders[key]

    def part(self, kind: str, given: Any) -> Part | None:
        """What the method needs besides this model (see `parts.find`); parts that have a name are kept."""
        key = (kind, given) if given is None or isinstance(given, str) else (kind, id(given))
        if key not in self.parts:
            self.parts[key] = parts.find(self, kind, given), given  # held, so that no other object gets its id
        return self.parts[key][0]

    def begin(self, decoder: Decoder, batch: list[list[int]], ask: Request, rows: Sequence[int]) -> DecodeState:
        """The state of a batch after its prompts; short batches are filled with rows that are already done.

        `rows` numbers each prompt in its data set: with the seed, that is all its noise depends on.
        """
        B = ask.batch_size
        longest = max(len(ids) for ids in batch)
        token = np.zeros((B, loop.bucket(longest)), np.int32)
        length, limit = np.ones(B, np.int32), np.ones(B, np.int32)
        for b, ids in enumerate(batch):
            token[b, : len(ids)], length[b] = ids, len(ids)
            limit[b] = self.end(len(ids), ask.max_new_tokens)
        slots = loop.bucket(max(int(limit.max()), token.shape[1]))
        if catalog.denoises(self.model):  # a call may read every slot, so there are hardly more than are needed
            slots = -(-max(int(limit.max()), longest) // 16) * 16
            token = token[:, :slots]
        chunk = min(CHUNK, loop.bucket(max(longest - 1, 1)))
        keys = row_keys(ask.seed, [*rows] + [0] * (B - len(batch)))
        law = sampling(B, ask.temperature, ask.top_k, ask.top_p, ask.min_p, ask.repetition)
        prompt = Prompt(token=jnp.asarray(token), length=jnp.asarray(length))
        return decoder.start(prompt, limit, keys, law, slots, chunk)

    def end(self, prompt: int, new_tokens: int) -> int:
        """Where a row stops. Block-causal diffusion fills whole blocks; what is too much is cut from the text."""
        longest = getattr(self.model, "max_length", 2**30)
        if block := getattr(self.model, "block", 0):
            first = prompt if self.model.grid == "prompt" else 0
            whole = -(-(prompt + new_tokens - first) // block) * block + first
            return min(whole, (longest - first) // block * block + first)
        return min(prompt + new_tokens, longest)

    def decode(
        self, decoder: Decoder, batch: list[list[int]], ask: Request, rows: Sequence[int], shown: Sequence[str] = ()
    ) -> list[Generation]:
        """Decode one batch of token ids. `seconds` is the batch's wall time, prompt included, compilation not."""
        return self.finish(decoder, batch, ask, rows, shown)[0]

    def finish(
        self, decoder: Decoder, batch: list[list[int]], ask: Request, rows: Sequence[int], shown: Sequence[str] = ()
    ) -> tuple[list[Generation], DecodeState]:
        """What `decode` returns, and the final state with its statistics."""
        begin, before = time.perf_counter(), decoder.compile_seconds
        state = self.begin(decoder, batch, ask, rows)
        cuts: dict[int, int] = {}
        if ask.stop:
            while not bool(state.done.all()):
                state = self.stop_rows(decoder.run(state, CHECK_STOP), ask, cuts)
        else:
            state = decoder.run(state)
        now = loop.snapshot(state)
        spent = time.perf_counter() - begin - (decoder.compile_seconds - before)
        names = list(shown) or [""] * len(batch)
        results = [self.result(decoder, now, b, len(ids), names[b], spent, cuts, ask) for b, ids in enumerate(batch)]
        return results, state

    def reader(self, ask: Request, prompt: np.ndarray) -> Detokenizer:
        """What makes text of new tokens. A raw prompt goes on in them, so the space before their first word stays."""
        return Detokenizer(self.tokenizer, prompt=prompt if ask.raw else ())

    def stop_rows(self, state: DecodeState, ask: Request, cuts: dict[int, int]) -> DecodeState:
        """Mark rows done whose text holds a stop string; `cuts` remembers after how many new tokens it was complete."""
        if not ask.stop:
            return state
        now, prompt = loop.snapshot(state), np.asarray(state.prompt)
        for b in range(len(now.length)):
            ids = now.tokens[b, prompt[b] : now.length[b]].tolist()
            before = now.tokens[b, : prompt[b]]
            if b in cuts or not any(s in self.reader(ask, before).feed(ids) for s in ask.stop):
                continue
            text, reader = "", self.reader(ask, before)
            for n, i in enumerate(ids, 1):
                text += reader.feed(i)
                if any(s in text for s in ask.stop):
                    cuts[b] = n
                    break
        stopped = np.isin(np.arange(len(now.length)), list(cuts))
        return state.replace(done=state.done | jnp.asarray(stopped))

    def result(
        self,
        decoder: Decoder,
        now: loop.Snapshot,
        b: int,
        prompt: int,
        shown: str,
        spent: float,
        cuts: dict[int, int],
        ask: Request,
    ) -> Generation:
        """Row b of a snapshot as text, cut at its stop string if it met one."""
        end = prompt + cuts[b] if b in cuts else min(int(now.length[b]), prompt + ask.max_new_tokens)
        ids = now.tokens[b, prompt:end].tolist()
        settled = now.committed_at[b, prompt:end].tolist()
        reader = self.reader(ask, now.tokens[b, :prompt])
        pieces = [reader.feed(i) for i in ids]
        if pieces:
            pieces[-1] += reader.flush()
        text = "".join(pieces)
        if b in cuts:
            text = text[: min(text.index(s) for s in ask.stop if s in text)]
        ended = ids and ids[-1] in self.tokenizer.eos_ids and not ask.ignore_eos
        calls = int(now.calls[b]) if catalog.denoises(self.model) else max(settled, default=0)
        return Generation(
            prompt=shown,
            text=text,
            token_ids=tuple(ids),
            new_tokens=len(ids),
            calls=calls,
            tokens_per_call=len(ids) / max(calls, 1),
            seconds=spent,
            method=decoder.name,
            finish="stop" if b in cuts else "eos" if ended else "length",
            settled=tuple(settled),
            pieces=tuple(pieces),
        )


def precision(params: PyTree) -> Any:
    """Full float32 products for float32 weights, so that exact stays exact on accelerators; others are untouched."""
    wide = any(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    return jax.default_matmul_precision("highest" if wide else "default")
