"""What a gateway's file says otherwise than the streams in force, and than the file of another gateway."""

import asyncio

import pytest
from support.borders import mesh_text
from support.gateways import make_gateway, zone_text
from support.processes import until
from support.streams import definition, state

from gateway.core.differing import differing_parts, digests, stream_differences
from protocol import config

TEXT = mesh_text(more='[streams.orders]\nsubjects = ["orders.>"]\n[[users]]\nuser = "ada"\npassword = "secret"\n')


def committed(name: str, **settings):
    """In force since revision 3, with an incarnation and groups that no file knows."""
    return definition(name, **settings).committed(3, b"incarnation", 4)


def in_file(name: str, **settings):
    return definition(name, **settings).committed(0, b"?", 1)


def test_only_what_the_file_decides_is_compared() -> None:
    gone = state("gone", revision=3, retired=True)
    assert stream_differences([in_file("a")], [committed("a"), gone], 3) == []


def test_each_stream_that_is_otherwise_is_named() -> None:
    own = [in_file("a", retention_bytes=1), in_file("b")]
    assert stream_differences(own, [committed("a"), committed("c")], 3) == [
        "streams.a: revision 3, which is in force, has it otherwise",
        "streams.b: revision 3, which is in force, does not have it",
        "streams.c: revision 3, which is in force, has it too",
    ]


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("orders.>", "orders.*", ["streams"]),
        ("[[users]]", "[limits]\nping_max = 5\n[[users]]", ["limits"]),
        ('user = "ada"', 'user = "bob"', ["users"]),
        ('name = "acme"', 'name = "acme"\nrouting = "broadcast"', ["mesh"]),
        ("[zones.us.gateways.us2]", '[zones.us.gateways.us2]\nmonitor = "127.0.0.1:9"', ["zones"]),
        ('password = "secret"', 'password = "other"', []),  # that would tell guesses from the password itself
        ('name = "acme"', 'name = "acme"\nrevision = 7', []),  # said beside the digests
        ("[zones.us.gateways.us2]", '[zones.us.gateways.us2]\nlisten = "127.0.0.1"', []),
        ("[zones.us.gateways.us2]", "[zones.us.gateways.us2]\nworkers = 2", ["zones"]),
    ],
)
def test_digests_say_which_part_of_two_files_differs(old: str, new: str, parts: list[str]) -> None:
    assert old in TEXT
    one, other = (digests(config.parse(text, "mesh.toml")) for text in (TEXT, TEXT.replace(old, new)))
    assert differing_parts(one, other) == differing_parts(other, one) == parts


def test_a_gateway_that_tells_no_digests_differs_in_nothing() -> None:
    assert differing_parts(digests(config.parse(TEXT, "mesh.toml")), {}) == []


async def test_two_gateways_with_files_that_differ_report_each_other_once() -> None:
    text = zone_text(("gw1", "gw2"))
    other = text.replace('name = "acme"', 'name = "acme"\nrevision = 2') + "[limits]\nping_max = 5\n"
    files = {"gw1": text, "gw2": other}
    one, two = (make_gateway(config.parse(file, "mesh.toml"), name) for name, file in files.items())
    await asyncio.gather(one.start(), two.start())
    try:
        await until(lambda: one.mesh.differing and two.mesh.differing, "both have noticed")
        assert one.mesh.differing == {"gw2": "limits in the file of gw2, revision 2"}
        assert two.mesh.differing == {"gw1": "limits in the file of gw1, revision 1"}
        assert [each.audit.written["configuration_differs"] for each in (one, two)] == [1, 1]
        before = two.mesh.links["gw1"]
        before.transport.abort()
        await until(lambda: two.mesh.links.get("gw1") not in (None, before), "the link is back")
        assert [each.audit.written["configuration_differs"] for each in (one, two)] == [1, 1]
    finally:
        await asyncio.gather(one.stop(), two.stop())
