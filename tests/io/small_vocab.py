"""Small vocabularies in the form of GGUF metadata: every byte is a token, so every text can be encoded."""

from __future__ import annotations

from typing import Any

from paradec.io.gguf_vocab import BYTE_OF_LETTER, CONTROL, NORMAL, USER_DEFINED

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_level(pre: str = "gpt-2", **more: Any) -> dict[str, Any]:
    """The 256 letters, a few merges, two control tokens and a user-defined one."""
    letters = sorted(BYTE_OF_LETTER, key=BYTE_OF_LETTER.__getitem__)
    merges = ["Ġ t", "h e", "Ġt he", "Ã ¤", "1 2", "l l", "' ll"]
    tokens = [*letters, *(m.replace(" ", "") for m in merges), "<|im_start|>", "<|im_end|>", "<think>"]
    types = [NORMAL] * (len(tokens) - 3) + [CONTROL, CONTROL, USER_DEFINED]
    found = {"model": "gpt2", "pre": pre, "tokens": tokens, "merges": merges, "token_type": types}
    found |= {"bos_token_id": len(tokens) - 3, "eos_token_id": len(tokens) - 2}
    return {f"tokenizer.ggml.{k}": v for k, v in (found | more).items()} | {"tokenizer.chat_template": CHATML}


def sentencepiece(**more: Any) -> dict[str, Any]:
    """Byte tokens, a few scored pieces, control tokens; a space is put before each text unless `add_space_prefix`."""
    pieces = ["▁t", "he", "▁the", "▁", "t", "h", "e", "ä", "語"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *pieces, "<end_of_turn>"]
    types = [2, CONTROL, CONTROL, *[6] * 256, *[NORMAL] * len(pieces), CONTROL]
    scores = [0.0] * 259 + [-float(i) for i in range(len(pieces))] + [0.0]
    found = {"model": "llama", "tokens": tokens, "scores": scores, "token_type": types}
    found |= {"unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return {f"tokenizer.ggml.{k}": v for k, v in (found | more).items()}
