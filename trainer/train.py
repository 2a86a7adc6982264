"""Trains one LoRA adapter: SFT, DPO or KTO by TRL and PEFT, from rows to a directory that an engine can load.

`train` reads from top to bottom. Owns the run's folder from checkpoints to the adapter:

    RUN/checkpoints/checkpoint-N/   where a killed or paused run goes on
    RUN/tensorboard/                the curves
    RUN/reference.json              DPO: the reference's log-probabilities
    RUN/step_metrics.csv            the numbers of each step
    RUN/manifest.json               what is needed to repeat it, its numbers, its fingerprint
    RUN/adapter/                    adapter_config.json and adapter_model.safetensors; there when all of it is

The reference of DPO and KTO is what the run begins with: the base model, or the version of a warm start. Departures
from plain DPO: the supervised term on the better answer (`sft_weight`), since DPO alone only moves answers apart and
does not learn to write a form that the model has never written; and the worse answer is read no further than the
better one is long. Knows neither jobs nor engines; whoever watches is told of every step.
"""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import os
import platform
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PrinterCallback
from trl import DPOConfig, KTOConfig, SFTConfig, pack_dataset

from adapters.artifacts import CONFIG_FILE, WEIGHTS_FILE
from adapters.errors import InvalidRequest
from adapters.hardware import has_bfloat16_units
from adapters.probe import PROBE_TEXT
from adapters.rows import Row
from adapters.traffic_settings import Priority
from trainer import examples as example_rows
from trainer.examples import Example, example_of, examples_of
from trainer.methods import convert
from trainer.objectives import Labels, Pairs, Supervised
from trainer.pace import Pace, Resting
from trainer.plan import lay_down
from trainer.progress import Progress, Watch, has_stalled, obey
from trainer.recipe import Recipe
from trainer.rendering import Rendering
from trainer.scheduling import hold_to_memory_share
from trainer.split import has_accepted_answer

PROBE_ROWS = 8
LEAST_EVALUATIONS = 4
"""In a run of so few epochs that their ends alone would not show when it is best."""

TOKENS_OF_A_PROBE = 2048

ALONE = Priority(enabled=False)
"""The machine is this run's: it gives way to nobody."""

STEPS_FILE = "step_metrics.csv"
STEPS_COLUMNS = {
    "train_loss": "loss",
    "train_accuracy": "mean_token_accuracy",
    "valid_loss": "eval_loss",
    "valid_mean_token_accuracy": "eval_mean_token_accuracy",
}
"""OpenAI's columns of a result file after `step`, and what the trainers call them."""

LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "safetensors", "bitsandbytes")


@dataclass(frozen=True, slots=True)
class Seen:
    """Log-probabilities (nats) of some tokens under the trained adapter, in both precisions that engines compute in:
    at unlikely tokens rounding alone can make a nat of difference."""

    float32: tuple[float, ...]
    bfloat16: tuple[float, ...]

    @classmethod
    def from_json(cls, value: Mapping[str, Sequence[float]]) -> Seen:
        return cls(tuple(value["float32"]), tuple(value["bfloat16"]))


@dataclass(frozen=True, slots=True)
class ProbeRow:
    """How the trained adapter sees the answer of a row."""

    row_id: str
    seen: Seen


@dataclass(frozen=True, slots=True)
class TrainResult:
    adapter: Path
    metrics: dict[str, Any] = field(hash=False)
    fingerprint: Seen  # of PROBE_TEXT's tokens after the first
    probe: tuple[ProbeRow, ...]  # of up to PROBE_ROWS held-out rows
    manifest: dict[str, Any] = field(hash=False)

    @property
    def steps_file(self) -> Path:
        return self.adapter.parent / STEPS_FILE


def train(
    recipe: Recipe,
    train_rows: Sequence[Row],
    held_out_rows: Sequence[Row],
    weights: Path,
    template: Path | None,
    run_folder: Path,
    watch: Watch,
    *,
    start: Path | None = None,
    priority: Priority = ALONE,
    gpu_memory_share: float | None = None,
) -> TrainResult:
    """`start`: the folder of the adapter that `recipe.start_from` names. `priority`: at which headroom, as the watch says
    it, the run rests between micro-batches. The same arguments give the same adapter, also when the run was killed or
    paused in between and is called again, and however often it has rested.

    Raises InvalidRequest, Paused (after a checkpoint), Cancelled, and what the watch raises.
    """
    done = finished(run_folder)
    if done is not None:
        return done
    began = time.monotonic()

    # -- the device ----------------------------------------------------------------------------
    on_gpu = torch.cuda.is_available()
    if on_gpu and gpu_memory_share is not None:
        hold_to_memory_share(gpu_memory_share, torch.cuda)
    dtype = torch.bfloat16 if on_gpu or has_bfloat16_units() else torch.float32
    torch.set_num_threads(max(1, recipe.threads // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    _seed(recipe.seed)
    quantized = _nf4(dtype) if recipe.quantization == "nf4" else None

    # -- rows as token ids, and the order in which they are read -------------------------------
    rendering = Rendering(weights, template)
    examples = examples_of(convert(train_rows, recipe.method), rendering, recipe.max_length)
    held_out = _fitting(convert(held_out_rows, recipe.method), rendering, recipe.max_length)
    make: Callable[[Sequence[Example]], list[dict[str, Any]]] = {
        "supervised": example_rows.supervised,
        "dpo": example_rows.pairs,
        "kto": example_rows.labels,
    }[recipe.method]
    dataset, lengths = Dataset.from_list(make(examples)), [example.longest for example in examples]
    if recipe.packing:
        dataset = pack_dataset(dataset, recipe.max_length, "bfd")
        lengths = [len(ids) for ids in dataset["input_ids"]]
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    plan = lay_down(
        lengths,
        epochs=recipe.n_epochs,
        batch_size=recipe.batch_size,
        parts=recipe.gradient_accumulation,
        least_rows=2 if recipe.method == "kto" else 1,
        seed=recipe.seed,
        processes=processes,
    )
    steps = len(plan.steps)
    tokens = sum(example.tokens for example in examples)

    # -- the model: frozen base, and a LoRA on top of it ---------------------------------------
    model = AutoModelForCausalLM.from_pretrained(
        str(weights), dtype=dtype, quantization_config=quantized, local_files_only=True
    )
    model.config.use_cache = False
    if quantized is not None:
        _keep_gradients(model)
    lora: LoraConfig | None = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=list(recipe.target_modules),
        task_type="CAUSAL_LM",
    )
    notes = []
    if start is not None:
        problem = _cannot_go_on(start, recipe)
        if problem is None:
            config = LoraConfig.from_pretrained(str(start))
            config.lora_dropout, config.inference_mode = recipe.dropout, False
            config.base_model_name_or_path = str(weights)  # else PEFT asks the hub for it at every checkpoint
            model = PeftModel.from_pretrained(model, str(start), config=config, is_trainable=True)
            lora = None
        else:
            notes.append(f"It begins anew and not with {recipe.start_from}: {problem}.")
            watch.note(notes[-1])

    # -- TRL's trainer -------------------------------------------------------------------------
    pace = Pace(priority, watch)

    def between() -> None:
        """Between two forward passes outside the trainer's loop."""
        pace.rest(is_alone=True)
        obey(watch.step({}))

    checkpoints = run_folder / "checkpoints"
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(run_folder / "tensorboard")
    evaluate_every = (
        plan.steps_an_epoch if recipe.n_epochs >= LEAST_EVALUATIONS else -(-steps // LEAST_EVALUATIONS)
    )
    arguments: dict[str, Any] = {
        "output_dir": str(checkpoints),
        "run_name": run_folder.name,
        "num_train_epochs": 1,  # all of them are in the plan
        "per_device_train_batch_size": max(len(part) for step in plan.steps for part in step),
        "per_device_eval_batch_size": max(2, recipe.micro_batch_size),
        "gradient_accumulation_steps": plan.parts // processes,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": round(recipe.warmup_ratio * steps),
        "weight_decay": recipe.weight_decay,
        "optim": "adamw_torch",
        "logging_steps": 1,
        "eval_strategy": "steps" if held_out else "no",
        "eval_steps": evaluate_every,
        "save_strategy": "steps",
        "save_steps": evaluate_every,
        "save_total_limit": 2,  # the best and the last
        "metric_for_best_model": "eval_loss" if held_out else None,
        "greater_is_better": False,
        "seed": recipe.seed,
        "bf16": dtype is torch.bfloat16,
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu,
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "use_liger_kernel": on_gpu and _installed("liger-kernel"),
        "report_to": list(recipe.report_to) or "none",
        "disable_tqdm": True,
        "max_length": None,  # what does not fit is left out, never cut
    }
    parts = {
        "model": model,
        "train_dataset": dataset,
        "eval_dataset": Dataset.from_list(make(held_out)) if held_out else None,
        "processing_class": rendering.tokenizer,
        "peft_config": lora,
        "callbacks": [
            Progress(
                watch, tokens * recipe.n_epochs / steps, plan.steps_an_epoch, recipe.early_stopping_patience
            ),
            Resting(pace),
        ],
    }
    if rendering.tokenizer.pad_token is None:
        rendering.tokenizer.pad_token = rendering.tokenizer.eos_token
    trainer: Supervised | Pairs | Labels
    if recipe.method == "supervised":
        packed = {"packing": recipe.packing, "padding_free": recipe.padding_free, "eval_packing": False}
        trainer = Supervised(args=SFTConfig(**arguments, **packed), **parts)
    elif recipe.method == "dpo":
        losses = {
            "loss_type": ["sigmoid", "sft"],
            "loss_weights": [1.0, recipe.sft_weight],
            "beta": recipe.beta,
        }
        trainer = Pairs(args=DPOConfig(**arguments, **losses), **parts)
        if processes == 1:
            trainer.keep_reference(run_folder / "reference.json", between)
    else:
        balance = _balance(examples)
        trainer = Labels(args=KTOConfig(**arguments, **balance, beta=recipe.beta), **parts)
    trainer.plan = plan
    trainer.remove_callback(PrinterCallback)

    # -- the steps -----------------------------------------------------------------------------
    watch.step({"method": recipe.method, "hyperparameters": recipe.shown, "total_steps": steps})
    last = _last_checkpoint(checkpoints)
    if last is None or not _is_over(last, steps, recipe.early_stopping_patience):
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    if not trainer.is_world_process_zero():  # the rest is the first one's, which may still be saving
        raise SystemExit(0)
    last = _last_checkpoint(checkpoints)
    assert last is not None
    state = json.loads((last / "trainer_state.json").read_text())
    best = checkpoints / f"checkpoint-{state['best_global_step']}" if state.get("best_global_step") else last
    del trainer, model, parts

    # -- the adapter, and how it sees the probes -----------------------------------------------
    staged = run_folder / ".adapter"
    shutil.rmtree(staged, ignore_errors=True)
    _write_adapter(best, staged, recipe)
    ids = list(rendering.tokenizer(PROBE_TEXT)["input_ids"])
    texts, probed = [(ids[:1], ids[1:])], []
    for row in [row for row in held_out_rows if has_accepted_answer(row)][:PROBE_ROWS]:
        example = example_of(row, rendering)
        if example is not None and example.longest <= min(recipe.max_length, TOKENS_OF_A_PROBE):
            texts.append((example.prompt_ids, example.answer_ids))
            probed.append(row.id)
    device = "cuda" if on_gpu else "cpu"
    fingerprint, *seen = _seen(weights, staged, device, texts, between)
    probe = [ProbeRow(id, each) for id, each in zip(probed, seen, strict=True)]
    metrics = _metrics(state, steps, tokens * recipe.n_epochs, plan.steps_an_epoch, time.monotonic() - began)
    manifest = {
        "recipe": recipe.to_json(),
        "versions": _versions(),
        "device": torch.cuda.get_device_name(0) if on_gpu else platform.processor() or platform.machine(),
        "dtype": str(dtype).removeprefix("torch."),
        "processes": processes,
        "rows": {"train": len(examples), "held_out": len(held_out)},
        "notes": notes,
        "metrics": metrics,
        "fingerprint": asdict(fingerprint),
        "probe": [asdict(row) for row in probe],
    }
    (run_folder / STEPS_FILE).write_text(_steps_csv(state["log_history"]))
    (run_folder / "manifest.partial").write_text(json.dumps(manifest, indent=2))
    (run_folder / "manifest.partial").rename(run_folder / "manifest.json")
    staged.rename(run_folder / "adapter")
    result = finished(run_folder)
    assert result is not None
    return result


def finished(run_folder: Path) -> TrainResult | None:
    """What an earlier call has left when it was through."""
    adapter, file = run_folder / "adapter", run_folder / "manifest.json"
    if not adapter.is_dir() or not file.is_file():
        return None
    manifest = json.loads(file.read_text())
    probe = tuple(ProbeRow(row["row_id"], Seen.from_json(row["seen"])) for row in manifest["probe"])
    return TrainResult(adapter, manifest["metrics"], Seen.from_json(manifest["fingerprint"]), probe, manifest)


# -- before the steps ------------------------------------------------------------------------------
def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _nf4(dtype: torch.dtype) -> BitsAndBytesConfig:
    """QLoRA (Dettmers et al. 2023): 4-bit NormalFloat, its constants quantized again. Raises InvalidRequest where
    bitsandbytes cannot compute with it on this device."""
    try:
        import bitsandbytes

        layer = bitsandbytes.nn.Linear4bit(
            64, 64, bias=False, compute_dtype=dtype, quant_type="nf4", compress_statistics=True
        )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        layer.to(device)(torch.ones(1, 64, dtype=dtype, device=device))
    except Exception as error:  # whatever a build for another device raises
        raise InvalidRequest(
            f"'quantization' is 'nf4', and bitsandbytes does not work on this machine ({str(error)[:200]}).",
            param="quantization",
            code="quantization_unavailable",
        ) from None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _keep_gradients(model: Any) -> None:
    """bitsandbytes 0.50 packs 4-bit weights anew at the first evaluation on a CPU with AVX-512 BF16, for inference
    alone: from then on no gradient would pass through them, and training would go on with what is left of it."""
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def _fitting(rows: Sequence[Row], rendering: Rendering, max_length: int) -> list[Example]:
    """The held-out rows in the order of their lengths, so that little is padded; there may be none."""
    try:
        return sorted(examples_of(rows, rendering, max_length), key=lambda example: example.longest)
    except InvalidRequest:
        return []


def _cannot_go_on(start: Path, recipe: Recipe) -> str | None:
    """Why the weights of an adapter cannot be trained further by this recipe; None: they can."""
    config = json.loads((start / CONFIG_FILE).read_text())
    modules = config["target_modules"]
    if config["r"] != recipe.rank or config["lora_alpha"] != recipe.alpha:
        return f"its rank and alpha are {config['r']} and {config['lora_alpha']}, not {recipe.rank} and {recipe.alpha:g}"
    if not isinstance(modules, list) or {*modules} != {*recipe.target_modules}:
        return "it changes other modules"
    return None


def _balance(examples: Sequence[Example]) -> dict[str, float]:
    """Weights that make likes and dislikes count alike, however many there are of each (KTO, eq. 8)."""
    liked = sum(example.liked is True for example in examples)
    disliked = len(examples) - liked
    if not liked or not disliked:
        return {}
    return {"desirable_weight": max(1.0, disliked / liked), "undesirable_weight": max(1.0, liked / disliked)}


# -- checkpoints -----------------------------------------------------------------------------------
def _last_checkpoint(folder: Path) -> Path | None:
    """The newest that is whole: the trainer's state is written last. Those that a kill has left half are removed."""
    found = sorted(
        folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True
    )
    for path in found:
        try:
            json.loads((path / "trainer_state.json").read_text())
        except (OSError, ValueError):
            shutil.rmtree(path, ignore_errors=True)
        else:
            return path
    return None


def _is_over(checkpoint: Path, steps: int, patience: int) -> bool:
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    return state["global_step"] >= steps or has_stalled(state["log_history"], patience)


# -- after the steps -------------------------------------------------------------------------------
def _write_adapter(checkpoint: Path, target: Path, recipe: Recipe) -> None:
    """What an engine loads, and nothing of this machine: no path in it, and the same bytes for the same weights."""
    target.mkdir(parents=True)
    config = json.loads((checkpoint / CONFIG_FILE).read_text())
    modules = config["target_modules"]
    config |= {
        "base_model_name_or_path": recipe.base_model,
        "target_modules": sorted(modules) if isinstance(modules, list) else modules,  # PEFT's is a set
        "inference_mode": True,
    }
    (target / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_file(load_file(checkpoint / WEIGHTS_FILE), target / WEIGHTS_FILE, metadata={"format": "pt"})


def _seen(
    weights: Path,
    adapter: Path,
    device: str,
    texts: Sequence[tuple[list[int], list[int]]],
    ask: Callable[[], None],
) -> list[Seen]:
    """How the adapter on the whole base, whatever it was trained in, sees the second part of each text after the first:
    what engines are held against. `ask` is called in between, and may raise."""
    views = []
    for dtype in (torch.float32, torch.bfloat16):  # one model at a time: together they may be too large
        base = AutoModelForCausalLM.from_pretrained(str(weights), dtype=dtype, local_files_only=True)
        model = PeftModel.from_pretrained(base, str(adapter), autocast_adapter_dtype=False)
        model = model.to(device, dtype).eval()
        view = []
        for prompt_ids, answer_ids in texts:
            ask()
            view.append(_logprobs(model, prompt_ids, answer_ids, device))
        views.append(view)
        del base, model
    return [Seen(*pair) for pair in zip(*views, strict=True)]


@torch.no_grad()
def _logprobs(model: Any, prompt_ids: list[int], answer_ids: list[int], device: str) -> tuple[float, ...]:
    ids = torch.tensor([[*prompt_ids, *answer_ids]], device=device)
    logits = model(input_ids=ids).logits[0, len(prompt_ids) - 1 : -1].float()
    said = torch.tensor(answer_ids, device=device)[:, None]
    return tuple(float(value) for value in torch.log_softmax(logits, dim=-1).gather(1, said)[:, 0])


def _metrics(
    state: dict[str, Any], steps: int, tokens: int, steps_an_epoch: int, seconds: float
) -> dict[str, Any]:
    history = state["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    validation = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    return {
        "steps": state["global_step"],
        "epochs": round(state["global_step"] / steps_an_epoch, 2),
        "best_step": state.get("best_global_step") or state["global_step"],
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "validation_losses": validation,
        "validation_loss": min(validation, default=None),
        "trained_tokens": round(tokens * state["global_step"] / steps),
        "seconds": round(seconds, 1),  # of the last attempt
    }


def _steps_csv(log_history: Sequence[Mapping[str, Any]]) -> str:
    """A line a step; empty where nothing was measured."""
    lines: dict[int, dict[str, Any]] = {}
    for entry in log_history:
        found = {ours: entry[theirs] for ours, theirs in STEPS_COLUMNS.items() if theirs in entry}
        if found:
            lines.setdefault(entry["step"], {}).update(found)
    out = io.StringIO()
    writer = csv.DictWriter(out, ["step", *STEPS_COLUMNS], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({"step": step, **lines[step]} for step in sorted(lines))
    return out.getvalue()


def _versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in LIBRARIES if _installed(name)}
    if _installed("burnish"):
        found["burnish"] = importlib.metadata.version("burnish")
    return {"python": platform.python_version(), **found}


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
