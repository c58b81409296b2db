"""deploy/prometheus and deploy/grafana as tests see them: the programs that judge them, and every query in them."""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
RULES = sorted((PROMETHEUS / "rules").glob("*.yaml"))
# A metric of Ray, of Prometheus itself, or of a recording rule; what stands in quotes is a label's value.
_METRIC = re.compile(r"\b(ray_\w+|up\b|\w+:\w+(?::\w+)?)")
# What Grafana puts in: with a scrape every 15 s, at least a minute.
_GRAFANA_WINDOWS = {"$__rate_interval": "1m", "$__interval": "15s"}


@dataclass(frozen=True)
class Query:
    """One PromQL expression, and where it stands."""

    place: str
    expr: str

    @property
    def metrics(self) -> frozenset[str]:
        """Names of the metrics that it reads."""
        return frozenset(_METRIC.findall(re.sub(r'"[^"]*"', '""', self.expr)))


def program(name: str) -> str:
    """Path of `promtool` or `prometheus`: of your own, or the one that scripts/test put beside Python."""
    beside_python = Path(sys.executable).parent / name
    found = shutil.which(name) or (str(beside_python) if beside_python.exists() else None)
    assert found, f"{name} is missing: install the package prometheus, or let scripts/test fetch it (Debian and Ubuntu)"
    return found


def dashboard_queries(path: Path) -> list[Query]:
    """The queries of a dashboard, with Grafana's variables filled in."""
    found = []
    for panel in panels(json.loads(path.read_text())):
        for target in panel.get("targets", []):
            expr = target["expr"]
            for variable, value in _GRAFANA_WINDOWS.items():
                expr = expr.replace(variable, value)
            found.append(Query(f"{path.name}: {panel['title']}", expr))
    return found


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every panel of a dashboard, those inside rows too."""
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", [])


def rules() -> list[dict[str, Any]]:
    """Every recording rule and alert."""
    return [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def recording_queries() -> list[Query]:
    """What the recording rules compute."""
    return [Query(rule["record"], rule["expr"]) for rule in rules() if "record" in rule]


def alert_queries() -> list[Query]:
    """What the alerts ask."""
    return [Query(rule["alert"], rule["expr"]) for rule in rules() if "alert" in rule]
