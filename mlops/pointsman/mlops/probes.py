"""Texts for a bundle's self-test. They are ours: a bundle is copied around in clear and must hold nobody's prompts."""

from __future__ import annotations

import numpy as np

from pointsman.strategies.base import Encoder, Strategy
from pointsman.strategies.encoders.hashing import unit

__all__ = ["TEXTS", "stable"]

TEXTS = (
    "What is the capital of France?",
    "A train leaves at 9:00 and travels 60 miles per hour. How many hours does it take for 150 miles?",
    "Write a Python function that returns the n-th prime number.",
    "Which of the following best describes the holding of the court in this case?",
    "Summarize the following article in three sentences.",
    "A 54-year-old man presents with chest pain. What is the most likely diagnosis?",
    "Explain the difference between supply and demand to a child.",
    "Übersetze den folgenden Satz ins Englische: Morgen wird es regnen.",
    "请用一句话解释什么是机器学习。",
    "Let x be a real number such that x + 1/x = 3. Find x^2 + 1/x^2.",
)

NOISE = 1e-6
"""More than the last bits of a dot product, in which machines differ."""


def stable(encoder: Encoder, strategy: Strategy, seed: int = 0) -> tuple[str, ...]:
    """Those texts whose scores do not hang on the last bits, so that a good bundle passes its self-test on every machine."""
    vectors = encoder.encode(TEXTS)
    plain = strategy.score(vectors)
    random = np.random.default_rng(seed)
    worst = np.zeros(len(TEXTS))
    for _ in range(8):
        noise = random.uniform(-NOISE, NOISE, vectors.shape).astype(np.float32)
        worst = np.maximum(worst, np.abs(strategy.score(unit(vectors + noise * (vectors != 0))) - plain).max(axis=1))
    chosen = tuple(text for text, difference in zip(TEXTS, worst, strict=True) if difference < 1e-4)
    return chosen or TEXTS[:1]
