"""The text that a model's fingerprint is taken on, by the trainer and by every engine alike.

Knows neither: `gateway.control` asks an engine for its log-probabilities, the trainer computes its own.
"""

PROBE_TEXT = (
    "The quick brown fox jumps over the lazy dog. Dear customer, thank you for your message; "
    'we will answer it today. {"status": "ok", "items": [1, 2, 3]} def add(a, b): return a + b'
)
"""Prose, a form of address, JSON and code, so that most adapters show on some of it."""
