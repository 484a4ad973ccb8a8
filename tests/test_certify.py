"""Certificates: sinks sign what they have read again from their disks, and whatever is changed proves nothing."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import nats
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate
from support import cli, other_verifier
from support.certificates import Authority, Pair
from support.disk import flip
from support.secured import SecuredZone, secured
from support.sinks import SinkZone
from test_sink_group import publish, running

from protocol import certificate, certified, link, signing
from protocol.certificate import BadCertificate, Certificate, NotProved, Signer, from_base64, to_base64
from protocol.certified import low_s, verifier
from protocol.certified_data import Growth
from protocol.coverage import digest_of
from protocol.errors import LogError
from protocol.gaps import Gap, encode_gap, leaf_digest, lost_batch
from protocol.merkle import leaf_hash
from protocol.records import CONTROL, Event, encode_batch, encode_control, place_batch, read_header
from sinkd.core.retention import trims
from sinkd.shell import attesting
from sinkd.shell.store import Partition

replace = msgspec.structs.replace


class Made:
    """A certificate of a log with several segments, the files of its sinks, a second one that goes on from it."""

    folder: Path
    authority: Authority
    first: bytes
    second: bytes
    proof: bytes

    @property
    def shown(self) -> Certificate:
        return certificate.decode(self.first)

    def check(self, data: bytes) -> None:
        shown = certificate.decode(data)
        certified.check(shown, verifier(signing.read_authorities(self.authority.cert.read_bytes()), shown.mesh))

    async def verify(self, data: bytes | Path, *options: str) -> cli.Ran:
        file = data if isinstance(data, Path) else self.folder / "shown.json"
        if isinstance(data, bytes):
            file.write_bytes(data)
        return await cli.invoked("coverage", "verify", str(file), "--ca", str(self.authority.cert), *options)


async def fill(url: str, count: int, subject: str = "orders.a") -> None:
    client = await nats.connect(url)
    stream = client.jetstream(timeout=60)
    for number in range(count):
        await stream.publish(subject, b"%06d" % number * 300)
    await client.close()


def beacons_say(zone: SecuredZone, sequence: int) -> bool:
    lines = [
        line for speaker in zone.sinks["s1"].coverage.keeper.speakers.by_name.values() for line in speaker.all_lines()
    ]
    return any(line.row.stream == "orders" and line.row.mark >= sequence for line in lines)


async def certify(zone: SecuredZone, name: str, *options: str) -> cli.Ran:
    return await cli.invoked(
        "coverage", "certify", "orders", "-o", str(zone.folder / name), "--config", zone.toml, *options
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    it = Made()
    it.folder = tmp_path_factory.mktemp("certified")

    async def make() -> None:
        async with secured(it.folder) as (zone, url):
            it.authority = zone.authority
            await fill(url, 400)
            await zone.until(lambda: beacons_say(zone, 400), "the gateway has said so")
            assert (await certify(zone, "first.json")).status == 0
            await fill(url, 20)
            ran = await certify(zone, "second.json", "--previous", str(it.folder / "first.json"))
            assert ran.status == 0, ran.err
            ran = await cli.invoked(
                "coverage", "prove", "orders", "0", "117", "--config", zone.toml, "--certificate",
                str(it.folder / "first.json"), "--ca", str(zone.ca), "-o", str(it.folder / "proof.json"),
            )  # fmt: skip
            assert ran.status == 0, ran.err

    asyncio.run(make())
    it.first, it.second, it.proof = ((it.folder / f"{name}.json").read_bytes() for name in ("first", "second", "proof"))
    return it


# -- what is proved ---------------------------------------------------------------------------------------------------


async def test_a_certificate_is_proved_without_a_node_and_its_data_are_what_was_certified(made):
    ran = await made.verify(made.folder / "first.json")
    assert (ran.status, ran.err) == (0, "")
    assert ran.lines[-2:] == ["signed in zone eu by 3 of 3 sinks: s1, s2, s3", "proved"]
    (one,), (accounts,) = made.shown.partitions, made.shown.accounts
    (producer,) = accounts.producers
    assert (one.from_, one.to, one.size, producer.held, producer.last) == (0, 400, one.size, 400, 400)
    assert (producer.beacon, len(made.shown.beacons), accounts.unaccounted) == (0, 1, 0)
    for folder, copies in (("s1", 1), ("s2", 1), ("s3", 1), ("", 3)):
        ran = await made.verify(made.folder / "first.json", "--data", str(made.folder / folder), "--json")
        told = msgspec.json.decode(ran.out)
        assert (ran.status, told["proved"], told["copies"]) == (0, True, copies)
        assert told["data_bytes"] > copies * 700_000


async def test_one_that_goes_on_from_another_says_so(made):
    second = certificate.decode(made.second)
    assert second.previous == certificate.file_hash(made.first)
    ran = await made.verify(made.folder / "second.json", "--previous", str(made.folder / "first.json"))
    assert ran.status == 0
    assert f"goes on from the certificate with SHA-256 {second.previous}" in ran.lines
    ran = await made.verify(made.folder / "first.json", "--previous", str(made.folder / "second.json"))
    assert ran.status == 1
    assert "it does not go on from" in ran.err


async def test_an_event_is_proved_to_be_in_it(made):
    ran = await made.verify(made.folder / "first.json", "--proof", str(made.folder / "proof.json"))
    assert (ran.status, ran.lines[-1]) == (0, "proved")
    ran = await made.verify(made.folder / "second.json", "--proof", str(made.folder / "proof.json"))
    assert (ran.status, "the proof is not from the tree that is certified" in ran.err) == (1, True)
    proof = msgspec.json.decode(made.proof)
    batch = from_base64(proof["batch"])
    other = batch[:-5] + bytes([batch[-5] ^ 1]) + batch[-4:]
    for changed, what in (
        ({"offset": 118}, "it is not in the batch that is proved"),
        ({"batch": to_base64(other)}, "CRC-32C is"),
        ({"number": proof["number"] + 1}, "its path does not lead to the certified root"),
        ({"path": proof["path"][1:]}, "its path does not lead to the certified root"),
        ({"digest": "00" * 32}, "it is not in the batch that is proved"),
        ({"partition": 1}, "the proof is not from the tree that is certified"),
    ):
        (made.folder / "changed.json").write_bytes(msgspec.json.encode(proof | changed))
        ran = await made.verify(made.folder / "first.json", "--proof", str(made.folder / "changed.json"))
        assert ran.status == 1, changed
        assert what in ran.err


# -- what is not ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")  # of a certificate's number
@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80])
def test_no_byte_of_a_certificate_can_be_changed(made, mask):
    made.check(made.second)
    for position in range(len(made.second)):
        changed = bytearray(made.second)
        changed[position] ^= mask
        with pytest.raises((BadCertificate, NotProved)):
            made.check(bytes(changed))


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands that is neither an object nor an array, and where those stand too."""
    yield path
    if isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(one, (*path, key))


def test_no_value_of_a_certificate_can_be_changed(made):
    """Each one, and each object and array, for others that are no worse JSON."""
    shown = msgspec.json.decode(made.second)
    paths = [path for path in leaves(shown) if path]
    assert len(paths) > 100
    for path in paths:
        for other in (0, 1, -1, 1 << 70, "", "zz", "00" * 32, None, [], {}, [0], True):
            changed = msgspec.json.decode(made.second)
            *before, last = path
            holder = changed
            for key in before:
                holder = holder[key]
            if holder[last] == other and type(holder[last]) is type(other):
                continue
            holder[last] = other
            with pytest.raises((BadCertificate, NotProved)):
                made.check(certificate.canonical(changed))


def test_no_certificate_can_be_cut_or_lengthened(made):
    for size in range(0, len(made.first), 97):
        with pytest.raises((BadCertificate, NotProved)):
            made.check(made.first[:size])
    for more in (b"\n", b" ", b"{}", b"\0"):
        with pytest.raises((BadCertificate, NotProved)):
            made.check(made.first + more)
    with pytest.raises(NotProved, match="byte 1: it is not in the canonical form"):
        made.check(made.first.replace(b"{", b"{ ", 1))


async def test_what_is_no_certificate_is_bad_input(made, tmp_path):
    for data in (b"", b"{}", b"[1]", b"\xff", made.first[:-9], b'{"format":"event mesh certificate","version":2}'):
        ran = await made.verify(data)
        assert ran.status == 2, ran.err
        assert "no certificate" in ran.err
    missing = tmp_path / "missing"
    assert (await made.verify(missing)).status == 2
    ran = await made.verify(made.first, "--data", str(missing))
    assert (ran.status, "no folder" in ran.err) == (2, True)
    for ca in (missing, made.folder / "first.json"):
        ran = await cli.invoked("coverage", "verify", str(made.folder / "first.json"), "--ca", str(ca))
        assert ran.status == 2


def signed(made: Made, shown: Certificate, pairs: dict[str, Pair] | None = None, zone: str = "eu") -> bytes:
    """As if all who are in `pairs` (else its signers) had signed it."""
    pairs = pairs or {f"s{number}": Pair(made.folder / f"s{number}-cert.pem", made.folder / f"s{number}-key.pem")
                      for number in (1, 2, 3)}  # fmt: skip
    ders = {}
    for node, pair in pairs.items():
        leaf = load_pem_x509_certificate(pair.cert.read_bytes())
        ders[node] = leaf.public_bytes(Encoding.DER)
    signers = tuple(Signer(zone=zone, node=node, certificate=to_base64(der)) for node, der in ders.items())
    shown = replace(shown, signers=signers, signatures=())
    signatures = []
    for node, pair in pairs.items():
        key = load_pem_private_key(pair.key.read_bytes(), None)
        signature = signing.sign(certificate.signed_by(shown, zone), key)
        signatures.append(to_base64(low_s(signature, ders[node])))
    return certificate.encode(replace(shown, signatures=tuple(signatures)))


def not_proved(made: Made, data: bytes) -> str:
    with pytest.raises(NotProved) as caught:
        made.check(data)
    return str(caught.value)


def test_who_signs_must_be_a_sink_of_the_zone_with_a_certificate_that_is_valid(made, tmp_path):
    made.check(signed(made, made.shown))
    own = {f"s{n}": Pair(made.folder / f"s{n}-cert.pem", made.folder / f"s{n}-key.pem") for n in (1, 2, 3)}
    gateway = Pair(made.folder / "gw1-cert.pem", made.folder / "gw1-key.pem")
    why = not_proved(made, signed(made, made.shown, own | {"s2": gateway}))
    assert "sink s2 of zone eu: the certificate is that of mesh://acme/eu/gateway/gw1" in why
    why = not_proved(made, signed(made, made.shown, own | {"s2": own["s1"]}))
    assert "sink s2 of zone eu: the certificate is that of mesh://acme/eu/sink/s1" in why
    stranger = Authority(tmp_path).node("s2", "mesh://acme/eu/sink/s2")
    assert "not signed by an authority of the mesh" in not_proved(
        made, signed(made, made.shown, own | {"s2": stranger})
    )
    later = replace(made.shown, time=made.shown.time + 2 * 86_400_000, beacons=(), accounts=without_beacons(made.shown))
    assert "is valid from" in not_proved(made, signed(made, later))
    other = replace(made.shown, mesh="umbrella", beacons=(), accounts=without_beacons(made.shown))
    assert "expected a node of mesh umbrella" in not_proved(made, signed(made, other))


def without_beacons(shown: Certificate) -> tuple[certificate.Accounts, ...]:
    return tuple(
        replace(one, producers=tuple(replace(producer, beacon=-1) for producer in one.producers))
        for one in shown.accounts
    )


def test_a_majority_must_have_signed_each_by_itself(made):
    own = {f"s{n}": Pair(made.folder / f"s{n}-cert.pem", made.folder / f"s{n}-key.pem") for n in (1, 2, 3)}
    made.check(signed(made, made.shown, {"s1": own["s1"], "s3": own["s3"]}))
    why = not_proved(made, signed(made, made.shown, {"s1": own["s1"]}))
    assert "zone eu: 1 of 3 sinks have signed, no majority" in why
    shown = made.shown
    twice = replace(shown, signers=(*shown.signers[:1] * 2, shown.signers[2]), signatures=shown.signatures)
    assert "a sink has signed twice" in not_proved(made, certificate.encode(twice))
    fewer = replace(shown, signatures=shown.signatures[:2])
    assert "3 signers and 2 signatures" in not_proved(made, certificate.encode(fewer))
    swapped = replace(shown, signatures=(shown.signatures[1], shown.signatures[0], shown.signatures[2]))
    assert "has not signed this" in not_proved(made, certificate.encode(swapped))


def test_the_other_signature_that_fits_does_not_count(made):
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    shown = made.shown
    r, s = decode_dss_signature(from_base64(shown.signatures[0]))
    other = to_base64(encode_dss_signature(r, order - s))
    why = not_proved(made, certificate.encode(replace(shown, signatures=(other, *shown.signatures[1:]))))
    assert "of two signatures that fit, it is the one that is not allowed" in why


def edited(shown: Certificate) -> dict[str, tuple[Certificate, str]]:
    (one,), (accounts,) = shown.partitions, shown.accounts
    (producer,) = accounts.producers

    def partition(**fields: object) -> Certificate:
        return replace(shown, partitions=(replace(one, **fields),))

    def sums(**fields: object) -> Certificate:
        return replace(shown, accounts=(replace(accounts, producers=(replace(producer, **fields),)),))

    return {
        "a root": (partition(root="00" * 32), "the root is not that of the frontier"),
        "a size": (partition(size=one.size - 1), "a frontier of"),
        "an end": (partition(to=500), "500 offsets; 400 events held"),
        "held": (sums(held=399), "held, duplicates, refused and gaps are 399"),
        "held twice": (sums(held=401, duplicates=-1), "a number is negative"),
        "last": (sums(last=401), "sequences 1 to 401 are 401 events taken in"),
        "duplicates for held": (sums(held=390, duplicates=10), "400 offsets; 390 events held"),
        "the chain": (sums(chain="11" * 32, marks=()), "digests up to sequence 400"),
        "a run": (sums(run="11" * 8), "the beacon says nothing of it"),
        "a base": (sums(base=-1), "a number is negative"),
        "an acknowledgement": (sums(last=399, held=399), "400 offsets; 399 events held"),
        "control": (replace(shown, accounts=(replace(accounts, control=1),)), "1 offsets of control batches"),
        "a gap": (partition(control=1), "0 offsets of control batches and 0 that are spoilt are named, there are 1"),
        "a beacon": (sums(beacon=7), "compared with beacon 7, there are 1"),
        "partitions": (replace(shown, partitions=(), accounts=()), "expected all of them, from 0 on"),
        "zones": (replace(shown, zones=()), "zones: expected zone eu and others"),
        "previous": (replace(shown, previous="00" * 32), "the certificate before this one is named here, or above"),
    }


@pytest.mark.parametrize("what", [
    "a root", "a size", "an end", "held", "held twice", "last", "duplicates for held", "the chain", "a run", "a base",
    "an acknowledgement", "control", "a gap", "a beacon", "partitions", "zones", "previous",
])  # fmt: skip
def test_sinks_that_would_sign_anything_do_not_make_it_proved(made, what):
    shown, why = edited(made.shown)[what]
    assert why in not_proved(made, signed(made, shown))


def test_the_one_before_must_be_the_beginning_of_it(made):
    shown = certificate.decode(made.second)
    (one,) = shown.partitions
    for fields in ({"root": "00" * 32}, {"size": one.previous.size - 1}, {"consistency": one.previous.consistency[1:]}):
        changed = replace(shown, partitions=(replace(one, previous=replace(one.previous, **fields)),))
        assert "is not the beginning of this one" in not_proved(made, signed(made, changed))


# -- data -------------------------------------------------------------------------------------------------------------


def copied(made: Made, folder: Path) -> list[Path]:
    """The segments of `orders` on s2, alone in `folder`."""
    paths = sorted((made.folder / "s2" / "log").glob("orders-*/0/*.segment"))
    assert len(paths) > 2
    return [Path(folder / path.name) for path in paths if (folder / path.name).write_bytes(path.read_bytes())]


async def test_data_that_are_not_what_was_certified(made, tmp_path):
    copied(made, tmp_path)
    assert (await made.verify(made.first, "--data", str(tmp_path))).status == 0
    harms = {
        "a bit of an event": (lambda paths: flip(paths[1], 5_000), "the root of the data is"),
        "a bit of a length": (lambda paths: flip(paths[1], 64 + 9), ".segment: byte "),
        "an offset": (lambda paths: flip(paths[1], 64 + 7), "is due"),
        "a segment is gone": (lambda paths: paths[1].unlink(), "is due"),
        "the first one is gone": (lambda paths: paths[0].unlink(), "the data begin at offset"),
        "its end is gone": (lambda paths: [path.unlink() for path in paths[1:]], "the data end at offset"),
        "one is cut": (lambda paths: paths[0].write_bytes(paths[0].read_bytes()[:-7]), "it ends within a batch"),
        "all of it": (lambda paths: [path.unlink() for path in paths], "it is not the data of this log"),
        "another log": (lambda paths: [flip(path, 12) for path in paths], "it is not the data of this log"),
    }
    for what, (harm, why) in harms.items():
        harm(copied(made, tmp_path))
        ran = await made.verify(made.first, "--data", str(tmp_path))
        assert (ran.status, why in ran.err) == (1, True), (what, ran.err)
        for path in tmp_path.glob("*.segment"):
            path.unlink()


async def test_what_stands_behind_the_end_does_not_matter(made, tmp_path):
    paths = copied(made, tmp_path)
    assert (await made.verify(made.second, "--data", str(tmp_path))).status == 0
    with paths[-1].open("ab") as file:
        file.write(b"\0" * 500)
    assert (await made.verify(made.second, "--data", str(tmp_path))).status == 0


# -- sinks that do not sign -------------------------------------------------------------------------------------------


async def test_a_sink_signs_nothing_that_it_does_not_hold(tmp_path, monkeypatch):
    """An operator who lies: what is shown to sinks is not what their groups have stated."""
    monkeypatch.setattr(attesting, "CERTIFICATE_WAIT_MS_MAX", 200)
    async with secured(tmp_path) as (zone, url):
        await fill(url, 60)
        await zone.level()
        assert (await certify(zone, "one.json")).status == 0
        shown = certificate.decode((tmp_path / "one.json").read_bytes())
        asked = zone.sinks[zone.leader].attesting
        (accounts,) = shown.accounts
        plain = replace(shown, signers=(), signatures=())
        assert (await asked.attest(link.Attest(1, certificate.encode(plain), signs=False))).signature == b""
        silent = replace(plain, beacons=(), accounts=without_beacons(plain))
        lies = [
            (replace(plain, accounts=(replace(accounts, statement="00" * 16),)), "is not known here"),
            (replace(plain, time=shown.time + 3_600_000), "its time is"),
            (replace(plain, zones=(replace(shown.zones[0], sinks=("s1",)),)), "sinks of zone eu are s1, s2, s3"),
            (replace(plain, mesh="umbrella"), "this is a sink of acme"),
            (replace(silent, stream="invoices"), "is not of partition 0"),
            (replace(silent, incarnation="00" * 16), "is not of partition 0"),
            (replace(silent, zone="us"), "zone eu has no mirror orders@us of that incarnation"),
        ]
        (producer,) = accounts.producers
        fewer = replace(accounts, producers=(), unaccounted=producer.held)
        lies.append((replace(plain, accounts=(fewer,), beacons=()), "accounts: unaccounted: the certificate has 60"))
        lost = replace(accounts, producers=(replace(producer, lost=5),))
        lies.append(
            (replace(plain, accounts=(lost,)), "accounts: producers[0].lost: the certificate has 5, this sink 0")
        )
        for lie, why in lies:
            monkey = link.Attest(1, certificate.encode(lie), signs=False)
            with pytest.raises(LogError) as caught:
                await asyncio.wait_for(asked.attest(monkey), 60)
            assert why in str(caught.value)
        with pytest.raises(LogError, match="it names no signers"):
            await asked.attest(link.Attest(1, certificate.encode(plain), signs=True))
        others = replace(plain, signers=tuple(s for s in shown.signers if s.node != zone.leader))
        with pytest.raises(LogError, match="this sink is not among the signers"):
            await asked.attest(link.Attest(1, certificate.encode(others), signs=True))


async def test_where_nodes_have_no_certificates_nobody_signs(tmp_path):
    async with running(SinkZone(tmp_path)) as zone:
        await publish(zone, [b"x"] * 10)
        (tmp_path / "mesh.toml").write_text(zone.text())
        ran = await cli.invoked(
            "coverage", "certify", "orders", "-o", str(tmp_path / "c"), "--config", str(tmp_path / "mesh.toml")
        )
        assert (ran.status, "nodes have no certificates" in ran.err) == (1, True)


async def test_what_cannot_be_certified_or_proved_is_said(tmp_path):
    streams = '[streams.orders]\nsubjects = ["orders.>"]\n[streams.wide]\nsubjects = ["wide.>"]\npartitions = 12'
    async with secured(tmp_path, streams=streams) as (zone, url):
        await fill(url, 20)
        await fill(url, 20, "wide.a")
        ran = await cli.invoked("coverage", "certify", "nobody", "-o", str(tmp_path / "c"), "--config", zone.toml)
        assert (ran.status, "no stream 'nobody' in zone eu; streams are" in ran.err) == (1, True)
        wide = tmp_path / "wide.json"
        ran = await cli.invoked("coverage", "certify", "wide", "-o", str(wide), "--config", zone.toml)
        assert ran.status == 0, ran.err
        assert len(certificate.decode(wide.read_bytes()).partitions) == 12
        ran = await cli.invoked("coverage", "verify", str(wide), "--ca", str(zone.ca), "--data", str(tmp_path / "s1"))
        assert ran.status == 0, ran.err
        ran = await certify(zone, "c", "--previous", str(wide))
        assert (ran.status, "it is of wide of zone eu" in ran.err) == (1, True)
        ran = await certify(zone, "c", "--mirrors", "us")
        assert (ran.status, "no zone 'us'" in ran.err) == (1, True)
        for place, why in (
            (("orders", "0", "20"), "its tree holds offsets 0 to 20, not 20"),
            (("orders", "9", "0"), "no partition 9"),
        ):
            ran = await cli.invoked("coverage", "prove", *place, "--config", zone.toml)
            assert (ran.status, why in ran.err) == (1, True), ran.err
        ran = await cli.invoked("coverage", "prove", "orders", "0", "19", "--config", zone.toml)
        assert (ran.status, "event on orders.a, 1800 bytes" in ran.out.decode()) == (0, True)
        for server in ("s2", str(zone.file().zones["eu"].sinks["s3"].link)):
            ran = await cli.invoked(
                "coverage", "verify", str(wide), "--ca", str(zone.ca), "--server", server, "--config", zone.toml
            )
            assert (ran.status, ran.lines[-1]) == (0, "proved"), ran.err
        ran = await cli.invoked(
            "coverage", "verify", str(wide), "--ca", str(zone.ca), "--server", "s9", "--config", zone.toml
        )
        assert (ran.status, "no sink of the file has its links at s9" in ran.err) == (2, True)


def is_settled(log: Partition) -> bool:
    """All that retention asks for is done, and nothing more will be in segments."""
    facts = log.log.facts()
    return not log.hot and trims(log.stream, log.number, log.start_offset, facts, 1) is None


async def test_history_that_is_being_certified_is_not_let_go_of(tmp_path):
    streams = '[streams.orders]\nsubjects = ["orders.>"]\nretention = { bytes = "300KiB" }'
    async with secured(tmp_path, streams=streams) as (zone, url):
        await fill(url, 100)
        leader = zone.sinks[zone.leader]
        log = next(each for each in leader.store.partitions if each.stream.name == "orders")
        asked = link.Statement(1, "orders", 0, b"s" * 16)
        stated = await leader.attesting.state(leader.main, asked)
        place = log.stream.incarnation, 0
        assert leader.attesting.holds(*place)
        await fill(url, 300)
        await zone.level()
        for _ in range(3):
            await leader.main.save()
            await leader.main.retain()
        assert (log.start_offset, stated.partition.from_) == (0, 0)
        ran = await certify(zone, "one.json")
        assert (ran.status, certificate.decode((tmp_path / "one.json").read_bytes()).partitions[0].from_) == (0, 0)
        assert not leader.attesting.holds(*place)
        await zone.until(lambda: log.start_offset > 0, "it may go now")
        leader.attesting.remember(leader.main, leader.main.machine.state.statements[-1])
        assert leader.attesting.holds(*place)
        leader.attesting._held[place] -= 700
        assert not leader.attesting.holds(*place)


async def test_what_is_trimmed_is_under_the_root_and_a_sink_that_was_filled_signs_too(tmp_path):
    streams = '[streams.orders]\nsubjects = ["orders.>"]\nretention = { bytes = "300KiB" }'
    async with secured(tmp_path, streams=streams) as (zone, url):
        await fill(url, 20)
        assert (await certify(zone, "old.json")).status == 0
        await fill(url, 380)
        log = next(each for each in zone.sinks[zone.leader].store.partitions if each.stream.name == "orders")
        await zone.until(lambda: log.start_offset > 20 and is_settled(log), "the beginning is gone")
        victim = next(name for name in zone.names if name != zone.leader)
        await zone.level()
        await zone.stop(victim)
        zone.wipe(victim)
        await zone.start(victim)
        await zone.until(lambda: not zone.sinks[victim].identity.muted, "it is filled")
        await zone.level()
        ran = await certify(zone, "first.json")
        assert (ran.status, ran.err) == (0, "")
        shown = certificate.decode((tmp_path / "first.json").read_bytes())
        (one,) = shown.partitions
        assert len(shown.signers) == 3
        assert (one.begin, one.from_size > 0, one.to) == (0, True, 400)
        assert one.from_ == log.start_offset
        verify = "coverage", "verify", "--ca", str(zone.ca)
        for name in zone.names:
            ran = await cli.invoked(*verify, str(tmp_path / "first.json"), "--data", str(tmp_path / name))
            assert (ran.status, ran.lines[-1]) == (0, "proved"), ran.err
        ran = await cli.invoked(*verify, str(tmp_path / "old.json"), "--data", str(tmp_path / victim))
        assert (ran.status, "the data begin at offset" in ran.err) == (1, True)
        ran = await certify(zone, "next.json", "--previous", str(tmp_path / "old.json"))
        assert (ran.status, "batches were trimmed" in ran.err) == (1, True), ran.err
        await fill(url, 5)
        ran = await certify(zone, "next.json", "--previous", str(tmp_path / "first.json"))
        assert (ran.status, ran.err) == (0, "")
        ran = await cli.invoked(*verify, str(tmp_path / "next.json"), "--previous", str(tmp_path / "first.json"))
        assert (ran.status, ran.lines[-1]) == (0, "proved"), ran.err
        ran = await cli.invoked("coverage", "prove", "orders", "0", "3", "--config", zone.toml)
        assert (ran.status, "its tree holds offsets" in ran.err) == (1, True)


# -- by others --------------------------------------------------------------------------------------------------------


def test_somebody_else_s_verifier_says_the_same(made, tmp_path):
    segments = sorted((made.folder / "s3" / "log").glob("orders-*/0/*.segment"))
    for name in ("first.json", "second.json"):
        other_verifier.verify(made.folder / name, made.authority.cert, segments)
    for what in ('"held":400', f'"time":{made.shown.time}', '"node":"s1"', '"sinks":["s1"'):
        changed = tmp_path / "changed.json"
        changed.write_text(made.first.decode().replace(what, what[:-1] + ("7" if what[-1] != '"' else '9"'), 1))
        assert changed.read_bytes() != made.first
        with pytest.raises((AssertionError, InvalidSignature)):
            other_verifier.verify(changed, made.authority.cert, [])
    with pytest.raises(AssertionError):
        other_verifier.verify(made.folder / "first.json", made.authority.cert, segments[1:])


def gap(offset: int, reason: str, events: int, offsets: int = 1) -> certificate.GapRecord:
    return certificate.GapRecord(
        partition=0, offset=offset, offsets=offsets, reason=reason, events=events, from_ms=0, to_ms=0, source=""
    )


def test_gap_records_and_what_is_spoilt_are_told_apart_and_counted():
    batches = [encode_batch([Event(b"a", b"", 5, b"", b"x")] * 3), encode_gap(Gap("lost", 7, 0, 0)),
               encode_batch([Event(b"a", b"", 5, b"", b"y")] * 2)]  # fmt: skip
    placed, offset = [], 0
    for batch in batches:
        placed.append(place_batch(batch, offset, 1))
        offset = read_header(placed[-1]).next_offset
    spoilt = lost_batch(4, 6, digest_of(placed[2]), 9, "192.0.2.7")
    growths = {}
    for name, log in (
        ("whole", placed),
        ("spoilt", [*placed[:2], spoilt]),
        ("encoded", [*placed, encode_control(b"k", b"v", 5)]),
    ):
        growth = Growth(0, 0, ())
        for batch in log:
            header = read_header(batch)
            growth.take(leaf_hash(header.base_offset, leaf_digest(header, batch)))
            if header.attributes & CONTROL:
                growth.note(header, batch)
        growths[name] = growth.found()
    whole, damaged, foreign = growths.values()
    assert (whole.control, whole.damaged, whole.gaps) == (1, 0, (gap(3, "lost", 7),))
    assert (damaged.size, damaged.frontier) == (whole.size, whole.frontier)
    assert (damaged.control, damaged.damaged, len(damaged.gaps)) == (1, 2, 2)
    assert (damaged.gaps[1].reason, damaged.gaps[1].offset, damaged.gaps[1].offsets) == ("damaged", 4, 2)
    assert (foreign.gaps[1].reason, foreign.control) == ("", 2)


def test_gap_records_that_are_named_must_be_those_that_there_are(made):
    (one,) = made.shown.partitions
    (accounts,) = made.shown.accounts
    (producer,) = accounts.producers
    fewer = replace(producer, held=396, batches=producer.batches, gaps=4)
    shown = replace(
        made.shown,
        partitions=(replace(one, control=4, damaged=2),),
        accounts=(replace(accounts, control=4, producers=(replace(fewer, beacon=-1),)),),
        beacons=(),
        gaps=(gap(3, "lost", 9), gap(5, "damaged", 2, 2), gap(90, "", 0, 3)),
    )
    made.check(signed(made, shown))
    for gaps, why in (
        (shown.gaps[1:], "3 offsets of control batches and 2 that are spoilt are named, there are 4 and 2"),
        ((*shown.gaps, gap(399, "damaged", 1)), "4 offsets of control batches and 3 that are spoilt are named"),
        ((shown.gaps[1], shown.gaps[0], shown.gaps[2]), "a control batch at offset 3 that is not of the log, or twice"),
        ((shown.gaps[0], gap(6, "damaged", 2, 2), gap(7, "", 0, 3)), "a control batch at offset 7"),
        ((*shown.gaps, gap(400, "lost", 1)), "a control batch at offset 400"),
    ):
        assert why in not_proved(made, signed(made, replace(shown, gaps=gaps)))


async def test_the_golden_certificate_is_proved_with_its_data_and_an_event_of_it():
    folder = Path(__file__).parent / "data" / "vectors" / "certificate"
    options = "--data", str(folder), "--proof", str(folder / "proof.json")
    ca = str(folder / "ca.pem")
    ran = await cli.invoked("coverage", "verify", str(folder / "certificate.json"), "--ca", ca, *options)
    assert (ran.status, ran.lines[-1]) == (0, "proved"), ran.err
    other_verifier.verify(folder / "certificate.json", folder / "ca.pem", sorted(folder.glob("*.segment")))
