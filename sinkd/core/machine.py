"""The replicated state machine of a Raft group: commands in, results out.

Deterministic: time comes with the command, chance (incarnations, nonces) too; the same commands give the same state on
every member. It does no I/O: where a batch was committed is returned as a `Placement`, and the shell puts it there.

A producer's batches come in sequence. `last + 1` is taken; what is at or below `last` was answered before and gets the
same answer again, if it is the same batch; more is `OUT_OF_ORDER` and the gateway goes back. A conditional batch whose
expectation fails is answered for good: its sequence is spent, or a retry could succeed where the first attempt failed.
A batch with ids that the window knows is refused whole and its span is *not* spent: batches are immutable, so the
gateway builds it again without those records.

Streams are configured in group 0. Every other group adopts what that has committed, and takes batches of the partitions
that are its own. The zone's contracts (`protocol.contracts`) are in group 0 alone. Mirrors of other zones' logs stand
beside the streams: `sinkd.core.mirrors`. Streams that are covered are accounted for: `sinkd.core.accounts`.
"""

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import msgspec

from protocol import contracts
from protocol.coverage import digest_of
from protocol.envelope import Envelope, Parcel
from protocol.errors import UNREADABLE, FrameError, LogError
from protocol.gaps import read_gap
from protocol.limits import PRODUCER_RESULTS_KEPT
from protocol.link import Answer, Appended, Opened, Reached, Refused
from protocol.records import CONTROL, BatchHeader, read_header
from protocol.streams import StreamDefinition, StreamState
from sinkd.core import accounts, commands, damage, mirrors, rebuilding
from sinkd.core.accounts import Stated
from sinkd.core.commands import (
    BODY_POSITION,
    AcceptLoss,
    Adopt,
    BeginRebuild,
    ChangeContract,
    Command,
    Configure,
    Diverged,
    EndRebuild,
    GiveUp,
    MakeMirror,
    MakeStatement,
    MembersAre,
    MirroredHead,
    OpenProducer,
    RecordGap,
    Trim,
)
from sinkd.core.damage import GivenUp
from sinkd.core.mirrors import MirrorMade
from sinkd.core.rebuilding import RebuildChanged
from sinkd.core.state import (
    COVERAGE_VERSION,
    STATE_VERSION,
    Mirror,
    PartitionState,
    Progress,
    Recorded,
    State,
    Stream,
)


class Placement(NamedTuple):
    """A committed batch: `position` says where it stands in its command, `header` how large it is.

    `digest` is its D (`protocol.coverage`) if the log is covered.
    """

    stream: StreamState
    partition: int
    base_offset: int
    header: BatchHeader
    position: int
    digest: bytes = b""


class Taken(NamedTuple):
    """A parcel was decided: what to tell its gateway, and where its batch goes if it was taken."""

    answer: Appended | Refused
    placement: Placement | None = None


class Configured(NamedTuple):
    """`problems` says what of a proposal was refused; nothing of it is in force then."""

    revision: int
    problems: tuple[str, ...] = ()


class Trimmed(NamedTuple):
    stream: StreamState
    partition: int
    start_offset: int


class Mirrored(NamedTuple):
    """Batches for a mirror's partition were taken, all of them, or with a `refusal` none: it ends at `end_offset`."""

    end_offset: int
    placements: tuple[Placement, ...] = ()
    refusal: str = ""


class LossAccepted(NamedTuple):
    """`members` go on with what they hold; each log of the group has a gap record where more may have been."""

    members: dict[str, str]
    who: str
    placements: tuple[Placement, ...]


class GapRecorded(NamedTuple):
    """What is recorded as missing of a run; its gap record was appended just now if it has a placement.

    With a `refusal` nothing is.
    """

    recorded: Recorded | None
    placement: Placement | None = None
    refusal: str = ""


class ContractChanged(NamedTuple):
    """`contract` is in force now, or was until now; or nothing has changed, for this `refusal`."""

    contract: contracts.Contract
    refusal: LogError | None = None


Result: TypeAlias = (
    list[Taken]
    | Opened
    | Configured
    | Trimmed
    | MembersAre
    | LossAccepted
    | ContractChanged
    | MirrorMade
    | Mirrored
    | RebuildChanged
    | GivenUp
    | GapRecorded
    | Stated
    | None
)


class Machine:
    """Holds the `State` of Raft group `number` and changes it, one command at a time."""

    def __init__(self, snapshot: bytes | None = None, number: int = 0) -> None:
        """From nothing, or from `snapshot()` of another. FrameError: no snapshot, or one of another version."""
        self.number = number
        self.state = State()
        if snapshot is not None:
            self.restore(snapshot)

    def restore(self, snapshot: bytes) -> None:
        """Becomes what `snapshot` says. FrameError as above; then nothing has changed."""
        self.state = _restored(snapshot)

    def snapshot(self) -> bytes:
        return msgspec.msgpack.encode(self.state)

    def apply(self, data: bytes | memoryview) -> Result:
        """Carries out one committed command. FrameError: it cannot be understood, the process must stop."""
        command = commands.decode(data)
        self.state.now_ms = max(self.state.now_ms, command.time_ms)
        if command.kind in (commands.APPEND, commands.DIGESTED):
            return [self._append(parcel, digest) for parcel, digest in commands.read_parcels(command)]
        if command.kind == commands.OPEN:
            return self._open(commands.read_body(command, OpenProducer))
        if command.kind == commands.CONFIGURE:
            return self._configure(commands.read_body(command, Configure))
        if command.kind == commands.ADOPT:
            return self._adopt(commands.read_body(command, Adopt))
        if command.kind == commands.TRIM:
            return self._trim(commands.read_body(command, Trim))
        if command.kind == commands.MEMBERS:
            changed = commands.read_body(command, MembersAre)
            self.state.members = dict(changed.members)
            return changed
        if command.kind == commands.CONTRACT:
            return self._change_contract(commands.read_body(command, ChangeContract))
        if command.kind == commands.MIRRORED:
            return self._append_mirrored(command)
        if command.kind == commands.LOSS:
            return self._accept_loss(command)
        if command.kind == commands.MIRROR:
            return mirrors.make(self.state, commands.read_body(command, MakeMirror))
        if command.kind == commands.DIVERGED:
            mirrors.diverge(self.state, commands.read_body(command, Diverged))
            return None
        if command.kind == commands.BEGIN_REBUILD:
            return rebuilding.begin(self.state, commands.read_body(command, BeginRebuild))
        if command.kind == commands.END_REBUILD:
            return rebuilding.end(self.state, commands.read_body(command, EndRebuild))
        if command.kind == commands.RECORD_GAP:
            return self._record_gap(command)
        if command.kind == commands.GIVE_UP:
            return damage.give_up(self.state, self.number, commands.read_body(command, GiveUp))
        if command.kind == commands.STATEMENT:
            return accounts.make_statement(self.state, self.number, commands.read_body(command, MakeStatement))
        raise FrameError(f"raft command of unknown kind {command.kind}")

    def stream_states(self) -> tuple[StreamState, ...]:
        return tuple(stream.state for stream in self.state.streams.values())

    def mirror_states(self) -> tuple[StreamState, ...]:
        return tuple(mirror.state for mirror in self.state.mirrors.values())

    def log(self, name: str) -> Stream | None:
        """The stream or the mirror of that name."""
        return self.state.streams.get(name) or self.state.mirrors.get(name)

    def mirror_of_incarnation(self, incarnation: bytes) -> Mirror | None:
        """Under whatever name it is here."""
        mirrors_here = self.state.mirrors.values()
        return next((mirror for mirror in mirrors_here if mirror.state.incarnation == incarnation), None)

    def partitions(self) -> Iterator[tuple[StreamState, int, PartitionState]]:
        """Every partition that this group has, of retired streams and of mirrors too."""
        for stream in (*self.state.streams.values(), *self.state.mirrors.values()):
            for number in stream.state.partitions_of(self.number):
                yield stream.state, number, stream.partitions[number]

    # -- appending ----------------------------------------------------------------------------------------------------

    def _append(self, parcel: Parcel, digest: bytes) -> Taken:
        """`digest` is b"" where the leader has not made it."""
        envelope = parcel.envelope
        producer = self.state.producers.get(envelope.producer_id)
        if producer is None or producer.epoch != envelope.epoch:
            return _refused(envelope, "FENCED")
        stream = self.state.streams.get(envelope.stream)
        if stream is None or not self._has(envelope, stream.state):
            return _refused(envelope, "UNKNOWN_STREAM")
        progress = producer.progress.setdefault((envelope.incarnation, envelope.partition), Progress(answers=[]))
        if envelope.first_sequence <= progress.last_sequence:
            return Taken(_repeated(parcel, progress))
        if envelope.first_sequence != progress.last_sequence + 1:
            return _refused(envelope, "OUT_OF_ORDER", str(progress.last_sequence + 1))
        if envelope.revision < stream.state.revision or stream.state.retired:
            return _refused(envelope, "STALE_CONFIG", str(self.state.revision))
        return self._append_next(parcel, stream, progress, digest)

    def _has(self, envelope: Envelope, state: StreamState) -> bool:
        number = envelope.partition
        is_there = envelope.incarnation == state.incarnation and 0 <= number < state.partitions
        return is_there and state.group_of(number) == self.number

    def _append_next(self, parcel: Parcel, stream: Stream, progress: Progress, digest: bytes) -> Taken:
        """The parcel is the next of its producer: decide it for good, or refuse it for ids that are known."""
        envelope, partition = parcel.envelope, stream.partitions[parcel.envelope.partition]
        window_ms, now_ms = stream.state.dedup_window_ms, self.state.now_ms
        known = tuple(
            (index, offset)
            for index, message_id in envelope.ids
            if (offset := partition.find(message_id, now_ms, window_ms)) is not None
        )
        if known:
            return Taken(_refusal(envelope, "DUPLICATE_IDS", known=known))
        header = read_header(parcel.batch)
        failed = _failed_expectation(envelope, partition)
        if failed is not None:
            _spend(progress, envelope, Answer(envelope.first_sequence, header.crc, -1, *failed))
            if partition.tree is not None:
                accounts.spend(progress, envelope)
            return _refused(envelope, *failed)
        base_offset = partition.end_offset
        partition.end_offset += header.record_count
        _remember_ids(envelope, header, partition, stream.state, now_ms)
        _spend(progress, envelope, Answer(envelope.first_sequence, header.crc, base_offset))
        if partition.tree is None:
            digest = b""
        else:
            digest = digest or digest_of(parcel.batch)
            accounts.take(progress, envelope, header, digest)
            accounts.place(partition.tree, base_offset, header, digest)
        placement = Placement(
            stream.state, envelope.partition, base_offset, header, BODY_POSITION + parcel.batch_position, digest
        )
        return Taken(_appended(envelope, base_offset), placement)

    def _append_mirrored(self, command: Command) -> Mirrored:
        head, begin = commands.read_head(command, MirroredHead)
        joined = mirrors.append(self.state, self.number, head, command.body[begin:])
        if joined.stream is None or joined.refusal:
            return Mirrored(joined.end_offset, refusal=joined.refusal)
        begin += BODY_POSITION
        placements = tuple(
            Placement(joined.stream, joined.partition, header.base_offset, header, begin + position, digest)
            for (position, header), digest in zip(joined.batches, joined.digests, strict=True)
        )
        return Mirrored(joined.end_offset, placements)

    def _accept_loss(self, command: Command) -> LossAccepted:
        """Mirrors get none: what they lack is pulled again."""
        loss, position = commands.read_head(command, AcceptLoss)
        header, digest = read_header(command.body, position), digest_of(command.body[position:])
        placements = []
        for stream in self.state.streams.values():
            for number in stream.state.partitions_of(self.number):
                partition = stream.partitions[number]
                place = partition.end_offset, header, BODY_POSITION + position
                placements.append(Placement(stream.state, number, *place))
                if partition.tree is not None:
                    accounts.place(partition.tree, partition.end_offset, header, digest)
                partition.end_offset += header.record_count
        self.state.members = dict(loss.members)
        return LossAccepted(self.state.members, loss.who, tuple(placements))

    def _record_gap(self, command: Command) -> GapRecorded:
        """It ends no account: what is missing was never in the log."""
        request, position = commands.read_head(command, RecordGap)
        header = read_header(command.body, position)
        batch = command.body[position : position + header.size_bytes]
        noted = accounts.record_gap(self.state, self.number, request, read_gap(batch)[1].events)
        if noted.partition is None:
            return GapRecorded(noted.recorded, refusal=noted.refusal)
        partition, stream = noted.partition, self.state.streams[request.stream]
        placement = Placement(stream.state, request.partition, partition.end_offset, header, BODY_POSITION + position)
        assert partition.tree is not None
        accounts.place(partition.tree, partition.end_offset, header, digest_of(batch))
        partition.end_offset += header.record_count
        return GapRecorded(noted.recorded, placement)

    # -- producers ----------------------------------------------------------------------------------------------------

    def _open(self, request: OpenProducer) -> Opened:
        producer = self.state.made_producer_of(request.node, request.worker)
        if producer.nonce != request.nonce:
            producer.nonce = request.nonce
            producer.epoch += 1
        names = {stream.state.incarnation: name for name, stream in self.state.streams.items()}
        last = tuple(
            Reached(names[incarnation], incarnation, partition, progress.last_sequence, tuple(progress.answers))
            for (incarnation, partition), progress in producer.progress.items()
        )
        return Opened(producer.producer_id, producer.epoch, producer.nonce, last)

    # -- configuration ------------------------------------------------------------------------------------------------

    def _configure(self, proposal: Configure) -> Configured:
        """A higher revision is taken whole or refused whole; what is already in force is taken again without effect."""
        if proposal.revision <= self.state.revision:
            return Configured(self.state.revision, tuple(self.differences(proposal)))
        problems = tuple(problem for definition in proposal.streams for problem in self._unchangeable(definition))
        problems += tuple(self._needed_groups(proposal.groups))
        if problems:
            return Configured(self.state.revision, problems)
        self.state.revision, self.state.groups = proposal.revision, proposal.groups
        for definition in proposal.streams:
            self._define(definition)
        wanted = {definition.name for definition in proposal.streams}
        for name, stream in self.state.streams.items():
            if name not in wanted and not stream.state.retired:
                stream.state = msgspec.structs.replace(stream.state, retired=True, revision=proposal.revision)
        return Configured(proposal.revision)

    def _define(self, definition: StreamDefinition) -> None:
        present = self.state.streams.get(definition.name)
        if present is None:
            state = definition.committed(self.state.revision, definition.incarnation, self.state.groups)
            self._make(state)
            return
        state = definition.committed(self.state.revision, present.state.incarnation, present.state.groups)
        if _content(state) != _content(present.state):
            present.state = state
            accounts.follow(self.state, present)

    def _make(self, state: StreamState) -> None:
        made = Stream(state, [PartitionState() for _ in range(state.partitions)])
        self.state.streams[state.name] = made
        accounts.follow(self.state, made)

    def _unchangeable(self, definition: StreamDefinition) -> list[str]:
        present = self.state.streams.get(definition.name)
        if present is None:
            return []
        return [
            f"streams.{definition.name}.{field}: the log was made with {there!r}, the proposal says {proposed!r}; "
            f"this never changes in place: make a stream of another name"
            for field in ("partitions", "key", "account")
            if (there := getattr(present.state, field)) != (proposed := getattr(definition, field))
        ]

    def _needed_groups(self, proposed: int) -> Iterator[str]:
        """Why there cannot be so few groups."""
        for name, stream in self.state.streams.items():
            groups = {stream.state.group_of(number) for number in range(stream.state.partitions)}
            if max(groups) >= proposed:
                yield (
                    f"groups: partitions of {name} are in group {max(groups)}, the proposal says groups = {proposed}; "
                    f"write at least {max(groups) + 1}"
                )

    def _adopt(self, told: Adopt) -> Configured:
        """Streams are never given up, so what is told is all there is."""
        if told.revision > self.state.revision:
            self.state.revision, self.state.groups = told.revision, told.groups
            for state in told.streams:
                present = self.state.streams.get(state.name)
                if present is None:
                    self._make(state)
                else:
                    present.state = state
                    accounts.follow(self.state, present)
        return Configured(self.state.revision)

    def differences(self, proposal: Configure) -> list[str]:
        """What the committed configuration says otherwise than a proposal that does not supersede it."""
        return [*self._other_groups(proposal.groups), *self._other_streams(proposal)]

    def _other_groups(self, proposed: int) -> list[str]:
        """While no stream was ever committed, the number of groups was not either."""
        if proposed == self.state.groups or not self.state.revision:
            return []
        return [f"groups: revision {self.state.revision}, which is in force, has {self.state.groups}"]

    def _other_streams(self, proposal: Configure) -> list[str]:
        proposed = {definition.name: _content(definition) for definition in proposal.streams}
        committed = {s.state.name: _content(s.state) for s in self.state.streams.values() if not s.state.retired}
        return [
            f"streams.{name}: revision {self.state.revision}, which is in force, "
            f"{'has it otherwise' if name in proposed and name in committed else 'does not have it'}"
            if name in proposed
            else f"streams.{name}: revision {self.state.revision}, which is in force, has it too"
            for name in sorted(proposed.keys() | committed.keys())
            if proposed.get(name) != committed.get(name)
        ]

    def _change_contract(self, request: ChangeContract) -> ContractChanged:
        wanted, present, now_ms = request.contract, self.state.contracts, self.state.now_ms
        try:
            return ContractChanged(contracts.change(present, wanted, removes=request.removes, now_ms=now_ms))
        except LogError as error:
            return ContractChanged(wanted, error)

    def _trim(self, request: Trim) -> Trimmed | None:
        stream = self.log(request.stream)
        if stream is None or stream.state.incarnation != request.incarnation:
            return None
        partition = stream.partitions[request.partition]
        accounts.trim(partition, request)
        damage.trim(partition)
        return Trimmed(stream.state, request.partition, partition.start_offset)


def _restored(snapshot: bytes) -> State:
    try:
        state = msgspec.msgpack.decode(snapshot, type=State)
    except UNREADABLE as error:
        raise FrameError(f"state: {error}") from error
    if not STATE_VERSION <= state.version <= COVERAGE_VERSION:
        raise FrameError(f"state of version {state.version}, ours are {STATE_VERSION} to {COVERAGE_VERSION}")
    return state


def _content(state: StreamState | StreamDefinition) -> dict[str, object]:
    fields = msgspec.structs.asdict(state)
    return {name: value for name, value in fields.items() if name not in ("incarnation", "revision", "groups")} | {
        "retired": fields.get("retired", False)
    }


def _failed_expectation(envelope: Envelope, partition: PartitionState) -> tuple[str, str] | None:
    """(reason, what the log has instead). On one partition JetStream's last sequence is the end offset."""
    expected = envelope.expect_last_sequence
    if expected is not None and expected != partition.end_offset:
        return "WRONG_LAST_SEQUENCE", str(partition.end_offset)
    if envelope.expect_last_id is not None and envelope.expect_last_id != partition.last_id:
        return "WRONG_LAST_ID", partition.last_id.decode("utf-8", "replace")
    return None


def _remember_ids(
    envelope: Envelope, header: BatchHeader, partition: PartitionState, state: StreamState, now_ms: int
) -> None:
    base_offset = partition.end_offset - header.record_count
    for index, message_id in envelope.ids:
        partition.remember(message_id, base_offset + index, now_ms)
    if header.attributes != CONTROL:  # a gap record is no message
        last_index, last_id = envelope.ids[-1] if envelope.ids else (-1, b"")
        partition.last_id = last_id if last_index == header.record_count - 1 else b""
    partition.forget(now_ms, state.dedup_window_ms, state.dedup_ids_max)


def _spend(progress: Progress, envelope: Envelope, answer: Answer) -> None:
    progress.last_sequence = envelope.last_sequence
    progress.answers.append(answer)
    del progress.answers[:-PRODUCER_RESULTS_KEPT]


def _repeated(parcel: Parcel, progress: Progress) -> Appended | Refused:
    envelope, crc = parcel.envelope, read_header(parcel.batch).crc
    for answer in progress.answers:
        if (answer.first_sequence, answer.crc) == (envelope.first_sequence, crc):
            if answer.reason:
                return _refusal(envelope, answer.reason, answer.found)
            return _appended(envelope, answer.base_offset)
    # Another batch under these sequences, or an answer that is long forgotten: guessing one would be a lie.
    return _refusal(envelope, "OUT_OF_ORDER", str(progress.last_sequence + 1))


def _appended(envelope: Envelope, base_offset: int) -> Appended:
    return Appended(
        envelope.producer_id, envelope.epoch, envelope.stream, envelope.incarnation, envelope.partition,
        envelope.first_sequence, base_offset,
    )  # fmt: skip


def _refusal(envelope: Envelope, reason: str, found: str = "", known: tuple[tuple[int, int], ...] = ()) -> Refused:
    return Refused(
        envelope.producer_id, envelope.epoch, envelope.stream, envelope.incarnation, envelope.partition,
        envelope.first_sequence, reason, found, known,
    )  # fmt: skip


def _refused(envelope: Envelope, reason: str, found: str = "") -> Taken:
    return Taken(_refusal(envelope, reason, found))
