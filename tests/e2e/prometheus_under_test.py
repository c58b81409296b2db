"""A real Prometheus with our configuration and rules, scraping the stack of a test."""

import asyncio
import json
import math
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx

from serve_app.local.ports import choose_port
from tests.e2e.stack_under_test import RunningStack, until
from tests.prometheus_files import PROMETHEUS, Query, program

_OWN_CLUSTER = "/tmp/ray/prom_metrics_service_discovery.json"


@dataclass(frozen=True)
class RunningPrometheus:
    """Answers PromQL about the stack."""

    http: httpx.AsyncClient

    async def has_data(self, expr: str) -> bool:
        """Whether a query returns at least one number; NaN, as of a quantile of nothing, is none."""
        response = await self.http.get("/api/v1/query", params={"query": expr})
        told = response.json()
        assert told["status"] == "success", f"{expr}: {told}"
        return any(math.isfinite(float(sample["value"][1])) for sample in told["data"]["result"])

    async def knows(self, metric: str) -> bool:
        """Whether a metric, or a recording rule's result, was ever there."""
        response = await self.http.get("/api/v1/series", params={"match[]": metric})
        return bool(response.json()["data"])

    async def all_have_data(self, queries: Iterable[Query], work: Callable[[], Awaitable[None]], *, within_s: float) -> None:
        """Wait until every query returned data, with the stack doing `work` in between."""
        missing = list(queries)
        assert missing
        deadline = time.monotonic() + within_s
        while True:
            await work()
            missing = [query for query in missing if not await self.has_data(query.expr)]
            if not missing:
                return
            assert time.monotonic() < deadline, "no data:\n" + "\n".join(f"{q.place}: {q.expr}" for q in missing)

    async def all_known(self, metrics: Iterable[str]) -> None:
        """Wait until every metric was there."""
        for metric in sorted(metrics):
            await until(partial(self.knows, metric), 60, f"a series of {metric}")


@asynccontextmanager
async def prometheus_of(stack: RunningStack) -> AsyncIterator[RunningPrometheus]:
    """Prometheus with deploy/prometheus, a scrape every two seconds, and the stack's list of targets."""
    with tempfile.TemporaryDirectory(prefix="aif-prometheus-") as made:
        folder = Path(made)
        _configure(folder, stack)
        port = choose_port(0, set())
        with (folder / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                program("prometheus"),
                f"--config.file={folder}/prometheus.yaml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:

                async def ready() -> bool:
                    assert process.returncode is None, (folder / "log").read_text()[-2000:]
                    try:
                        return (await http.get("/-/ready")).status_code == 200
                    except httpx.TransportError:
                        return False

                await until(ready, 60, "Prometheus is ready")
                yield RunningPrometheus(http)
        finally:
            if process.returncode is None:
                process.terminate()
            await asyncio.wait_for(process.wait(), 30)


def _configure(folder: Path, stack: RunningStack) -> None:
    text = (PROMETHEUS / "prometheus.yaml").read_text()
    for interval in ("scrape_interval: 15s", "evaluation_interval: 15s"):
        assert interval in text
        text = text.replace(interval, interval.replace("15s", "2s"))
    assert _OWN_CLUSTER in text
    # Another Ray on this machine is none of ours.
    (folder / "prometheus.yaml").write_text(text.replace(_OWN_CLUSTER, "none/*.json"))
    (folder / "rules").symlink_to(PROMETHEUS / "rules")
    run_dir = json.loads((Path(stack.info["state_dir"]) / "stack.json").read_text())["run_dir"]
    (folder / "targets").mkdir()
    # As docs/observability.md says.
    (folder / "targets" / "ray.json").symlink_to(Path(run_dir) / "ray" / "prom_metrics_service_discovery.json")
