"""The adapters a fake engine has loaded: load, unload, list, and whose weights a name answers with.

Follows vllm/entrypoints/openai/models/serving.py. Knows neither HTTP nor generation.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any

from loadtests.fake_engine import errors
from loadtests.fake_engine.language import Weights
from loadtests.fake_engine.replies import random_id


@dataclass(frozen=True, slots=True)
class Adapter:
    path: str
    weights: Weights


class LoadedAdapters:
    def __init__(self, base: str, root: str, max_model_len: int) -> None:
        self._base = Weights(base)
        self._root = root
        self._max_model_len = max_model_len
        self._loaded: dict[str, Adapter] = {}

    def weights_of(self, name: str) -> Weights:
        """Raises errors.Rejected with vLLM's 404 for a name that is not served."""
        if name == self._base.name:
            return self._base
        if name not in self._loaded:
            raise errors.Rejected(errors.model_unknown(name, self._base.name))
        return self._loaded[name].weights

    def other_weights(self, name: str) -> Weights:
        """Another adapter's weights; made-up ones where no other is loaded."""
        for other, adapter in self._loaded.items():
            if other != name and adapter.weights.digest is not None:
                return adapter.weights
        own = self.weights_of(name).digest or "0123456789abcdef" * 4
        return Weights("somebody-else@1", own[::-1])

    def load(self, name: str, path: str, *, in_place: bool, as_base: bool) -> str:
        """vLLM's words for success. `as_base` keeps the adapter's name and drops its weights."""
        self._check(name, path, in_place)
        digest = _digest(name, path)
        self._loaded[name] = Adapter(path, self._base if as_base else Weights(name, digest))
        return f"Success: LoRA adapter '{name}' added successfully."

    def _check(self, name: str, path: str, in_place: bool) -> None:
        problem = None
        if not name or not path:
            problem = "Both 'lora_name' and 'lora_path' must be provided."
        elif name == self._base.name:
            problem = f"The lora adapter '{name}' conflicts with a served base model."
        elif name in self._loaded and not in_place:
            problem = (
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter "
                "in place, set 'load_inplace' to True."
            )
        if problem is not None:
            raise errors.Rejected(errors.failure(400, "InvalidUserInput", problem))

    def unload(self, name: str) -> str:
        if name not in self._loaded:
            problem = f"The lora adapter '{name}' cannot be found."
            raise errors.Rejected(errors.failure(404, "NotFoundError", problem))
        del self._loaded[name]
        return f"Success: LoRA adapter '{name}' removed successfully."

    def cards(self) -> dict[str, Any]:
        """vLLM's /v1/models: `created` is now on each call."""
        base = _card(self._base.name, self._root, None, self._max_model_len)
        loaded = [_card(name, adapter.path, self._base.name, None) for name, adapter in self._loaded.items()]
        return {"object": "list", "data": [base, *loaded]}


def _digest(name: str, path: str) -> str:
    """sha256 of the adapter's tensors. No directory or config is vLLM's 404, no tensors its 500."""
    folder = Path(path).expanduser()
    if not (folder / "adapter_config.json").is_file():
        missing = f"Loading lora {name} failed: No adapter found for {path}"
        raise errors.Rejected(errors.failure(404, "NotFoundError", missing))
    try:
        with (folder / "adapter_model.safetensors").open("rb") as tensors:
            return file_digest(tensors, "sha256").hexdigest()
    except OSError:
        empty = f"Call to add_lora method failed: {path} doesn't contain tensors"
        raise errors.Rejected(errors.failure(500, "InternalServerError", empty)) from None


def _card(name: str, root: str, parent: str | None, max_model_len: int | None) -> dict[str, Any]:
    now = int(time.time())
    permission = {
        "id": f"modelperm-{random_id()}",
        "object": "model_permission",
        "created": now,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    return {
        "id": name,
        "object": "model",
        "created": now,
        "owned_by": "vllm",
        "root": root,
        "parent": parent,
        "max_model_len": max_model_len,
        "permission": [permission],
    }
