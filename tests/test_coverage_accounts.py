"""Accounts and trees in the replicated state: each count, chain and root against what is computed from the batches."""

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.streams import definition, event, parcel, state

from protocol import envelope
from protocol.coverage import CHAIN_START, chained, digest_of
from protocol.errors import FrameError
from protocol.gaps import ACCEPTED_LOSS, GATEWAY_LOST, LOST, Gap, encode_gap, missing, read_gap
from protocol.limits import ACCOUNT_MARKS_KEPT, ACCOUNT_RUNS_KEPT, GAPS_RECORDED_KEPT, STATEMENTS_KEPT
from protocol.merkle import EMPTY_ROOT, frontier_of, leaf_hash, root_of
from protocol.records import encode_batch, place_batch, read_header
from protocol.streams import StreamDefinition
from sinkd.core import commands
from sinkd.core.accounts import Stated, ended_runs
from sinkd.core.appending import append_command, mirrored_command
from sinkd.core.commands import (
    AcceptLoss,
    Adopt,
    BeginRebuild,
    Configure,
    MakeMirror,
    MakeStatement,
    MirroredHead,
    OpenProducer,
    RecordGap,
    Trim,
)
from sinkd.core.machine import GapRecorded, Machine, Mirrored, Taken
from sinkd.core.mirrors import mirror_of
from sinkd.core.state import COVERAGE_VERSION, STATE_VERSION, Account, Recorded, Totals, Tree, TreeStart

T = 1_700_000_000_000
RUN, NEXT_RUN, STATEMENT_ID = b"run-one!", b"run-two!", b"s" * 16
COVERED, WIDE = definition("orders", covered=True), definition("wide", partitions=2, covered=True)
VECTORS = Path(__file__).parent / "data" / "vectors" / "state.json"


class Log:
    """A machine, and what each partition of its logs holds: (base offset, batch), as the shell would read it back."""

    def __init__(self, *streams: StreamDefinition, number: int = 0) -> None:
        self.machine = Machine(number=number)
        self.batches: dict[tuple[bytes, int], list[tuple[int, bytes]]] = {}
        self.revision = 0
        if streams:
            self.configure(*streams)
        self.open()

    def apply(self, command: bytes) -> object:
        result = self.machine.apply(command)
        for one in result if isinstance(result, list) else [result]:
            placements = one.placements if hasattr(one, "placements") else [getattr(one, "placement", None)]
            for placed in filter(None, placements):
                batch = command[placed.position : placed.position + placed.header.size_bytes]
                key = placed.stream.incarnation, placed.partition
                self.batches.setdefault(key, []).append((placed.base_offset, batch))
        return result

    def configure(self, *streams: StreamDefinition) -> None:
        self.revision += 1
        self.apply(commands.encode(commands.CONFIGURE, T, Configure(self.revision, streams)))

    def open(self, nonce: bytes = b"n", node: str = "gw") -> None:
        self.apply(commands.encode(commands.OPEN, T, OpenProducer(node, 0, nonce)))

    def append(self, *parcels: bytes) -> list[Taken]:
        heads = [one.envelope for parcel in parcels for one in envelope.unpack(parcel)]
        return self.apply(append_command(self.machine.state, T, heads, parcels))

    def record(self, run: bytes = RUN, reason: str = LOST, events: int = 3, **other: object) -> GapRecorded:
        fields = {"node": "gw", "worker": 0, "stream": "orders", "incarnation": b"orders", "partition": 0}
        head = RecordGap(**{**fields, "run": run, "reason": reason, **other})
        return self.apply(commands.encode_record_gap(T, head, encode_gap(Gap(reason, events, 1, 2, "gw"))))

    def state_of(self, statement_id: bytes = STATEMENT_ID, log: str = "orders", partition: int = 0) -> Stated:
        request = MakeStatement(log, b"orders", partition, statement_id)
        return self.apply(commands.encode(commands.STATEMENT, T, request))

    def make_mirror(self, **settings: object) -> None:
        told = mirror_of("eu", state(incarnation=b"origin", **settings))
        self.apply(commands.encode(commands.MIRROR, T, MakeMirror(told)))

    def mirror(self, *batches: bytes, tree_begin: int = -1) -> Mirrored:
        after = self.machine.state.mirrors["orders@eu"].last_crcs.get(0, 0)
        head = MirroredHead("orders@eu", b"origin", 0, after, tree_begin)
        return self.apply(mirrored_command(self.machine.state, T, head, b"".join(batches)))

    def progress(self, producer: int = 1, partition: int = 0, incarnation: bytes = b"orders"):
        return self.machine.state.producers[producer].progress[incarnation, partition]

    @property
    def account(self) -> Account:
        return self.progress().account

    def tree(self, log: str = "orders", partition: int = 0) -> Tree | None:
        return self.machine.log(log).partitions[partition].tree

    def check(self) -> None:
        """Each tree is that of the batches from where it begins, and each account comes to what was spent."""
        for stream, number, partition in self.machine.partitions():
            tree, batches = partition.tree, self.batches.get((stream.incarnation, number), [])
            assert (tree is not None) == stream.covered
            if tree is not None:
                leaves = [leaf_hash(base, digest_of(one)) for base, one in batches if base >= tree.begin_offset]
                assert (tree.frontier, tree.size) == (frontier_of(leaves), len(leaves))
        for producer in self.machine.state.producers.values():
            for progress in producer.progress.values():
                if (account := progress.account) is not None:
                    spent = account.held + account.duplicates + account.refused + account.gaps
                    assert progress.last_sequence - account.base == spent


def test_it_is_one_whether_the_leader_has_made_the_digests_or_each_member() -> None:
    told, own = Log(COVERED), Log(COVERED)
    parcels = [parcel(1, b"a", b"b", run=RUN), parcel(3, b"c", mark=True)]
    placed = told.append(*parcels)
    assert commands.decode(append_command(told.machine.state, T, [], [])).kind == commands.APPEND
    by_itself = own.apply(commands.encode_append(T, parcels))
    assert told.machine.snapshot() == own.machine.snapshot()
    assert [one.placement.digest for one in placed] == [one.placement.digest for one in by_itself]
    assert [one.answer for one in placed] == [one.answer for one in by_itself]
    told.check()


@pytest.mark.parametrize("cut", [12, 20, 70])
def test_digests_that_are_cut_are_no_command(cut: int) -> None:
    log = Log(COVERED)
    command = commands.encode_digested(T, [], [bytes(32), bytes(32)])
    with pytest.raises(FrameError, match="raft command"):
        log.machine.apply(command[:cut])


@pytest.fixture
def log() -> Log:
    log = Log(COVERED, WIDE)
    yield log
    log.check()


def gap_parcel(first_sequence: int, events: int, **fields: object) -> bytes:
    head = {
        "producer_id": 1, "epoch": 1, "stream": "orders", "incarnation": b"orders", "partition": 0,
        "first_sequence": first_sequence, "sequence_count": events, "revision": 1,
    }  # fmt: skip
    gap = encode_gap(Gap("outbox_overflow", events, 1, 2))
    return envelope.pack(envelope.Envelope(**{**head, **fields}), gap)


def chain_of(*parcels: bytes) -> bytes:
    chain = CHAIN_START
    for one in parcels:
        ((head, batch, _),) = envelope.unpack(one)
        chain = chained(chain, head.first_sequence, head.sequence_count, digest_of(batch))
    return chain


# -- accounts ---------------------------------------------------------------------------------------------------------


def test_an_account_counts_what_became_of_each_sequence_and_chains_what_was_appended(log):
    whole = parcel(1, b"a", b"b", run=RUN)
    fewer = parcel(3, b"c", sequence_count=3)  # two of them were known already
    unmet = parcel(6, b"d", expect_last_sequence=99)
    given_up = gap_parcel(7, 5)
    log.append(whole, fewer, unmet, given_up)
    sizes = sum(len(batch) for _, batch in log.batches[b"orders", 0])
    counts = {"held": 3, "batches": 3, "size_bytes": sizes, "duplicates": 2, "refused": 1, "gaps": 5}
    assert log.account == Account(RUN, 0, chain_of(whole, fewer, given_up), **counts)
    assert (log.progress().last_sequence, log.tree().control) == (11, 1)


def test_a_run_begins_behind_the_sequence_before_it_and_the_counts_before_are_kept(log):
    log.append(parcel(1, b"a", run=RUN), parcel(2, b"b", b"c"), gap_parcel(4, 2))
    first = log.account
    anew = parcel(6, b"d", run=NEXT_RUN), parcel(7, b"e")
    log.append(*anew)
    counts = first.held, first.batches, first.size_bytes, first.duplicates, first.refused, first.gaps
    account = log.account
    assert (account.run, account.base, account.held, account.gaps, account.batches) == (NEXT_RUN, 5, 2, 0, 2)
    assert (account.chain, account.before) == (chain_of(*anew), Totals(*counts))
    log.append(parcel(8, b"f", run=b"run-tri!"))
    assert log.account.before.held == 5
    assert log.account.ended == [(RUN, 5), (NEXT_RUN, 7)]
    assert ended_runs(log.account) == [(b"", 0), (RUN, 5), (NEXT_RUN, 7)]
    for number in range(2 * ACCOUNT_RUNS_KEPT):
        log.append(parcel(9 + number, b"f", run=b"run %04d" % number))
    assert ended_runs(log.account) == log.account.ended
    assert len(log.account.ended) == ACCOUNT_RUNS_KEPT


def test_what_was_before_a_stream_was_covered_is_no_run():
    uncovered = Log(definition("orders", covered=False))
    uncovered.append(parcel(1, b"a", run=RUN), parcel(2, b"b"))
    uncovered.configure(COVERED)
    uncovered.append(parcel(3, b"c", run=NEXT_RUN, revision=2))
    assert ended_runs(uncovered.account) == [(b"", 2)]


def test_the_parcel_that_names_its_run_changes_nothing_when_it_comes_again(log):
    log.append(parcel(1, b"a", run=RUN), parcel(2, b"b"))
    before = log.machine.snapshot()
    log.append(parcel(1, b"a", run=RUN))
    assert log.machine.snapshot() == before


def test_a_run_may_begin_with_what_is_refused_for_good(log):
    log.append(parcel(1, b"a", run=RUN, expect_last_sequence=7))
    assert log.account == Account(RUN, 0, CHAIN_START, refused=1)
    log.append(parcel(2, b"b"))
    assert (log.account.held, log.account.chain) == (1, chain_of(parcel(2, b"b")))


def test_what_is_refused_for_known_ids_is_in_no_account(log):
    log.append(parcel(1, b"a", run=RUN, ids=((0, b"one"),)), parcel(2, b"a", ids=((0, b"one"),)))
    assert (log.account.held, log.account.refused, log.progress().last_sequence) == (1, 0, 1)


def test_a_producer_that_names_no_run_has_no_account(log):
    log.append(parcel(1, b"a"), parcel(2, b"b", mark=True), parcel(3, b"c", run=b"short"))
    assert log.account is None


def test_the_chain_is_kept_at_the_latest_marks(log):
    parcels = [parcel(1 + n, b"%d" % n, mark=n % 2 == 0, run=RUN if n == 0 else b"") for n in range(50)]
    log.append(*parcels)
    expected = [(1 + n, chain_of(*parcels[: n + 1])) for n in range(0, 50, 2)]
    assert log.account.marks == expected[-ACCOUNT_MARKS_KEPT:]


def test_producers_and_partitions_have_accounts_of_their_own(log):
    log.open(node="other")
    place = {"stream": "wide", "incarnation": b"wide", "partition": 1}
    log.append(
        parcel(1, b"a", run=RUN),
        parcel(1, b"b", b"c", run=NEXT_RUN, **place),
        parcel(1, b"d", producer_id=2, run=RUN),
    )
    held = log.account.held, log.progress(1, 1, b"wide").account.held, log.progress(2).account.held
    assert held == (1, 2, 1)


# -- which logs are covered -------------------------------------------------------------------------------------------


def test_a_log_that_is_not_covered_has_neither_tree_nor_account_and_its_state_is_read_by_older_sinks():
    log = Log(definition("orders"))
    log.append(parcel(1, b"a", run=RUN, mark=True))
    log.check()
    assert (log.tree(), log.account, log.machine.state.version) == (None, None, STATE_VERSION)


def test_coverage_begins_at_the_end_of_a_log_that_is_there_and_ends_with_all_that_it_knew():
    log = Log(definition("orders"))
    log.append(parcel(1, b"a", b"b"))
    log.configure(COVERED)
    assert (log.tree(), log.machine.state.version) == (Tree(2), COVERAGE_VERSION)
    log.append(parcel(3, b"c", revision=2, run=RUN))
    log.record()
    log.check()
    assert (log.tree().size, log.account.base, log.account.held) == (2, 2, 1)
    log.configure(definition("orders"))
    log.check()
    assert (log.tree(), log.account, log.progress().recorded, log.progress().lost) == (None, None, [], 0)
    log.append(parcel(4, b"d", revision=3))
    log.configure(COVERED)
    log.append(parcel(5, b"e", revision=4))  # the same process, which has named its run before
    log.check()
    assert (log.tree().begin_offset, log.tree().size, log.account) == (5, 1, None)


def test_another_setting_of_a_covered_stream_leaves_its_tree_alone(log):
    log.append(parcel(1, b"a", run=RUN))
    log.configure(definition("orders", covered=True, reply="header"), WIDE)
    assert (log.tree().size, log.account.held) == (1, 1)


def test_a_retired_stream_keeps_its_tree(log):
    log.append(parcel(1, b"a", run=RUN))
    log.configure(WIDE)
    log.configure(COVERED, WIDE)
    log.append(parcel(2, b"b", revision=3))
    assert (log.tree().size, log.account.held) == (2, 2)


def test_another_group_covers_what_it_adopts():
    log = Log(number=1)
    for revision, covered in ((1, False), (2, True), (3, False)):
        told = state("wide", revision=revision, partitions=2, groups=2, covered=covered)
        log.apply(commands.encode(commands.ADOPT, T, Adopt(revision, (told,), 2)))
        log.check()
    fresh = Log(number=1)
    told = state("wide", partitions=2, groups=2, covered=True)
    fresh.apply(commands.encode(commands.ADOPT, T, Adopt(1, (told,), 2)))
    (mine,) = told.partitions_of(1)
    fresh.append(parcel(1, b"a", stream="wide", incarnation=b"wide", partition=mine, run=RUN))
    fresh.check()
    assert fresh.tree("wide", mine).size == 1
    assert fresh.record(stream="wide", incarnation=b"wide", partition=mine).recorded.offset == 1
    asked = MakeStatement("wide", b"wide", mine, STATEMENT_ID)
    assert fresh.apply(commands.encode(commands.STATEMENT, T, asked)).statement.tree.size == 2
    fresh.check()
    assert fresh.record(stream="wide", incarnation=b"wide", partition=1 - mine).refusal == (
        f"partition {1 - mine} of wide is not in group 1"
    )


# -- trees ------------------------------------------------------------------------------------------------------------


def test_a_tree_grows_with_each_batch_and_a_trim_leaves_it(log):
    assert root_of(log.tree().frontier) == EMPTY_ROOT
    log.append(*(parcel(1 + n, b"%d" % n) for n in range(11)))
    before = msgspec.msgpack.encode(log.tree())
    log.apply(commands.encode(commands.TRIM, T, Trim("orders", b"orders", 0, 5)))
    assert (len(log.tree().frontier), log.tree().size) == (3, 11)
    assert msgspec.msgpack.encode(log.tree()) == before


def test_a_trim_that_says_how_the_tree_is_there_is_remembered_and_others_change_nothing(log):
    log.append(*(parcel(1 + n, b"%d" % n) for n in range(11)))
    partition = log.machine.log("orders").partitions[0]

    def trim(*fields: object) -> tuple[int, TreeStart | None]:
        log.apply(commands.encode(commands.TRIM, T, Trim("orders", b"orders", 0, *fields)))
        return partition.start_offset, partition.tree_start

    at_5 = TreeStart(5, 5, (b"4", b"1"))
    assert trim(5, 5, (b"4", b"1")) == (5, at_5)
    assert trim(5, 9, (b"8", b"1")) == (5, at_5)
    assert trim(4, 4, (b"4",)) == (5, at_5)
    assert trim(99, 99, (b"?",)) == (11, at_5)  # there is no such offset: nobody knows the tree at 11
    assert Machine(log.machine.snapshot()).state == log.machine.state
    log.configure(definition("orders"))
    assert (partition.tree, partition.tree_start) == (None, None)


def test_the_gap_record_of_an_accepted_loss_is_a_leaf_of_each_log(log):
    log.append(parcel(1, b"a", run=RUN))
    gap = encode_gap(Gap(ACCEPTED_LOSS, 0, 0, T, "192.0.2.7"))
    log.apply(commands.encode_loss(T, AcceptLoss((("s1", "s1:6334"),), "192.0.2.7"), gap))
    log.check()
    sizes = [log.tree(name, number).size for name, number in (("orders", 0), ("wide", 0), ("wide", 1))]
    assert (sizes, log.tree().control, log.account.gaps) == ([2, 1, 1], 1, 0)


def test_the_state_of_a_log_does_not_grow_with_it(log):
    def size() -> int:
        return len(log.machine.snapshot())

    def fill(first: int, last: int) -> None:
        log.append(*(parcel(n, b"x" * 50, mark=True, run=RUN if n == 1 else b"") for n in range(first, last + 1)))

    fill(1, 1023)
    before = size()
    fill(1024, 2047)
    assert size() - before <= 100  # one hash more, and longer numbers


def mirrored(offset: int, *payloads: bytes) -> bytes:
    return place_batch(encode_batch([event(one) for one in payloads]), offset, 3)


def test_a_mirror_has_the_tree_of_its_origin(log):
    log.append(parcel(1, b"a", b"b"), gap_parcel(3, 4), parcel(7, b"c"))
    log.make_mirror(covered=True)
    log.mirror(*(place_batch(batch, base, 3) for base, batch in log.batches[b"orders", 0]))
    assert log.tree("orders@eu") == log.tree() == Tree(0, 3, log.tree().frontier, control=1)
    assert log.tree("orders@eu").trimmed == 0


def test_a_mirror_that_lacks_what_its_origin_let_go_of_says_so(log):
    log.make_mirror(covered=True)
    log.mirror(*missing(0, 10, "trimmed", "eu"), mirrored(10, b"a"))
    assert (log.tree("orders@eu").size, log.tree("orders@eu").control, log.tree("orders@eu").trimmed) == (2, 10, 10)


def test_a_control_batch_of_somebody_else_is_a_leaf_like_any(log):
    log.make_mirror(covered=True)
    foreign = bytearray(encode_gap(Gap(LOST, 1, 1, 2)))
    foreign[-60:] = bytes(60)
    log.mirror(bytes(foreign))
    assert (log.tree("orders@eu").size, log.tree("orders@eu").control, log.tree("orders@eu").trimmed) == (1, 1, 0)


def test_a_mirror_follows_its_origin_in_being_covered(log):
    log.make_mirror()
    log.mirror(mirrored(0, b"a"))
    assert log.tree("orders@eu") is None
    log.make_mirror(covered=True)
    log.mirror(mirrored(1, b"b"))
    log.check()
    assert (log.tree("orders@eu").begin_offset, log.tree("orders@eu").size) == (1, 1)
    log.make_mirror()
    assert log.tree("orders@eu") is None


@pytest.mark.parametrize("covered", [False, True])  # whether its settings have come already
def test_the_tree_of_a_mirror_begins_where_that_of_its_origin_does(covered):
    log = Log()
    log.make_mirror(covered=covered)
    log.mirror(mirrored(0, b"a"), mirrored(1, b"b"), tree_begin=-1)
    log.mirror(mirrored(2, b"c"), mirrored(3, b"d"), mirrored(4, b"e"), tree_begin=3)
    log.mirror(mirrored(5, b"f"), tree_begin=3)
    log.make_mirror(covered=True)
    log.check()
    assert (log.tree("orders@eu").begin_offset, log.tree("orders@eu").size) == (3, 3)
    assert log.machine.state.version == COVERAGE_VERSION
    log.mirror(mirrored(6, b"g"), tree_begin=6)  # its origin was not covered for a while
    log.check()
    assert (log.tree("orders@eu").begin_offset, log.tree("orders@eu").size) == (6, 1)


def test_a_gap_over_the_beginning_of_a_tree_leaves_the_tree_that_is_there(log):
    log.make_mirror(covered=True)
    log.mirror(*missing(0, 10, "trimmed", "eu"), mirrored(10, b"a"), tree_begin=4)
    assert (log.tree("orders@eu").begin_offset, log.tree("orders@eu").trimmed) == (0, 10)


def test_logs_that_come_back_have_trees(log):
    told = mirror_of("us", state(incarnation=b"origin", covered=True))
    log.apply(commands.encode(commands.BEGIN_REBUILD, T, BeginRebuild("us", "eu", (told,))))
    assert log.tree("orders@us~1") == Tree(0)


# -- what is missing for good -----------------------------------------------------------------------------------------


def test_a_gap_record_is_written_once_for_a_run_and_reason(log):
    log.append(parcel(1, b"a", run=RUN))
    first = log.record(events=3)
    assert first.recorded == Recorded(RUN, LOST, 3, 1)
    assert (first.placement.base_offset, first.placement.stream.name) == (1, "orders")
    again = log.record(events=4)
    assert (again.recorded, again.placement, again.refusal) == (first.recorded, None, "")
    others = log.record(reason=GATEWAY_LOST), log.record(run=NEXT_RUN)
    assert [one.recorded.offset for one in others] == [2, 3]
    assert [read_gap(batch)[1].reason for _, batch in log.batches[b"orders", 0][1:]] == [LOST, GATEWAY_LOST, LOST]
    assert (log.progress().lost, log.account.gaps, log.tree().control, log.tree().size) == (9, 0, 3, 4)
    log.append(parcel(2, b"b"))
    assert log.batches[b"orders", 0][-1][0] == 4


def test_a_gap_record_of_a_producer_that_has_sent_nothing_yet(log):
    assert log.record().recorded.offset == 0
    assert (log.progress().last_sequence, log.account) == (0, None)
    log.append(parcel(1, b"a", run=NEXT_RUN))
    assert log.progress().recorded == [Recorded(RUN, LOST, 3, 0)]
    log.open(nonce=b"again")  # its gateway is told of a partition that it has reached nothing in


def test_a_gap_record_of_a_gateway_that_nobody_has_heard_of_counts_for_it_when_it_comes(log):
    assert log.record(node="later").recorded.offset == 0
    assert log.record(node="gw", worker=3).recorded.offset == 1
    log.open(node="later")
    producer = log.machine.state.producer_of("later", 0)
    assert (producer.producer_id, producer.epoch) == (2, 1)
    log.append(parcel(1, b"a", run=NEXT_RUN, producer_id=2))
    assert (log.progress(2).account.held, log.progress(2).lost) == (1, 3)
    assert log.record(node="later").recorded.offset == 0


def test_what_is_recorded_is_bounded(log):
    for number in range(2 * GAPS_RECORDED_KEPT):
        log.record(run=b"run-%04d" % number, events=1)
    assert [one.run for one in log.progress().recorded] == [
        b"run-%04d" % number for number in range(GAPS_RECORDED_KEPT, 2 * GAPS_RECORDED_KEPT)
    ]
    assert log.progress().lost == 2 * GAPS_RECORDED_KEPT


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"stream": "nothing"}, "there is no log nothing of that incarnation"),
        ({"incarnation": b"other"}, "there is no log orders of that incarnation"),
        ({"partition": 1}, "partition 1 of orders is not in group 0"),
        ({"partition": -1}, "partition -1 of orders is not in group 0"),
    ],
)
def test_a_gap_record_of_what_is_not_here_is_refused(log, wrong, says):
    before = log.machine.snapshot()
    refused = log.record(**wrong)
    assert (refused.recorded, refused.placement, refused.refusal) == (None, None, says)
    assert log.machine.snapshot() == before


def test_a_log_that_is_not_covered_gets_no_gap_record():
    log = Log(definition("orders"))
    assert log.record().refusal == log.state_of().refusal == "orders is not covered"


# -- statements -------------------------------------------------------------------------------------------------------


def test_a_statement_is_what_the_group_said_when_it_was_asked_first(log):
    log.open(node="other")
    log.append(parcel(1, b"a", run=RUN, mark=True), parcel(1, b"b", producer_id=2, run=NEXT_RUN))
    log.record(events=2)
    log.apply(commands.encode(commands.TRIM, T, Trim("orders", b"orders", 0, 1)))
    said = log.state_of().statement
    account = msgspec.msgpack.decode(msgspec.msgpack.encode(log.account), type=Account)
    assert (said.log, said.time_ms, said.start_offset, said.end_offset) == ("orders", T, 1, 3)
    assert root_of(said.tree.frontier) == root_of(log.tree().frontier)
    one, other = said.accounts
    assert (one.node, one.last_sequence, one.account, one.lost) == ("gw", 1, account, 2)
    assert one.recorded == (Recorded(RUN, LOST, 2, 2),)
    assert (other.node, other.account.held, other.recorded) == ("other", 1, ())
    log.append(parcel(2, b"c", mark=True))
    assert log.state_of().statement == said
    assert said.accounts[0].account == account
    later = log.state_of(b"t" * 16).statement
    assert (later.end_offset, later.accounts[0].account.held, later.tree.size) == (4, 2, 4)


def test_the_latest_statements_are_kept(log):
    names = [b"%016d" % number for number in range(2 * STATEMENTS_KEPT)]
    for name in names:
        log.state_of(name)
    assert [one.statement_id for one in log.machine.state.statements] == names[-STATEMENTS_KEPT:]


def test_a_statement_of_a_mirror_has_its_tree_and_no_accounts(log):
    log.make_mirror(covered=True)
    log.mirror(mirrored(0, b"a"))
    request = MakeStatement("orders@eu", b"origin", 0, STATEMENT_ID)
    said = log.apply(commands.encode(commands.STATEMENT, T, request)).statement
    assert (said.tree.size, said.end_offset, said.accounts) == (1, 1, ())


def test_a_statement_that_cannot_be_made_is_refused(log):
    log.state_of()
    before = log.machine.snapshot()
    assert log.state_of(log="wide").refusal == "a statement of that id speaks of another partition"
    assert log.state_of(b"other" * 4, log="wide").refusal == "there is no log wide of that incarnation"
    assert log.state_of(b"t" * 16, partition=3).refusal == "partition 3 of orders is not in group 0"
    assert log.state_of(b"short").refusal == "a statement's id of 5 bytes, 16 are due"
    assert log.machine.snapshot() == before


# -- snapshots --------------------------------------------------------------------------------------------------------


def snapshots() -> list[object]:
    return [pytest.param(row, id=row["name"]) for row in json.loads(VECTORS.read_text())]


@pytest.mark.parametrize("row", snapshots())
def test_snapshots_of_older_sinks_are_read_and_coverage_can_begin_there(row):
    log = Log()
    log.machine.restore(bytes.fromhex(row["hex"]))
    assert log.machine.state.version == row["version"]
    if row["version"] == COVERAGE_VERSION:
        assert Machine(log.machine.snapshot()).state == log.machine.state
        assert (log.account.run, log.tree().size, log.progress().lost) == (RUN, 3, 3)
        return
    assert (log.tree(), log.account) == (None, None)
    log.revision = log.machine.state.revision
    log.configure(COVERED)
    assert (log.tree(), log.machine.state.version) == (Tree(2), COVERAGE_VERSION)
    log.append(parcel(3, b"c", revision=2, run=RUN))
    assert (log.tree().size, log.account.base, log.account.held) == (1, 2, 1)
    assert Machine(log.machine.snapshot()).state == log.machine.state


runs = st.sampled_from((b"", RUN, NEXT_RUN))
some_parcels = st.builds(
    lambda sequence, count, more, fields: parcel(sequence, *[b"x"] * count, sequence_count=count + more, **fields),
    st.integers(1, 8),
    st.integers(1, 3),
    st.integers(0, 2),
    st.fixed_dictionaries({"run": runs, "mark": st.booleans()}, optional={"expect_last_sequence": st.integers(0, 3)}),
)
some_commands = st.one_of(
    st.builds(lambda one: commands.encode_append(T, one), st.lists(some_parcels, max_size=4)),
    st.builds(lambda at, events: commands.encode_append(T, [gap_parcel(at, events)]), st.integers(1, 8), runs.map(len)),
    st.builds(
        lambda revision, covered: commands.encode(
            commands.CONFIGURE, T, Configure(revision, (definition("orders", covered=covered),))
        ),
        st.integers(1, 4),
        st.booleans(),
    ),
    st.builds(
        lambda run: commands.encode_record_gap(
            T, RecordGap("gw", 0, "orders", b"orders", 0, run, LOST), encode_gap(Gap(LOST, 1, 1, 2))
        ),
        runs,
    ),
    st.builds(
        lambda name: commands.encode(commands.STATEMENT, T, MakeStatement("orders", b"orders", 0, name)),
        st.sampled_from((b"1" * 16, b"2" * 16)),
    ),
)


@settings(max_examples=200)
@given(st.booleans(), st.lists(some_commands, max_size=25), st.integers(0, 25))
def test_whatever_happens_members_agree_and_trees_and_sums_are_those_of_the_batches(covered, history, cut):
    log = Log(definition("orders", covered=covered))
    other = Machine(log.machine.snapshot())
    for number, command in enumerate(history):
        if number == cut:
            other = Machine(other.snapshot())
        log.apply(command)
        other.apply(command)
        log.check()
    assert other.snapshot() == log.machine.snapshot()


def test_the_header_of_a_recorded_gap_takes_one_offset(log):
    placed = log.record().placement
    assert read_header(log.batches[b"orders", 0][0][1]).next_offset == 1
    assert placed.header.record_count == 1
