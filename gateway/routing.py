"""From the `model` a client asks for to what answers it. Pure: values in, values out.

Where a route's traffic is split, each unit (an end user, a conversation, else the request alone) gets one of its
variants by weighted rendezvous hashing (Thaler & Ravishankar 1998; with weights, Schindelhauer & Schomaker 2005): no
state, the same answer in every process, and when one variant's share grows only units that it wins are moved.

`Snapshot` is everything the hot path needs of the registry, immutable and swapped whole: a request reads it
once, when it begins, and keeps what it read. Knows no engine's health and no database.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from adapters.errors import NotFound, Unavailable
from adapters.experiment_records import Experiment
from adapters.keys import Key
from adapters.observations import Assignment
from adapters.plans import Policy
from adapters.policy import FormatCheck
from adapters.registry import RegistryRows
from adapters.routes import Route
from adapters.versions import VersionRecord, VersionState


@dataclass(frozen=True, slots=True)
class Target:
    """What answers one public model name."""

    name: str
    """As the client wrote it: a route, a base model or a pinned version."""
    base: str
    """The base model whose engines can answer."""
    version: VersionRecord | None
    """The adapter version; None: the base model itself."""
    headers: tuple[tuple[bytes, bytes], ...]
    """What every answer of this target says of itself."""

    @property
    def variant(self) -> str:
        """What answers: the adapter version, or the base model itself."""
        return self.version.ref if self.version else self.base

    @property
    def served(self) -> str | None:
        """The name engines know the adapter version by; None for the base model."""
        return self.version.served_name if self.version else None


@dataclass(frozen=True, slots=True)
class Arm:
    """One of the variants that a route's traffic is split among."""

    variant: str
    target: Target | None
    """None: it cannot answer here, and the control does in its stead."""
    share: float


@dataclass(frozen=True, slots=True)
class Split:
    """How a route's traffic is split: by its challengers' shares, or by an experiment's."""

    arms: tuple[Arm, ...]
    """The control first. Their shares add up to 1."""
    salt: bytes
    """Keys the hash: nobody outside can choose their variant, and the next experiment mixes people anew."""
    experiment: str | None = None
    epoch: int = 0
    form: FormatCheck = field(default_factory=FormatCheck)
    """Of the route's answers; measured in experiments."""
    shadow: Shadow | None = None


@dataclass(frozen=True, slots=True)
class Shadow:
    """The challenger that answers too, where nobody sees it."""

    variant: str
    target: Target
    share: float
    at_once: int
    requests: int


@dataclass(frozen=True, slots=True)
class Choice:
    """What answers one request, and why."""

    target: Target
    propensity: float
    """The probability with which a unit like this one was to get this variant."""
    assignment: Assignment | None = None
    """What an experiment gave it; None: it is no evidence."""
    control: Target | None = None
    """What answers where the target cannot."""
    shadow: Shadow | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """One entry of GET /v1/models."""

    id: str
    created: int
    kind: str
    """`base`, `route` or `version`."""
    parent: str | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The registry at one revision, as the gateway uses it."""

    revision: int
    targets: Mapping[str, Target]
    models: tuple[Model, ...]
    wanted: tuple[VersionRecord, ...]
    """The versions that engines should hold: candidates, those under test and those proved."""
    leaving: tuple[VersionRecord, ...]
    """The versions that engines should give up."""
    waiting: Mapping[str, str]
    """Names that exist but cannot answer, and why."""
    splits: Mapping[str, Split] = field(default_factory=dict)
    """Of the routes that are split or have an experiment."""
    candidates: Mapping[str, Target] = field(default_factory=dict)
    """What only an evaluation may ask."""
    keys: Mapping[str, Key] = field(default_factory=dict)
    """Keys in use, by the digest of their secret."""
    keyed: bool = False
    """Whether a key is needed: one was made once, even if all are revoked by now."""


EMPTY = Snapshot(-1, {}, (), (), (), {})


def build(rows: RegistryRows, served: Collection[str]) -> Snapshot:
    """The snapshot of a registry's rows; `served` are the engines' own model names."""
    bases = {base.name: base for base in rows.base_models if base.name in served}
    targets = {name: _target(name, name, None) for name in bases}
    models = [Model(base.name, int(base.created), "base", None) for base in bases.values()]
    waiting: dict[str, str] = {}
    splits: dict[str, Split] = {}
    experiments = {experiment.route: experiment for experiment in rows.experiments}
    candidates: dict[str, Target] = {}
    for version in rows.versions:
        if version.base_model not in bases:
            waiting[version.ref] = f"no engine here serves its base model '{version.base_model}'"
        elif version.routable:
            targets[version.ref] = _target(version.ref, version.base_model, version)
            models.append(Model(version.ref, int(version.created), "version", version.base_model))
        else:
            waiting[version.ref] = _why(version)
            if version.state is VersionState.CANDIDATE:
                candidates[version.ref] = _target(version.ref, version.base_model, version)
    for route in rows.routes:
        variant = targets.get(route.variant)
        if variant is None:
            waiting[route.name] = waiting.get(
                route.variant, f"its variant '{route.variant}' is not served here"
            )
            continue
        targets[route.name] = _target(route.name, variant.base, variant.version)
        split = _split(route, experiments.get(route.name), targets)
        if split is not None:
            splits[route.name] = split
        models.append(Model(route.name, int(route.created), "route", route.variant))
    wanted = (VersionState.CANDIDATE, VersionState.STAGED, VersionState.PROVED)
    return Snapshot(
        revision=rows.revision,
        targets=targets,
        models=tuple(models),
        wanted=tuple(v for v in rows.versions if v.state in wanted and v.base_model in bases),
        leaving=tuple(v for v in rows.versions if v.state not in wanted),
        waiting=waiting,
        splits=splits,
        candidates=candidates,
        keys={key.digest: key for key in rows.keys},
        keyed=rows.keys_required,
    )


def resolve(snapshot: Snapshot, model: str, may_evaluate: bool = False) -> Target:
    """What answers `model`; a candidate only where the caller may evaluate.

    Raises NotFound, or Unavailable for a version still being proved.
    """
    target = snapshot.targets.get(model)
    if target is None and may_evaluate:
        target = snapshot.candidates.get(model)
    if target is not None:
        return target
    if model in snapshot.waiting:
        reason = snapshot.waiting[model]
        if reason.startswith("it is being loaded"):
            raise Unavailable(
                f"The model '{model}' cannot answer yet: {reason}.", param="model", retry_after_seconds=1
            )
        raise NotFound(f"The model '{model}' cannot answer: {reason}.", param="model", code="model_not_found")
    raise NotFound(
        f"The model '{model}' does not exist or you do not have access to it.",
        param="model",
        code="model_not_found",
    )


def choose(snapshot: Snapshot, target: Target, unit: str) -> Choice:
    """Which variant of a target answers a unit."""
    split = snapshot.splits.get(target.name)
    if split is None:
        return Choice(target, 1.0)
    chosen = _drawn(split, target.name, unit)
    answers = chosen.target or target
    if split.experiment is None:
        return Choice(answers, chosen.share)
    failed_over = chosen.target is None
    assignment = Assignment(
        split.experiment, split.epoch, chosen.variant, unit, split.form, failed_over=failed_over
    )
    control = split.arms[0].target if chosen is not split.arms[0] and not failed_over else None
    return Choice(answers, chosen.share, assignment, control, split.shadow)


def _drawn(split: Split, route: str, unit: str) -> Arm:
    arms = split.arms
    return arms[0] if len(arms) == 1 else max(arms, key=lambda arm: _score(arm, split.salt, route, unit))


def _score(arm: Arm, salt: bytes, route: str, unit: str) -> float:
    """The weight over an exponential variate that the unit and the variant decide: the greatest wins as often as its
    share says."""
    told = f"{route}\0{arm.variant}\0{unit}".encode("utf-8", "surrogatepass")
    drawn = int.from_bytes(hashlib.blake2b(told, digest_size=8, key=salt).digest())
    return arm.share / -math.log((drawn + 0.5) / 2**64)


def _split(route: Route, experiment: Experiment | None, targets: Mapping[str, Target]) -> Split | None:
    if experiment is not None:
        return _split_by_experiment(route, experiment, targets)
    # Challengers that cannot answer leave their share to the default.
    able = [each for each in route.challengers if each.variant in targets]
    if not able:
        return None
    rest = 1.0 - math.fsum(challenger.share for challenger in able)
    first = Arm(route.variant, targets[route.name], rest)
    others = (Arm(c.variant, _renamed(targets[c.variant], route.name), c.share) for c in able)
    return Split((first, *others), salt=b"")


def _split_by_experiment(route: Route, experiment: Experiment, targets: Mapping[str, Target]) -> Split | None:
    """The control first. A challenger that cannot answer here keeps its units, which the control answers: that they
    failed over is evidence, and whoever got it keeps it."""
    named = {v: _renamed(targets[v], route.name) for v in experiment.variants if v in targets}
    shares = {variant: share for variant, share in experiment.shares.items() if share > 0}
    first = experiment.control
    if first not in named:
        return None
    ordered = (first, *(variant for variant in shares if variant != first))
    shadow = _shadow(experiment, named)
    return Split(
        arms=tuple(Arm(variant, named.get(variant), shares.get(variant, 0.0)) for variant in ordered),
        salt=experiment.salt.encode(),
        experiment=experiment.id,
        epoch=experiment.epoch,
        form=route.policy.format,
        shadow=shadow,
    )


def _shadow(experiment: Experiment, named: Mapping[str, Target]) -> Shadow | None:
    plan = experiment.plan
    variant = next(iter(experiment.challengers), None)
    if plan.policy is not Policy.SHADOW or variant is None or variant not in named:
        return None
    return Shadow(variant, named[variant], plan.shadow_share, plan.shadow_at_once, plan.shadow_requests)


def _renamed(variant: Target, name: str) -> Target:
    return _target(name, variant.base, variant.version)


def _target(name: str, base: str, version: VersionRecord | None) -> Target:
    adapter = f"{version.ref} {version.digest}" if version else "base"
    headers = ((b"x-burnish-adapter", adapter.encode()), (b"x-burnish-route", name.encode()))
    return Target(name, base, version, headers)


def _why(version: VersionRecord) -> str:
    if version.state is VersionState.STAGED:
        return "it is being loaded and proved"
    if version.state is VersionState.CANDIDATE:
        return "it is being evaluated"
    return f"it is {version.state.value}" + (f": {version.reason}" if version.reason else "")
