"""A language model to use from a notebook: weights, tokenizer and compiled decoders behind `generate` and `stream`."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from paradec import components, composition, engines, methods
from paradec.decode import loop
from paradec.decode.sampling import row_keys, sampling
from paradec.decode.score import score
from paradec.decoder import CompiledProgram, Decoder, precision
from paradec.errors import InputError, at_least
from paradec.io.detokenize import Transcript
from paradec.io.tokenizer import Tokenizer
from paradec.request import (
    Generation,
    Given,
    Logprob,
    Prompts,
    Request,
    Score,
    Text,
    is_chat,
    one_text,
    options_of,
    texts,
)
from paradec.types import DecodeState, Logprobs, Model, Prompt

__all__ = ["Decoder", "Generation", "LanguageModel", "Request", "Text", "precision"]

CHUNK = 256  # prompt tokens read per call, at most
CHECK_STOP = 8  # turns between two looks for stop strings


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """A model, its weights and its tokenizer: what it is never changes, and `dataclasses.replace` makes another one.

    What was compiled, opened or laid out is kept in `decoders`, `components` and `layouts`, each under all that it
    depends on, so that a replaced one may share them. `defaults` are the fields of a `Request` that the model's own
    files ask for; a caller who wants them passes them on. `method_args` are options of methods, by their names, that
    these files set; a caller's own win over them.
    """

    name: str
    model: Model
    params: PyTree
    tokenizer: Tokenizer
    defaults: dict[str, Any] = dataclasses.field(default_factory=dict)
    decoders: dict[Any, CompiledProgram] = dataclasses.field(default_factory=dict)
    components: dict[Any, components.Kept] = dataclasses.field(default_factory=dict)
    layouts: dict[str, Any] = dataclasses.field(default_factory=dict)
    method_args: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        leaves = jax.tree.leaves(self.params)
        count, kinds = sum(x.size for x in leaves), "/".join(sorted({str(x.dtype) for x in leaves}))
        name = self.name if len(self.name) <= 40 else f"…{self.name[-39:]}"
        return f"LanguageModel({name!r}, {type(self.model).__name__}, {count:,} weights in {kinds})"

    def generate(
        self, prompts: Prompts, *, method_args: Mapping[str, Any] | None = None, **request: Any
    ) -> list[Generation]:
        """Continue each prompt (a string, messages, or token ids); results come in the order of the prompts.

        Keyword arguments are those of `Request`; `method_args` reaches the method (see `paradec methods`). A row's
        randomness depends on the seed and its index in `prompts`, never on the batch it fell into.
        """
        ask, given = Request.of(request), texts(prompts)
        ask = ask.within(len(given))
        encoded = [self.encode(p, **ask.reading) for p in given]
        decoder = self.decoder(ask, method_args)
        shown = [self.shown(p) for p in given]
        out: list[Generation] = []
        for first in range(0, len(encoded), ask.batch_size):
            rows = range(first, min(first + ask.batch_size, len(encoded)))
            out += self.decode(decoder, [encoded[r] for r in rows], ask, rows, [shown[r] for r in rows])
        return out

    def stream(
        self, prompt: Text, *, method_args: Mapping[str, Any] | None = None, every: int = 1, **request: Any
    ) -> Iterator[Generation]:
        """The growing result of one prompt, after every `every` model calls. What was shown once stays."""
        ask, given = dataclasses.replace(Request.of(request), batch_size=1).within(1), one_text(prompt)
        decoder, ids = self.decoder(ask, method_args), self.encode(given, **ask.reading)
        return self._stream(decoder, ids, ask, self.shown(given), at_least("every", every, 1))

    def score(
        self,
        prompts: Prompts,
        continuations: Prompts,
        *,
        raw: bool = False,
        system: str = "",
        template_args: Mapping[str, Any] | None = None,
        batch_size: int = 1,
        top: int = 1,
    ) -> list[Score]:
        """What the model makes of each continuation (a string, or token ids) of a prompt: one result a pair.

        Prompts are read as `generate` reads them. A string that follows a string is put into tokens together with it,
        and what begins in the prompt belongs to it. Every token's place tells its `top` likeliest, at least one.
        Raises `InputError` for a model that does not continue texts, and where a text is empty or too long.
        """
        if not any(engines.ENGINES[kind].scores for kind in self.model.kinds):
            raise InputError(f"{self.name} fills a canvas and has no law of the next token: it cannot score a text.")
        given, after = texts(prompts), texts(continuations)
        if len(given) != len(after):
            raise InputError(f"{len(given)} prompts and {len(after)} continuations were given; give one for each.")
        size = min(at_least("batch_size", batch_size, 1), loop.bucket(len(given), smallest=1))
        best = at_least("top", top, 1, self.model.vocab_size)
        reading = {"raw": raw, "system": system, "template_args": template_args}
        pairs = [self._pair(p, c, reading) for p, c in zip(given, after, strict=True)]
        out: list[Score] = []
        for first in range(0, len(pairs), size):
            out += self.scored(pairs[first : first + size], size, best)
        return out

    def _pair(self, prompt: Given, after: Given, reading: Mapping[str, Any]) -> tuple[list[int], int]:
        """Token ids of a prompt with its continuation, and how many of them are the prompt's."""
        if is_chat(after):
            raise InputError("A continuation is a string or token ids; put messages that are said into the prompt.")
        after = cast("str | list[int]", after)
        ids = self.encode(prompt, **reading)
        written = self._written(prompt, reading["raw"], reading["system"], reading["template_args"] or {})
        if isinstance(after, str) and isinstance(written, str):
            whole = self.tokenizer.encode(written + after, special=reading["raw"])
        else:
            whole = ids + (self.tokenizer.encode(after, special=False) if isinstance(after, str) else [*after])
        if len(whole) <= len(ids):
            raise InputError("The continuation has no tokens; give at least one.")
        self._check_ids(whole, "prompt with its continuation", self.model.max_length)
        return whole, len(ids)

    def scored(self, pairs: Sequence[tuple[list[int], int]], size: int, best: int = 1) -> list[Score]:
        """What `score` returns of one batch of token ids, each with the number of them that are its prompt.

        The batch is filled to `size` rows. Of a text the last token is predicted and not read.
        """
        longest = max(len(ids) for ids, _ in pairs)
        token, length = np.zeros((size, loop.bucket(longest)), np.int32), np.ones(size, np.int32)
        for b, (ids, _) in enumerate(pairs):
            token[b, : len(ids)], length[b] = ids, len(ids)
        with precision(self.params):
            text, chunk = Prompt(token=jnp.asarray(token), length=jnp.asarray(length)), min(CHUNK, token.shape[1])
            noted = jax.device_get(score(self.model, self.params, text, best=best, chunk=chunk))
        return [Score(told(noted, b, first, ids[first:])) for b, (ids, first) in enumerate(pairs)]

    def _stream(self, decoder: Decoder, ids: list[int], ask: Request, shown: str, every: int) -> Iterator[Generation]:
        begin, before = time.perf_counter(), decoder.compile_seconds
        state, transcript = self.begin(decoder, [ids], ask, [0]), self.transcript(ask, ids)
        while True:
            state = self.stop_rows(decoder.run(state, every), ask, [transcript])
            now = loop.snapshot(state)
            spent = time.perf_counter() - begin - (decoder.compile_seconds - before)
            yield self.result(decoder, now, 0, len(ids), shown, spent, transcript, ask)
            if now.done[0]:
                return

    def shown(self, prompt: Given) -> str:
        """A prompt as results show it: of a conversation, a line for each message."""
        if isinstance(prompt, str):
            return prompt
        if is_chat(prompt):
            return "\n".join(f"{m['role']}: {m.get('content') or ''}" for m in prompt)
        return self.tokenizer.decode(prompt)

    def encode(
        self, prompt: Text, raw: bool = False, *, system: str = "", template_args: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Token ids of a prompt; ids are checked and passed on.

        A string is what a user says, and messages are a conversation: both go through the chat template, with
        `template_args`, after the message `system` where none opens the conversation. With `raw` a string stays what
        it is. Raises `InputError` for what cannot be read so.
        """
        written = self._written(one_text(prompt), raw, system, template_args or {})
        ids = written if isinstance(written, list) else self.tokenizer.encode(written, special=raw)
        longest = self.model.max_length
        self._check_ids(ids, "prompt", None if longest is None else longest - 1)
        if self.end(len(ids), 1) <= len(ids):
            raise InputError(
                f"The prompt has {len(ids)} tokens, and no whole block of {self.model.block} fits between it "
                f"and the {longest} tokens that {self.name} reads at most; shorten it."
            )
        return ids

    def _check_ids(self, ids: list[int], what: str, longest: int | None) -> None:
        if not ids:
            raise InputError(f"The {what} has no tokens; give at least one.")
        wrong = next((i for i in ids if not 0 <= i < self.model.vocab_size), None)
        if wrong is not None:
            raise InputError(f"Token id {wrong} lies outside the vocabulary of {self.model.vocab_size} tokens.")
        if longest is not None and len(ids) > longest:
            raise InputError(f"The {what} has {len(ids)} tokens and {self.name} reads at most {longest}; shorten it.")

    def _written(self, prompt: Given, raw: bool, system: str, template_args: Mapping[str, Any]) -> str | list[int]:
        """A prompt as the tokenizer reads it, or token ids as they are."""
        if isinstance(prompt, str) and not prompt.strip():
            raise InputError("The prompt is empty; give at least one word.")
        if isinstance(prompt, str) and raw:
            return prompt
        if isinstance(prompt, str) or is_chat(prompt):
            return self._said(prompt, raw, system, template_args)
        if system or template_args:
            raise InputError("Token ids are read as they stand: put the system prompt into them, or give messages.")
        return cast("list[int]", prompt)

    def _said(
        self, prompt: str | list[dict[str, Any]], raw: bool, system: str, template_args: Mapping[str, Any]
    ) -> str:
        """A conversation as the model's chat template writes it."""
        if raw:
            raise InputError("Messages need the chat template that raw leaves out: give a string, or leave out raw.")
        if self.tokenizer.chat_template is None:
            raise InputError(
                f"{self.name} has no chat template: it is a base model. With raw=True (--raw on the command line) "
                "it continues a string as it stands."
            )
        if taken := {"self", "messages"} & {*template_args}:
            raise InputError(f"{min(taken)} is no variable of a chat template; messages are given as the prompt.")
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        if system and messages[0]["role"] not in ("system", "developer"):
            messages = [{"role": "system", "content": system}, *messages]
        return self.tokenizer.chat(messages, **template_args)

    def decoder(self, ask: Request, method_args: Mapping[str, Any] | None = None) -> Decoder:
        """The method with these options, on the weights as they are now. What it compiles is kept for others."""
        if (ask.logprobs or 0) > (words := self.model.vocab_size):
            raise InputError(f"logprobs asks for the {ask.logprobs} likeliest of {words} tokens; lower it.")
        if ask.method == "ar" and self.model.usual:  # what nobody chose
            ask = dataclasses.replace(ask, method=self.model.usual)
        method, needs = methods.method_for(self, ask, options_of(method_args))
        weights, title = {"target": self.params} | needs, composition.title(ask.method)
        return Decoder(title, method, weights, self.decoders, layouts=self.layouts)

    def begin(self, decoder: Decoder, batch: list[list[int]], ask: Request, rows: Sequence[int]) -> DecodeState:
        """The state of a batch after its prompts; short batches are filled with rows that are already done.

        `rows` numbers each prompt in its data set: with the seed, that is all its noise depends on.
        """
        B, engine = ask.batch_size, decoder.engine
        longest = max(len(ids) for ids in batch)
        token = np.zeros((B, loop.bucket(longest)), np.int32)
        length, limit = np.ones(B, np.int32), np.ones(B, np.int32)
        for b, ids in enumerate(batch):
            token[b, : len(ids)], length[b] = ids, len(ids)
            limit[b] = engine.end(self.model, len(ids), ask.max_new_tokens)
        slots = engine.slots_for(int(limit.max()), longest)
        token = token[:, :slots]
        chunk = min(CHUNK, loop.bucket(max(longest - 1, 1)))
        drawn = ask.drawn(rows, B)
        seed = drawn.pop("seed")
        keys = row_keys(seed, [0] * B if isinstance(seed, list) else [*rows] + [0] * (B - len(batch)))
        prompt = Prompt(token=jnp.asarray(token), length=jnp.asarray(length))
        return decoder.start(prompt, limit, keys, sampling(B, **drawn), slots, chunk, ask.logprobs)

    def end(self, prompt: int, new_tokens: int) -> int:
        """Where a text stops that is asked for so many tokens after a prompt of so many (`engines.Engine.end`)."""
        return engines.of_model(self.model).end(self.model, prompt, new_tokens)

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
        transcripts = [self.transcript(ask, ids) for ids in batch]
        if ask.stop:
            while not loop.finished(state):
                state = self.stop_rows(decoder.run(state, CHECK_STOP), ask, transcripts)
        else:
            state = decoder.run(state)
        now = loop.snapshot(state)
        spent = time.perf_counter() - begin - (decoder.compile_seconds - before)
        names = list(shown) or [""] * len(batch)
        results = [
            self.result(decoder, now, b, len(ids), names[b], spent, transcripts[b], ask) for b, ids in enumerate(batch)
        ]
        return results, state

    def transcript(self, ask: Request, prompt: list[int]) -> Transcript:
        """What makes text of new tokens. A raw prompt goes on in them, so the space before their first word stays."""
        return Transcript(self.tokenizer, ask.stop, prompt if ask.raw else ())

    def stop_rows(self, state: DecodeState, ask: Request, transcripts: Sequence[Transcript]) -> DecodeState:
        """Mark rows done whose text holds a stop string; `transcripts` read on."""
        if not ask.stop:
            return state
        now, prompt = loop.snapshot(state), np.asarray(state.prompt)
        stopped = np.zeros(len(now.length), bool)
        for b, transcript in enumerate(transcripts):
            transcript.read(self.new_ids(now, b, int(prompt[b]), ask))
            stopped[b] = transcript.stopped is not None
        return state.replace(done=state.done | jnp.asarray(stopped))

    def new_ids(self, now: loop.Snapshot, b: int, prompt: int, ask: Request) -> list[int]:
        """Row b's new tokens, as many as were asked for: a block may hold more."""
        return now.tokens[b, prompt : min(int(now.length[b]), prompt + ask.max_new_tokens)].tolist()

    def result(
        self,
        decoder: Decoder,
        now: loop.Snapshot,
        b: int,
        prompt: int,
        shown: str,
        spent: float,
        transcript: Transcript,
        ask: Request,
    ) -> Generation:
        """Row b of a snapshot as text, cut at its stop string if it met one."""
        ids = self.new_ids(now, b, prompt, ask)
        transcript.read(ids)
        ids = ids[: transcript.stopped]
        settled = now.committed_at[b, prompt : prompt + len(ids)].tolist()
        pieces = transcript.pieces(ended=bool(now.done[b]))
        calls = decoder.engine.calls(int(now.calls[b]), settled)
        ended = ids and ids[-1] in decoder.eos
        return Generation(
            prompt=shown,
            text="".join(pieces),
            token_ids=tuple(ids),
            new_tokens=len(ids),
            calls=calls,
            tokens_per_call=len(ids) / max(calls, 1),
            seconds=spent,
            method=decoder.name,
            finish="stop" if transcript.stopped is not None else "eos" if ended else "length",
            settled=tuple(settled),
            pieces=pieces,
            logprobs=None if now.logprobs is None else told(now.logprobs, b, prompt, ids),
        )


def told(noted: Logprobs, b: int, prompt: int, ids: list[int]) -> tuple[Logprob, ...]:
    """The log-probabilities of row b's tokens behind the prompt. What may not be written is none of the likeliest."""
    token, best, value = (x[b, prompt : prompt + len(ids)].tolist() for x in (noted.token, noted.best, noted.value))
    top = (
        tuple(pair for pair in zip(i, v, strict=True) if pair[1] > -math.inf) for i, v in zip(best, value, strict=True)
    )
    return tuple(map(Logprob, ids, token, top))
