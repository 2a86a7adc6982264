"""What a training job is ordered with, by the API and by the command line, and the job's payload that follows from it.

Owns how a model's name becomes a base model and a version to start from, how an adapter gets its name, and who may
order what. Knows neither HTTP nor terminals; whether the files' lines are sound is `gateway.validation`'s affair.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from adapters.errors import Conflict, Forbidden, InvalidRequest, NotFound
from adapters.files import Files, Purpose
from adapters.records import LIVE
from adapters.registry import Registry
from adapters.routes import Route, Routes
from adapters.settings import Settings
from adapters.versions import VersionState, check_name, is_ref
from gateway.imports import adaptable_models, choose_base

MAX_SEED = 2**31 - 1
MAX_SLUG_CHARS = 50


@dataclass(frozen=True, slots=True)
class Order:
    """What somebody wants trained. `training_file` None: from the feedback of `route`."""

    model: str | None = (
        None  # a base model, a route or NAME@N; None: as the adapter's name says, or the only one
    )
    training_file: str | None = None
    validation_file: str | None = None
    route: str | None = None
    adapter: str | None = None  # its name, where it is to be that and no other
    suffix: str | None = None
    method: str = "auto"
    hyperparameters: dict[str, Any] = field(default_factory=dict, hash=False)
    seed: int | None = None
    gate: str = "require"
    release: str | None = None
    report_to: tuple[str, ...] = ("tensorboard",)
    quantization: str | None = None
    integrations: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)


@dataclass(frozen=True, slots=True)
class Orders:
    """Turns orders into payloads, by the records as they are now."""

    settings: Settings
    registry: Registry
    routes: Routes
    files: Files

    def payload(self, order: Order, actor: str, is_admin: bool) -> dict[str, Any]:
        """The payload of a job that learns from files. Raises InvalidRequest, NotFound, Conflict, Forbidden."""
        if not is_admin:
            _refuse_more_than_a_file(order)
        route = self._route(order.route)
        base, start_from = self._start(order)
        adapter = self._adapter(order, base, is_admin)
        return {
            "source": {
                "kind": "file",
                "training_file": order.training_file,
                "validation_file": order.validation_file,
            },
            "adapter": adapter,
            "route": order.route,
            "base_model": base,
            "start_from": start_from,
            **common(order, actor, route),
        }

    def overrides(self, order: Order, route: Route) -> dict[str, Any]:
        """What an order changes of the payload that a route's policy makes. Raises InvalidRequest, Conflict."""
        policy = route.policy.training
        changes: dict[str, Any] = {
            "hyperparameters": {**dict(policy.hyperparameters), **order.hyperparameters},
            "gate": order.gate,
            "report_to": list(order.report_to),
            "quantization": order.quantization,
        }
        if order.method != "auto":
            changes["method"] = order.method
        if order.seed is not None:
            changes["seed"] = order.seed
        if order.release is not None:
            changes["release"] = order.release
        if order.model is not None and order.model != route.name:
            changes["start_from"] = self._other_start(order, route)
        return changes

    def _other_start(self, order: Order, route: Route) -> str | None:
        """A version to go on from, or the base itself, in place of the route's own default."""
        base, start_from = self._start(order)
        own = self.registry.version(route.variant).base_model if is_ref(route.variant) else route.variant
        if base != own:
            raise InvalidRequest(
                f"Route '{route.name}' stands on '{own}', not on '{base}'.",
                param="model",
                code="invalid_value",
            )
        return start_from

    def check_file(self, id: str, param: str, key_id: str | None, all_keys: bool) -> None:
        """Raises InvalidRequest for a file that the caller has not, or that is for something else."""
        try:
            file = self.files.get(id, key_id, all_keys)
        except NotFound:
            raise InvalidRequest(
                f"There is no file '{id}'.", param=param, code="invalid_training_file"
            ) from None
        if file.purpose is not Purpose.FINE_TUNE:
            raise InvalidRequest(
                f"File '{id}' has the purpose '{file.purpose.value}', not 'fine-tune'.",
                param=param,
                code="invalid_training_file",
            )

    def _route(self, name: str | None) -> Route | None:
        """The route of that name; None where it does not exist yet: the adapter's first version makes it."""
        if name is None:
            return None
        check_name(name, "route")
        return next((route for route in self.routes.list() if route.name == name), None)

    def _start(self, order: Order) -> tuple[str, str | None]:
        """The base model, and the version whose weights the training begins with."""
        if order.model is None:
            name = order.adapter or order.route
            return choose_base(self.registry, self.settings, name or "", None), None
        model = order.model
        if not is_ref(model) and model not in adaptable_models(self.settings):
            found = next((route.variant for route in self.routes.list() if route.name == model), None)
            model = model if found is None else found
        if is_ref(model):
            return self._start_from(model)
        if model in adaptable_models(self.settings):
            return model, None
        known = ", ".join(adaptable_models(self.settings)) or "none"
        raise InvalidRequest(
            f"The model '{order.model}' cannot be trained: it is no route, no adapter version and no base model of "
            f"an engine that takes adapters ({known}).",
            param="model",
            code="model_not_found",
        )

    def _start_from(self, ref: str) -> tuple[str, str]:
        version = self.registry.version(ref)
        if version.state not in LIVE or version.state is VersionState.QUARANTINED:
            raise Conflict(
                f"{ref} is {version.state} and nothing can be trained from it.",
                param="model",
                code="version_not_ready",
            )
        return version.base_model, ref

    def _adapter(self, order: Order, base: str, is_admin: bool) -> str:
        """The name of the adapter that gets a new version: an admin's may be one that is there, for the same base."""
        wanted = order.adapter or _slug(order.suffix) or order.route or f"ft-{secrets.token_hex(3)}"
        check_name(wanted, "suffix" if order.suffix else "name")
        known = {version.base_model for version in self.registry.versions(wanted, removed=True)}
        is_route = any(route.name == wanted for route in self.routes.list())
        if (known or is_route) and not is_admin:
            return f"{wanted[:MAX_SLUG_CHARS]}-{secrets.token_hex(3)}"
        if known and base not in known:
            raise Conflict(
                f"Adapter '{wanted}' is for base model '{next(iter(known))}', not '{base}'; use another name.",
                param="suffix" if order.suffix else "model",
                code="adapter_base_mismatch",
            )
        if wanted in self.settings.models:
            raise Conflict(f"'{wanted}' is the name of a model.", param="suffix", code="name_taken")
        return wanted


def common(order: Order, actor: str, route: Route | None) -> dict[str, Any]:
    """The part of a payload that does not depend on where the rows come from."""
    release = order.release or (route.policy.training.release.value if route else "promote")
    return {
        "method": order.method,
        "hyperparameters": order.hyperparameters,
        "seed": secrets.randbelow(MAX_SEED) if order.seed is None else order.seed,
        "suffix": order.suffix,
        "gate": order.gate,
        "release": release,
        "actor": actor,
        "report_to": list(order.report_to),
        "quantization": order.quantization,
        "integrations": [dict(integration) for integration in order.integrations],
    }


def _refuse_more_than_a_file(order: Order) -> None:
    """What changes the answers of others, or waves the gate aside, is for a key of scope admin."""
    for param, is_wanted in (("route", order.route is not None), ("gate", order.gate != "require")):
        if is_wanted:
            raise Forbidden(f"'{param}' needs a key of the scope 'admin'.", param=param)


def _slug(suffix: str | None) -> str:
    """What can be an adapter's name of a suffix; "" where nothing is left of it."""
    words = re.sub(r"[^a-z0-9._-]+", "-", (suffix or "").lower())
    return words.strip("._-")[:63]
