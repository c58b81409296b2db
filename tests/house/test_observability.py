"""deploy/prometheus, grafana and promtail pass the tools' own checks, name what exists, and are explained on the page."""

import importlib.util
import json
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.telemetry import METRICS
from tests.house.tree import ROOT
from tests.prometheus_files import (
    DASHBOARDS,
    DEPLOY,
    PROMETHEUS,
    RULES,
    Query,
    alert_queries,
    dashboard_queries,
    panels,
    program,
    recording_queries,
    rules,
)

PAGE = (ROOT / "docs" / "observability.md").read_text()
ALERT_TESTS = PROMETHEUS / "tests" / "alerts.yaml"
QUERIES: list[Query] = [
    *(query for path in DASHBOARDS for query in dashboard_queries(path)),
    *recording_queries(),
    *alert_queries(),
]


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("promtool"), *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False, cwd=PROMETHEUS
    )


def passes(*arguments: str | Path) -> bool:
    done = promtool(*arguments)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode == 0


def test_promtool_takes_configuration_and_rules() -> None:
    for arguments in (["check", "config", "prometheus.yaml"], ["check", "rules", *map(str, RULES)]):
        done = promtool(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_query_is_promql(tmp_path: Path) -> None:
    rules_of_all = [{"record": f"query_{number}", "expr": query.expr} for number, query in enumerate(QUERIES)]
    for name, wanted in (("right", rules_of_all), ("wrong", [*rules_of_all, {"record": "broken", "expr": "sum(rate(x[1m])"}])):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": wanted}]}))
    done = promtool("check", "rules", tmp_path / "right.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not passes("check", "rules", tmp_path / "wrong.yaml")


def test_alerts_fire_when_they_should_and_only_then() -> None:
    done = promtool("test", "rules", ALERT_TESTS)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("right", "wrong"), [("> 0.9", "> 0.99"), ("for: 5m", "for: 50m"), ('reason!="client"', 'reason!=""'), ("<= 2", "<= 6")]
)
def test_the_alert_tests_find_mistakes(tmp_path: Path, right: str, wrong: str) -> None:
    for path in RULES:
        copy = tmp_path / "rules" / path.name
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(path.read_text().replace(right, wrong))
    (tmp_path / "tests").mkdir()
    tests = tmp_path / "tests" / "alerts.yaml"
    tests.write_text(ALERT_TESTS.read_text())
    assert not passes("test", "rules", tests)


def test_every_alert_is_tested_loud_and_quiet_and_has_its_runbook() -> None:
    cases = [case for test in yaml.safe_load(ALERT_TESTS.read_text())["tests"] for case in test.get("alert_rule_test", [])]
    loud = {case["alertname"] for case in cases if case.get("exp_alerts")}
    quiet = {case["alertname"] for case in cases if not case.get("exp_alerts")}
    alerts = [rule for rule in rules() if "alert" in rule]
    assert loud == quiet == {alert["alert"] for alert in alerts}
    for alert in alerts:
        assert alert["labels"]["severity"] in {"page", "ticket"}
        assert alert["annotations"]["runbook"] == f"docs/observability.md#{alert['alert'].lower()}"
        assert f"\n### {alert['alert']}\n" in PAGE, alert["alert"]


def test_queries_name_only_metrics_that_exist() -> None:
    series = {suffixed for name, (kind, _, _) in METRICS.items() for suffixed in _series(name, kind)}
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    engine = _vllm_series()
    for query in QUERIES:
        for metric in query.metrics:
            if metric.startswith("ray_aifactory_"):
                assert metric in series, f"{query.place}: {metric}"
            elif metric.startswith("ray_vllm_"):
                assert metric in engine, f"{query.place}: {metric}"
            elif ":" in metric:
                assert metric in recorded, f"{query.place}: {metric}"


def test_queries_use_only_tags_that_the_metric_has() -> None:
    """Ray's own labels may stand beside them."""
    for query in QUERIES:
        for name, (_, _, tags) in METRICS.items():
            for matchers in re.findall(rf"ray_{name}(?:_bucket|_count|_sum)?{{([^}}]*)}}", query.expr):
                assert set(re.findall(r"(\w+)\s*[=!]", matchers)) <= {*tags, "le"}, f"{query.place}: {query.expr}"


def test_every_metric_of_ours_is_on_a_dashboard_and_on_the_page() -> None:
    shown = {metric for path in DASHBOARDS for query in dashboard_queries(path) for metric in query.metrics}
    for name, (kind, _, _) in METRICS.items():
        assert shown & _series(name, kind), f"{name} is on no dashboard"
        assert f"`{name}`" in PAGE, f"docs/observability.md does not explain {name}"


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: str(path.stem))
def test_dashboards_can_be_provisioned(path: Path) -> None:
    dashboard: dict[str, Any] = json.loads(path.read_text())
    assert dashboard["uid"] == path.stem
    assert dashboard["title"]
    assert "id" not in dashboard, "an id belongs to one Grafana"
    every = list(panels(dashboard))
    assert [n for n, times in Counter(panel["id"] for panel in every).items() if times > 1] == []
    titles = [panel["title"] for panel in every]
    assert len(set(titles)) == len(titles)
    for panel in every:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        if panel["type"] != "row":
            assert panel["targets"], panel["title"]
            sources = {json.dumps(part["datasource"], sort_keys=True) for part in [panel, *panel["targets"]]}
            assert sources == {'{"type": "prometheus", "uid": "${datasource}"}'}
    cells = Counter(
        (x, y)
        for g in (panel["gridPos"] for panel in every)
        for x in range(g["x"], g["x"] + g["w"])
        for y in range(g["y"], g["y"] + g["h"])
    )
    assert max(cells.values()) == 1, "panels overlap"


def test_trace_ids_are_no_labels_of_log_streams() -> None:
    """A stream of Loki per run would be an index as large as the logs."""
    [scrape, *_] = yaml.safe_load((DEPLOY / "promtail" / "promtail.yaml").read_text())["scrape_configs"]
    stages = {name: stage for entry in scrape["pipeline_stages"] for name, stage in entry.items()}
    assert "trace_id" not in stages["labels"]
    assert "trace_id" in stages["structured_metadata"]
    assert {"trace_id", "level", "component", "time"} <= set(stages["json"]["expressions"])
    assert "trace_id=" in PAGE


def _series(name: str, kind: str) -> set[str]:
    return {f"ray_{name}{end}" for end in (("_bucket", "_count", "_sum") if kind == "histogram" else ("",))}


def _vllm_series() -> set[str]:
    """What vLLM's metrics are called behind Ray: `vllm:` becomes `ray_vllm_`, and a counter ends in `_total`."""
    package = importlib.util.find_spec("vllm")
    assert package is not None
    assert package.origin is not None
    text = (Path(package.origin).parent / "v1" / "metrics" / "loggers.py").read_text()
    names = re.findall(r'\b(?:self\.)?_(gauge|counter|histogram)_cls\(\s*name="vllm:(\w+)"', text)
    assert len(names) > 20
    ends = {"gauge": ("",), "counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}
    return {f"ray_vllm_{name}{end}" for kind, name in names for end in ends[kind]}
