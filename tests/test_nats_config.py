"""From a nats.conf to our configuration and to a mesh.toml: the same both ways, refused where nats-server refuses."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import natscheck, natsconf

from mesh import nats_config
from mesh.nats_config_values import Findings
from protocol import config, limits
from protocol.config_units import Address
from protocol.errors import ConfigError

FULL = """
listen: 127.0.0.1:-1
server_name: my-nats
http: 127.0.0.1:-1
max_payload: 64kb, max_conn: 0, max_subs: -1, max_control_line: 2k, max_pending: 1MB
ping_interval: "20s", ping_max: 3, write_deadline: "2s"
lame_duck_duration: "40s"
lame_duck_grace_period: "5s"
debug: true, logtime: off, pid_file: "x.pid"
authorization {
  timeout: 0.5
  default_permissions { publish: "a.>", subscribe { allow: ["_INBOX.>", "x q.*"], deny: "s" } }
  users = [
    {user: a, password: "b\\"c\\x7f"}
    {user: svc, pass: $2a$11$abc, permissions { allow_responses: true, subscribe: svc } }
    {nkey: UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4 }
  ]
}
accounts { A { users [ {user: u, password: p} ] }, B {} }
no_auth_user: a
"""


def test_a_whole_file() -> None:
    tables, found = natsconf.imported(FULL)

    gateway = found.gateway("my-nats")
    assert found.mesh.mode == "delivery-fabric"
    assert found.mesh.no_auth_user == "a"
    assert (gateway.client, gateway.monitor) == (Address("127.0.0.1", 0), Address("127.0.0.1", 0))
    assert found.limits.max_payload_bytes == 65_536
    assert found.limits.max_connections == 2**31 - 1
    assert found.limits.max_subscriptions == 0
    assert found.limits.auth_timeout_ms == 500
    assert found.limits.lame_duck_duration_ms == 40_000
    assert [(user.user, user.account) for user in found.users] == [("a", "$G"), ("svc", "$G"), (None, "$G"), ("u", "A")]
    assert config.parse(nats_config.render(tables), "mesh.toml") == found


def test_without_a_word_the_defaults_are_nats_servers() -> None:
    _, found = natsconf.imported("port: 0")

    assert found.gateway("gw1").client == Address("0.0.0.0", 4222)
    assert found.gateway("gw1").monitor is None
    assert found.limits.max_payload_bytes == limits.MAX_PAYLOAD_BYTES
    assert found.users == ()


def test_comments_say_where_each_part_came_from() -> None:
    tables, _ = natsconf.imported("port: 1\nmax_payload: 1k\nauthorization {\n user: a\n pass: b }")

    text = nats_config.render(tables, ["Made of nats.conf."])

    assert text.startswith("# Made of nats.conf.\n\n[mesh]\n")
    assert 'client = "0.0.0.0:1"  # nats.conf:1:1 port\n' in text
    assert 'max_payload = "1000B"  # nats.conf:2:1 max_payload\n' in text
    assert 'password = "b"  # nats.conf:5:2 pass\n' in text


def test_tls_and_its_time() -> None:
    text = "tls { cert_file: c.pem, key_file: k.pem, ca_file: ca.pem, verify_and_map: true, timeout: 3 }"
    text += "\nallow_non_tls: true"

    _, found = natsconf.imported(text)

    assert found.tls_clients is not None
    assert (found.tls_clients.cert, found.tls_clients.ca) == ("c.pem", "ca.pem")
    assert found.tls_clients.map
    assert found.tls_clients.timeout_ms == 3000
    assert found.tls_clients.allow_non_tls
    assert found.limits.auth_timeout_ms == 4000  # a second more than the handshake, as in nats-server


@pytest.mark.parametrize(
    ("advertise", "client", "listen"),
    [
        ("nats.example", "nats.example:4222", "0.0.0.0"),
        ("nats.example:4222", "nats.example:4222", "0.0.0.0"),
        ("10.0.0.1", "10.0.0.1:4222", "0.0.0.0"),
    ],
)
def test_the_advertised_host_is_the_one_to_dial(advertise: str, client: str, listen: str) -> None:
    _, found = natsconf.imported(f'client_advertise: "{advertise}"')

    assert str(found.gateway("gw1").client) == client
    assert found.gateway("gw1").listen == listen


def test_another_advertised_port_is_refused() -> None:
    assert natsconf.problems('client_advertise: "a:99"') == [
        "nats.conf:1:1: client_advertise: another port than the clients' (4222) is not available in this version"
    ]


def test_the_checks_of_our_configuration_speak_of_the_nats_conf() -> None:
    assert natsconf.problems("port: 99999\nping_max: -1\nno_auth_user: x\nlame_duck_duration: '5s'") == [
        'nats.conf:1:1: port: must be "host:port" with a port from 0 to 65535 (0 = any free one), got "0.0.0.0:99999"',
        "nats.conf:2:1: ping_max: must be at least 1, got -1",
        *natsconf.problems("port: 1\nping_max: 1\nno_auth_user: x"),
        'nats.conf:4:1: lame_duck_duration: must be at least 30s, got "5s"',
    ]


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)
SUBJECTS = st.sampled_from(["a", "a.b", "a.*", "a.>", ">", "*", "_INBOX.>", "ü.x"])
RULES = st.one_of(
    SUBJECTS.map(lambda subject: f'"{subject}"'),
    st.lists(SUBJECTS, max_size=3).map(lambda subjects: "[" + ",".join(f'"{each}"' for each in subjects) + "]"),
    SUBJECTS.map(lambda subject: f'{{ allow: "{subject}", deny: ["x", "{subject}"] }}'),
)
USERS = st.lists(
    st.tuples(
        WORDS.filter(lambda word: not set(word) & set('"\\')), st.none() | st.tuples(RULES, RULES, st.booleans())
    ),
    max_size=4,
    unique_by=lambda user: user[0],
)


@settings(max_examples=100, deadline=None)
@given(users=USERS, payload=st.integers(1, 2**20), deadline_ms=st.integers(1, 10**9), port=st.integers(-1, 65_535))
def test_the_written_file_says_the_same(
    users: list[tuple[str, tuple[str, str, bool] | None]], payload: int, deadline_ms: int, port: int
) -> None:
    lines = [
        f"port: {port}",
        f"max_payload: {payload}",
        f'write_deadline: "{deadline_ms}ms"',
        "authorization { users: [",
    ]
    for name, rules in users:
        said = ""
        if rules is not None:
            publish, subscribe, responses = rules
            said = f"publish: {publish}, subscribe: {subscribe}, allow_responses: {str(responses).lower()}"
            said = f", permissions: {{ {said} }}"
        lines.append(f'{{ user: "{name}", password: "p{name}"{said} }}')
    tables, found = natsconf.imported("\n".join(lines) + "\n] }")

    assert config.parse(nats_config.render(tables), "mesh.toml") == found


# -- beside the real one ----------------------------------------------------------------------------------------------


RIGHT = [
    "",
    FULL.replace("my-nats", "n"),
    "port: -1",
    "listen: 4222",
    "max_conn: -1\nmax_subs: 5",
    "authorization { token: abc, timeout: 5 }",
    "authorization { PASS: x, users: [ {user: a, password: $PASS} ] }",
    "accounts { X { users: [] } }",
    "x: 1\nport: $x",
    "{ port: 4222 }",
]
WRONG = [
    "port: abc",
    "foo: 1",
    "ping_interval: 5",
    "ping_interval: 5x",
    "max_payload: 8g",
    "listen: abc",
    "authorization { user: a, pass: b, token: c }",
    "authorization { user: a, pass: b, users: [] }",
    "authorization { users: [ {pass: b} ] }",
    "authorization { users: [ {nkey: UX} ] }",
    "authorization { users: [ {user: a, pass: b, permissions: {publish: 'a b'}} ] }",
    "authorization { users: [ {user: a, pass: b, permissions: {publish: 5 }} ] }",
    "authorization { users: [ {user: a, pass: b, permissions: {subscribe: 'a q x'}} ] }",
    "authorization { users: [ {user: a, pass: b} ] }\naccounts { A { users: [ {user: a, pass: b} ] } }",
    "accounts { A { users: [ {user: a, pass: b} ] }, B { users: [ {user: a, pass: b} ] } }",
    "accounts { A 5 }",
    "accounts [ A, A ]",
    "tls { cert_file: nope }",
    "tls { foo: 1 }",
    "lame_duck_duration: '5s'",
    "lame_duck_grace_period: '-5s'",
    "server_name: 'a b'",
    "debug: 1",
    "handshake_first: 5",
    "max_sub_tokens: 0",
    "max_sub_tokens: 256",
    "tls { handshake_first: soon }",
]


def _refused(text: str, file: Path) -> list[str]:
    findings = Findings()
    file.write_text(text)
    try:
        found = nats_config.load(str(file), os.environ, findings)
        nats_config.configuration(nats_config.tables(found, findings))
    except ConfigError as error:
        return [*findings.problems, *error.problems]
    return findings.problems + findings.warnings


@pytest.mark.parametrize("text", RIGHT)
def test_what_nats_server_takes_is_taken(tmp_path: Path, text: str) -> None:
    verdict = natscheck.check(tmp_path / "nats.conf", text)
    assert verdict.status == 0 or not text, verdict.stderr

    assert _refused(text, tmp_path / "nats.conf") == (
        [f"{tmp_path}/nats.conf: config has no values or is empty"] * (not text)
    )


@pytest.mark.parametrize("text", WRONG)
def test_what_nats_server_refuses_is_refused(tmp_path: Path, text: str) -> None:
    assert natscheck.check(tmp_path / "nats.conf", text).status == 1
    assert _refused(text, tmp_path / "nats.conf")


KEYS = st.sampled_from(
    [
        *("port", "host", "listen", "http", "max_payload", "max_connections", "ping_interval", "write_deadline"),
        *("authorization", "accounts", "debug", "server_name", "lame_duck_duration", "jetstream", "nonsense"),
    ]
)
VALUES = st.sampled_from(
    [
        *("1", "-1", "true", "abc", '"10s"', '"40s"', "1.5", "h:1", "[]", "[a ]", "{}", "{ user: a, pass: b }"),
        *("{ users: [ {user: a, pass: b} ] }", "{ A: {} }", "{ timeout: 1, token: x }", "1k", "''"),
    ]
)
FILES = st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=4, unique_by=lambda line: line[0])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=FILES)
def test_any_keys_are_taken_or_refused_as_nats_server_does(tmp_path: Path, lines: list[tuple[str, str]]) -> None:
    text = "\n".join(f"{key}: {value}" for key, value in lines)
    verdict = natscheck.check(tmp_path / "nats.conf", text)

    refused = [problem for problem in _refused(text, tmp_path / "nats.conf") if "not available" not in problem]

    if verdict.status:
        assert _refused(text, tmp_path / "nats.conf"), (text, verdict.stderr)
    else:
        assert not [problem for problem in refused if not _starts_only_in_a_check(problem)], (text, refused)


def _starts_only_in_a_check(problem: str) -> bool:
    """What `nats-server -t` takes, and what then ends it or is ignored: ports, sizes and times out of range."""
    known = (
        "a port from 0",
        "max_pending",
        "must be a size",
        "must be a duration",
        "must be more than",
        "must be a map",
    )
    return any(text in problem for text in known)
