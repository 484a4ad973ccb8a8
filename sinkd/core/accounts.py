"""Accounts of producers and trees of logs: what a group says of itself, in its replicated state (`protocol.coverage`).

    parcel, committed ─► D, once ─┬─► account of its producer in that partition: chain, counts, chain at marks
                                  └─► tree of the log: one leaf more

Who is accounted for is decided with the stream's settings, by a command: so trees begin and end at the same offset on
all members. A tree begins at the end that the log has then; an account with the first batch that names its run.
Neither grows with the log: an account has a fixed number of marks, and a tree's frontier one hash for each bit of its
size.

An account counts what its run has spent of sequences, each as what it came to: held, duplicate, refused (an expectation
that failed) or given up (the gateway's own gap records). Batches that were appended are chained, gap records too.

What a gateway has named and nobody has any more is written into the log by whoever leads, once for each run and reason
(`RecordGap`). A *statement* freezes what the group says of a partition at one command, so that all its members, and
whoever asks again, speak of the same.

A mirror has a tree, and no accounts. It begins where that of its origin does, which comes with the batches, if that is
not behind it already. It is its origin's as long as both began at the same offset and the mirror lacks nothing: offsets
that the origin had let go of are under a gap record that the origin does not have (`trimmed`).
"""

from typing import NamedTuple

import msgspec

from protocol.coverage import CHAIN_START, RUN_BYTES, chained
from protocol.envelope import Envelope
from protocol.errors import FrameError
from protocol.gaps import TRIMMED, read_gap
from protocol.limits import (
    ACCOUNT_MARKS_KEPT,
    ACCOUNT_RUNS_KEPT,
    GAPS_RECORDED_KEPT,
    STATEMENT_ID_BYTES,
    STATEMENTS_KEPT,
)
from protocol.merkle import grow, leaf_hash
from protocol.records import CONTROL, BatchHeader
from sinkd.core.commands import MakeStatement, RecordGap, Trim
from sinkd.core.state import (
    COVERAGE_VERSION,
    Account,
    PartitionState,
    Progress,
    Recorded,
    State,
    StatedAccount,
    Statement,
    Stream,
    Totals,
    Tree,
    TreeStart,
)

_COUNTS = Totals.__struct_fields__


class Stated(NamedTuple):
    """The statement of that id; with a `refusal` none was made."""

    statement: Statement | None
    refusal: str = ""


class Noted(NamedTuple):
    """What is recorded of a run: just now if `partition` is there, which the record is to be appended to."""

    recorded: Recorded | None
    partition: PartitionState | None = None
    refusal: str = ""


# -- which logs are covered -------------------------------------------------------------------------------------------


def follow(state: State, log: Stream) -> None:
    """Trees begin, or end with all accounts, as the log's settings say since this command."""
    if not log.state.covered:
        _end(state, log)
        return
    for partition in log.partitions:
        if partition.tree is None:
            begin(state, partition, partition.end_offset)


def begin(state: State, partition: PartitionState, offset: int) -> None:
    """A tree begins there, unless it did."""
    if partition.tree is None or partition.tree.begin_offset != offset:
        partition.tree, partition.tree_start = Tree(offset), None
        state.version = max(state.version, COVERAGE_VERSION)


def _end(state: State, log: Stream) -> None:
    for number, partition in enumerate(log.partitions):
        if partition.tree is None:
            continue
        partition.tree = partition.tree_start = None
        for producer in state.producers.values():
            progress = producer.progress.get((log.state.incarnation, number))
            if progress is not None:
                progress.account, progress.recorded, progress.lost = None, [], 0


def trim(partition: PartitionState, request: Trim) -> None:
    """The log begins where `request` says, unless it did so behind that already."""
    before = partition.start_offset
    partition.start_offset = max(before, min(request.to_offset, partition.end_offset))
    if partition.tree is not None and request.size >= 0 and before < partition.start_offset == request.to_offset:
        partition.tree_start = TreeStart(request.to_offset, request.size, request.frontier)


# -- batches ----------------------------------------------------------------------------------------------------------


def place(tree: Tree, base_offset: int, header: BatchHeader, digest: bytes) -> None:
    """The batch with that D stands at `base_offset` now, the end of the log before."""
    grow(tree.frontier, tree.size, leaf_hash(base_offset, digest))
    tree.size += 1
    if header.attributes == CONTROL:
        tree.control += header.last_offset_delta + 1


def place_mirrored(tree: Tree, header: BatchHeader, digest: bytes, batch: memoryview) -> None:
    """The same in a mirror."""
    place(tree, header.base_offset, header, digest)
    if header.attributes == CONTROL and _is_trimmed(batch):
        tree.trimmed += header.last_offset_delta + 1


def _is_trimmed(batch: memoryview) -> bool:
    try:
        return read_gap(batch)[1].reason == TRIMMED
    except FrameError:  # somebody else's control batch: the origin has it too
        return False


def take(progress: Progress, envelope: Envelope, header: BatchHeader, digest: bytes) -> None:
    """The parcel was appended."""
    account = _account(progress, envelope)
    if account is None:
        return
    account.chain = chained(account.chain, envelope.first_sequence, envelope.sequence_count, digest)
    account.batches += 1
    account.size_bytes += header.size_bytes
    if header.attributes == CONTROL:
        account.gaps += envelope.sequence_count
    else:
        account.held += header.record_count
        account.duplicates += envelope.sequence_count - header.record_count
    _mark(account, envelope)


def spend(progress: Progress, envelope: Envelope) -> None:
    """The parcel's sequences are spent, and it was not appended."""
    account = _account(progress, envelope)
    if account is not None:
        account.refused += envelope.sequence_count
        _mark(account, envelope)


def _account(progress: Progress, envelope: Envelope) -> Account | None:
    """The account that the parcel belongs to; None as long as its producer speaks of none."""
    account, run = progress.account, envelope.run
    if len(run) != RUN_BYTES or (account is not None and account.run == run):
        return account
    begun = Account(run, envelope.first_sequence - 1, CHAIN_START)
    if account is not None:
        begun.before = Totals(*(getattr(account.before, name) + getattr(account, name) for name in _COUNTS))
        begun.ended = [*account.ended, (account.run, begun.base)][-ACCOUNT_RUNS_KEPT:]
    progress.account = begun
    return begun


def ended_runs(account: Account) -> list[tuple[bytes, int]]:
    """(run, sequence that it came to) of those before it that are known; if these are all, in front of them (b"", where
    the first one began).
    """
    if len(account.ended) >= ACCOUNT_RUNS_KEPT:
        return account.ended
    before = account.before
    spent = before.held + before.duplicates + before.refused + before.gaps
    return [(b"", account.base - spent), *account.ended]


def _mark(account: Account, envelope: Envelope) -> None:
    if envelope.mark:
        account.marks.append((envelope.last_sequence, account.chain))
        del account.marks[:-ACCOUNT_MARKS_KEPT]


# -- gaps and statements ----------------------------------------------------------------------------------------------


def record_gap(state: State, number: int, request: RecordGap, events: int) -> Noted:
    """Notes that a gap record says of a run that so many events are missing, in group `number`; once for each reason.

    The record will stand at the end of the log.
    """
    stream = state.streams.get(request.stream)
    refusal = _not_covered(stream, number, request.stream, request.incarnation, request.partition)
    if stream is None or refusal:
        return Noted(None, refusal=refusal)
    producer = state.made_producer_of(request.node, request.worker)  # what is left after a loss may not know it
    progress = producer.progress.setdefault((request.incarnation, request.partition), Progress())
    for known in progress.recorded:
        if (known.run, known.reason) == (request.run, request.reason):
            return Noted(known)
    partition = stream.partitions[request.partition]
    recorded = Recorded(request.run, request.reason, events, partition.end_offset)
    progress.recorded.append(recorded)
    del progress.recorded[:-GAPS_RECORDED_KEPT]
    progress.lost += events
    return Noted(recorded, partition)


def make_statement(state: State, number: int, request: MakeStatement) -> Stated:
    """What group `number` says of a log's partition; asked again under the same id, it says the same as before."""
    for known in state.statements:
        if known.statement_id == request.statement_id:
            is_same = (known.log, known.incarnation, known.partition) == (
                request.log, request.incarnation, request.partition,
            )  # fmt: skip
            return Stated(known) if is_same else Stated(None, "a statement of that id speaks of another partition")
    log = state.streams.get(request.log) or state.mirrors.get(request.log)
    refusal = _not_covered(log, number, request.log, request.incarnation, request.partition)
    if log is None or refusal:
        return Stated(None, refusal)
    if len(request.statement_id) != STATEMENT_ID_BYTES:
        return Stated(None, f"a statement's id of {len(request.statement_id)} bytes, {STATEMENT_ID_BYTES} are due")
    partition = log.partitions[request.partition]
    assert partition.tree is not None
    statement = Statement(
        request.statement_id, request.log, request.incarnation, request.partition, state.now_ms,
        partition.start_offset, partition.end_offset, _copied(partition.tree),
        _stated_accounts(state, request.incarnation, request.partition),
    )  # fmt: skip
    state.statements.append(statement)
    del state.statements[:-STATEMENTS_KEPT]
    state.version = max(state.version, COVERAGE_VERSION)
    return Stated(statement)


def _not_covered(log: Stream | None, number: int, name: str, incarnation: bytes, partition: int) -> str:
    """Why nothing can be said of that partition, "" if it can."""
    if log is None or log.state.incarnation != incarnation:
        return f"there is no log {name} of that incarnation"
    if not 0 <= partition < log.state.partitions or log.state.group_of(partition) != number:
        return f"partition {partition} of {name} is not in group {number}"
    return "" if log.partitions[partition].tree is not None else f"{name} is not covered"


def _copied(tree: Tree) -> Tree:
    return msgspec.structs.replace(tree, frontier=list(tree.frontier))


def _stated_accounts(state: State, incarnation: bytes, partition: int) -> tuple[StatedAccount, ...]:
    """Of all producers that have one or miss something, in the order of their ids."""
    stated = []
    for _, producer in sorted(state.producers.items()):
        progress = producer.progress.get((incarnation, partition))
        if progress is None or (progress.account is None and not progress.lost):
            continue
        account = progress.account and msgspec.structs.replace(progress.account, marks=list(progress.account.marks))
        reached = progress.last_sequence, account, tuple(progress.recorded), progress.lost
        stated.append(StatedAccount(producer.node, producer.worker, *reached))
    return tuple(stated)
