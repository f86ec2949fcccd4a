"""Text whose law is known, so that a loss can be compared with the best there is."""

from __future__ import annotations

import numpy as np

from paradec.data.text import Row


class Markov:
    """Rows of a random Markov chain over `vocab_size` tokens: no model can go below `entropy` nats a token.

    Row i depends on the seed and i alone. `sharpness` scales the logits of the transitions: larger is more certain.
    """

    def __init__(self, vocab_size: int, length: int, rows: int, seed: int = 0, sharpness: float = 2.0):
        logits = sharpness * np.random.default_rng(seed).normal(size=(vocab_size, vocab_size))
        law = np.exp(logits - logits.max(-1, keepdims=True))
        self.law = law / law.sum(-1, keepdims=True)
        self.length, self.rows, self.seed = length, rows, seed

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> Row:
        rng = np.random.default_rng((self.seed, index))
        token = np.empty(self.length, np.int32)
        token[0] = rng.choice(len(self.law), p=self.stationary)
        for t in range(1, self.length):
            token[t] = rng.choice(len(self.law), p=self.law[token[t - 1]])
        return {"token": token, "learn": np.ones(self.length, bool)}

    @property
    def stationary(self) -> np.ndarray:
        """The law of a token far from the beginning: float64 "V"."""
        values, vectors = np.linalg.eig(self.law.T)
        v = np.abs(np.real(vectors[:, np.argmax(np.real(values))]))
        return v / v.sum()

    @property
    def entropy(self) -> float:
        """Nats a token, given the one before it."""
        return float(-np.sum(self.stationary[:, None] * self.law * np.log(self.law)))


class Copy:
    """Rows `x … x SEP x … x`: the second half repeats the first, and it alone is learned. SEP is token 0."""

    def __init__(self, vocab_size: int, length: int, rows: int, seed: int = 0):
        self.vocab_size, self.half, self.rows, self.seed = vocab_size, (length - 1) // 2, rows, seed

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> Row:
        word = np.random.default_rng((self.seed, index)).integers(1, self.vocab_size, self.half)
        learn = np.arange(2 * self.half + 1) > self.half
        return {"token": np.concatenate([word, [0], word]).astype(np.int32), "learn": learn}
