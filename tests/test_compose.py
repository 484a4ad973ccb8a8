"""compose/: what the files say agrees with the configuration and with the documentation; where a container engine is
there, the mesh is run by them.

`make image` makes the image that the last part needs, and `make compose-test` starts an engine where none runs.
"""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli
import yaml
from support import markdown

from mesh.authority import node_files
from mesh.availability import not_available
from protocol import config
from protocol.limits import OUTBOX_DRAIN_MS_MAX, SERVER_STOP_GRACE_MS

TOP = Path(__file__).parent.parent
COMPOSE = TOP / "compose"
FILES = {"compose.yaml": "mesh.toml", "single.yaml": "single.toml"}
ONCE = {"certs", "welcome"}  # services that end
Service = dict[str, Any]


def services_of(folder: Path, file: str) -> dict[str, Service]:
    """The services of a file, with what they extend."""
    found: dict[str, Service] = yaml.safe_load((folder / file).read_text())["services"]
    return {name: extended(folder, file, service) for name, service in found.items()}


def extended(folder: Path, file: str, service: Service) -> Service:
    if "extends" not in service:
        return service
    base = service["extends"]
    beside = base.get("file", file)
    under = yaml.safe_load((folder / beside).read_text())["services"][base["service"]]
    return merged(extended(folder, beside, under), service)


def merged(under: Service, over: Service) -> Service:
    """As Compose does it: volumes by the place that they are at in the container, the rest by key."""
    volumes = {volume.split(":")[1]: volume for volume in (*under.get("volumes", ()), *over.get("volumes", ()))}
    return {**under, **over, "volumes": list(volumes.values())}


def configuration_of(folder: Path, file: str) -> config.Config:
    return config.parse((folder / file).read_text(), file)


def nodes_of(configuration: config.Config) -> dict[str, config.Gateway | config.Sink]:
    return {
        name: node
        for zone in configuration.zones.values()
        for name, node in (*zone.gateways.items(), *zone.sinks.items())
    }


# -- the files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES)
def test_every_node_of_the_configuration_is_a_service(file: str) -> None:
    check_nodes(services_of(COMPOSE, file), configuration_of(COMPOSE, FILES[file]), FILES[file])


def check_nodes(services: dict[str, Service], configuration: config.Config, toml: str) -> None:
    assert not_available(configuration) == []
    nodes = nodes_of(configuration)
    assert {name for name, service in services.items() if "MESH_NODE" in service.get("environment", ())} == set(nodes)
    for name, node in nodes.items():
        check_node(name, node, services[name], f"./{toml}:/etc/mesh/mesh.toml:ro")
    published = [port.rpartition(":")[0] for service in services.values() for port in service.get("ports", ())]
    assert all(outside.startswith("127.0.0.1:") for outside in published)
    assert len(set(published)) == len(published)


def check_node(name: str, node: config.Gateway | config.Sink, service: Service, file: str) -> None:
    program = "gateway" if isinstance(node, config.Gateway) else "sinkd"
    assert service["environment"] == {"MESH_NODE": name}
    assert f"exec {program} --config /etc/mesh/mesh.toml --node $$MESH_NODE" in service["command"][-1]
    assert "--node $$MESH_NODE" in service["healthcheck"]["test"][-1]
    assert {file, "pki:/pki:ro"} <= set(service["volumes"])
    assert service["depends_on"] == {"certs": {"condition": "service_completed_successfully"}}
    addresses = (node.client, node.mesh) if isinstance(node, config.Gateway) else (node.link, node.raft)
    for address in (node.monitor, *addresses):
        assert address is None or (address.host, node.bind(address).host) == (name, "0.0.0.0")
    assert node.monitor is not None, "its health is asked for there"
    if isinstance(node, config.Sink):
        assert f"{name}:{node.data}" in service["volumes"]


@pytest.mark.parametrize("file", FILES)
def test_nothing_runs_as_root_or_writes_beside_its_volumes(file: str) -> None:
    assert re.findall(r"^USER (\w+)$", (COMPOSE / "Dockerfile").read_text(), re.MULTILINE) == ["mesh"]
    grafana_is_472_by_its_image = {"grafana"}
    for name, service in services_of(COMPOSE, file).items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        is_ours = service["image"] == "${MESH_IMAGE:-localhost/event-mesh}"
        assert is_ours or "user" in service or name in grafana_is_472_by_its_image, name
        assert re.fullmatch(r"\$\{\w+:-[\w./:-]+\}", service["image"]), "another image may be named"
    sinks = [service for name, service in services_of(COMPOSE, file).items() if "sink" in name]
    kept = [volume for service in sinks for volume in service["volumes"] if volume.endswith(":/var/lib/sinkd")]
    assert len(set(kept)) == len(sinks)


@pytest.mark.parametrize("file", FILES)
def test_a_node_that_stops_may_finish(file: str) -> None:
    needed_s = (OUTBOX_DRAIN_MS_MAX + SERVER_STOP_GRACE_MS) / 1_000
    for name, service in services_of(COMPOSE, file).items():
        if "MESH_NODE" in service.get("environment", ()):
            assert int(service["stop_grace_period"].removesuffix("s")) > needed_s, name


def test_the_welcome_waits_for_all_nodes_and_tells_the_ports() -> None:
    services = services_of(COMPOSE, "compose.yaml")
    configuration = configuration_of(COMPOSE, "mesh.toml")
    waits = services["welcome"]["depends_on"]
    assert waits == {name: {"condition": "service_healthy"} for name in nodes_of(configuration)}
    text = (COMPOSE / "welcome.txt").read_text()
    ports = [port.split(":")[1] for service in services.values() for port in service.get("ports", ())]
    assert sorted(re.findall(r"127\.0\.0\.1:(\d+)", text)) == sorted(ports)
    assert len(re.findall(r"^  docker compose ", text, re.MULTILINE)) == 3


def test_prometheus_asks_every_node() -> None:
    settings = yaml.safe_load((COMPOSE / "prometheus.yml").read_text())
    (job,) = settings["scrape_configs"]
    asked = {(each["labels"]["zone"], target) for each in job["static_configs"] for target in each["targets"]}
    zones = configuration_of(COMPOSE, "mesh.toml").zones.values()
    assert asked == {
        (zone.name, str(node.monitor)) for zone in zones for node in (*zone.gateways.values(), *zone.sinks.values())
    }


def test_certificates_are_made_for_whoever_has_none(tmp_path: Path) -> None:
    """What the service `certs` runs: once for all, then for a node that is added, and nothing is made anew."""
    text = (COMPOSE / "mesh.toml").read_text().replace("/pki/", f"{tmp_path}/")
    file = tmp_path / "mesh.toml"
    command = [shutil.which("python", path=str(TOP / ".venv/bin")) or "python3", str(COMPOSE / "certs.py"), str(file)]
    made: dict[str, bytes] = {}
    for more in ("", added("gateway")[0]):
        file.write_text(text + more)
        subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=60)
        files = node_files(config.parse(file.read_text(), "mesh.toml"))
        now = {path: Path(path).read_bytes() for each in files.values() for path in (each.cert, each.key)}
        assert {path: now[path] for path in made} == made
        made = now
    assert "eu-gw3" in files
    assert {Path(each.key).stat().st_mode & 0o777 for each in files.values()} == {0o640}
    assert (tmp_path / "ca.key").stat().st_mode & 0o777 == 0o600


def test_the_image_gets_what_it_needs() -> None:
    """All packages, what they are built from, and the locks are let through by .dockerignore."""
    allowed = {line[1:] for line in (TOP / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    packages = tomli.loads((TOP / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    needed = {"pyproject.toml", "setup.py", "README.md", "LICENSE", "requirements/run.lock", "compose/wheels"}
    assert allowed == needed | {package.rstrip("*") for package in packages}
    assert all((TOP / name).exists() for name in allowed)


# -- a node more, as docs/compose.md says -----------------------------------------------------------------------------


def added(kind: str) -> tuple[str, str]:
    """What the page adds to mesh.toml, and the services file beside it, for a gateway or a sink more."""
    _, _, section = (TOP / "docs/compose.md").read_text().partition(f"\n## Adding a {kind}\n")
    toml, services, *_ = [block.text for block in markdown.blocks(section) if block.language in ("toml", "yaml")]
    return toml, services


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(COMPOSE, tmp_path / "compose", ignore=shutil.ignore_patterns("wheels")))


def add(folder: Path, kind: str) -> None:
    toml, services = added(kind)
    file = folder / "mesh.toml"
    revision = int(re.findall(r"^revision = (\d+)$", file.read_text(), re.MULTILINE)[0])
    file.write_text(file.read_text().replace(f"revision = {revision}", f"revision = {revision + 1}") + toml)
    more = folder / "more.yaml"
    written = yaml.safe_load(more.read_text()) if more.exists() else {}
    for key, values in yaml.safe_load(services).items():
        written.setdefault(key, {}).update(values)
    more.write_text(yaml.safe_dump(written))


def test_a_gateway_and_a_sink_can_be_added(copy: Path) -> None:
    add(copy, "gateway")
    add(copy, "sink")
    services = services_of(copy, "compose.yaml") | services_of(copy, "more.yaml")
    check_nodes(services, configuration_of(copy, "mesh.toml"), "mesh.toml")
    assert {"eu-gw3", "eu-sink4"} <= set(services)


# -- with an engine ---------------------------------------------------------------------------------------------------


def says(*command: str, wait_s: float = 60) -> str | None:
    """What it prints; None where it fails, or is not there."""
    try:
        ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=wait_s, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return ran.stdout.decode()


PROJECT = "mesh-test"
IMAGE = "localhost/event-mesh"
HEALTHY_S_MAX = 600.0  # it takes less than 60 on two cores that do nothing else


class Engine:
    """The two zones as containers, by a copy of compose/ in `folder`."""

    def __init__(self, folder: Path, compose: list[str]) -> None:
        self.folder = folder
        self._compose = compose
        self._more: list[str] = []

    def run(self, *arguments: str, wait_s: float = 300) -> str:
        command = [
            *self._compose,
            "-p",
            PROJECT,
            "-f",
            str(self.folder / "compose/compose.yaml"),
            *self._more,
            *arguments,
        ]
        ran = subprocess.run(command, capture_output=True, timeout=wait_s, check=False)
        assert ran.returncode == 0, f"{' '.join(arguments)}: {(ran.stdout + ran.stderr).decode()[-3000:]}"
        return ran.stdout.decode()

    def mesh(self, node: str, *arguments: str) -> str:
        """A command of `mesh` in the container of a node."""
        return self.run("exec", "-T", node, "mesh", "-s", node, *arguments)

    def until_ready(self, node: str) -> None:
        ready = f"until mesh health --config /etc/mesh/mesh.toml --node {node}; do sleep 1; done"
        self.run("exec", "-T", node, "sh", "-c", ready)

    def follow(self, shell: str) -> None:
        """Commands of the documentation, as they stand there."""
        compose = " ".join([*self._compose, "-p", PROJECT])
        shim = f'docker() {{ shift; set -- $(echo "$*" | sed "s/ exec / exec -T /"); {compose} "$@"; }}\n'
        ran = subprocess.run(
            ["sh", "-ec", shim + shell], cwd=self.folder, capture_output=True, timeout=1_200, check=False
        )
        assert ran.returncode == 0, (ran.stdout + ran.stderr).decode()[-3000:]
        self._more = ["-f", str(self.folder / "compose/more.yaml")]

    def up(self) -> float:
        """Seconds until all nodes are healthy, which is what the welcome waits for."""
        begun = time.monotonic()
        self.run("up", "-d", "welcome", wait_s=HEALTHY_S_MAX)
        eventually(lambda: "Zones eu and us are up." in self.run("logs", "welcome"), "the welcome is said")
        return time.monotonic() - begun

    def close(self) -> None:
        self.run("down", "--volumes", "--remove-orphans", "--timeout", "20")


def eventually(true: Callable[[], bool], what: str, wait_s: float = 300) -> None:
    deadline = time.monotonic() + wait_s
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.5)


@pytest.fixture
def engine(tmp_path: Path, copy: Path) -> Iterator[Engine]:
    if says("docker", "info", "--format", "{{.ServerVersion}}") is None:
        pytest.skip("no container engine answers; `make compose-test` starts one where it can")
    if says("docker", "image", "inspect", IMAGE) is None:
        pytest.skip(f"there is no image {IMAGE}; `make image` makes it")
    compose = ["docker", "compose"] if says("docker", "compose", "version") else ["docker-compose"]
    if says(*compose, "version") is None:
        pytest.skip("Compose is not installed")
    engine = Engine(tmp_path, compose)
    try:
        yield engine
    finally:
        engine.close()


EVENTS = "".join(f"apple {number}\n" for number in range(1_000))


def test_two_zones_keep_what_they_took(engine: Engine) -> None:
    """Published in one zone, read there and in the other; nodes are killed, all is taken down and started again."""
    print(f"all nodes were healthy after {engine.up():.0f} s")
    lines = "seq 0 999 | sed 's/^/apple /' | mesh -s eu-gw1 pub --lines - orders.new"
    engine.run("exec", "-T", "eu-gw1", "sh", "-c", lines)
    assert engine.mesh("eu-gw2", "replay", "orders", "--raw") == EVENTS
    eventually(lambda: engine.mesh("us-gw1", "replay", "orders@eu", "--raw") == EVENTS, "us has what eu has")
    engine.run("kill")
    engine.run("down")
    engine.up()
    for node, log in (("eu-gw1", "orders"), ("us-gw2", "orders@eu")):
        assert engine.mesh(node, "replay", log, "--raw") == EVENTS, node
    told = json.loads(engine.mesh("eu-gw1", "status", "--config", "/etc/mesh/mesh.toml", "--zone", "eu", "--json"))
    assert all(["orders", 1_000] in ends_of(sink) for sink in told["sinks"].values())


def ends_of(sink: dict[str, Any]) -> list[list[Any]]:
    return [[log["stream"], log["end_offset"]] for log in sink["logs"]]


def test_a_gateway_and_a_sink_are_added_as_the_page_says(engine: Engine) -> None:
    engine.up()
    page = (TOP / "docs/compose.md").read_text()
    for kind, node in (("gateway", "eu-gw3"), ("sink", "eu-sink4")):
        add(engine.folder / "compose", kind)
        _, _, section = page.partition(f"\n## Adding a {kind}\n")
        engine.follow(markdown.blocks(section, "sh")[0].text)
        engine.until_ready(node)
    told = json.loads(engine.mesh("eu-gw3", "status", "--config", "/etc/mesh/mesh.toml", "--zone", "eu", "--json"))
    leader = next(sink for sink in told["sinks"].values() if sink["state"] == "leader")
    assert set(leader["members"]) == {"eu-sink1", "eu-sink2", "eu-sink3", "eu-sink4"}
