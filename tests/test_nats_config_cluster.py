"""`cluster` of a nats.conf and the flags that go with it: where other servers connect, and where they may be."""

import pytest
from support import natsconf

from mesh import nats_config, nats_server_flags
from mesh.nats_config_options import Options
from mesh.nats_config_values import Findings
from protocol.config import Address

FILE = """
server_name: n1
cluster {
    name: acme, listen: "127.0.0.1:6222", cluster_advertise: "10.0.0.1:7222", no_advertise: true
    routes: [ "nats-route://10.0.0.2:6222", "nats://[::1]:6223" ]
    pool_size: 3, connect_retries: 10, compression: off, accounts: [], tls {}
}
"""


def of_flags(*arguments: str, file: str = "") -> tuple[Options, Findings]:
    options, findings = natsconf.options(file) if file else (Options(), Findings())
    nats_server_flags.override(options, nats_server_flags.parse(arguments), findings)
    nats_config.tables(options, findings)
    return options, findings


def test_a_file_says_where_servers_connect_and_are() -> None:
    options, findings = natsconf.options(FILE)
    assert findings.problems == []
    cluster = options.cluster
    assert (cluster.name, cluster.host, cluster.port, cluster.no_advertise) == ("acme", "127.0.0.1", 6222, True)
    assert cluster.advertised() == Address("10.0.0.1", 7222)
    assert cluster.routes == [Address("10.0.0.2", 6222), Address("::1", 6223)]
    configuration = nats_config.configuration(nats_config.tables(options, findings))
    assert configuration.mesh.name == "acme"
    assert configuration.mesh.insecure
    assert configuration.gateway("n1").mesh == Address("127.0.0.1", 6222)


def test_flags_say_the_same_and_override_the_file() -> None:
    flags = "--cluster", "nats://0.0.0.0:-1", "--routes", "nats://a:1, nats://b:2", "--cluster_name", "x"
    options, findings = of_flags(*flags, "--cluster_advertise", "h", "--no_advertise=false", file=FILE)
    assert findings.problems == []
    cluster = options.cluster
    assert (cluster.name, cluster.host, cluster.port, cluster.no_advertise) == ("x", "0.0.0.0", -1, False)
    assert cluster.routes == [Address("a", 1), Address("b", 2)]
    assert cluster.advertised() == Address("h", -1)  # with the port that will be bound


def test_without_a_port_there_is_no_cluster() -> None:
    options, findings = of_flags("--cluster", "", file=FILE.replace("routes", "# routes"))
    assert findings.problems == []
    assert not options.cluster.port
    assert not nats_config.configuration(nats_config.tables(options, findings)).mesh.insecure


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--routes", "nats://a:1"], "--routes: solicited routes require cluster capabilities, e.g. --cluster"),
        (["--cluster", "nowhere"], '--cluster: must be a URL such as "nats://10.0.0.1:6222", got "nowhere"'),
        (
            ["--cluster", "nats://me:secret@h:1"],
            "--cluster: a password between the servers of a cluster is not available in this version",
        ),
        (
            ["--cluster", "nats://h:1", "--cluster_advertise", "a:b"],
            '--cluster_advertise: must have a number as port, got "a:b"',
        ),
    ],
)
def test_flags_that_cannot_be_are_refused(flags: list[str], problem: str) -> None:
    assert of_flags(*flags)[1].problems == [problem]


@pytest.mark.parametrize(
    ("written", "what"),
    [
        ("tls { cert_file: x }", "TLS between the servers of a cluster"),
        ("authorization { user: x }", "a password between the servers of a cluster"),
        ("permissions { import: x }", "permissions between the servers of a cluster"),
        ("compression: s2_auto", "compression within a cluster"),
        ("accounts: [ x ]", "a route of its own for an account"),
    ],
)
def test_what_is_not_available_is_refused_with_its_place(written: str, what: str) -> None:
    key = written.partition(" ")[0].strip(":")
    problem = f"nats.conf:3:2: {key}: {what} is not available in this version; remove '{key}'"
    assert natsconf.problems(f"cluster {{\n port: 6222\n {written}\n}}") == [problem]


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("routes: [ 5 ]", "nats.conf:3:12: routes: must be a text, got 5; put it in quotes"),
        ("rotes: []", "nats.conf:3:2: unknown field \"rotes\"; did you mean 'routes'?"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(written: str, problem: str) -> None:
    assert natsconf.problems(f"cluster {{\n port: 6222\n {written}\n}}") == [problem]
