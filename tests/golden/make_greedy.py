"""Writes smollm2_greedy.json: what transformers generates greedily from SmolLM2-135M's weights, in float32.

    python tests/golden/make_greedy.py

Needs the extra `oracle` and the weights. `make test` then compares without torch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import paradec

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GOLDEN = HERE / "smollm2_greedy.json"
NEW_TOKENS = 32
MORE = (
    "List five rivers in Europe.",
    "What is 17 times 23?",
    "def fibonacci(n):",
    "Translate to French: the sea is calm.",
)


def prompts() -> list[str]:
    """Twenty prompts: questions, copies, code, a sum and a translation."""
    from paradec.prompts import read_prompts

    files = [ROOT / "infer" / "prompts" / f"{name}.jsonl" for name in ("open", "copy")]
    return [p for file in files for p in read_prompts(file, sys.exit)[:8]] + list(MORE)


def transformers_greedy(lm: paradec.LanguageModel, texts: list[str]) -> list[list[int]]:
    """Greedy continuations by transformers, one prompt at a time, ended by the same end-of-text ids as ours."""
    import tempfile

    import jax
    import torch
    import transformers

    from paradec.io.hf import save_hf

    with tempfile.TemporaryDirectory() as folder:
        save_hf(folder, lm.model, jax.device_get(lm.params))
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    eos, out = sorted(lm.tokenizer.eos_ids), []
    for text in texts:
        ids = torch.tensor([lm.encode(text)])
        with torch.no_grad():
            row = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS,
                eos_token_id=eos, pad_token_id=0,
            )  # fmt: skip
        out.append(row[0, ids.shape[1] :].tolist())
    return out


def main() -> None:
    lm, texts = paradec.load("smollm2-135m"), prompts()
    rows = [{"prompt": t, "token_ids": ids} for t, ids in zip(texts, transformers_greedy(lm, texts), strict=True)]
    lines = ",\n".join(json.dumps(row) for row in rows)
    GOLDEN.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
