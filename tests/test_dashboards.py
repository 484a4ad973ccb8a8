"""What Prometheus and Grafana are given in compose/: every query asks for metrics and labels that nodes really have.

Where Prometheus is installed it scrapes real nodes, and every query returns series.
"""

import asyncio
import contextlib
import json
import re
import shutil
import signal
import subprocess
import time
import urllib.parse
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
import yaml
from prometheus_client.registry import Collector
from support.cli import mesh
from support.gateways import gateways_of, make_gateway, zone_text
from support.processes import Folder, folder_at, free_ports
from support.sinks import zone_with_gateway
from support.zones import TwoZones

from mesh.metrics import GatewayMetrics, SinkMetrics
from protocol import config

COMPOSE = Path(__file__).parent.parent / "compose"
DASHBOARDS = COMPOSE / "grafana/dashboards"
OF_PROMETHEUS = {"up": {"job"}, "ALERTS": {"alertstate", "alertname"}, "process_resident_memory_bytes": set()}
OF_EVERY_NODE = {"zone", "node"}  # prometheus.yml adds them


class Query(NamedTuple):
    """An expression, and where it stands."""

    place: str
    text: str


def of_dashboards() -> Iterator[Query]:
    for file in sorted(DASHBOARDS.glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            yield from (Query(f"{file.name}: {panel['title']}", target["expr"]) for target in panel["targets"])


def of_alerts() -> Iterator[Query]:
    for group in yaml.safe_load((COMPOSE / "alerts.yml").read_text())["groups"]:
        yield from (Query(rule["alert"], rule["expr"]) for rule in group["rules"])


def asked(query: str) -> tuple[set[str], set[str]]:
    """The metrics and the labels in a query."""
    without_text = re.sub(r'"[^"]*"', '""', query)
    labels = {
        name
        for inside in re.findall(r"\b(?:by|without)\s*\(([^)]*)\)", without_text)
        for name in re.findall(r"\w+", inside)
    }
    labels |= set(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*""', without_text))
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|without)\s*\([^)]*\)", "", without_text)
    return set(re.findall(r"\b(?!or\b|and\b|unless\b)[A-Za-z_]\w*\b(?!\s*\()", bare)), labels


def test_metrics_and_labels_of_a_query_are_found() -> None:
    query = 'sum by (zone, code) (rate(a_total{zone=~"$zone", kind!="b c"}[5m])) / max(d) > 0.5 * 86400 or e == 1'
    assert asked(query) == ({"a_total", "d", "e"}, {"zone", "code", "kind"})


# -- what nodes expose ------------------------------------------------------------------------------------------------


def exposed(*collectors: Collector) -> dict[str, set[str]]:
    """The labels of each metric."""
    families = [family for collector in collectors for family in collector.collect()]
    named = {family.name + ("_total" if family.type == "counter" else ""): family for family in families}
    labels = {name: set(family._labelnames) for name, family in named.items()}  # type: ignore[attr-defined]
    # Prometheus keeps `zone` for the node's own, and calls a metric's label of that name so:
    return {name: those | {"exported_zone"} if "zone" in those else those for name, those in labels.items()}


TWO_ZONES = zone_text(("gw1",)) + '[zones.us.gateways.gw2]\nclient = "127.0.0.1:1"\nmesh = "127.0.0.1:2"\n'


async def test_every_query_asks_for_what_nodes_expose(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    mirrors = TwoZones(tmp_path / "two")
    async with zone_with_gateway(tmp_path) as (zone, gateway, _), gateways_of(zone_text(), ("gw1", "gw2")) as linked:
        await mirrors.start("u1")
        gateways = [gateway, linked[0], make_gateway(config.parse(TWO_ZONES, "mesh.toml"), "gw1")]
        sinks = [*zone.sinks.values(), mirrors.sinks["u1"]]
        there = OF_PROMETHEUS | exposed(*map(GatewayMetrics, gateways), *map(SinkMetrics, sinks))
        await mirrors.stop()
    queries = [*of_dashboards(), *of_alerts()]
    assert len(queries) > 60
    for place, text in queries:
        metrics, labels = asked(text)
        assert metrics, place
        assert metrics <= there.keys(), place
        assert labels <= OF_EVERY_NODE.union(*(there[name] for name in metrics)), place


def test_alerts_name_labels_that_their_queries_leave() -> None:
    for group in yaml.safe_load((COMPOSE / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in ("critical", "warning")
            named = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
            kept = re.search(r"\bby \(([^)]*)\)", rule["expr"])
            if kept is not None:
                assert named <= set(re.findall(r"\w+", kept[1])), rule["alert"]


def test_dashboards_are_what_grafana_is_told_of() -> None:
    (source,) = yaml.safe_load((COMPOSE / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    dashboards = [json.loads(file.read_text()) for file in sorted(DASHBOARDS.glob("*.json"))]
    assert [each["title"] for each in dashboards] == [
        f"Event Mesh: {name}" for name in ("coverage", "overview", "sinks", "streams", "zones")
    ]
    assert len({each["uid"] for each in dashboards}) == len(dashboards)
    panels = [panel for each in dashboards for panel in each["panels"]]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
    (provider,) = yaml.safe_load((COMPOSE / "grafana/provisioning/dashboards/mesh.yml").read_text())["providers"]
    services = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in services["grafana"]["volumes"]


# -- with Prometheus --------------------------------------------------------------------------------------------------

CONTRACT = {"name": "orders", "owner": "shop", "subjects": ["orders.>"], "content_type": "application/json"}
SCRAPE_S = 1


class Nodes(NamedTuple):
    """Programs of two zones: three sinks and two gateways in eu, one of each in us."""

    url: str
    monitors: dict[str, list[str]]
    sink: Any


@contextlib.asynccontextmanager
async def two_zones(folder: Folder) -> AsyncIterator[Nodes]:
    ports = iter(free_ports(24))
    lines = ["[mesh]", 'name = "acme"', 'contracts = "enforce"']
    monitors: dict[str, list[str]] = {"eu": [], "us": []}
    url = ""
    kinds = {"eu": ("gw1", "gw2", "s1", "s2", "s3"), "us": ("gw3", "s4")}
    for zone, name in [(zone, name) for zone, names in kinds.items() for name in names]:
        keys = ("client", "mesh", "monitor") if name.startswith("gw") else ("link", "raft", "monitor")
        addresses = {key: f"127.0.0.1:{next(ports)}" for key in keys}
        url = url or f"nats://{addresses['client']}"
        monitors[zone].append(addresses["monitor"])
        lines.append(f"[zones.{zone}.{'gateways' if name.startswith('gw') else 'sinks'}.{name}]")
        lines += [f'{key} = "{address}"' for key, address in addresses.items()]
        lines += [] if name.startswith("gw") else [f'data = "{name}"', 'disk_reserve = "1MiB"']
    lines += ["[streams.orders]", 'subjects = ["orders.>"]']
    (folder.path / "mesh.toml").write_text("\n".join(lines))
    daemons = {
        name: folder.run("gateway" if name.startswith("gw") else "sinkd", "--config", "mesh.toml", "--node", name)
        for names in kinds.values()
        for name in names
    }
    await asyncio.gather(*(daemon.serving() for daemon in daemons.values()))
    yield Nodes(url, monitors, daemons["s2"])


class Prometheus:
    """Debian's, scraping `monitors` with compose/'s rules, which fire at once."""

    def __init__(self, folder: Path, monitors: dict[str, list[str]]) -> None:
        self._url = f"http://127.0.0.1:{free_ports(1)[0]}"
        settings = yaml.safe_load((COMPOSE / "prometheus.yml").read_text())
        settings["global"] = {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"}
        (job,) = settings["scrape_configs"]
        job["static_configs"] = [{"targets": hosts, "labels": {"zone": zone}} for zone, hosts in monitors.items()]
        job["relabel_configs"][0]["regex"] = "(.*)"  # all of them are one host here
        (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
        rules = re.sub(r"^ +for: .*\n", "", (COMPOSE / "alerts.yml").read_text(), flags=re.MULTILINE)
        (folder / "alerts.yml").write_text(rules)
        address = self._url.removeprefix("http://")
        command = ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=tsdb"]
        with (folder / "prometheus.log").open("wb") as log:
            self.process = subprocess.Popen([*command, f"--web.listen-address={address}"], cwd=folder, stderr=log)

    async def series(self, query: str) -> list[Any]:
        text = query.replace("$zone", ".*").replace("$__rate_interval", f"{10 * SCRAPE_S}s")
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self._url}/api/v1/query?" + urllib.parse.urlencode({"query": text})) as answer,
        ):
            told = await answer.json()
        assert told["status"] == "success", (query, told)
        found: list[Any] = told["data"]["result"]
        return found

    async def until(self, queries: list[Query], said: Callable[[Query, list[Any]], None]) -> None:
        """Each has returned series once."""
        deadline = time.monotonic() + 60
        while queries:
            for query in list(queries):
                with contextlib.suppress(aiohttp.ClientConnectionError):  # while it starts
                    if found := await self.series(query.text):
                        said(query, found)
                        queries.remove(query)
            assert time.monotonic() < deadline, [query.place for query in queries]
            await asyncio.sleep(0.3)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_prometheus_takes_the_rules(tmp_path: Path) -> None:
    for name in ("prometheus.yml", "alerts.yml"):
        shutil.copy(COMPOSE / name, tmp_path)
    for command in ("rules", "config"):
        file = "alerts.yml" if command == "rules" else "prometheus.yml"
        ran = subprocess.run(["promtool", "check", command, file], cwd=tmp_path, capture_output=True, check=False)
        assert ran.returncode == 0, ran.stderr.decode()


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
async def test_every_query_returns_series_of_real_nodes(tmp_path: Path) -> None:
    with folder_at(tmp_path) as folder:
        async with two_zones(folder) as nodes:
            prometheus = Prometheus(tmp_path, nodes.monitors)
            try:
                await look_at_all(prometheus, nodes, tmp_path)
            finally:
                prometheus.process.send_signal(signal.SIGTERM)
                prometheus.process.wait(60)


async def look_at_all(prometheus: Prometheus, nodes: Nodes, folder: Path) -> None:
    (folder / "orders.json").write_text(json.dumps(CONTRACT))
    to = "--server", nodes.url
    assert (await mesh("contracts", "register", str(folder / "orders.json"), *to)).status == 0
    assert (await mesh("pub", "orders.new", "not JSON", *to)).status == 1
    assert (await mesh("pub", "orders.new", "{}", "--count", "100", *to)).status == 0
    assert (await mesh("replay", "orders", *to)).status == 0
    alerts = [query for query in of_dashboards() if "ALERTS" in query.text]
    others = [query for query in of_dashboards() if query not in alerts]
    await prometheus.until(others, lambda query, found: print(f"{query.place}: {len(found)} series"))
    nodes.sink.kill()
    alerts.append(Query("alerts.yml", 'ALERTS{alertname="MeshNodeDown", alertstate="firing", zone="eu"}'))
    await prometheus.until(alerts, lambda query, found: print(f"{query.place}: {found[0]['metric']['alertname']}"))
