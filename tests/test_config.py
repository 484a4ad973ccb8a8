"""The configuration: what a good file means, what each rule says about a bad one, and that all is said at once."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import tomli
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import config, limits
from protocol.config_checks import check
from protocol.config_units import Address
from protocol.errors import ConfigError

DATA = Path(__file__).parent / "data"
SMALL = (DATA / "small.toml").read_text("utf-8")
FULL = (DATA / "full.toml").read_text("utf-8")

GATEWAY = '\n[zones.home.gateways.gw2]\nclient = "127.0.0.1:4223"\nmesh = "127.0.0.1:6223"\n'
GATEWAY3 = '\n[zones.home.gateways.gw3]\nclient = "127.0.0.1:6225"\nmesh = "127.0.0.1:6224"\n'
SECOND_ZONE = """
[zones.away.sinks.sink2]
link = "127.0.0.1:6433"
data = "data2"
"""


def sinks_of_home(count: int, *, raft: bool = False) -> str:
    """Sinks 2 to `count`, beside the one of the small file."""
    return "".join(
        f'[zones.home.sinks.sink{number}]\nlink = "127.0.0.1:650{number}"\ndata = "data{number}"\n'
        + (f'raft = "127.0.0.1:640{number}"\n' if raft else "")
        for number in range(2, count + 1)
    )


def problems(text: str) -> list[str]:
    """What is wrong with a file, without its name and lines."""
    with pytest.raises(ConfigError) as caught:
        config.parse(text, "m")
    return [problem.partition(": ")[2] for problem in caught.value.problems]


def changed(*pairs: str) -> str:
    """The small file with replacements: old, new, old, new, ..."""
    text = SMALL
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        assert old in text
        text = text.replace(old, new)
    return text


# -- good files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_a_zone_may_have_several_sinks(count: int) -> None:
    text = changed('data = "data"', 'data = "data"\nraft = "127.0.0.1:6401"') + sinks_of_home(count, raft=True)
    assert len(config.parse(text, "m").zones["home"].sinks) == count


def test_a_small_file_has_every_default() -> None:
    parsed = config.parse(SMALL, "small.toml")
    assert parsed.mesh == config.Mesh(
        name="small",
        revision=1,
        mode="event-sinks",
        routing="interest",
        catch_all=True,
        buffer_bytes=0,
        insecure=False,
        contracts="off",
        no_auth_user=None,
    )
    assert parsed.limits == config.Limits(
        max_payload_bytes=1024**2,
        max_control_line_bytes=4096,
        max_connections=65_536,
        max_subscriptions=0,
        max_subscription_tokens=1_024,
        max_pending_bytes=64 * 1024**2,
        write_deadline_ms=10_000,
        ping_interval_ms=120_000,
        ping_max=2,
        auth_timeout_ms=2_000,
        lame_duck_duration_ms=120_000,
        lame_duck_grace_period_ms=10_000,
    )
    assert parsed.sink("sink1") == config.Sink(
        name="sink1",
        zone="home",
        link=Address("127.0.0.1", 6333),
        raft=None,
        monitor=None,
        kafka=None,
        listen=None,
        data="data",
        disk_reserve_bytes=1024**3,
        fsync="always",
        scrub_rate_bytes_per_second=4 * 1024**2,
    )
    assert (parsed.streams, parsed.users, parsed.links) == ({}, (), ())
    assert (parsed.accounts, parsed.account_catch_alls, parsed.all_accounts()) == ((), (), ("$G",))
    assert parsed.tls_clients is None
    assert parsed.tls_nodes is None


def test_a_stream_has_the_defaults_that_the_full_file_spells_out() -> None:
    spelled_out = config.parse(FULL, "full.toml").streams["orders"]
    by_default = config.parse(SMALL + '[streams.orders]\nsubjects = ["orders.>"]', "small.toml").streams["orders"]
    assert spelled_out == by_default
    assert (by_default.reply, by_default.ack, by_default.replicate) == ("always", "quorum", ("*",))
    assert (by_default.hold_age_ms, by_default.hold_bytes) == (86_400_000, 10 * 1024**3)
    assert (by_default.dedup_window_ms, by_default.dedup_ids_max) == (120_000, 250_000)
    assert (by_default.outbox_bytes, by_default.outbox_overflow, by_default.outbox_stall_ms) == (2**26, "gap", 30_000)
    assert (by_default.geo_zones, by_default.geo_timeout_ms, by_default.geo_on_timeout) == (1, 5_000, "silent")


def test_the_full_file_reads_key_by_key() -> None:
    parsed = config.parse(FULL, "full.toml")
    assert parsed.gateway("us-gw1").client == Address("2001:db8::1", 4222)
    assert parsed.zones["edge"].kept_by == "eu"
    assert parsed.zones["plant"].mode == "delivery-fabric"
    telemetry = parsed.streams["telemetry"]
    assert telemetry.subjects == ("telemetry.*.raw", "telemetry.*.clean")
    assert (telemetry.partitions, telemetry.key, telemetry.ack, telemetry.reply) == (16, "token:2", "geo", "header")
    assert (telemetry.replicate, telemetry.retention_age_ms) == (("us",), 604_800_000)
    assert telemetry.retention_bytes == 100 * 1000**3
    assert parsed.tls_clients == config.TlsClients(
        cert="pki/gateway.pem",
        key="pki/gateway.key",
        ca="pki/ca.pem",
        verify=True,
        first=False,
        first_fallback_ms=0,
        map=True,
        timeout_ms=2_000,
        allow_non_tls=False,
    )
    assert (parsed.mesh.no_auth_user, parsed.accounts) == ("guest", ("ACME",))
    assert parsed.tls_nodes is not None
    assert parsed.tls_nodes.of("eu-gw1").cert == "pki/eu-gw1.pem"


def test_users_and_their_permissions_as_nats_writes_them() -> None:
    shop, by_token, by_key, guest = config.parse(FULL, "full.toml").users
    assert (shop.user, shop.role, shop.history) == ("shop", "publisher", ("orders", "orders@us"))
    assert (shop.publish_allow, shop.publish_deny) == (("orders.>",), ("orders.secret",))
    assert (shop.subscribe_allow, shop.subscribe_deny) == (("_INBOX.>", "orders.> workers"), None)
    assert shop.allow_responses == config.Responses(max=1, expires_ms=120_000)
    assert (by_token.token, by_token.user, by_token.publish_allow) == ("s3cr3t", None, ("telemetry.>",))
    assert by_token.allow_responses == config.Responses(max=5, expires_ms=60_000)
    assert by_key.nkey is not None
    assert (shop.account, by_key.account) == ("$G", "ACME")
    assert (guest.user, guest.account, guest.password) == ("guest", "ACME", None)
    assert (by_key.role, by_key.history, by_key.allow_responses) == (
        "operator",
        ("events-ACME", "$AUDIT", "$COVERAGE"),
        None,
    )


def test_secrets_do_not_show_in_what_is_printed() -> None:
    printed = repr(config.parse(FULL, "full.toml"))
    assert "s3cr3t" not in printed
    assert "$2b$12" not in printed


def test_the_catch_all_comes_last_and_can_be_tuned_or_left_out() -> None:
    orders, telemetry, events, of_acme = config.parse(FULL, "full.toml").effective_streams()
    assert (orders.name, telemetry.name, events.name) == ("orders", "telemetry", "events")
    assert of_acme == dataclasses.replace(events, name="events-ACME", account="ACME")
    assert (events.subjects, events.reply, events.retention_age_ms) == ((">",), "header", 5_400_000)
    assert "events" not in config.parse(FULL, "full.toml").streams
    without = config.parse(changed('name = "small"', 'name = "small"\ncatch_all = false'), "small.toml")
    assert without.effective_streams() == ()


def test_the_catch_all_of_an_account_is_tuned_by_a_table_of_its_own() -> None:
    text = SMALL + "[accounts.ACME]\n[streams.events]\nretention.age = '1h'\n[streams.events-ACME]\npartitions = 2\n"
    events, of_acme = config.parse(text, "small.toml").effective_streams()
    assert (events.name, events.account, events.partitions, events.retention_age_ms) == ("events", "$G", 1, 3_600_000)
    assert (of_acme.name, of_acme.account, of_acme.partitions) == ("events-ACME", "ACME", 2)
    assert (of_acme.subjects, of_acme.reply, of_acme.retention_age_ms) == ((">",), "header", 0)


def test_all_streams_are_covered_but_that_of_the_accounts_themselves() -> None:
    parsed = config.parse(FULL, "full.toml")
    assert {stream.name: stream.covered for stream in parsed.kept_streams()} == {
        "orders": True, "telemetry": True, "events": True, "events-ACME": True, "$AUDIT": True, "$COVERAGE": False
    }  # fmt: skip
    assert (parsed.coverage.enabled, parsed.coverage.gap_grace_ms) == (True, 10_000)
    stream = parsed.coverage.stream
    assert (stream.subjects, stream.partitions, stream.account) == (("$COVERAGE.>",), 1, "$COVERAGE")
    assert (stream.retention_age_ms, stream.retention_bytes, stream.replicate) == (30 * 86_400_000, 1 << 30, ("*",))


def test_without_coverage_no_stream_is_covered_and_there_is_none_for_it() -> None:
    parsed = config.parse(SMALL + "[coverage]\nenabled = false\nretention.age = '1d'", "small.toml")
    assert [(stream.name, stream.covered) for stream in parsed.kept_streams()] == [("events", False), ("$AUDIT", False)]
    assert parsed.coverage.stream.retention_age_ms == 86_400_000


def test_subjects_of_streams_may_overlap_in_different_accounts() -> None:
    text = SMALL + "[accounts.ACME]\n[streams.a]\nsubjects = ['a.>']\n[streams.b]\nsubjects = ['a.b']\naccount = 'ACME'"
    assert [stream.account for stream in config.parse(text, "small.toml").streams.values()] == ["$G", "ACME"]
    assert problems(text.replace("[streams.a]", "[streams.a]\naccount = 'ACME'")) == [
        'streams.b.subjects[0]: "a.b" overlaps "a.>" of streams.a.subjects: an event would belong to two streams, '
        "'b' and 'a'"
    ]


def test_nodes_are_found_by_name_and_the_error_says_which_there_are() -> None:
    parsed = config.parse(FULL, "full.toml")
    assert parsed.zone_of("eu-sink1").name == "eu"
    assert parsed.mode_of("plant-gw1") == "delivery-fabric"
    assert parsed.mode_of("eu-gw1") == "event-sinks"
    with pytest.raises(
        ConfigError, match="there is no gateway 'gw9'; gateways of mesh 'acme': eu-gw1, us-gw1, edge-gw1"
    ):
        parsed.gateway("gw9")
    with pytest.raises(
        ConfigError, match="'eu-gw1' is a gateway, not a sink; sinks of mesh 'acme': eu-sink1, us-sink1"
    ):
        parsed.sink("eu-gw1")
    with pytest.raises(ConfigError, match="there is no node 'x'; nodes of mesh 'acme': eu-gw1, eu-sink1"):
        parsed.zone_of("x")


def test_a_node_listens_where_listen_says_at_the_port_that_others_dial() -> None:
    parsed = config.parse(FULL, "full.toml")
    eu, us = parsed.gateway("eu-gw1"), parsed.gateway("us-gw1")
    assert eu.bind(eu.client) == Address("0.0.0.0", 4222)
    assert us.bind(us.client) == us.client
    sink = parsed.sink("us-sink1")
    assert sink.bind(sink.link) == sink.link


def test_a_link_has_no_direction_and_defaults_to_everything() -> None:
    parsed = config.parse(FULL, "full.toml")
    assert parsed.link("us", "eu") == parsed.link("eu", "us")
    assert parsed.link("us", "eu").copy_rate_bytes_per_second == 12_000_000
    assert parsed.link("eu", "edge") == config.Link(zones=("eu", "edge"))


def test_nothing_in_it_can_be_changed() -> None:
    parsed = config.parse(SMALL, "small.toml")
    with pytest.raises(dataclasses.FrozenInstanceError):
        parsed.mesh.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    "text",
    [
        changed("127.0.0.1:6333", "sink1:6333", 'name = "small"', 'name = "small"\ninsecure = true'),
        changed('name = "small"', 'name = "small"\nmode = "delivery-fabric"'),  # with a sink in it
        changed("127.0.0.1:4222", "127.0.0.1:0", "127.0.0.1:6333", "127.0.0.1:0"),
        SMALL + '[[users]]\nuser = "a"\npassword = "x"\n[users.permissions]\nallow_responses = false\nhistory = "*"',
        SMALL + SECOND_ZONE + '[streams.a]\nsubjects = ["a"]\nack = "geo"\n[streams.b]\nsubjects = ["a.b", "a.*.c"]',
        "\ufeff" + SMALL,
        SMALL.replace("\n", "\r\n"),
    ],
)
def test_other_files_that_are_right(text: str) -> None:
    config.parse(text, "small.toml")


# -- bad files --------------------------------------------------------------------------------------------------------


def test_everything_wrong_is_said_at_once_in_the_order_of_the_file() -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse((DATA / "wrong.toml").read_text("utf-8"), "wrong.toml")
    assert caught.value.problems == (DATA / "wrong.txt").read_text("utf-8").splitlines()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a b", "m:1:3: not TOML: Expected '=' after a key in a key/value pair"),
        ("[mesh]\nname = \n", "m:2:8: not TOML: Invalid value"),
        ("[mesh]\nname = 'a'\nname = 'b'", "m:3:11: not TOML: Cannot overwrite a value"),
        ("a = " + "[" * 100_000, "m: not a configuration: lists or tables are nested too deep"),
        ("a = " + "1" * 5_000, "m: not a configuration: a number in it has thousands of digits"),
        (
            "#" * (limits.CONFIG_CHARACTERS_MAX + 1),
            "m: is 4194305 characters long; a configuration has at most 4194304",
        ),
    ],
)
def test_what_is_not_toml_has_a_place(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(text, "m")
    assert caught.value.problems == [problem]


def test_an_empty_file_says_what_a_mesh_needs() -> None:
    assert problems("") == [
        'mesh.name: is missing; for example name = "acme"',
        "there are no zones; a mesh needs at least one: [zones.NAME.gateways.NODE]",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # single keys
        (
            changed('name = "small"', "name = 5"),
            ["mesh.name: a name consists of 1 to 128 letters, digits, `_` and `-`, got 5"],
        ),
        (changed("[mesh]", "[mesh]\ncatch_all = 1"), ["mesh.catch_all: must be true or false, got 1"]),
        (changed("[mesh]", "[mesh]\nrevision = 1.5"), ["mesh.revision: must be a whole number, got 1.5"]),
        ("limits = 3\n" + SMALL, ["limits: must be a table, got 3"]),
        ("streams = []\n" + SMALL, ["streams: must be a table, got a list"]),
        ('users = "me"\n' + SMALL, ['users: must be a list, got "me"']),
        (
            "qqq = 3\n" + SMALL,
            ["unknown key 'qqq'; known: accounts, audit, coverage, limits, links, mesh, streams, tls, users, zones"],
        ),
        (SMALL + "[stream.x]\n", ["unknown key 'stream'; did you mean 'streams'?"]),
        (
            SMALL + "[coverage]\ngap_grace = '1s'\nenable = false",
            [
                'coverage.gap_grace: must be at least 2s, the time of two beacons, got "1s"',
                "coverage: unknown key 'enable'; did you mean 'enabled'?",
            ],
        ),
        (SMALL + "[limits]\nmax_payload = 0", ["limits.max_payload: must be from 1 byte to 64MiB, got 0"]),
        (SMALL + "[limits]\nwrite_deadline = '0'", ['limits.write_deadline: must be more than 0, got "0"']),
        (
            changed('client = "127.0.0.1:4222"', "workers = 257"),
            [
                'zones.home.gateways.gw1.client: is missing (address: "host:port")',
                "zones.home.gateways.gw1.workers: must be at most 256, got 257",
            ],
        ),
        (
            changed('data = "data"', 'data = ""'),
            ['zones.home.sinks.sink1.data: must be a text with something in it, got ""'],
        ),
        (
            changed('client = "127.0.0.1:4222"', 'client = "127.0.0.1:4222"\nlisten = "0.0.0.0:1"'),
            [
                "zones.home.gateways.gw1.listen: must be a host name or an IP address without a port, such as "
                '"0.0.0.0", got "0.0.0.0:1"'
            ],
        ),
        # names
        (
            changed("gw1", '"gw 1"'),
            ['zones.home.gateways."gw 1": a name consists of 1 to 128 letters, digits, `_` and `-`, got "gw 1"'],
        ),
        (
            SMALL + "[streams.'$AUDIT']\nsubjects = ['a']",
            ['streams."$AUDIT": a name consists of 1 to 128 letters, digits, `_` and `-`, got "$AUDIT"'],
        ),
        (
            changed("sink1", "gw1"),
            [
                "zones.home.sinks.gw1: the name 'gw1' is taken by zones.home.gateways.gw1; zones and nodes share one "
                "space"
            ],
        ),
        (
            changed("gateways.gw1", "gateways.home"),
            ["zones.home.gateways.home: the name 'home' is taken by zones.home; zones and nodes share one space"],
        ),
        # zones and nodes
        (
            changed(
                "[zones.home.gateways.gw1]",
                "[zones.home]\nmode = 'delivery-fabric'\n[zones.home.gateways.gw1]\nspool = 's'",
            ),
            ['zones.home.gateways.gw1.spool: mode = "delivery-fabric" keeps no events; remove spool'],
        ),
        (
            SMALL + "[zones.away]",
            [
                "zones.away: has neither gateways nor sinks; add some or remove the zone",
                'zones.away: has no sinks to keep its events: add sinks, or kept_by = "ZONE", or mode = '
                '"delivery-fabric"',
            ],
        ),
        (
            SMALL + SECOND_ZONE + "[zones.away]\nkept_by = 'home'",
            ["zones.away.kept_by: the zone has sinks of its own; remove kept_by, or the sinks"],
        ),
        (
            changed(
                "[zones.home.g",
                "[zones.home]\nkept_by = 'home'\n[zones.home.g",
                SMALL[SMALL.index("[zones.home.s") :],
                "",
            ),
            ["zones.home.kept_by: must name another zone, not the zone itself"],
        ),
        (
            changed("zones.home.g", "zones.edge.g") + "[zones.edge]\nkept_by = 'hone'",
            ["zones.edge.kept_by: there is no zone 'hone'; did you mean 'home'?"],
        ),
        (
            changed("zones.home.g", "zones.edge.g")
            + "[zones.edge]\nkept_by = 'plant'\n[zones.plant]\nmode='delivery-fabric'\n"
            + GATEWAY.replace("home", "plant"),
            [
                "zones.edge.gateways.gw1: mesh is missing: with two gateways or more, each needs an address for the "
                "others",
                "zones.edge.kept_by: the zone 'plant' has no sinks either; zones with sinks: home",
            ],
        ),
        (
            SMALL + sinks_of_home(3),
            [
                f"zones.home.sinks.{name}: raft is missing: with two sinks or more, each needs an address for the "
                "others"
                for name in ("sink1", "sink2", "sink3")
            ],
        ),
        (
            changed('data = "data"', 'data = "data"\nraft = "127.0.0.1:6401"') + sinks_of_home(9, raft=True),
            ["zones.home.sinks: must be at most 7 sinks, got 9: each of them writes every event"],
        ),
        (
            changed('data = "data"', 'data = "data"\nmonitor = "127.0.0.1:6333"'),
            ["zones.home.sinks.sink1.monitor: 127.0.0.1:6333 is already the address of zones.home.sinks.sink1.link"],
        ),
        (
            changed('data = "data"', 'data = "data"\nlisten = "127.0.0.1"\nmonitor = "localhost:6333"'),
            ["zones.home.sinks.sink1.monitor: localhost:6333 is already the address of zones.home.sinks.sink1.link"],
        ),
        (
            SMALL + SECOND_ZONE.replace("6433", "6333"),
            ["zones.away.sinks.sink2.link: 127.0.0.1:6333 is already the address of zones.home.sinks.sink1.link"],
        ),
        (
            SMALL + GATEWAY.replace("4223", "4224") + "workers = 3\n" + GATEWAY3,
            [
                "zones.home.gateways.gw1: mesh is missing: with two gateways or more, each needs an address for the "
                "others",
                "zones.home.gateways.gw3.client: 127.0.0.1:6225 is already the address of zones.home.gateways.gw2.mesh"
                ": each worker of gw2 has a port, from that of mesh on",
                "zones.home.gateways.gw3.mesh: 127.0.0.1:6224 is already the address of zones.home.gateways.gw2.mesh: "
                "each worker of gw2 has a port, from that of mesh on",
            ],
        ),
        (
            SMALL + GATEWAY.replace("4223", "6224") + "workers = 2\n",
            [
                "zones.home.gateways.gw1: mesh is missing: with two gateways or more, each needs an address for the "
                "others",
                "zones.home.gateways.gw2.mesh: 127.0.0.1:6224 is already the address of zones.home.gateways.gw2.client"
                ": each worker of gw2 has a port, from that of mesh on",
            ],
        ),
        (
            SMALL
            + GATEWAY.replace("6223", "7000")
            + "workers = 99\n"
            + GATEWAY3.replace("6224", "6950").replace("6225", "4225")
            + "workers = 99",
            [
                "zones.home.gateways.gw1: mesh is missing: with two gateways or more, each needs an address for the "
                "others",
                "zones.home.gateways.gw3.mesh: 127.0.0.1:7000 is already the address of zones.home.gateways.gw2.mesh: "
                "each worker of gw3 has a port, from that of mesh on",
            ],
        ),
        (
            changed('client = "127.0.0.1:4222"', 'client = "127.0.0.1:4222"\nmesh = "127.0.0.1:0"\nworkers = 2'),
            [
                "zones.home.gateways.gw1.mesh: must not be port 0: each of workers = 2 has a port, from this one on, "
                "and others have to know it"
            ],
        ),
        (
            changed('client = "127.0.0.1:4222"', 'client = "127.0.0.1:4222"\nmesh = "127.0.0.1:65534"\nworkers = 3'),
            [
                "zones.home.gateways.gw1.workers: each worker has a port, from that of mesh (65534) on, and port 65536 "
                "is above 65535; lower one of them"
            ],
        ),
        (
            changed("127.0.0.1:6333", "sink1:6333"),
            [
                "zones.home.sinks.sink1.link: sink1:6333 can be reached from other machines, but links between nodes "
                "are not protected: add [tls.nodes] with ca, cert and key, or allow it with insecure = true in [mesh]"
            ],
        ),
        (
            changed('link = "127.0.0.1:6333"', 'link = "127.0.0.1:6333"\nraft = "127.0.0.1:6334"\nlisten = "::"'),
            [
                "zones.home.sinks.sink1.link: 127.0.0.1:6333 (and 1 more) can be reached from other "
                "machines, but links between nodes are not protected: add [tls.nodes] with ca, cert and key, or "
                "allow it with insecure = true in [mesh]"
            ],
        ),
        # links
        (
            SMALL + SECOND_ZONE + "[links.home]\naway = {}\nmoon = {}\nhome = {}\n[links.away.home]\n[links.sun]\n",
            [
                "links.home.moon: there is no zone 'moon'; known: away, home",
                "links.home.home: a link joins two zones, not one with itself",
                "links.away.home: links.home.away is the same link; give it once",
                "links.sun: there is no zone 'sun'; known: away, home",
            ],
        ),
        # limits
        (
            SMALL + "[limits]\nmax_payload = '2MiB'\nmax_pending = '1MiB'",
            ["limits.max_payload: must not be above max_pending (1MiB), got 2MiB"],
        ),
        (
            SMALL + "[limits]\nmax_payload = '8MiB'",
            [
                "limits.max_payload: must be at most 8383488 bytes where events are kept (an event and its subject "
                "fit into one record batch of 8MiB), got 8MiB"
            ],
        ),
        (
            SMALL + "[streams.a]\nsubjects = ['a']\noutbox.bytes = '64KiB'",
            [
                "streams.a.outbox.bytes: must be at least limits.max_payload (1MiB), or the largest event never fits; "
                "got 64KiB"
            ],
        ),
        # streams
        (SMALL + "[streams.a]", ['streams.a: subjects is missing; for example subjects = ["orders.>"]']),
        (
            SMALL + "[streams.a]\nsubjects = []",
            ['streams.a.subjects: must name at least one subject, such as ["orders.>"]'],
        ),
        (SMALL + "[streams.a]\nsubjects = 'a'", ['streams.a.subjects: must be a list, got "a"']),
        (
            SMALL + "[streams.a]\nsubjects = ['>']",
            [
                'streams.a.subjects[0]: ">" belongs to the catch-all: set catch_all = true in [mesh], tune it in '
                "[streams.events]"
            ],
        ),
        (
            SMALL + "[streams.a]\nsubjects = ['_INBOX.>']",
            ['streams.a.subjects[0]: subjects that begin with `_` or `$` are never kept in a stream, got "_INBOX.>"'],
        ),
        (
            SMALL + "[streams.a]\nsubjects = ['x', 'y.*']\n[streams.b]\nsubjects = ['y.z', 'x']",
            [
                'streams.b.subjects[0]: "y.z" overlaps "y.*" of streams.a.subjects: an event would belong to two '
                "streams, 'b' and 'a'",
                'streams.b.subjects[1]: "x" overlaps "x" of streams.a.subjects: an event would belong to two '
                "streams, 'b' and 'a'",
            ],
        ),
        (
            SMALL + "[streams.events]\nsubjects = ['a']\nreply = 'always'",
            [
                "streams.events.subjects: 'events' is the catch-all and takes what no other stream takes; remove "
                "subjects, or choose another name",
                'streams.events.reply: must be "header": a catch-all that answers every publish would answer requests '
                "meant for services",
            ],
        ),
        (
            changed("[mesh]", "[mesh]\ncatch_all = false") + "[streams.events]\n",
            ["streams.events: 'events' is the catch-all, which mesh.catch_all = false turns off; remove one of them"],
        ),
        (
            SMALL + "[streams.a]\nsubjects = ['a']\nkey = 'header:'\nreplicate = ['*', 'home']",
            [
                'streams.a.key: must be "subject", "token:N" (N from 1, the N-th token of the subject) or '
                '"header:NAME", got "header:"',
                'streams.a.replicate: must be "*" (every zone) or a list of zones, not a list with "*" in it',
            ],
        ),
        (
            SMALL + "[streams.a]\nsubjects = ['a']\nreplicate = 5\ndedup.ids_max = 0",
            [
                'streams.a.replicate: must be "*" (every zone) or a list of zones such as ["us"], got 5',
                "streams.a.dedup.ids_max: must be at least 1, got 0",
            ],
        ),
        (
            SMALL + "[streams.a]\nsubjects = ['a']\nreplicate = ['edge']\n[zones.edge]\nmode = 'delivery-fabric'\n"
            "[zones.edge.gateways]\n",
            [
                "streams.a.replicate: the zone 'edge' has no sinks to hold a copy; zones with sinks: home",
                "zones.edge: has neither gateways nor sinks; add some or remove the zone",
            ],
        ),
        (
            SMALL + "[streams.a]\nsubjects = ['a']\nack = 'geo'",
            [
                'streams.a.ack: "geo" needs another zone with sinks that replicate names; zones with sinks: home. '
                'Add zones, or use ack = "quorum"'
            ],
        ),
        (
            SMALL + SECOND_ZONE + "[streams.a]\nsubjects = ['a']\nack = 'geo'\ngeo.zones = 2",
            [
                'streams.a.ack: "geo" needs 2 other zones with sinks that replicate names; zones with sinks: away, '
                'home. Add zones, or use ack = "quorum"'
            ],
        ),
        # users and TLS
        (
            SMALL + "[[users]]\nuser = 'a'\npassword = 'x'\ntoken = 'y'",
            ["users[0]: must have exactly one of password (with user), token and nkey; it has both password and token"],
        ),
        (SMALL + "[[users]]\npassword = 'x'", ["users[0]: user is missing: a password belongs to a name"]),
        (
            SMALL + "[[users]]\nuser = 'a'\ntoken = 'x'",
            ["users[0].user: goes with a password only; remove it, or the token"],
        ),
        (
            SMALL + "[[users]]\nuser = 'a'\npassword = 'x'\n[[users]]\nuser = 'a'\npassword = 'y'\n"
            "[[users]]\ntoken = 'hush'\n[[users]]\ntoken = 'hush'",
            [
                'users[1].user: "a" that users[0] has already',
                "users[3].token: a token that users[2] has already",
            ],
        ),
        (SMALL + "[[users]]\nuser = 'a'\npassword = ''", ["users[0].password: must be a text with something in it"]),
        (
            SMALL + "[[users]]\nnkey = 'SUAM'",
            [
                'users[0].nkey: must be the public key of a user, "U" and 55 letters and digits, as `nk -gen user '
                "-pubout` makes it; this one is not base32"
            ],
        ),
        (
            SMALL + "[[users]]\ntoken = 'x'\npermissions = { publish = ['a b'], subscribe.deny = ['a b c'] }",
            [
                'users[0].permissions.publish.allow[0]: must be a subject pattern such as "orders.>", got "a b"',
                'users[0].permissions.subscribe.deny[0]: must be a subject pattern such as "orders.>", or one with a '
                'queue group: "orders.> workers"; got "a b c"',
            ],
        ),
        (
            SMALL + "[[users]]\ntoken = 'x'\npermissions.history = ['event', 'events@moon', 'events@home']",
            [
                "users[0].permissions.history[0]: there is no stream 'event'; did you mean 'events'?",
                "users[0].permissions.history[1]: there is no zone 'moon'; known: home",
            ],
        ),
        (
            SMALL + "[tls.clients]\ncert = 'a'\nkey = 'b'\nverify = true",
            ["tls.clients.verify: needs ca: the authorities that client certificates come from"],
        ),
        (
            SMALL + "[tls.clients]\ncert = 'a'\nkey = 'b'\nca = 'c'\nmap = true\nfirst = true\nallow_non_tls = true",
            [
                "tls.clients.map: needs verify = true: a certificate that nobody has checked names nobody",
                "tls.clients.allow_non_tls: cannot be with first = true: a client that waits for the greeting would "
                'never get it; remove one of them, or set first_fallback to a time such as "50ms"',
            ],
        ),
        (
            SMALL + "[limits]\nmax_subscription_tokens = 0\n[tls.clients]\ncert = 'a'\nkey = 'b'\n"
            "first_fallback = '50ms'\nallow_non_tls = true",
            [
                "limits.max_subscription_tokens: must be at least 1, got 0",
                "tls.clients.first_fallback: needs first = true: without it every client is greeted at once",
            ],
        ),
        (
            SMALL + "[limits]\nlame_duck_duration = '30s'\nlame_duck_grace_period = '30s'",
            ["limits.lame_duck_grace_period: must be below lame_duck_duration (30s), got 30s"],
        ),
        (
            SMALL + "[limits]\nlame_duck_duration = '29s'",
            ['limits.lame_duck_duration: must be at least 30s, got "29s"'],
        ),
        # accounts
        (
            SMALL + "[accounts.ACME]\nusers = 1\n[accounts.'$SYS']\n"
            "[[users]]\nuser = 'a'\npassword = 'x'\naccount = 'ACNE'\n"
            "[[users]]\nuser = 'a'\npassword = 'y'\naccount = 'ACME'\n[streams.s]\nsubjects = ['s']\naccount = '$SYS'",
            [
                "accounts.ACME: unknown key 'users'",
                'accounts."$SYS": a name consists of 1 to 128 letters, digits, `_` and `-`, got "$SYS"',
                "users[0].account: there is no account 'ACNE': add [accounts.ACNE]; did you mean 'ACME'?",
                'users[1].user: "a" that users[0] has already',
                'streams.s.account: must be the name of an account under [accounts], got "$SYS"',
            ],
        ),
        (
            SMALL + "[accounts.A]\n[streams.events-A]\naccount = '$G'\nsubjects = ['s']",
            [
                "streams.events-A.account: 'events-A' is the catch-all of account 'A': remove account, or write \"A\"",
                "streams.events-A.subjects: 'events-A' is the catch-all of account 'A' and takes what no other stream "
                "takes; remove subjects, or choose another name",
            ],
        ),
        (
            SMALL + "[accounts.A]\n[[users]]\ntoken = 'x'\naccount = 'A'\npermissions.history = ['events', 'events-A']",
            ["users[0].permissions.history[0]: 'events' is of account '$G', not of the user's"],
        ),
        (
            changed("[mesh]", "[mesh]\nno_auth_user = 'gest'") + "[[users]]\nuser = 'guest'\npassword = 'x'",
            ["mesh.no_auth_user: there is no user 'gest' in [[users]]; did you mean 'guest'?"],
        ),
        (
            SMALL + "[[users]]\nuser = 'guest'",
            [
                "users[0]: password is missing; a user has none only where its certificate (map = true in "
                "[tls.clients]) or no_auth_user in [mesh] names it"
            ],
        ),
        (SMALL + "[tls.nodes]\ncert = 'a'\nkey = 'b'", ['tls.nodes.ca: is missing (file: "pki/ca.pem")']),
    ],
)
def test_each_rule_says_what_is_wrong_and_what_is_right(text: str, expected: list[str]) -> None:
    assert problems(text) == expected


def test_a_broken_part_is_not_reported_again_as_missing() -> None:
    text = changed('link = "127.0.0.1:6333"', 'link = "nowhere"') + SECOND_ZONE.replace("6433", "x")
    text += "[streams.a]\nsubjects = ['a']\nack = 'geo'\nreplicate = ['away']\n[[users]]\ntoken = 5\n"
    assert [problem.partition(": ")[0] for problem in problems(text)] == [
        "zones.home.sinks.sink1.link",
        "zones.away.sinks.sink2.link",
        "users[0].token",
    ]


def test_the_number_of_streams_and_subjects_is_bounded() -> None:
    many = SMALL + "".join(f"[streams.s{number}]\nsubjects = ['a{number}']\n" for number in range(1_001))
    assert problems(many) == ["streams: must be at most 1000 streams, got 1001"]
    many = SMALL + "".join(f"[accounts.a{number}]\n" for number in range(1_001))
    assert set(problems(many)) == {
        "accounts: must be at most 1000 accounts, got 1001",
        "streams: must be at most 1000 streams, got 1002 (each account has a catch-all)",
    }
    wide = SMALL + f"[streams.a]\nsubjects = {['a.b'] * 2_001}\n"
    assert problems(wide) == ["streams: must be at most 2000 subjects of all streams, got 2001"]


# -- without a file ---------------------------------------------------------------------------------------------------


def embedded(**changes: Any) -> config.Config:
    options: dict[str, Any] = {
        "client": Address("0.0.0.0", 4222),
        "monitor": Address("127.0.0.1", 8222),
        "data": "./mesh-data",
        "mode": "event-sinks",
        "streams": {},
    }
    return config.embedded(**(options | changes))


def test_embedded_is_one_gateway_and_one_sink() -> None:
    parsed = embedded(streams={"orders": ("orders.>",)}, disk_reserve_bytes=5)
    assert (parsed.mesh.name, list(parsed.zones)) == ("local", ["local"])
    assert parsed.gateway("gw1").client == Address("0.0.0.0", 4222)
    sink = parsed.sink("sink1")
    assert (sink.link, sink.data, sink.disk_reserve_bytes) == (Address("127.0.0.1", 0), "./mesh-data", 5)
    assert [stream.name for stream in parsed.effective_streams()] == ["orders", "events"]
    assert embedded().sink("sink1").disk_reserve_bytes == limits.DISK_RESERVE_BYTES


def test_embedded_delivery_fabric_has_no_sink() -> None:
    parsed = embedded(mode="delivery-fabric", monitor=None)
    assert parsed.zones["local"].sinks == {}
    assert parsed.gateway("gw1").monitor is None


def test_embedded_problems_name_the_flags() -> None:
    with pytest.raises(ConfigError) as caught:
        embedded(
            mode="sinks",
            data="",
            monitor=Address("0.0.0.0", 4222),
            disk_reserve_bytes=-1,
            streams={"a b": ["x"], "c": [], "d": ["d.>"], "e": ["d.e"], "events": ["y"]},
        )
    assert caught.value.problems == [
        '--mode: must be "event-sinks" or "delivery-fabric", got "sinks"',
        '--data: must be a text with something in it, got ""',
        'zones.local.sinks.sink1.disk_reserve: must be a size such as "64MiB", "12MB" or a number of bytes, got -1',
        '--stream c: must name at least one subject, such as ["orders.>"]',
        '--stream a b: a name consists of 1 to 128 letters, digits, `_` and `-`, got "a b"',
        "--monitor: 0.0.0.0:4222 is already the address of --client",
        "--stream events: 'events' is the catch-all and takes what no other stream takes; remove subjects, or choose "
        "another name",
        "--stream e: \"d.e\" overlaps \"d.>\" of streams.d.subjects: an event would belong to two streams, 'e' and 'd'",
    ]


# -- any file ---------------------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(st.data())
def test_a_changed_text_gives_a_configuration_or_problems(data: st.DataObject) -> None:
    lines = FULL.splitlines(keepends=True)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(lines) - 1))
        match data.draw(st.sampled_from(["drop", "repeat", "swap", "cut", "write"])):
            case "drop":
                lines[position] = ""
            case "repeat":
                lines[position] *= 2
            case "swap":
                other = data.draw(st.integers(0, len(lines) - 1))
                lines[position], lines[other] = lines[other], lines[position]
            case "cut":
                lines[position] = lines[position][: data.draw(st.integers(0, len(lines[position])))]
            case _:
                at = data.draw(st.integers(0, len(lines[position])))
                lines[position] = lines[position][:at] + data.draw(st.text(max_size=5)) + lines[position][at:]
    try:
        config.parse("".join(lines), "m")
    except ConfigError as error:
        reported = error.problems
    else:
        reported = []
    assert all(problem.startswith("m") and "\n" not in problem for problem in reported)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates(),
    lambda inside: st.lists(inside, max_size=2) | st.dictionaries(st.text(max_size=5), inside, max_size=2),
    max_leaves=4,
)


@settings(max_examples=300)
@given(st.data())
def test_any_value_anywhere_gives_a_configuration_or_problems(data: st.DataObject) -> None:
    tables: Any = copy.deepcopy(tomli.loads(FULL))
    for _ in range(data.draw(st.integers(1, 4))):
        place = tables
        while True:
            step = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
            if not (isinstance(place[step], dict | list) and place[step] and data.draw(st.booleans())):
                break
            place = place[step]
        place[step] = data.draw(VALUES)
    before = copy.deepcopy(tables)
    _, found = check(tables)
    assert repr(tables) == repr(before)
    for problem in found:
        assert problem.text
        assert "\n" not in problem.render("m", {})
