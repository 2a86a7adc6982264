"""A scraped page of metrics, for tests: read by prometheus_client's own parser, and asked by name and labels."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


class Page:
    """Raises ValueError where the text is none that Prometheus would read."""

    def __init__(self, text: str) -> None:
        self._families = list(text_string_to_metric_families(text))
        self.samples: list[Sample] = [sample for family in self._families for sample in family.samples]

    @property
    def families(self) -> set[str]:
        """The names, without `_total`."""
        return {family.name for family in self._families}

    def all(self, name: str, labels: Mapping[str, str] | None = None) -> list[Sample]:
        """The samples of that name that have these labels, among others."""
        wanted = (labels or {}).items()
        return [s for s in self.samples if s.name == name and wanted <= s.labels.items()]

    def __getitem__(self, key: str | tuple[str, Mapping[str, str]]) -> float:
        """The value of the one sample there is: `page["burnish_workers"]`, `page["burnish_jobs", {"kind": "batch"}]`."""
        name, labels = (key, {}) if isinstance(key, str) else key
        found = self.all(name, labels)
        assert len(found) == 1, f"{len(found)} samples of {name} {labels}: {found or self.samples[:50]}"
        return float(found[0].value)
