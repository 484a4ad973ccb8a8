"""`mesh coverage certify`: has the sinks of a stream's zone, and of zones that mirror it, say and sign what they hold.

    leaders: what is in each partition? ─► a certificate without signatures ─► each sink reads its disk again: so?
                                                                                    │ a majority of each zone agrees
    file ◄── checked once more ◄── signatures ◄── those that agreed, named in it ◄──┘

This program is trusted with nothing: what it puts together counts only because the sinks have compared it with what
they hold, and signed it.
"""

import asyncio
import itertools
import secrets
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import click
import msgspec

from mesh.commands import verify as verifying
from mesh.commands.failure import Failure, Refused, notice
from mesh.commands.sinks import Told, Zone, leader_of
from protocol import certificate, certified, config, coverage, link, signing
from protocol.certificate import (
    BadCertificate,
    Certificate,
    Consistency,
    NotProved,
    Partition,
    Previous,
    Producer,
    Signer,
    Stated,
    ZoneSinks,
)
from protocol.errors import UNREADABLE, FrameError, LogError, SignatureError
from protocol.limits import (
    CERTIFICATE_BEACON_BYTES_MAX,
    CERTIFICATE_BEACONS_READ_BYTES,
    CERTIFICATE_BEACONS_READ_MS,
    LINK_FETCH_BYTES_MAX,
    STATEMENT_ID_BYTES,
)
from protocol.records import CONTROL, read_header, read_records, split_batches

PARTITIONS_AT_ONCE = 16
READ_S_MAX = 3_600.0  # for a sink to read a partition again
_numbers = itertools.count(1)


class Earlier(NamedTuple):
    """The certificate before this one, and the SHA-256 of its file."""

    certificate: Certificate
    hash: str


class Said(NamedTuple):
    """What `sink` has said of a partition, which is in `group`."""

    stated: Stated
    sink: str
    group: int


def authorities_of(configuration: config.Config) -> signing.Authorities:
    """Failure: nodes have no certificates."""
    settings = configuration.tls_nodes
    if settings is None:
        raise Failure("nodes have no certificates ([tls.nodes]): nobody could believe what they sign")
    try:
        return signing.read_authorities(Path(settings.ca).read_bytes())
    except (OSError, SignatureError) as error:
        raise Failure(f"{settings.ca}: {error}") from error


async def run(
    zones: dict[str, Zone],
    origin: str,
    configuration: config.Config,
    stream: str,
    named: tuple[str, ...] | None,
    file: Path,
    previous: Path | None,
) -> None:
    """Writes the certificate. Failure: there is none, and who did not sign, and why."""
    verify = certified.verifier(authorities_of(configuration), configuration.mesh.name)
    certifying = Certifying(zones, zones[origin], configuration.mesh.name, stream, verify)
    earlier = _earlier(previous, certifying) if previous is not None else None
    made = await certifying.make(named, earlier)
    data = certificate.encode(made)
    try:
        certified.check(certificate.decode(data), verify)
    except NotProved as error:
        raise Failure(f"the sinks have signed what proves nothing: {error}") from error
    verifying.write(file, data)
    offsets = sum(one.to - one.from_ for one in made.partitions)
    who = "; ".join(f"{zone.zone}: {_signers(made, zone.zone)}" for zone in made.zones)
    click.echo(f"{file}: {offsets} offsets of {stream} in {len(made.partitions)} partitions, signed by {who}")


def _signers(made: Certificate, zone: str) -> str:
    return ", ".join(signer.node for signer in made.signers if signer.zone == zone)


def _earlier(file: Path, certifying: "Certifying") -> Earlier:
    """Failure: it is of another log, or proves nothing."""
    try:
        data = file.read_bytes()
        earlier = certificate.decode(data)
        certified.check(earlier, certifying.verify)
    except (OSError, BadCertificate, NotProved) as error:
        raise Failure(f"{file}: {error}") from error
    expected = certifying.mesh, certifying.origin.name, certifying.stream
    if (earlier.mesh, earlier.zone, earlier.stream) != expected:
        raise Failure(f"{file}: it is of {earlier.stream} of zone {earlier.zone} of mesh {earlier.mesh}")
    return Earlier(earlier, certificate.file_hash(data))


class Certifying:
    """Of one stream of zone `origin`."""

    def __init__(self, zones: dict[str, Zone], origin: Zone, mesh: str, stream: str, verify: certified.Verify) -> None:
        self._zones, self.origin, self.mesh, self.stream, self.verify = zones, origin, mesh, stream, verify
        self._asking = asyncio.Semaphore(PARTITIONS_AT_ONCE)

    async def make(self, named: tuple[str, ...] | None, earlier: Earlier | None) -> Certificate:
        """In force: a majority of the sinks of each zone has signed. Failure: who has not, and why."""
        groups = await self.origin.groups()
        said = await self._said(groups)
        stated = [one.stated for one in said]
        self._check_same(stated)
        if earlier is not None and earlier.certificate.incarnation != stated[0].incarnation:
            raise Failure(f"{self.stream} was made anew since the certificate before this one: begin without it")
        others = stated[0].mirrored_in if named is None else named
        made = Certificate(
            mesh=self.mesh,
            zone=self.origin.name,
            stream=self.stream,
            incarnation=stated[0].incarnation,
            time=time.time_ns() // 1_000_000,
            zones=(ZoneSinks(zone=self.origin.name, sinks=stated[0].members), *await self._members(others)),
            partitions=tuple(await asyncio.gather(*(self._behind(one, earlier) for one in said))),
            accounts=tuple(one.accounts for one in stated),
            beacons=(),
            gaps=tuple(gap for one in stated for gap in one.gaps),
            previous=earlier.hash if earlier is not None else "",
        )
        return await self._signed(await self._with_beacons(made, groups))

    # -- what there is ------------------------------------------------------------------------------------------------

    async def _said(self, groups: list[Told]) -> list[Said]:
        """Of each partition. Failure."""
        first = await self._state(groups, 0)
        rest = (self._state(groups, number) for number in range(1, first.stated.partitions))
        return [first, *await asyncio.gather(*rest)]

    async def _state(self, groups: list[Told], number: int) -> Said:
        """As its leader makes a statement; if that one's disk has spoilt it, another one tells the same. Failure"""
        group, leader = self._leader(groups, self.stream, number)
        statement_id = secrets.token_bytes(STATEMENT_ID_BYTES)
        refusals = [f"sink {name}: {one['error']}" for name, one in groups[group].items() if "error" in one]
        others = [name for name, one in groups[group].items() if name != leader and "error" not in one]
        for sink in (leader, *others):
            question = link.Statement(next(_numbers), self.stream, number, statement_id)
            try:
                async with self._asking:
                    frame = await self.origin.ask(sink, question, group, READ_S_MAX)
            except Failure as failure:
                is_spoilt = isinstance(failure, Refused) and failure.name == "STORAGE_ERROR"
                if sink == leader and not is_spoilt:
                    raise
                refusals.append(str(failure))
            else:
                return Said(msgspec.json.decode(frame.tail, type=Stated), sink, group)
        raise Failure("\n".join(refusals))

    def _leader(self, groups: list[Told], stream: str, number: int) -> tuple[int, str]:
        """(group, sink) of a partition. Failure: there is no such partition, or nobody leads its group."""
        known = set()
        for group, told in enumerate(groups):
            logs = [log for one in told.values() for log in one.get("logs", ())]
            known |= {log["stream"] for log in logs}
            if any((log["stream"], log["partition"]) == (stream, number) for log in logs):
                leader = leader_of(told)
                if leader is None:
                    raise Failure(f"nobody leads group {group} of zone {self.origin.name}, which has {stream}/{number}")
                return group, str(leader["node"])
        errors = [f"sink {name}: {one['error']}" for name, one in groups[0].items() if "error" in one]
        names = ", ".join(sorted(known)) or "none"
        raise Failure("\n".join([f"no stream {stream!r} in zone {self.origin.name}; streams are {names}", *errors]))

    def _check_same(self, stated: list[Stated]) -> None:
        for one in stated[1:]:
            if one.incarnation != stated[0].incarnation:
                raise Failure(f"{self.stream} was made anew meanwhile: try again")
            if one.members != stated[0].members:
                raise Failure(f"groups of zone {self.origin.name} have different members: {one.members}, "
                              f"{stated[0].members}; see mesh sinks")  # fmt: skip

    async def _members(self, zones: Iterable[str]) -> list[ZoneSinks]:
        """Of other zones. Failure: nobody there can be asked."""
        found = []
        for name in zones:
            if name == self.origin.name:
                continue
            if name not in self._zones:
                raise Failure(f"no zone {name!r} with sinks; there are: {', '.join(self._zones)}")
            told = await self._zones[name].status()
            members = next((one["members"] for one in told.values() if one.get("state") == "leader"), None)
            if members is None:
                errors = "; ".join(f"sink {sink}: {one.get('error', 'no leader')}" for sink, one in told.items())
                raise Failure(f"zone {name}: nobody says who its sinks are: {errors}")
            found.append(ZoneSinks(zone=name, sinks=tuple(sorted(members)) or tuple(told)))
        return found

    async def _behind(self, said: Said, earlier: Earlier | None) -> Partition:
        """The partition, with the proof that it goes on from the certificate before. Failure: it does not."""
        one = said.stated.partition
        if earlier is None:
            return one
        before = next((p for p in earlier.certificate.partitions if p.partition == one.partition), None)
        if before is None:
            raise Failure(f"the certificate before this one has no partition {one.partition}")
        path: tuple[str, ...] = ()
        if 0 < before.size < one.size:
            question = link.Prove(next(_numbers), self.stream, one.partition, one.to, size=before.size)
            async with self._asking:
                frame = await self.origin.ask(said.sink, question, said.group, READ_S_MAX)
            path = msgspec.json.decode(frame.tail, type=Consistency).path
        previous = Previous(to=before.to, size=before.size, root=before.root, consistency=path)
        return msgspec.structs.replace(one, previous=previous)

    # -- beacons ------------------------------------------------------------------------------------------------------

    async def _with_beacons(self, made: Certificate, groups: list[Told]) -> Certificate:
        """With the latest beacon of each producer that its account can be compared with."""
        wanted = {
            (accounts.partition, producer.node, producer.worker): producer
            for accounts in made.accounts
            for producer in accounts.producers
        }
        beacons: list[certificate.SignedBeacon] = []
        chosen: dict[tuple[int, str, int], int] = {}
        room = CERTIFICATE_BEACON_BYTES_MAX
        for signed in await self._beacons(groups, made.time) if wanted else ():
            useful = [place for place in _places(made, wanted, signed) if place not in chosen]
            room -= len(signed.payload) if useful else 0
            if not useful or room < 0 or not self._is_said(made, signed):
                continue
            chosen |= dict.fromkeys(useful, len(beacons))
            beacons.append(signed)
            if len(chosen) == len(wanted):
                break
        accounts = tuple(
            msgspec.structs.replace(
                one,
                producers=tuple(
                    msgspec.structs.replace(p, beacon=chosen.get((one.partition, p.node, p.worker), -1))
                    for p in one.producers
                ),
            )
            for one in made.accounts
        )
        return msgspec.structs.replace(made, accounts=accounts, beacons=tuple(beacons))

    def _is_said(self, made: Certificate, signed: certificate.SignedBeacon) -> bool:
        """If not, it is somebody else's word; the keeper of each sink has told of it."""
        try:
            certified.read_beacon(made, signed, self.verify)
        except NotProved:
            return False
        return True

    async def _beacons(self, groups: list[Told], now_ms: int) -> list[certificate.SignedBeacon]:
        """Those of the last hour, latest first. Where there is no such log, or nobody has it, there are none."""
        try:
            group, leader = self._leader(groups, coverage.STREAM, 0)
            begins = now_ms - CERTIFICATE_BEACONS_READ_MS
            asked = link.Offsets(next(_numbers), coverage.STREAM, (0,), "timestamp", begins)
            frame = await self.origin.ask(leader, asked, group)
            assert isinstance(frame.message, link.OffsetsAre)
            offset, read_bytes, found = frame.message.offsets[0][1], 0, []
            while offset >= 0 and read_bytes < CERTIFICATE_BEACONS_READ_BYTES:
                fetch = link.Fetch(next(_numbers), coverage.STREAM, 0, offset, LINK_FETCH_BYTES_MAX, 0)
                frame = await self.origin.ask(leader, fetch, group)
                if not frame.tail:
                    break
                read_bytes += len(frame.tail)
                for batch in split_batches(frame.tail):
                    offset = read_header(batch).next_offset
                    found += _beacons_in(batch)
        except (Failure, FrameError, LogError) as error:
            notice(f"beacons cannot be read: {error}")
            return []
        return found[::-1]

    # -- signatures ---------------------------------------------------------------------------------------------------

    async def _signed(self, made: Certificate) -> Certificate:
        """Failure: too few agree, or one that did does not sign."""
        places = [(zone.zone, sink) for zone in made.zones for sink in zone.sinks]
        answers = await asyncio.gather(*(self._attest(made, *place, signs=False) for place in places))
        agreed = {place: one for place, one in zip(places, answers, strict=True) if not isinstance(one, Failure)}
        refusals = [f"zone {place[0]}: {one}" for place, one in zip(places, answers, strict=True)
                    if isinstance(one, Failure)]  # fmt: skip
        for zone in made.zones:
            count = sum(place[0] == zone.zone for place in agreed)
            if 2 * count <= len(zone.sinks):
                few = f"zone {zone.zone}: {count} of {len(zone.sinks)} sinks would sign, no majority"
                raise Failure("\n".join([few, *refusals]))
        for refusal in refusals:
            notice(f"{refusal}")
        signers = tuple(
            Signer(zone=zone, node=node, certificate=certificate.to_base64(one.certificate))
            for (zone, node), one in agreed.items()
        )
        made = msgspec.structs.replace(made, signers=signers)
        signed = await asyncio.gather(*(self._attest(made, *place, signs=True) for place in agreed))
        for place, one in zip(agreed, signed, strict=True):
            if isinstance(one, Failure):
                raise Failure(f"zone {place[0]}: {one}")
        signatures = tuple(certificate.to_base64(one.signature) for one in signed if not isinstance(one, Failure))
        return msgspec.structs.replace(made, signatures=signatures)

    async def _attest(self, made: Certificate, zone: str, sink: str, *, signs: bool) -> link.Attested | Failure:
        asked = self._zones[zone]
        if sink not in asked.sinks:
            return Failure(f"sink {sink}: it is a member, and not in the file")
        question = link.Attest(next(_numbers), certificate.encode(made), signs)
        try:
            frame = await asked.ask(sink, question, 0, READ_S_MAX)
        except Failure as failure:
            return failure
        assert isinstance(frame.message, link.Attested)
        return frame.message


def _places(
    made: Certificate, wanted: dict[tuple[int, str, int], Producer], signed: certificate.SignedBeacon
) -> Iterator[tuple[int, str, int]]:
    """Whose accounts a beacon can be compared with, if it is what it says."""
    try:
        beacon = msgspec.json.decode(certificate.from_base64(signed.payload), type=coverage.Beacon)
    except UNREADABLE:
        return
    for row in beacon.rows:
        place = row.partition, beacon.node, beacon.worker
        is_there = (row.stream, row.incarnation) == (made.stream, made.incarnation) and place in wanted
        if is_there and certified.is_comparable(wanted[place], row):
            yield place


def _beacons_in(batch: memoryview) -> list[certificate.SignedBeacon]:
    """The signed ones in a batch of `$COVERAGE`."""
    if read_header(batch).attributes & CONTROL:
        return []
    found = []
    prefix = f"{coverage.STREAM}.{coverage.BEACON}.".encode()
    for record in read_records(batch):
        if not record.subject.startswith(prefix):
            continue
        try:
            signed = coverage.signed_in(record.header_block)
        except FrameError:
            continue
        if signed is not None:
            texts = (record.payload, signed.signature, signed.certificate)
            payload, signature, signer = map(certificate.to_base64, texts)
            found.append(certificate.SignedBeacon(payload=payload, signature=signature, signer=signer))
    return found
