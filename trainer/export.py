"""An adapter merged into its base model: one folder of plain weights that any engine loads without LoRA.

    python -m trainer.export --weights FOLDER --adapter FOLDER DEST [--template FILE]

Owns the merge and the atomic appearance of DEST. `burnish adapters export --merge` calls it in a process of its own,
since it needs torch.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the weights are a folder here


def merge(weights: Path, adapter: Path, dest: Path, template: Path | None = None) -> None:
    """Writes base + adapter to `dest`, which must not exist; whole or not at all."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(weights, dtype="auto")
    dtype = base.dtype
    # Added in float32: in bfloat16 small deltas would vanish in the rounding of the sum.
    merged = PeftModel.from_pretrained(base.to(torch.float32), str(adapter)).merge_and_unload()
    tokenizer = AutoTokenizer.from_pretrained(weights)
    if template is not None:
        tokenizer.chat_template = template.read_text()
    dest.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=dest.parent, prefix=f".{dest.name}."))
    try:
        merged.to(dtype).save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        staging.chmod(0o755)
        staging.rename(dest)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.export")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--template", type=Path)
    parser.add_argument("dest", type=Path)
    given = parser.parse_args()
    if given.dest.exists():
        print(f"{given.dest} is there already; name a folder that is not", file=sys.stderr)
        return 1
    merge(given.weights, given.adapter, given.dest, given.template)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
