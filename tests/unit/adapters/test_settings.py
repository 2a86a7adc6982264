from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import SettingsError
from adapters.settings import Canary, EngineSettings, Health, Limits, Settings, load_settings


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "burnish.toml"
    file.write_text(text)
    return file


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(write(tmp_path, text), {})
    return caught.value.message


def test_without_a_file_there_is_one_supervised_engine_on_loopback() -> None:
    settings = load_settings(None, {})
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.home == Path("~/.burnish").expanduser()
    assert settings.database == f"sqlite:///{settings.home}/burnish.db"
    (engine,) = settings.engines
    assert (engine.kind, engine.model, settings.models) == (
        "supervised",
        "smollm2-135m-instruct",
        ("smollm2-135m-instruct",),
    )


def test_every_section_of_the_file_is_read(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """
        port = 9000
        cors_origins = ["https://a.example"]
        [limits]
        max_n = 2
        [health]
        failures_to_eject = 5
        [canary]
        noise_factor = 2.0
        [[engines]]
        name = "gpu"
        kind = "vllm"
        url = "http://gpu:8000"
        model = "llama"
        api_key_env = "GPU_KEY"
        [[engines]]
        name = "cloud"
        kind = "openai"
        url = "https://api.example/v1"
        models = ["vendor/big", "vendor/small"]
        """,
    )
    settings = load_settings(file, {})
    assert settings.port == 9000
    assert settings.cors_origins == ("https://a.example",)
    assert settings.limits == Limits(max_n=2)
    assert settings.health == Health(failures_to_eject=5)
    assert settings.canary == Canary(noise_factor=2.0)
    assert settings.models == ("llama", "vendor/big", "vendor/small")
    assert [engine.takes_adapters for engine in settings.engines] == [True, False]


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, 'host = "10.0.0.1"\nport = 1\nhome = "/from/file"\n')
    environ = {
        "BURNISH_HOME": str(tmp_path / "home"),
        "BURNISH_HOST": "127.0.0.2",
        "BURNISH_PORT": "8123",
        "BURNISH_DATABASE_URL": "postgresql+psycopg://u@h/d",
    }
    settings = load_settings(file, environ)
    assert (settings.home, settings.host, settings.port) == (tmp_path / "home", "127.0.0.2", 8123)
    assert settings.database == "postgresql+psycopg://u@h/d"


def test_a_bad_variable_is_named_not_the_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="BURNISH_PORT: `port`"):
        load_settings(write(tmp_path, ""), {"BURNISH_PORT": "eight"})


def test_the_file_is_found_by_variable_or_in_the_working_directory(tmp_path: Path) -> None:
    write(tmp_path, "port = 9001")
    other = tmp_path / "other.toml"
    other.write_text("port = 9002")
    assert load_settings(None, {}).port == 9001
    assert load_settings(None, {"BURNISH_CONFIG": str(other)}).port == 9002


@pytest.mark.parametrize("environ", [{}, {"BURNISH_CONFIG": "gone.toml"}])
def test_a_named_file_that_is_missing_is_fatal(environ: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=r"gone\.toml: there is no such settings file"):
        load_settings(None if environ else Path("gone.toml"), environ)


def test_relative_paths_start_at_the_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(
        tmp_path, 'home = "data"\n[[engines]]\nname = "a"\nkind = "supervised"\nweights = "w"\nmodel = "m"'
    )
    monkeypatch.chdir("/")
    settings = load_settings(file, {})
    assert settings.home == tmp_path / "data"
    assert settings.engines[0].weights == tmp_path / "w"


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("prot = 1", "prot", "port"),
        ("[limit]\nmax_n = 1", "limit", "limits"),
        ("[limits]\nmax_bdy_bytes = 1", "limits.max_bdy_bytes", "max_body_bytes"),
        ('[[engines]]\nname="a"\nkind="vllm"\nurll="http://x"', "engines[0].urll", "url"),
    ],
)
def test_an_unknown_key_is_refused_with_file_key_and_nearest_name(
    tmp_path: Path, text: str, key: str, nearest: str
) -> None:
    assert (
        refusal(tmp_path, text) == f"{tmp_path}/burnish.toml: unknown key `{key}`; did you mean `{nearest}`?"
    )


def test_an_unknown_key_like_no_other_lists_the_right_ones(tmp_path: Path) -> None:
    assert "it may be one of min_difference" in refusal(tmp_path, "[canary]\nzzzzzz = 1")


SECTIONS = [(Settings, ""), (Limits, "limits"), (Health, "health"), (Canary, "canary")]


@given(data=st.data())
def test_a_key_with_one_letter_lost_is_always_answered_with_the_right_name(data: st.DataObject) -> None:
    section, table = data.draw(st.sampled_from(SECTIONS))
    key = data.draw(st.sampled_from(sorted(section.model_fields)))
    lost = data.draw(st.integers(1, len(key) - 1))
    typo = key[:lost] + key[lost + 1 :]
    if typo in section.model_fields:
        return
    file = Path("typo.toml")
    file.write_text(f"[{table}]\n{typo} = 1" if table else f"{typo} = 1")
    with pytest.raises(SettingsError) as caught:
        load_settings(file, {})
    assert f"did you mean `{key}`?" in caught.value.message


ENGINE = '[[engines]]\nname = "a"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ENGINE + 'kind = "vllm"', "engine 'a': kind \"vllm\" needs `url`"),
        (ENGINE + 'kind = "openai"\nmodels = ["m"]', "engine 'a': kind \"openai\" needs `url`"),
        (ENGINE + 'kind = "openai"\nurl = "http://x"', 'kind "openai" needs `models` (or `model`)'),
        (ENGINE + 'kind = "vllm"\nurl = "ftp://x"', "is neither http(s)://host[:port] nor unix:"),
        (ENGINE + 'kind = "vllm"\nurl = "unix://x/y"', "is neither http(s)://host[:port] nor unix:"),
        (ENGINE + 'kind = "supervised"\nurl = "http://x"', '`url` is not for kind "supervised"'),
        (ENGINE + 'kind = "vllm"\nurl = "http://x"\nargs = ["-x"]', '`args` is only for kind "supervised"'),
        (ENGINE + 'kind = "openai"\nurl = "http://x"\nmodel = "m"\nmax_loras = 1', "it takes no adapters"),
        (ENGINE + 'kind = "supervised"\nmax_loras = 9\nmax_cpu_loras = 8', "smaller than max_loras"),
        (ENGINE + 'kind = "ollama"', "engines[0].kind"),
        (ENGINE + 'kind = "supervised"\nmodel = "a@1"', "is no model name"),
        (ENGINE + 'kind = "supervised"\n' + ENGINE + 'kind = "supervised"', "two engines are called 'a'"),
        ("engines = []\nport = 70000", "`port`"),
        ("port = ", "Invalid value"),
        ("[health]\nbackoff_initial_seconds = 99", "backoff_initial_seconds is larger than"),
        ("[health]\nprobe_timeout_seconds = 0", "`health.probe_timeout_seconds`"),
        ("[health]\nprobe_timeout_seconds = inf", "`health.probe_timeout_seconds`"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_in_one_line(
    tmp_path: Path, text: str, message: str
) -> None:
    said = refusal(tmp_path, text)
    assert message in said
    assert said.startswith(f"{tmp_path}/burnish.toml: ")
    assert "\n" not in said


def test_one_model_name_cannot_stand_for_two_kinds_of_engines_or_two_weights(tmp_path: Path) -> None:
    vllm = '[[engines]]\nname = "{}"\nkind = "vllm"\nurl = "http://x"\nmodel = "m"\ndigest = "sha256:{}"\n'
    openai = '[[engines]]\nname = "c"\nkind = "openai"\nurl = "http://x"\nmodel = "m"\n'
    assert "with adapters and by kind" in refusal(tmp_path, vllm.format("a", "0" * 64) + openai)
    assert "different weights" in refusal(tmp_path, vllm.format("a", "0" * 64) + vllm.format("b", "1" * 64))
    same = load_settings(write(tmp_path, vllm.format("a", "0" * 64) + vllm.format("b", "0" * 64)), {})
    assert same.models == ("m",)


def test_settings_cannot_be_changed_after_they_were_read() -> None:
    settings = load_settings(None, {})
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1  # type: ignore[misc]


def test_a_unix_socket_is_an_engines_address() -> None:
    engine = EngineSettings(name="a", kind="vllm", url="unix:///run/a.sock")
    assert engine.url == "unix:///run/a.sock"
