"""The options of a nats.conf, key by key."""

from typing import Any

import pytest
from support import natsconf


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("PORT: 1", "port", 1),
        ("net: h", "host", "h"),
        ("listen: h:-1", "port", -1),
        ("monitor_port: 8222", "http_port", 8222),
        ("max_conn: 0", "max_connections", -1),
        ("max_subs: 10", "max_subscriptions", 10),
        ("max_payload: 1MB", "max_payload", 1024**2),
        ('ping_interval: "90s"', "ping_interval_ms", 90_000),
        ("ping_interval: 90", "ping_interval_ms", 90_000),
        ('write_deadline: "2.5s"', "write_deadline_ms", 2500),
        ("trace_verbose: true", "trace", True),
        ("trace_headers: true", "trace", True),
        ("trace_headers: true", "trace_headers", True),
        ("max_traced_msg_len: 1k", "max_traced_msg_len", 1000),
        ("max_sub_tokens: 255", "max_sub_tokens", 255),
        ("max_subscription_tokens: 3", "max_sub_tokens", 3),
        ("logfile: a.log", "log_file", "a.log"),
        ("logfile_size_limit: 1k", "log_size_limit", 1000),
        ("pidfile: a.pid", "pid_file", "a.pid"),
        ("logtime: false", "logtime", False),
        ('lame_duck_grace_period: "5s"', "lame_duck_grace_period_ms", 5000),
    ],
)
def test_each_key_is_an_option(text: str, name: str, value: Any) -> None:
    found, findings = natsconf.options(text)

    assert findings.problems == []
    assert getattr(found, name) == value
    assert found.origins[name].place == "nats.conf:1:1"


def test_tls() -> None:
    text = "tls { cert_file: c, key_file: k, ca_file: a, verify_and_map: true, timeout: 1.5, handshake_first: true }"
    found, findings = natsconf.options(text)

    assert findings.problems == []
    assert found.tls is not None
    assert (found.tls.cert_file, found.tls.key_file, found.tls.ca_file) == ("c", "k", "a")
    assert (found.tls.verify, found.tls.map, found.tls.timeout_ms, found.tls.handshake_first) == (
        True,
        True,
        1500,
        True,
    )


@pytest.mark.parametrize(
    ("written", "first", "fallback_ms"),
    [
        *(("false", False, 0), ("off", False, 0), ("on", True, 0), ('"TRUE"', True, 0)),
        *(("auto", True, 50), ("Auto_Fallback", True, 50), ('"300ms"', True, 300), ('"1.5s"', True, 1_500)),
        *(('"0s"', True, 0), ('"-1s"', True, 0), ('"1us"', True, 1)),
    ],
)
def test_the_handshake_comes_first_or_after_a_while_the_greeting(written: str, first: bool, fallback_ms: int) -> None:
    found, findings = natsconf.options(f"tls {{ handshake_first: {written} }}")

    assert findings.problems == []
    assert found.tls is not None
    assert (found.tls.handshake_first, found.tls.first_fallback_ms) == (first, fallback_ms)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("max_sub_tokens: 0", "nats.conf:1:1: max_sub_tokens value can not be negative"),
        ("max_subscription_tokens: -1", "nats.conf:1:1: max_subscription_tokens value can not be negative"),
        ("max_sub_tokens: 256", "nats.conf:1:1: max_sub_tokens value is too big"),
        (
            "tls { first: soon }",
            'nats.conf:1:7: first: must be true, false, auto or a duration such as "300ms", got "soon"',
        ),
        ("tls { first: 5 }", 'nats.conf:1:7: first: must be true, false, auto or a duration such as "300ms", got 5'),
    ],
)
def test_limits_and_times_that_are_none(text: str, problem: str) -> None:
    assert problem in natsconf.problems(text)


@pytest.mark.parametrize("order", ["verify: false, verify_and_map: true", "verify_and_map: true, verify: false"])
def test_mapping_by_certificate_demands_one(order: str) -> None:
    found, _ = natsconf.options(f"tls {{ {order} }}")

    assert found.tls is not None
    assert found.tls.verify


def test_numbers_as_durations_are_taken_with_a_warning() -> None:
    _, findings = natsconf.options("ping_interval: 5")

    assert findings.warnings == [
        'nats.conf:1:1: invalid use of field "ping_interval": ping_interval should be converted to a duration'
    ]


@pytest.mark.parametrize(
    "text",
    [
        "jetstream: false",
        "jetstream: disabled",
        "store_dir: /var/nats",
        "cluster {}",
        "syslog: off",
        "no_sys_acc: true",
        "system_account: $SYS",
        "write_timeout: close",
        "https_port: 0",
        "ocsp: false",
        "mappings {}",
        'tls { cert_file: c, key_file: k, min_version: "1.2", insecure: true, pinned_certs: [] }',
    ],
)
def test_what_asks_for_nothing_is_taken(text: str) -> None:
    assert natsconf.options(text.replace("$SYS", "'$SYS'"))[1].problems == []


@pytest.mark.parametrize(
    "key",
    [
        *("jetstream", "gateway", "leafnodes", "websocket", "mqtt", "operator", "resolver", "mappings"),
        *("https", "remote_syslog", "server_tags", "trusted_keys", "max_closed_clients", "prof_port", "system_account"),
    ],
)
def test_what_is_not_available_is_refused_by_name(key: str) -> None:
    (problem,) = natsconf.problems(f"port: 1\n {key}: x")

    assert problem.startswith(f"nats.conf:2:2: {key}: ")
    assert problem.endswith(f"is not available in this version; remove '{key}'")


def test_all_that_is_wrong_is_said_at_once_in_the_order_of_the_file() -> None:
    text = """port: abc
jetstream: enabled
max_payload: 100g
ping_interval: 5x
tls { cert_file: x, certs: [a ] }
server_name: a b
max_paylod: 1
""".replace("a b", "'a b'")

    assert natsconf.problems(text) == [
        'nats.conf:1:1: port: must be a whole number such as 100, 64k or 1MB, got "abc"',
        "nats.conf:2:1: jetstream: JetStream is not available in this version; remove 'jetstream'",
        "nats.conf:3:1: max_payload value is too big",
        'nats.conf:4:1: ping_interval: must be a duration such as "500ms", "30s" or "2m", got "5x"',
        "nats.conf:5:21: certs: a choice of several certificates is not available in this version; remove 'certs'",
        'nats.conf:6:1: server_name: a name consists of 1 to 128 letters, digits, `_` and `-`, got "a b"; other '
        "names are not available in this version",
        "nats.conf:7:1: unknown field \"max_paylod\"; did you mean 'max_payload'?",
    ]
