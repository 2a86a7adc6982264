"""The settings of one engine, and the types that all settings share.

Owns what `[[engines]]` may say for each kind of engine. Knows nothing of how an engine is started or asked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, model_validator

DEFAULT_MODEL = "smollm2-135m-instruct"

#: Fields that only an engine started by us can obey.
SUPERVISED_ONLY = (
    "weights",
    "args",
    "env",
    "max_model_len",
    "max_cpu_loras",
    "kv_cache_gib",
    "dtype",
    "tool_call_parser",
)


def _absolute(path: Path, info: ValidationInfo) -> Path:
    """`~` is the user's home; a relative path in a file starts at that file's folder."""
    folder = (info.context or {}).get("folder", Path.cwd())
    return Path(folder, path.expanduser())


def _model_name(name: str) -> str:
    if not name or "@" in name or any(c.isspace() for c in name):
        raise ValueError(f"{name!r} is no model name: it must not be empty or hold '@' or white space")
    return name


def _engine_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme in ("http", "https") and parts.hostname:
        return url
    if parts.scheme == "unix" and parts.path.startswith("/") and not parts.netloc:
        return url
    raise ValueError(f"{url!r} is neither http(s)://host[:port] nor unix:///path/to.sock")


HomePath = Annotated[Path, AfterValidator(_absolute)]
ModelName = Annotated[str, AfterValidator(_model_name)]
EngineUrl = Annotated[str, AfterValidator(_engine_url)]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A table of burnish.toml: frozen, and refusing keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class EngineSettings(Section):
    """One engine: a vLLM that we start, a vLLM at a URL, or any OpenAI-compatible URL (without adapters)."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
    kind: Literal["supervised", "vllm", "openai"]
    model: ModelName = DEFAULT_MODEL
    models: tuple[ModelName, ...] = ()
    url: EngineUrl | None = None
    api_key_env: str | None = None
    upstream_model: str | None = None
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")] | None = None
    adapter_root: str | None = None
    max_loras: Count = 4
    max_cpu_loras: Count = 16
    max_lora_rank: Literal[1, 8, 16, 32, 64, 128, 256, 320, 512] = 16
    max_concurrent: Count = 128
    priorities: bool = False
    price_per_hour: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    weights: HomePath | None = None
    args: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    max_model_len: Count = 4096
    kv_cache_gib: Annotated[float, Field(gt=0)] = 2.0
    dtype: str = "auto"
    tool_call_parser: str = "hermes"

    @property
    def served_models(self) -> tuple[str, ...]:
        """The public model names that this engine answers to, adapters apart."""
        return self.models if self.kind == "openai" and self.models else (self.model,)

    @property
    def takes_adapters(self) -> bool:
        return self.kind != "openai"

    @property
    def takes_priorities(self) -> bool:
        """Whether it serves requests by their field `priority`: ours are started so, others may refuse the field."""
        return self.priorities or self.kind == "supervised"

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        for problem in self._problems():
            raise ValueError(f"engine {self.name!r}: {problem}")
        return self

    def _problems(self) -> list[str]:
        given, problems = self.model_fields_set, []
        if self.kind == "supervised":
            problems += [
                f'`{f}` is not for kind "supervised"' for f in ("url", "api_key_env", "models") if f in given
            ]
            if self.max_cpu_loras < self.max_loras:
                problems.append("max_cpu_loras is smaller than max_loras; vLLM refuses to start")
            return problems
        if self.url is None:
            problems.append(f'kind "{self.kind}" needs `url`')
        problems += [f'`{f}` is only for kind "supervised"' for f in SUPERVISED_ONLY if f in given]
        if self.kind == "vllm" and self.models:
            problems.append('`models` is only for kind "openai"; a vLLM serves one base model, `model`')
        if self.kind == "openai":
            problems += self._openai_problems()
        return problems

    def _openai_problems(self) -> list[str]:
        given = self.model_fields_set
        if not given & {"model", "models"}:
            return ['kind "openai" needs `models` (or `model`): the names it answers to']
        if len(self.models) > 1 and self.upstream_model is not None:
            return ["`upstream_model` renames one model, but `models` has several"]
        return [
            f'`{f}` is not for kind "openai": it takes no adapters'
            for f in ("adapter_root", "max_loras", "max_lora_rank")
            if f in given
        ]
