"""A whole language model that a test can write to disk in a second: byte-level tokenizer, tiny random weights."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from paradec.io.hf import save_hf
from paradec.models.transformer import Transformer
from paradec.testing.tiny import drawn

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def write_tiny_model(folder: Path, seed: int = 0, max_length: int = 512) -> Path:
    """A Llama-shaped folder in Hugging Face layout, with text that varies."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate((*SPECIAL, *alphabet))}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(SPECIAL))
    core.save(str(folder / "tokenizer.json"))
    config = {"chat_template": TEMPLATE, "eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    model = Transformer(
        vocab_size=len(vocab), width=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_width=48,
        max_length=max_length, tied=False,
    )  # fmt: skip
    weights = drawn(model.specs(), seed)
    loud = weights.blocks.replace(out=weights.blocks.out * 6, down=weights.blocks.down * 6)
    save_hf(folder, model, jax.tree.map(np.asarray, weights.replace(blocks=loud)))
    return folder
