"""What a sink says for a certificate, and signs: only what it has read again from its own disk just now.

    STATEMENT, committed ─► what the group says: end, tree, accounts ─┐
    its segments, read again and hashed ──────────────────────────────┼─► the same? ─► signature with the node's key
    the leaves that it keeps, and the certificate that it is shown ───┘        └─► no: refused, with what differs, where

Where the disk of the one that leads has spoilt something, another one of its group may tell what was stated.
A sink of another zone, which mirrors the log, has no accounts: it compares what it holds up to the same end, and signs
that much of the certificate (`protocol.certificate`). What was read again for a statement is remembered until that is
signed, for a while; the next certificate has another one.

It reads at most `ATTEST_RATE_BYTES` a second, in pieces, on a thread for readers, so that serving goes on.
"""

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec
import structlog

from protocol import link
from protocol.certificate import (
    BadCertificate,
    Certificate,
    Consistency,
    NotProved,
    Partition,
    Proof,
    Stated,
    canonical,
    decode,
    problems_of,
    signed_by,
    to_base64,
)
from protocol.certified_data import Found, Growth
from protocol.coverage import Signed
from protocol.errors import DamagedFile, LogError
from protocol.gaps import leaf_digest
from protocol.limits import (
    ATTEST_RATE_BYTES,
    ATTESTED_KEPT,
    ATTESTED_MS_MAX,
    CERTIFICATE_GAPS_MAX,
    CERTIFICATE_SKEW_MS_MAX,
    CERTIFICATE_WAIT_MS_MAX,
    SEGMENT_SCAN_BYTES,
    STATEMENT_WAIT_MS_MAX,
)
from protocol.merkle import Tree, Trimmed
from protocol.node_names import NodeName
from protocol.records import CONTROL, read_header, split_batches
from protocol.streams import StreamState, mirror_name
from sinkd.core import commands
from sinkd.core.accounts import Stated as Made
from sinkd.core.certifying import accounts_of, partition_of
from sinkd.core.state import Statement
from sinkd.shell.leaves import unpack
from sinkd.shell.segment_files import SEGMENT_SUFFIX
from sinkd.shell.store import Partition as Log
from sinkd.shell.store import tree_start

if TYPE_CHECKING:
    from sinkd.shell.replica import Replica
    from sinkd.shell.sink import Sink

_LOOK_S = 0.05
_KEPT_S = ATTESTED_MS_MAX / 1000
_SHOWN_CHARACTERS = 200  # of each of two values that are not the same
Answer = tuple[link.Message, bytes]
log = structlog.get_logger()


class Signing(Protocol):
    """What this sink signs with, and what it checks others' signatures by."""

    def sign(self, payload: bytes) -> Signed:
        """As this node."""

    def verify(self, payload: bytes, signed: Signed, at_ms: int) -> NodeName:
        """The node of this mesh that said so at that time. SignatureError: nobody did."""


class _Place(NamedTuple):
    statement: str
    incarnation: bytes
    partition: int
    from_offset: int
    to_offset: int


class Attesting:
    """Of one sink, for all of its groups."""

    def __init__(self, sink: "Sink", signing: Signing | None) -> None:
        """`signing` is None where nodes have no certificates."""
        self._sink, self._signing = sink, signing
        self._read: OrderedDict[_Place, tuple[float, Partition, Found]] = OrderedDict()
        self._statements: OrderedDict[bytes, tuple[float, Replica, Statement]] = OrderedDict()
        self._held: dict[tuple[bytes, int], float] = {}
        self._reading = asyncio.Lock()
        self.read_bytes = self.signed = 0

    async def answer(self, replica: "Replica", asked: link.Statement | link.Attest | link.Prove) -> Answer:
        """LogError: not so, or not now, and why."""
        if isinstance(asked, link.Statement):
            stated = await self.state(replica, asked)
            return link.Certified(asked.request), canonical(msgspec.to_builtins(stated))
        if isinstance(asked, link.Prove):
            proof = await self.prove(replica, asked)
            return link.Certified(asked.request), canonical(msgspec.to_builtins(proof))
        return await self.attest(asked), b""

    # -- stating ------------------------------------------------------------------------------------------------------

    async def state(self, replica: "Replica", asked: link.Statement) -> Stated:
        """What the group says of a partition of a stream of this zone, as this sink's disk has it.

        A statement is made by whoever leads. Another one has heard of it a moment later, if it was made.
        """
        state = replica.store.partition(asked.stream, asked.partition).stream
        if state.is_mirror:
            raise LogError("INVALID_REQUEST", f"{state.name} is another zone's log: that one certifies it")
        if replica.group.leads:
            statement = await self._made(replica, asked, state)
        else:
            known = await self._known(asked.statement_id, STATEMENT_WAIT_MS_MAX)
            if known is None:
                leader = replica.group.leader or "not known which"
                raise LogError(
                    "LEADER_NOT_AVAILABLE", f"another sink leads: {leader}; here that statement is not known"
                )
            _, statement = known
            _check_place(statement, asked.stream, state.incarnation, asked.partition)
        said, found = await self._own(replica, statement)
        return Stated(
            incarnation=state.incarnation.hex(),
            partitions=state.partitions,
            members=self._members(replica),
            mirrored_in=tuple(zone for zone in self._sink.other_zones if state.is_for(zone)),
            partition=said,
            accounts=accounts_of(statement),
            gaps=found.gaps,
        )

    async def _made(self, replica: "Replica", asked: link.Statement, state: StreamState) -> Statement:
        request = commands.MakeStatement(state.name, state.incarnation, asked.partition, asked.statement_id)
        made = await replica.group.submit(commands.STATEMENT, request)
        assert isinstance(made, Made)
        if made.statement is None:
            raise LogError("INVALID_REQUEST", made.refusal)
        return made.statement

    def _members(self, replica: "Replica") -> tuple[str, ...]:
        return tuple(sorted(replica.group.member.members)) or (self._sink.node.name,)

    async def _own(self, replica: "Replica", statement: Statement) -> tuple[Partition, Found]:
        """What this sink has on its disk of what its group has stated."""
        partition = replica.store.incarnation(statement.incarnation, statement.partition)
        from_offset = max(statement.start_offset, statement.tree.begin_offset)
        where = statement.statement_id.hex(), from_offset, statement.end_offset
        said, found = await self._read_again(replica, partition, *where)
        if (found.size, list(found.frontier)) != (statement.tree.size, statement.tree.frontier):
            raise await self._differs(replica, partition, said)
        return said, found

    def remember(self, replica: "Replica", statement: Statement) -> None:
        """It was made just now. The replicated state keeps the latest few, a stream may have many more partitions."""
        now = asyncio.get_running_loop().time()
        self._statements[statement.statement_id] = now, replica, statement
        self._held[statement.incarnation, statement.partition] = now
        while len(self._statements) > ATTESTED_KEPT or now - next(iter(self._statements.values()))[0] > _KEPT_S:
            self._statements.popitem(last=False)

    def holds(self, incarnation: bytes, partition: int) -> bool:
        """Whether a partition is being certified, so that its history should not be let go of just now."""
        stated_at = self._held.get((incarnation, partition))
        if stated_at is None or asyncio.get_running_loop().time() - stated_at < _KEPT_S:
            return stated_at is not None
        del self._held[incarnation, partition]
        return False

    # -- attesting ----------------------------------------------------------------------------------------------------

    async def attest(self, asked: link.Attest) -> link.Attested:
        """LogError: it is not what this sink has, with what differs."""
        if self._signing is None:
            raise LogError("INVALID_REQUEST", "nodes have no certificates here ([tls.nodes]): nobody could believe it")
        try:
            certificate = decode(asked.certificate)
        except (BadCertificate, NotProved) as error:
            raise LogError("INVALID_REQUEST", str(error)) from error
        is_own = certificate.zone == self._sink.node.zone
        self._check(certificate, signs=asked.signs)
        for number in range(len(certificate.partitions)):
            await (self._check_own if is_own else self._check_mirror)(certificate, number)
        own = self._signing.sign(signed_by(certificate, self._sink.node.zone))
        if not asked.signs:
            return link.Attested(asked.request, own.certificate, b"")
        if self._signer(certificate) != to_base64(own.certificate):
            raise LogError("INVALID_REQUEST", "this sink is not among the signers, or with another certificate")
        from protocol.certified import low_s

        self.signed += 1
        for one in certificate.partitions:
            self._held.pop((bytes.fromhex(certificate.incarnation), one.partition), None)
        log.info("certificate_signed", stream=certificate.stream, zone=certificate.zone, time=certificate.time)
        return link.Attested(asked.request, own.certificate, low_s(own.signature, own.certificate))

    def _signer(self, certificate: Certificate) -> str:
        name = self._sink.node.zone, self._sink.node.name
        return next((one.certificate for one in certificate.signers if (one.zone, one.node) == name), "")

    def _check(self, certificate: Certificate, *, signs: bool) -> None:
        """What does not depend on the log. LogError."""
        from protocol.certified import problems_of_content

        sink = self._sink
        assert self._signing is not None
        problems = problems_of(certificate, is_signed=False)
        if not problems:
            problems = problems_of_content(certificate, self._signing.verify)
        if certificate.mesh != sink.mesh:
            problems.append(f"it is of mesh {certificate.mesh}, this is a sink of {sink.mesh}")
        if abs(sink.now_ms() - certificate.time) > CERTIFICATE_SKEW_MS_MAX:
            problems.append(f"its time is {certificate.time}, it is {sink.now_ms()} here")
        if signs and not certificate.signers:
            problems.append("it names no signers")
        if problems:
            raise LogError("INVALID_REQUEST", "\n".join(problems))

    async def _check_own(self, certificate: Certificate, number: int) -> None:
        """A partition of this zone's log. LogError."""
        shown, accounts = certificate.partitions[number], certificate.accounts[number]
        incarnation = bytes.fromhex(certificate.incarnation)
        statement_id = bytes.fromhex(accounts.statement)
        known = await self._known(statement_id, CERTIFICATE_WAIT_MS_MAX)
        if known is None:
            what = f"statement {accounts.statement} of {certificate.stream} is not known here: it is old, or never was"
            raise LogError("INVALID_REQUEST", what)
        replica, statement = known
        _check_place(statement, certificate.stream, incarnation, number)
        partitions = replica.store.partition(certificate.stream, number).stream.partitions
        if partitions != len(certificate.partitions):
            what = f"{certificate.stream} has {partitions} partitions, the certificate {len(certificate.partitions)}"
            raise LogError("INVALID_REQUEST", what)
        self._check_members(certificate, replica)
        said, found = await self._own(replica, statement)
        producers = tuple(msgspec.structs.replace(one, beacon=-1) for one in accounts.producers)
        shown_gaps = tuple(gap for gap in certificate.gaps if gap.partition == number)
        compared = (
            ("what is on the disk", msgspec.structs.replace(shown, previous=None), said),
            ("accounts", msgspec.structs.replace(accounts, producers=producers), accounts_of(statement)),
            ("gap records", shown_gaps, found.gaps),
        )
        for what, one, own in compared:
            if one != own:
                raise LogError("INVALID_REQUEST", f"partition {number}: {what}: {_difference(one, own)}")

    async def _known(self, statement_id: bytes, wait_ms: int) -> "tuple[Replica, Statement] | None":
        """The statement, and the replica that has it, which it has a moment later than its leader."""
        until = asyncio.get_running_loop().time() + wait_ms / 1000
        while True:
            if (known := self._statements.get(statement_id)) is not None:
                return known[1:]
            for replica in self._sink.replicas:
                for statement in replica.machine.state.statements:
                    if statement.statement_id == statement_id:
                        return replica, statement
            if asyncio.get_running_loop().time() > until:
                return None
            await asyncio.sleep(_LOOK_S)

    def _check_members(self, certificate: Certificate, replica: "Replica") -> None:
        zone = self._sink.node.zone
        named = next((one.sinks for one in certificate.zones if one.zone == zone), ())
        members = self._members(replica)
        if named != members:
            names = ", ".join(named) or "none"
            what = f"sinks of zone {zone} are {', '.join(members)} in group {replica.number}; it names {names}"
            raise LogError("INVALID_REQUEST", what)

    async def _check_mirror(self, certificate: Certificate, number: int) -> None:
        """A partition of another zone's log, of which this one has a mirror. LogError."""
        shown = certificate.partitions[number]
        replica, partition = self._mirrored(certificate, number)
        self._check_members(certificate, replica)
        tree, where = partition.replicated.tree, f"partition {number} of {partition.stream.name}"
        if tree is None or tree.begin_offset != shown.begin:
            begins = f"begins at offset {tree.begin_offset}" if tree is not None else "is none"
            raise LogError("INVALID_REQUEST", f"{where}: its tree {begins}, that of its origin at {shown.begin}")
        if tree.trimmed:
            what = f"{tree.trimmed} of its offsets are under gap records: its origin had let go of them"
            raise LogError("INVALID_REQUEST", f"{where}: {what}")
        await self._until_there(replica, partition, shown.to)
        start = tree_start(partition)
        if not start.offset <= shown.from_ <= shown.to <= partition.high_watermark:
            held = f"{start.offset} to {partition.high_watermark}"
            what = f"{where}: it holds offsets {held}, not all of {shown.from_} to {shown.to}"
            raise LogError("INVALID_REQUEST", what)
        statement = certificate.accounts[number].statement
        said, _ = await self._read_again(replica, partition, statement, shown.from_, shown.to)
        if said != msgspec.structs.replace(shown, previous=None):
            at = await replica.store.tree_at(partition, shown.to)
            if (at.size, tuple(one.hex() for one in at.frontier)) != (said.size, said.frontier):
                raise await self._differs(replica, partition, said)
            difference = _difference(msgspec.structs.replace(shown, previous=None), said)
            raise LogError("INVALID_REQUEST", f"{where}: what is on the disk: {difference}")

    def _mirrored(self, certificate: Certificate, number: int) -> tuple["Replica", Log]:
        """LogError: there is no such mirror."""
        incarnation = bytes.fromhex(certificate.incarnation)
        mirror = self._sink.machine.mirror_of_incarnation(incarnation)
        name = mirror_name(certificate.stream, certificate.zone)
        if mirror is None or mirror.state.name.partition("~")[0] != name:
            raise LogError("INVALID_REQUEST", f"zone {self._sink.node.zone} has no mirror {name} of that incarnation")
        if mirror.state.partitions != len(certificate.partitions):
            what = f"{name} has {mirror.state.partitions} partitions, the certificate {len(certificate.partitions)}"
            raise LogError("INVALID_REQUEST", what)
        group = mirror.state.group_of(number)
        if group >= len(self._sink.replicas):
            raise LogError("INVALID_REQUEST", f"partition {number} of {name} is in group {group}, not on this sink")
        replica = self._sink.replicas[group]
        return replica, replica.store.incarnation(incarnation, number)

    async def _until_there(self, replica: "Replica", partition: Log, to_offset: int) -> None:
        """The mirror holds all of it, or time is over."""
        until = asyncio.get_running_loop().time() + CERTIFICATE_WAIT_MS_MAX / 1000
        while partition.high_watermark < to_offset:
            wait_ms = int(1000 * (until - asyncio.get_running_loop().time()))
            if wait_ms <= 0:
                return
            await replica.store.wait_for_more(partition, partition.high_watermark, wait_ms)

    # -- reading again ------------------------------------------------------------------------------------------------

    async def _read_again(
        self, replica: "Replica", partition: Log, statement: str, from_offset: int, to_offset: int
    ) -> tuple[Partition, Found]:
        """What the disk has of [from_offset, to_offset), read once for each statement. LogError: it is not whole."""
        place = _Place(statement, partition.stream.incarnation, partition.number, from_offset, to_offset)
        async with self._reading:
            now = asyncio.get_running_loop().time()
            known = self._read.get(place)
            if known is not None and now - known[0] < _KEPT_S:
                return known[1:]
            await self._in_segments(replica, partition, to_offset)
            try:
                begins = await replica.store.tree_at(partition, from_offset)
                growth = Growth(partition.number, begins.size, begins.frontier)
                found = await self._grown(replica, partition, growth, place)
            except DamagedFile as damage:
                await replica.scrubber.mend_later(partition, damage)
                raise LogError("STORAGE_ERROR", f"its disk has spoilt it: {damage}") from damage
            said = partition_of(partition.number, begins, to_offset, found)
            self._read[place] = now, said, found
            while len(self._read) > ATTESTED_KEPT:
                self._read.popitem(last=False)
            return said, found

    async def _in_segments(self, replica: "Replica", partition: Log, to_offset: int) -> None:
        """LogError: it is not whole, and not all of it is there."""
        if replica.is_being_filled:
            raise LogError("STORAGE_ERROR", "this sink is being filled, and holds a part of its log")
        await self._until_there(replica, partition, to_offset)
        await replica.flush()
        if partition.log.end_offset < to_offset:
            what = f"it holds offsets up to {partition.log.end_offset}, {to_offset} is asked for"
            raise LogError("INVALID_REQUEST", f"partition {partition.number} of {partition.stream.name}: {what}")

    async def _grown(self, replica: "Replica", partition: Log, growth: Growth, place: _Place) -> Found:
        """DamagedFile. LogError: there are too many gap records to name them."""
        reread = partition.log.tree.reread(place.from_offset, place.to_offset)

        def some() -> tuple[bool, int]:
            read_bytes = 0
            for leaf, header, data in reread:
                growth.take(leaf.hash)
                if header.attributes & CONTROL:
                    growth.note(header, data)
                read_bytes += header.size_bytes
                if read_bytes >= SEGMENT_SCAN_BYTES:
                    return False, read_bytes
            return True, read_bytes

        is_read = False
        while not is_read:
            is_read, read_bytes = await replica.store.on_reader(some)
            self.read_bytes += read_bytes
            await asyncio.sleep(read_bytes / ATTEST_RATE_BYTES)
        found = growth.found()
        if len(found.gaps) > CERTIFICATE_GAPS_MAX:
            what = f"{len(found.gaps)} control batches, a certificate names {CERTIFICATE_GAPS_MAX} at most"
            raise LogError("INVALID_REQUEST", f"partition {partition.number} of {partition.stream.name}: {what}")
        return found

    async def _differs(self, replica: "Replica", partition: Log, said: Partition) -> LogError:
        """What this sink's disk has is not what it took in: where. What a peer has whole is mended soon."""
        of_it = partition.stream.incarnation, partition.number
        for place in [each for each in self._read if (each.incarnation, each.partition) == of_it]:
            del self._read[place]  # it will be another one

        def look() -> int | None:
            kept = (leaf for leaves, _ in partition.log.tree.leaves(said.from_, said.to) for leaf in unpack(leaves))
            reread = partition.log.tree.reread(said.from_, said.to)
            return next(
                (found.leaf.base_offset for found, leaf in zip(reread, kept, strict=False) if found.leaf != leaf), None
            )

        where = f"partition {partition.number} of {partition.stream.name}"
        try:
            offset = await replica.store.on_reader(look)
        except DamagedFile as damage:
            await replica.scrubber.mend_later(partition, damage)
            return LogError("STORAGE_ERROR", f"{where}: its disk has spoilt it: {damage}")
        if offset is None:
            return LogError("STORAGE_ERROR", f"{where}: its disk has other batches than those that were taken in")
        base_offset = max(one.base_offset for one in partition.log.facts() if one.base_offset <= offset)
        file = partition.log.folder / f"{base_offset:020d}{SEGMENT_SUFFIX}"
        await replica.scrubber.mend_later(partition, DamagedFile(str(file), 0, "it has another batch than it should"))
        what = f"the batch at offset {offset} is not the one that was taken in: its disk has spoilt {file}"
        return LogError("STORAGE_ERROR", f"{where}: {what}")

    # -- proofs -------------------------------------------------------------------------------------------------------

    async def prove(self, replica: "Replica", asked: link.Prove) -> Proof | Consistency:
        """LogError: there is no such batch, or it was trimmed."""
        partition = replica.store.partition(asked.stream, asked.partition)
        end_offset = partition.high_watermark if asked.end_offset < 0 else asked.end_offset
        start = tree_start(partition)
        where = f"partition {asked.partition} of {asked.stream}"
        if not start.offset <= asked.offset < end_offset and asked.size < 0:
            what = f"{where}: its tree holds offsets {start.offset} to {end_offset}, not {asked.offset}"
            raise LogError("OFFSET_OUT_OF_RANGE", what)
        await self._in_segments(replica, partition, end_offset)
        if start.offset == end_offset:
            tree = Tree(start.frontier, start.size, [])
        else:
            tree = await replica.store.on_reader(lambda: partition.log.tree.tree(start, end_offset))
        try:
            if asked.offset < 0:
                return Consistency(before=asked.size, size=tree.size, path=_hex(tree.consistency(asked.size)))
            return await self._proof(replica, partition, asked.offset, tree)
        except Trimmed as error:
            what = f"{where}: the first {start.size} batches were trimmed; {error}"
            raise LogError("OFFSET_OUT_OF_RANGE", what) from error

    async def _proof(self, replica: "Replica", partition: Log, offset: int, tree: Tree) -> Proof:
        batch = next(split_batches(await replica.store.read(partition, offset, 1)))
        header = read_header(batch)
        before = await replica.store.tree_at(partition, header.base_offset)
        path = await replica.store.on_reader(lambda: tree.inclusion(before.size))
        return Proof(
            log=partition.stream.name,
            incarnation=partition.stream.incarnation.hex(),
            partition=partition.number,
            offset=offset,
            base_offset=header.base_offset,
            digest=leaf_digest(header, batch).hex(),
            number=before.size,
            size=tree.size,
            root=tree.root().hex(),
            path=_hex(path),
            batch=to_base64(bytes(batch)),
        )


def _check_place(statement: Statement, log: str, incarnation: bytes, partition: int) -> None:
    """LogError: it is of another one."""
    if (statement.log, statement.incarnation, statement.partition) != (log, incarnation, partition):
        what = f"statement {statement.statement_id.hex()} is not of partition {partition} of {log}"
        raise LogError("INVALID_REQUEST", what)


def _hex(hashes: list[bytes]) -> tuple[str, ...]:
    return tuple(one.hex() for one in hashes)


def _difference(shown: object, own: object) -> str:
    """Of two of the same kind that are not equal, where, and both."""
    one, other = msgspec.to_builtins(shown), msgspec.to_builtins(own)
    where = ""
    while type(one) is type(other):
        if isinstance(one, dict):
            key = next(key for key in one if one[key] != other.get(key))
            where, one, other = f"{where}.{key}", one[key], other[key]
        elif isinstance(one, tuple) and len(one) == len(other):
            at = next(at for at in range(len(one)) if one[at] != other[at])
            where, one, other = f"{where}[{at}]", one[at], other[at]
        else:
            break
    texts = (str(each)[:_SHOWN_CHARACTERS] for each in (one, other))
    return "{}: the certificate has {}, this sink {}".format(where.lstrip(".") or "they", *texts)
