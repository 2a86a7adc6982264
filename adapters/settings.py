"""The one settings object of a process: what `burnish.toml` and the environment may say, and its defaults.

Owns names, types, defaults and the rules between fields. Knows nothing of what the settings are used for:
it opens no socket, no database and no weights, and reads no secret (only the name of the variable that holds it).
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    model_validator,
)

from adapters.engine_settings import (
    DEFAULT_MODEL,
    Count,
    EngineSettings,
    HomePath,
    Seconds,
    Section,
)
from adapters.errors import SettingsError
from adapters.telemetry_settings import Costs, Langfuse, Metrics, Tracing
from adapters.traffic_settings import Admission, Batches, KeyLimits, Priority, RouteTarget, Targets

__all__ = [
    "DEFAULT_MODEL",
    "Admission",
    "Batches",
    "Canary",
    "Costs",
    "EngineSettings",
    "Health",
    "KeyLimits",
    "Langfuse",
    "Limits",
    "Metrics",
    "Priority",
    "Recording",
    "RouteTarget",
    "Settings",
    "Targets",
    "Tracing",
    "Training",
    "load_settings",
]

CONFIG_FILE = "burnish.toml"

#: Environment variable -> settings key. They win over the file.
ENVIRONMENT = {
    "BURNISH_HOME": "home",
    "BURNISH_HOST": "host",
    "BURNISH_PORT": "port",
    "BURNISH_DATABASE_URL": "database_url",
}


class Limits(Section):
    """What one request may ask for: refused at the gateway before an engine sees it."""

    max_body_bytes: Count = 32 * 1024 * 1024
    max_n: Count = 8
    max_logprobs: Annotated[int, Field(ge=0)] = 20
    max_best_of: Count = 8
    max_stop: Count = 16
    max_pattern_chars: Count = 2048
    max_grammar_chars: Count = 16384
    max_schema_bytes: Count = 65536
    max_schema_depth: Count = 16
    max_messages: Count = 2048
    max_prompts: Count = 64
    max_tools: Count = 128
    max_logit_bias: Annotated[int, Field(ge=0)] = 1024
    allow_chat_template: bool = False


class Health(Section):
    """When an engine counts as ill, and how it comes back."""

    probe_interval_seconds: Seconds = 1.0
    probe_timeout_seconds: Seconds = 5.0
    connect_timeout_seconds: Seconds = 2.0
    first_byte_timeout_seconds: Seconds = 120.0
    total_timeout_seconds: Seconds = 900.0
    failures_to_eject: Count = 3
    backoff_initial_seconds: Seconds = 1.0
    backoff_max_seconds: Seconds = 30.0
    max_attempts: Count = 3
    hold_seconds: Annotated[float, Field(ge=0)] = 5.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.backoff_initial_seconds > self.backoff_max_seconds:
            raise ValueError("backoff_initial_seconds is larger than backoff_max_seconds")
        if self.first_byte_timeout_seconds > self.total_timeout_seconds:
            raise ValueError("first_byte_timeout_seconds is larger than total_timeout_seconds")
        return self


class Canary(Section):
    """What the fingerprint of an adapter must show; differences are of log-probabilities (nats)."""

    min_difference: Annotated[float, Field(ge=0)] = 1e-3
    noise_factor: Annotated[float, Field(ge=1)] = 4.0
    agreement_tolerance: Annotated[float, Field(gt=0)] = 0.25


class Recording(Section):
    """What is kept of requests, for how long, and what happens when it cannot be kept."""

    enabled: bool = True
    days: Annotated[float, Field(gt=0)] = 90.0
    judged_days: Annotated[float, Field(gt=0)] = 730.0
    on_failure: Literal["refuse", "serve"] = "refuse"
    max_queue: Count = 10_000


class Training(Section):
    """The trainer beside the gateway, and the bounds of every run."""

    worker: bool = True
    threads: Annotated[int, Field(ge=0)] = 0
    nice: bool = True
    memory_gib: Annotated[float, Field(gt=0)] | None = None
    gpu_memory_share: Annotated[float, Field(gt=0, lt=0.9)] | None = None
    max_attempts: Count = 5
    lease_seconds: Seconds = 30.0
    accelerate_config: HomePath | None = None
    held_out_share: Annotated[float, Field(gt=0, lt=0.9)] = 0.1
    min_held_out_rows: Count = 8
    min_held_out_units: Count = 6
    max_share_per_key: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_share_per_user: Annotated[float, Field(gt=0, le=1)] = 0.2
    replay_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    pii: Literal["regex", "presidio", "off"] = "regex"
    parity_tolerance: Annotated[float, Field(gt=0)] = 0.25
    guard_margin: Annotated[float, Field(gt=0)] = 0.05
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95


class Settings(Section):
    home: HomePath = Path("~/.burnish")
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    database_url: str | None = None
    cors_origins: tuple[str, ...] = ()
    log_json: bool = False
    drain_seconds: Annotated[float, Field(ge=0)] = 30.0
    responses_days: Annotated[float, Field(gt=0)] = 30.0
    limits: Limits = Limits()
    health: Health = Health()
    canary: Canary = Canary()
    recording: Recording = Recording()
    targets: Targets = Targets()
    priority: Priority = Priority()
    admission: Admission = Admission()
    batches: Batches = Batches()
    key_limits: KeyLimits = KeyLimits()
    training: Training = Training()
    metrics: Metrics = Metrics()
    tracing: Tracing = Tracing()
    langfuse: Langfuse = Langfuse()
    costs: Costs = Costs()
    engines: tuple[EngineSettings, ...] = (EngineSettings(name="local", kind="supervised"),)

    @property
    def database(self) -> str:
        """The database's URL: the one given, or SQLite under `home`."""
        return self.database_url or f"sqlite:///{self.home / 'burnish.db'}"

    @property
    def artifact_root(self) -> Path:
        return self.home / "artifacts"

    @property
    def file_root(self) -> Path:
        return self.home / "files"

    @property
    def run_root(self) -> Path:
        return self.home / "runs"

    def card(self, ref: str) -> Path:
        """The model card of a version. Not by digest: two runs may make the same bytes."""
        return self.home / "cards" / f"{ref}.md"

    @property
    def weights_root(self) -> Path:
        return self.home / "weights"

    @property
    def models(self) -> tuple[str, ...]:
        """Every model name that an engine answers to by itself, in the order of the settings."""
        return tuple(dict.fromkeys(m for engine in self.engines for m in engine.served_models))

    @model_validator(mode="after")
    def _engines_agree(self) -> Self:
        names = [engine.name for engine in self.engines]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two engines are called {name!r}")
        for model in self.models:
            _refuse_two_meanings(model, [e for e in self.engines if model in e.served_models])
        return self


def _refuse_two_meanings(model: str, engines: list[EngineSettings]) -> None:
    """One model name stands for one set of weights, with adapters everywhere or nowhere."""
    if len({engine.takes_adapters for engine in engines}) > 1:
        raise ValueError(f'model {model!r} is served both by engines with adapters and by kind "openai"')
    digests = {engine.digest for engine in engines if engine.digest is not None}
    weights = {engine.weights for engine in engines if engine.kind == "supervised"}
    if len(digests) > 1 or len(weights) > 1:
        raise ValueError(
            f"model {model!r} has different weights on different engines; give them different names"
        )


def load_settings(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """Settings from `path`, else from $BURNISH_CONFIG, else from ./burnish.toml if there is one.

    A file that was named must exist. Raises SettingsError naming the file, the key and the nearest right name.
    """
    file = _config_file(path, environ)
    values = _read(file) if file is not None else {}
    source = str(file) if file is not None else "settings"
    folder = file.absolute().parent if file is not None else Path.cwd()
    for variable, key in ENVIRONMENT.items():
        if environ.get(variable):
            values[key] = (
                str(Path(environ[variable]).expanduser().absolute()) if key == "home" else environ[variable]
            )
    try:
        return Settings.model_validate(values, context={"folder": folder})
    except ValidationError as error:
        raise SettingsError(_explain(error, source, environ)) from None


def _config_file(path: Path | None, environ: Mapping[str, str]) -> Path | None:
    named = path or (Path(environ["BURNISH_CONFIG"]) if environ.get("BURNISH_CONFIG") else None)
    if named is not None and not named.is_file():
        raise SettingsError(f"{named}: there is no such settings file")
    if named is None and Path(CONFIG_FILE).is_file():
        return Path(CONFIG_FILE)
    return named


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{file}: {error}") from None


def _explain(error: ValidationError, source: str, environ: Mapping[str, str]) -> str:
    """The first problem in one line; unknown keys first, since they are often the cause of the others."""
    problems = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    problem = problems[0]
    location = problem["loc"]
    if len(location) == 1:
        source = next((v for v, k in ENVIRONMENT.items() if k == location[0] and environ.get(v)), source)
    key = _dotted(location)
    if problem["type"] == "extra_forbidden":
        return f"{source}: unknown key `{key}`{_suggestion(location)}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{source}: `{key}`: {message}" if key else f"{source}: {message}"


def _dotted(location: tuple[int | str, ...]) -> str:
    """("engines", 0, "url") -> engines[0].url"""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(
        "."
    )


def _suggestion(location: tuple[int | str, ...]) -> str:
    names = list(_section_at(location[:-1]).model_fields)
    nearest = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
    return f"; did you mean `{nearest[0]}`?" if nearest else f"; it may be one of {', '.join(names)}"


def _section_at(location: tuple[int | str, ...]) -> type[BaseModel]:
    section: type[BaseModel] = Settings
    for part in location:
        if isinstance(part, str) and part in section.model_fields:  # else: a name that the user gave
            annotation: Any = section.model_fields[part].annotation
            section = next((a for a in reversed(get_args(annotation)) if _is_section(a)), annotation)
    return section


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
