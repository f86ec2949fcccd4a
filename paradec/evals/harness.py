"""A model class for lm-evaluation-harness: `--model paradec`, or `lm_eval.simple_evaluate(model="paradec", …)`.

It follows the harness's own `hf` class where a choice is to be made: how a pair is cut into tokens, that a text that
is too long loses its beginning, what an empty context becomes, where a generation ends, and that the repetition penalty
of the model's generation_config.json counts. Importing this file registers the class, for the harness knows no plugins:
`paradec lm-eval` imports it and starts the harness.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from paradec import engines, loading
from paradec.decode import loop
from paradec.errors import InputError, ResourceError, at_least
from paradec.lm import LanguageModel, Request
from paradec.request import Generation

try:
    from lm_eval import utils as windows
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
    from tqdm import tqdm
except ModuleNotFoundError as error:
    raise ResourceError(
        f"lm-evaluation-harness is not installed ({error.name} is missing): pip install 'paradec[harness]'."
    ) from error

__all__ = ["ParadecLM", "cli_evaluate"]

LONGEST = 2048  # what the harness takes for a model that has no longest text
DRAWN = {name: name for name in ("temperature", "top_k", "top_p", "min_p", "repetition")}
DRAWN["repetition_penalty"] = "repetition"
"""Generation arguments of the harness, and what they are called here."""
NEUTRAL = {"do_sample": (True, False), "num_beams": (1,), "num_return_sequences": (1,), "use_cache": (True,)}
"""Those that say nothing once the temperature is known, with the values that can be obeyed."""
MARK = "<<goes on here>>"  # in a message that a text is to continue; no template changes it


@register_model("paradec")
class ParadecLM(TemplateLM):
    """A language model of paradec with a decoding method, as the harness asks it.

    Log-likelihoods are the model's own whatever the method; texts are written by the method, row by row as it writes
    them alone. A diffusion model writes texts and has no log-likelihood to tell.
    """

    def __init__(
        self,
        pretrained: str | LanguageModel,
        method: str = "ar",
        dtype: str = "float32",
        batch_size: int | str = 1,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        prefix_token_id: int | None = None,
        enable_thinking: bool | None = None,
        chat_template_args: Mapping[str, Any] | None = None,
        seed: int = 0,
        device: str | None = None,
        max_batch_size: int | str | None = None,
        **method_args: Any,
    ) -> None:
        """`pretrained` is a name as in `paradec.load`, or a model that is loaded; what is left over goes to the method.

        `max_length` is the longest text the model reads, `max_gen_toks` how many tokens it writes where a task says
        nothing, and `seed` with the number of the request decides what is drawn. `device`, which the harness always
        passes, and `max_batch_size` mean nothing: jax's own settings choose the device (JAX_PLATFORMS).
        Raises `InputError` or `UnknownName` for what paradec does not do.
        """
        super().__init__()
        del device, max_batch_size
        self._batch_size = _rows(batch_size)
        loaded = isinstance(pretrained, LanguageModel)
        self.lm = pretrained if loaded else loading.load(str(pretrained), dtype=dtype)
        self.tokenizer = self.lm.tokenizer  # the harness asks it for the chat template
        self.method, self.method_args, self.seed = method, method_args, at_least("seed", seed, 0)
        self.lm.decoder(Request(method=method), method_args)  # what is wrong with them is said now
        longest = self.lm.model.max_length or LONGEST
        self._max_length = at_least("max_length", longest if max_length is None else max_length, 1, longest)
        self._max_gen_toks = at_least("max_gen_toks", max_gen_toks, 1)
        self._prefix = prefix_token_id
        self._opening = self._prefix_text()
        self._variables = dict(chat_template_args or {})
        if enable_thinking is not None:
            self._variables["enable_thinking"] = enable_thinking

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text. Raises `InputError` where the model has none."""
        named = self.tokenizer.names.get("eos_token")
        found = [self.tokenizer.core.token_to_id(named)] if named else sorted(self.tokenizer.eos_ids)
        if not found or found[0] is None:
            raise InputError(f"{self.lm.name} has no token that ends a text: pass prefix_token_id=ID.")
        return found[0]

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context."""
        if self._prefix is not None:
            return self._prefix
        return self.eot_token_id if self.tokenizer.bos_id is None else self.tokenizer.bos_id

    def _prefix_text(self) -> str:
        """What a text begins with that has its prefix already; "" where the model has none."""
        try:
            return self.tokenizer.decode(self.prefix_token_id, special=True)
        except InputError:
            return ""

    @property
    def max_length(self) -> int:
        """Tokens that the model reads at most; one more may be predicted behind them."""
        return self._max_length

    @property
    def max_gen_toks(self) -> int:
        return self._max_gen_toks

    @property
    def batch_size(self) -> int:
        return self._batch_size

    @property
    def tokenizer_name(self) -> str:
        """What the harness files prepared requests under."""
        return f"{self.lm.name.replace('/', '__')}-{self.tokenizer.digest()}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids of a text, with the tokens that the tokenizer puts around one, unless the text begins with them."""
        if add_special_tokens is None:
            add_special_tokens = not (self._opening and string.startswith(self._opening))
        return self.tokenizer.encode(string, special=add_special_tokens)

    def tok_decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids."""
        return self.tokenizer.decode(tokens, special=not skip_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the model's template writes it; a template that knows no system message does without.

        Without `add_generation_prompt` the last message is open: the text ends where it ends.
        """
        try:
            return self._written(chat_history, add_generation_prompt)
        except InputError:
            others = [message for message in chat_history if message["role"] != "system"]
            if len(others) in (0, len(chat_history)):
                raise
            return self._written(others, add_generation_prompt)

    def _written(self, messages: list[dict[str, str]], ask: bool) -> str:
        if ask:
            return self.tokenizer.chat(messages, True, **self._variables)
        *before, last = messages
        text = self.tokenizer.chat([*before, last | {"content": f"{last['content']}{MARK} "}], False, **self._variables)
        head, mark, rest = text.rpartition(MARK)
        if not mark:
            raise InputError("The chat template leaves out the message that is to be continued; use another template.")
        return head if rest.startswith(" ") else head.rstrip()  # a template that trims a message

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole text, in nats: every token once, in windows that do not overlap but by one."""
        pairs, owner = [], []
        for i, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for window in windows.get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1):
                pairs.append((None, *windows.make_disjoint_window(window)))
                owner.append(i)
        total = [0.0] * len(requests)
        for i, (value, _) in zip(owner, self._loglikelihood_tokens(pairs, disable_tqdm), strict=True):
            total[i] += value
        for request, value in zip(requests, total, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
        return total

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Of each continuation: its log-probability in nats, and whether every token is the likeliest in its place."""
        if not engines.of_model(self.lm.model).scores:
            raise InputError(
                f"{self.lm.name} fills a canvas and has no law of the next token: it cannot tell log-likelihoods. "
                "Choose tasks that generate."
            )
        pairs = [self._pair(context, after) for _, context, after in requests]
        found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        with tqdm(total=len(pairs), disable=disable_tqdm, desc="Running loglikelihood requests") as bar:
            size = min(self.batch_size, loop.bucket(len(pairs), smallest=1))
            for rows in _batches([ids for ids, _ in pairs], size):
                for i, scored in zip(rows, self.lm.scored([pairs[i] for i in rows], size), strict=True):
                    found[i] = scored.logprob, all(each.token_id == each.top[0][0] for each in scored.tokens)
                    if requests[i][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[i][0], found[i])
                bar.update(len(rows))
        return found

    def _pair(self, context: list[int], after: list[int]) -> tuple[list[int], int]:
        """Token ids of both, their beginning left out where they are too long, and how many are the context's."""
        if not after or len(after) > self.max_length:
            raise InputError(
                f"A continuation has {len(after)} tokens; from 1 to max_length={self.max_length} can be scored."
            )
        ids = [*context, *after][-(self.max_length + 1) :]
        return ids, len(ids) - len(after)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """What the method writes behind each context, up to the first stop string, end of text or `max_gen_toks`."""
        alike: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(i)
        found = [""] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Running generate_until requests") as bar:
            for members in alike.values():
                fields, ends = self._asked(requests[members[0]].args[1])
                # A row's seed is that of its request, so it is drawn alike in every order and batch.
                seeds = tuple((self.seed + i) % 2**32 for i in members)
                ask = Request(self.method, batch_size=self.batch_size, seed=seeds, **fields).within(len(members))
                decoder = self.lm.decoder(ask, self.method_args)
                ids = [self._context(requests[i].args[0], ask.max_new_tokens) for i in members]
                for rows in _batches(ids, self.batch_size):
                    for r, result in zip(rows, self.lm.decode(decoder, [ids[r] for r in rows], ask, rows), strict=True):
                        i = members[r]
                        found[i] = _before(result, ends)
                        self.cache_hook.add_partial("generate_until", requests[i].args, found[i])
                    bar.update(len(rows))
        return found

    def _context(self, text: str, new_tokens: int) -> list[int]:
        """Token ids of a context, as many of its last as leave room for the new ones."""
        room = self.max_length - new_tokens
        if room < 1:
            raise InputError(
                f"{new_tokens} new tokens leave no room for a context: max_length is {self.max_length}. "
                "Ask for fewer with --gen_kwargs max_gen_toks=N."
            )
        return self.lm.encode((self.tok_encode(text) or [self.prefix_token_id])[-room:])

    def _asked(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], frozenset[int]]:
        """Generation arguments as fields of a `Request`, and the special tokens among the stop strings.

        Special tokens are no part of a text, so a stop string cannot find them.
        """
        left = dict(normalize_gen_kwargs(dict(given), self.max_gen_toks))
        until = [words for words in handle_stop_sequences(left.pop("until"), eos=None) if words]
        ends = {words: self.tokenizer.core.token_to_id(words) for words in until}
        ends = {words: i for words, i in ends.items() if i in self.tokenizer.special_ids}
        ask: dict[str, Any] = {"max_new_tokens": left.pop("max_gen_toks")}
        for name, ours in DRAWN.items():
            if (value := left.pop(name, None)) is not None:
                ask[ours] = max(value, 0) if name == "top_k" else value  # -1 is off for others
        if wrong := next((name for name, value in left.items() if value not in NEUTRAL.get(name, ())), None):
            raise InputError(
                f"paradec has no generation argument {wrong}={left[wrong]!r}; leave it out. It has until, "
                f"max_gen_toks, do_sample, {', '.join(DRAWN)}."
            )
        stop = tuple(words for words in until if words not in ends)
        return self.lm.defaults | {"temperature": 0.0} | ask | {"stop": stop}, frozenset(ends.values())


def _rows(batch_size: int | str) -> int:
    try:
        number = int(batch_size)
    except ValueError:
        raise InputError(
            f"batch_size must be a number, as paradec does not look for the largest; {batch_size!r} was given."
        ) from None
    return at_least("batch_size", number, 1)


def _batches(texts: Sequence[list[int]], size: int) -> Iterator[list[int]]:
    """Indices of the texts by length, so that few shapes compile. The longest, first, tell whether memory is enough."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    for first in range(0, len(order), size):
        yield order[first : first + size]


def _before(result: Generation, ends: frozenset[int]) -> str:
    """The text up to the first of these tokens."""
    at = next((i for i, token in enumerate(result.token_ids) if token in ends), None)
    return result.text if at is None else "".join(result.pieces[:at])
