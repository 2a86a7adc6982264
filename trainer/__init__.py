"""What needs torch: weights, and training runs from a dataset to a proved adapter. Never imports the gateway."""

import os

import adapters  # noqa: F401  its way with garbage, from the first import on

# Read when the libraries are imported, so before any of them: no run asks a hub for anything, or tells one.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
