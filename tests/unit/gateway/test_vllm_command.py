"""What vLLM is started with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapters.base_weights import chat_template
from adapters.engine_settings import EngineSettings
from adapters.hardware import has_bfloat16_units
from gateway.vllm_command import vllm_command, vllm_environment
from gateway.vllm_plugin import BUSY_WAIT

WEIGHTS, SOCKET = Path("/data/weights"), Path("/run/b/local.sock")


def engine(**fields: object) -> EngineSettings:
    return EngineSettings.model_validate({"name": "local", "kind": "supervised"} | fields)


def option(command: list[str], flag: str) -> str:
    assert command.count(flag) == 1, flag
    return command[command.index(flag) + 1]


def test_the_command_carries_the_settings() -> None:
    command = vllm_command(
        engine(model="m", max_loras=3, max_cpu_loras=7, max_lora_rank=32, max_model_len=512, dtype="float32"),
        WEIGHTS,
        SOCKET,
        gpu=False,
    )
    expected = {
        "--model": "/data/weights",
        "--served-model-name": "m",
        "--uds": "/run/b/local.sock",
        "--dtype": "float32",
        "--max-model-len": "512",
        "--max-loras": "3",
        "--max-cpu-loras": "7",
        "--max-lora-rank": "32",
        "--tool-call-parser": "hermes",
        "--scheduling-policy": "priority",
    }
    assert {flag: option(command, flag) for flag in expected} == expected
    assert {"--enable-lora", "--enable-auto-tool-choice"} <= set(command)


def test_cpu_flags_stay_away_from_a_gpu() -> None:
    on_cpu, on_gpu = (vllm_command(engine(kv_cache_gib=1.5), WEIGHTS, SOCKET, gpu) for gpu in (False, True))
    assert option(on_cpu, "--kv-cache-memory-bytes") == str(3 * 2**29)
    assert "--enforce-eager" in on_cpu
    assert not {"--enforce-eager", "--kv-cache-memory-bytes", "--max-num-batched-tokens"} & set(on_gpu)
    cpu_only = {"VLLM_CPU_OMP_THREADS_BIND", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", BUSY_WAIT}
    cpu_only |= {"TORCH_COMPILE_DISABLE"}
    environments = [vllm_environment(engine(), Path("/h"), Path("/s"), gpu, {}) for gpu in (False, True)]
    assert cpu_only <= environments[0].keys()
    assert not cpu_only & environments[1].keys()


def test_promise_07_a_step_on_a_cpu_is_short_and_has_room_for_all_requests() -> None:
    tokens = [
        option(
            vllm_command(engine(max_concurrent=places), WEIGHTS, SOCKET, gpu=False),
            "--max-num-batched-tokens",
        )
        for places in (4, 128, 500)
    ]
    assert tokens == ["256", "256", "500"]


def test_promise_07_an_engine_leaves_training_its_share_of_the_gpu() -> None:
    command = vllm_command(engine(), WEIGHTS, SOCKET, True, 0.3)
    assert option(command, "--gpu-memory-utilization") == "0.6"
    for gpu, share in ((True, None), (False, 0.3)):
        assert "--gpu-memory-utilization" not in vllm_command(engine(), WEIGHTS, SOCKET, gpu, share)
    own = ("--gpu-memory-utilization", "0.5")
    assert vllm_command(engine(args=own), WEIGHTS, SOCKET, True, 0.3)[-2:] == [*own]


def test_only_the_default_weights_get_our_chat_template() -> None:
    ours = vllm_command(engine(), WEIGHTS, SOCKET, gpu=False)
    assert Path(option(ours, "--chat-template")).read_text()
    theirs = vllm_command(engine(weights=Path("/models/qwen")), Path("/models/qwen"), SOCKET, gpu=False)
    assert "--chat-template" not in theirs


@pytest.mark.parametrize(
    "theirs",
    [{"kind": "vllm", "url": "http://10.0.0.7:8000"}, {"model": "qwen"}, {"weights": Path("/models/qwen")}],
)
def test_the_trainer_takes_the_template_that_the_engine_takes(theirs: dict[str, object]) -> None:
    assert chat_template(engine()) is not None
    assert chat_template(engine(**theirs)) is None


def test_arguments_of_the_settings_come_last_and_so_win() -> None:
    command = vllm_command(engine(args=("--dtype", "float32")), WEIGHTS, SOCKET, gpu=False)
    assert command[-2:] == ["--dtype", "float32"]


def test_structured_outputs_name_a_backend_that_can_leave_out_white_space() -> None:
    command = vllm_command(engine(), WEIGHTS, SOCKET, gpu=False)
    config = json.loads(option(command, "--structured-outputs-config"))
    assert config == {"backend": "xgrammar", "disable_any_whitespace": True}


def test_promise_12_nothing_lets_the_engine_log_a_prompt_or_report_its_use() -> None:
    command = vllm_command(engine(), WEIGHTS, SOCKET, gpu=False)
    assert {"--no-enable-log-requests", "--no-enable-log-outputs", "--disable-uvicorn-access-log"} <= set(
        command
    )
    inherited = {"VLLM_LOGGING_LEVEL": "DEBUG", "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "true", "PATH": "/bin"}
    environment = vllm_environment(engine(), Path("/h"), Path("/s"), False, inherited)
    assert not {"VLLM_LOGGING_LEVEL", "VLLM_DEBUG_LOG_API_SERVER_RESPONSE"} & environment.keys()
    assert (environment["VLLM_NO_USAGE_STATS"], environment["DO_NOT_TRACK"]) == ("1", "1")
    assert environment["PATH"] == "/bin"


def test_an_inherited_engine_key_does_not_lock_the_gateway_out() -> None:
    assert "VLLM_API_KEY" not in vllm_environment(
        engine(), Path("/h"), Path("/s"), False, {"VLLM_API_KEY": "x"}
    )


def test_the_environment_of_the_settings_wins() -> None:
    settings = engine(env={"OMP_NUM_THREADS": "1"})
    assert (
        vllm_environment(settings, Path("/h"), Path("/s"), False, {"OMP_NUM_THREADS": "9"})["OMP_NUM_THREADS"]
        == "1"
    )


@pytest.mark.slow
def test_the_installed_vllm_knows_every_flag() -> None:
    import json
    import subprocess
    import sys

    commands = [vllm_command(engine(), WEIGHTS, SOCKET, gpu)[3:] for gpu in (False, True)]
    program = (
        "import json, sys; from vllm.utils.argparse_utils import FlexibleArgumentParser;"
        "from vllm.entrypoints.launchers.cli_args import make_arg_parser;"
        "parser = make_arg_parser(FlexibleArgumentParser());"
        "[parser.parse_args(command) for command in json.loads(sys.argv[1])]"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, json.dumps(commands)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-500:]


@pytest.mark.parametrize(
    ("flags", "units"),
    [("sse2 avx2 fma", False), ("avx512f avx512_bf16", True), ("amx_tile amx_bf16", True), ("", False)],
)
def test_bfloat16_is_left_to_cpus_that_have_units_for_it(tmp_path: Path, flags: str, units: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\nflags : {flags}\n")
    assert has_bfloat16_units(cpuinfo) is units
    assert has_bfloat16_units(tmp_path / "none") is False


def test_auto_is_the_weights_own_type_on_a_gpu() -> None:
    command = vllm_command(engine(), WEIGHTS, SOCKET, gpu=True)
    assert command[command.index("--dtype") + 1] == "auto"
