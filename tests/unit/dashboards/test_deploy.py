"""deploy/compose.yaml and Grafana's provisioning, as far as they can be judged by reading: nothing here runs Docker."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapters.settings import load_settings
from tests.unit.dashboards.asked import DASHBOARDS, ROOT

DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
PROVISIONING = DASHBOARDS / "grafana" / "provisioning"


def mounts(service: str) -> dict[str, str]:
    """Of a service: place in the container -> what is there."""
    return {place: source for source, place in (text.split(":")[:2] for text in SERVICES[service]["volumes"])}


@pytest.mark.parametrize("name", SERVICES)
def test_images_have_a_version(name: str) -> None:
    image = SERVICES[name]["image"]
    assert "build" in SERVICES[name] or re.search(r":v?\d+\.\d+\.\d+$", image), image


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_exists_or_is_a_volume(name: str) -> None:
    for text in SERVICES[name].get("volumes", ()):
        source = text.split(":")[0]
        assert source in COMPOSE["volumes"] or (source.startswith(".") and (DEPLOY / source).exists()), text


def test_nothing_can_be_reached_from_another_machine() -> None:
    """Promise 12: without keys, loopback alone."""
    assert SERVICES["gateway"]["environment"]["BURNISH_HOST"] == "127.0.0.1"
    assert SERVICES["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    assert "--web.listen-address=127.0.0.1:9090" in SERVICES["prometheus"]["command"]
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_prometheus_looks_where_the_gateway_listens() -> None:
    targets = yaml.safe_load((DASHBOARDS / "prometheus" / "targets" / "gateways.yml").read_text())
    environment = SERVICES["gateway"]["environment"]
    assert targets == [{"targets": [f"{environment['BURNISH_HOST']}:{environment['BURNISH_PORT']}"]}]
    assert mounts("prometheus")["/etc/prometheus"] == "../dashboards/prometheus"
    assert "--config.file=/etc/prometheus/prometheus.yml" in SERVICES["prometheus"]["command"]


def test_grafana_finds_the_dashboards_and_prometheus() -> None:
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "burnish.yml").read_text())["providers"]
    assert mounts("grafana")[provider["options"]["path"]] == "../dashboards/built"
    assert mounts("grafana")["/etc/grafana/provisioning"] == "../dashboards/grafana/provisioning"
    (source,) = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    assert source["url"] == "${BURNISH_PROMETHEUS_URL}"
    assert SERVICES["grafana"]["environment"]["BURNISH_PROMETHEUS_URL"] == "http://127.0.0.1:9090"
    config = yaml.safe_load((DASHBOARDS / "prometheus" / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]


def test_the_gateways_settings_are_sound_with_their_comments_off(tmp_path: Path) -> None:
    text = (DEPLOY / "burnish.toml").read_text()
    opened = re.sub(r"^# (\[\w+\]|\w+ = .*)$", r"\1", text, flags=re.M)
    assert set(tomllib.loads(opened)) == {"costs", "tracing"}
    file = tmp_path / "burnish.toml"
    file.write_text(opened)
    settings = load_settings(file, {})
    assert settings.tracing.endpoint == "http://127.0.0.1:4318"
    assert settings.costs.engine_hour > 0


def test_the_image_is_made_as_the_docs_say() -> None:
    recipe = (DEPLOY / "Dockerfile").read_text()
    steps = re.findall(r"pip install (?:--no-cache-dir )?(--no-deps[^\n]*(?:\\\n[^\n]*)?)", recipe)
    assert len(steps) == 3
    for lock in ("requirements/torch-cpu.txt", "requirements/cpu.txt"):
        assert lock in recipe
        assert (ROOT / lock).exists()
    assert "USER burnish" in recipe
