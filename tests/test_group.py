"""A Raft group of one, on the real PySyncObj and the real journal: what is answered and when, what a restart brings."""

import asyncio
import threading
from pathlib import Path

import pysyncobj.syncobj
import pytest
from pysyncobj.journal import MemoryJournal

from protocol import envelope
from protocol.envelope import Envelope
from protocol.errors import FrameError, LogError
from protocol.gaps import LOST, Gap
from protocol.link import Appended, Refused
from protocol.records import Event, encode_batch
from protocol.streams import StreamDefinition
from sinkd.core import commands
from sinkd.core.commands import Configure, OpenProducer
from sinkd.core.formats import Checkpoint
from sinkd.core.machine import Configured, Machine
from sinkd.core.state import Recorded
from sinkd.shell.group import SYNC_AT_ONCE_BYTES, Group, UnknownOutcome
from sinkd.shell.journal import Journal

NOW_MS = 1_000_000


class NotingStore:
    """Stands for the store: remembers what was committed."""

    def __init__(self):
        self.noted, self.wakes = [], 0

    def note(self, placement, index, term):
        self.noted.append((placement.base_offset, index, term))

    def renew(self):
        pass

    def wake_readers(self):
        self.wakes += 1


class Running:
    """A group over the journal in `folder`."""

    def __init__(self, folder: Path, *, checkpoint=None, state=None, file_bytes=1 << 20):
        saved = Checkpoint(*checkpoint, b"") if checkpoint else None
        self.journal = Journal.open(folder, journal_id=b"j" * 16, file_bytes=file_bytes, checkpoint=saved)
        self.machine, self.store = Machine(state), NotingStore()
        applied = checkpoint[0] if checkpoint else 0
        self.group = Group("sink1", self.journal, self.machine, self.store, applied, lambda: NOW_MS, alone="here:1")

    async def __aenter__(self):
        self.task = asyncio.create_task(self.group.run())
        await asyncio.wait_for(self.group.caught_up(), 60)
        return self

    async def __aexit__(self, *exception):
        self.group.stop()
        await asyncio.gather(self.task, return_exceptions=True)
        self.group.close()

    async def configure(self, *, covered=False):
        definition = StreamDefinition(
            name="orders", incarnation=b"i" * 16, subjects=("orders.>",), partitions=1, key="subject", ack="quorum",
            reply="always", dedup_window_ms=1000, dedup_ids_max=10, outbox_bytes=1 << 20, outbox_overflow="block",
            outbox_stall_ms=1000, retention_age_ms=0, retention_bytes=0, covered=covered,
        )  # fmt: skip
        assert await self.group.submit(commands.CONFIGURE, Configure(1, (definition,))) == Configured(1)
        return await self.group.submit(commands.OPEN, OpenProducer("gw1", 0, b"n"))

    def append(self, opened, sequence, payload=b"x"):
        head = Envelope(
            producer_id=opened.producer_id, epoch=opened.epoch, stream="orders", incarnation=b"i" * 16, partition=0,
            first_sequence=sequence, sequence_count=1, revision=1,
        )  # fmt: skip
        parcel = envelope.pack(head, encode_batch([Event(b"orders.a", b"orders.a", 5, b"", payload)]))
        answer = asyncio.get_running_loop().create_future()
        self.group.append(head, parcel, answer.set_result)
        return answer


async def test_an_append_is_answered_with_its_offset(tmp_path):
    async with Running(tmp_path) as running:
        opened = await running.configure()
        answers = await asyncio.gather(*(running.append(opened, sequence) for sequence in (1, 2, 3)))
        assert [answer.base_offset for answer in answers] == [0, 1, 2]
        assert [offset for offset, _, _ in running.store.noted] == [0, 1, 2]


async def test_who_records_a_gap_or_asks_for_a_statement_gets_what_became_of_it(tmp_path):
    head = commands.RecordGap("gw1", 0, "orders", b"i" * 16, 0, b"run-one!", LOST)
    gap, asked = Gap(LOST, 3, 1, 2, "gw1"), commands.MakeStatement("orders", b"i" * 16, 0, b"s" * 16)
    async with Running(tmp_path) as running:
        opened = await running.configure(covered=True)
        await running.append(opened, 1)
        recorded = await running.group.record_gap(head, gap)
        assert recorded.recorded == Recorded(b"run-one!", LOST, 3, 1)
        again = await running.group.record_gap(head, gap)
        assert (again.recorded, again.placement) == (recorded.recorded, None)
        stated = await running.group.submit(commands.STATEMENT, asked)
        assert (stated.statement.end_offset, stated.statement.tree.size) == (2, 2)
        noted = running.store.noted
        assert [offset for offset, _, _ in noted] == [0, 1]
    async with Running(tmp_path) as running:  # what is in the journal is applied again
        assert running.store.noted == noted
        assert await running.group.submit(commands.STATEMENT, asked) == stated


async def test_nothing_is_answered_or_committed_before_the_journal_is_synced(tmp_path, monkeypatch):
    async with Running(tmp_path) as running:
        opened = await running.configure()
        may_sync, real_sync = threading.Event(), running.journal.sync

        def slow_sync():
            assert may_sync.wait(60)
            real_sync()

        monkeypatch.setattr(running.journal, "sync", slow_sync)
        answer = running.append(opened, 1, bytes(SYNC_AT_ONCE_BYTES))  # more is synced on the thread
        await asyncio.sleep(0.2)
        assert not answer.done()
        assert running.store.noted == []
        may_sync.set()
        assert isinstance(await asyncio.wait_for(answer, 60), Appended)


async def test_one_sync_serves_all_that_came_during_the_last_one(tmp_path):
    async with Running(tmp_path) as running:
        opened = await running.configure()
        before = running.group.syncs
        await asyncio.gather(*(running.append(opened, sequence) for sequence in range(1, 201)))
        assert running.group.syncs - before < 20


async def test_a_failed_sync_ends_the_group_without_an_answer(tmp_path, monkeypatch):
    async with Running(tmp_path) as running:
        opened = await running.configure()

        def failing_sync():
            raise OSError(5, "the disk is gone")

        monkeypatch.setattr(running.journal, "sync", failing_sync)
        answer = running.append(opened, 1)
        with pytest.raises(OSError, match="the disk is gone"):
            await asyncio.wait_for(running.task, 60)
        assert not answer.done()


async def test_no_sync_begins_once_the_group_has_ended(tmp_path, monkeypatch):
    async with Running(tmp_path) as running:
        opened = await running.configure()
        complaints: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        is_syncing, may_sync = threading.Event(), threading.Event()

        def slow_sync():  # something is left to be synced whenever one ends
            if not is_syncing.is_set():
                is_syncing.set()
                monkeypatch.setattr(running.journal, "add", failing_add)
                running.append(opened, 2)
            may_sync.wait(1)

        def failing_add(*arguments):
            threading.Timer(0.1, may_sync.set).start()
            raise OSError(5, "the disk is gone")

        monkeypatch.setattr("sinkd.shell.group.SYNC_AT_ONCE_S", 0.05)  # the first one is, the slow ones are not
        monkeypatch.setattr(running.group, "_sync_s", 0.0)
        monkeypatch.setattr(running.journal, "sync", slow_sync)
        running.append(opened, 1)
        with pytest.raises(OSError, match="the disk is gone"):
            await asyncio.wait_for(running.task, 60)
        await asyncio.sleep(0.01)
        assert complaints == []


async def test_a_command_that_cannot_be_applied_ends_the_group(tmp_path, monkeypatch):
    async with Running(tmp_path) as running:
        opened = await running.configure()

        def poisoned(data):
            raise FrameError("poison")

        monkeypatch.setattr(running.machine, "apply", poisoned)
        answer = running.append(opened, 1)
        submitted = asyncio.create_task(running.group.submit(commands.OPEN, OpenProducer("gw2", 0, b"n")))
        with pytest.raises(FrameError, match="poison"):
            await asyncio.wait_for(running.task, 60)
        with pytest.raises(UnknownOutcome, match="stopped"):
            await asyncio.wait_for(submitted, 60)
        assert not answer.done()


async def test_what_is_submitted_to_a_stopped_group_fails(tmp_path):
    async with Running(tmp_path) as running:
        pass
    with pytest.raises(UnknownOutcome, match="stopped"):
        await asyncio.wait_for(running.group.submit(commands.OPEN, OpenProducer("gw1", 0, b"n")), 60)
    with pytest.raises(UnknownOutcome, match="stopped"):
        await asyncio.wait_for(running.group.between_ticks(lambda: None), 60)


async def test_a_restart_applies_the_whole_journal_again(tmp_path):
    async with Running(tmp_path) as running:
        opened = await running.configure()
        await asyncio.gather(*(running.append(opened, sequence) for sequence in (1, 2)))
        state = running.machine.snapshot()
    async with Running(tmp_path) as running:
        assert running.machine.snapshot() == state
        assert [offset for offset, _, _ in running.store.noted] == [0, 1]
        assert (await running.append(opened, 2)).base_offset == 1  # answered a second time, not stored twice
        assert running.machine.state.streams["orders"].partitions[0].end_offset == 2


async def test_a_restart_from_a_checkpoint_applies_only_what_came_after(tmp_path):
    async with Running(tmp_path) as running:
        opened = await running.configure()
        await running.append(opened, 1)
        index, terms, state = running.group.applied_index, running.group.applied_terms, running.machine.snapshot()
        await running.group.cut(index - 1)
        await running.append(opened, 2)
    async with Running(tmp_path, checkpoint=(index, *terms), state=state) as running:
        assert [offset for offset, _, _ in running.store.noted] == [1]
        assert running.machine.state.streams["orders"].partitions[0].end_offset == 2


async def test_without_room_for_the_journal_appends_are_refused_until_there_is(tmp_path, monkeypatch):
    async with Running(tmp_path) as running:
        opened = await running.configure()
        real_prepare = running.journal.prepare_spare

        def no_space(size_bytes=0):
            raise OSError(28, "no space left on device")

        monkeypatch.setattr(running.journal, "room", lambda size_bytes: False)
        monkeypatch.setattr(running.journal, "prepare_spare", no_space)
        refused = await asyncio.wait_for(running.append(opened, 1), 60)
        assert isinstance(refused, Refused)
        assert refused.reason == "STORAGE_FULL"
        with pytest.raises(LogError, match="storage full"):
            await asyncio.wait_for(running.group.submit(commands.OPEN, OpenProducer("gw2", 0, b"n")), 60)
        assert running.store.noted == []
        monkeypatch.setattr(running.journal, "prepare_spare", real_prepare)
        assert (await asyncio.wait_for(running.append(opened, 1), 60)).base_offset == 0


async def test_commands_stand_in_the_journal_as_raw_bytes(tmp_path):
    async with Running(tmp_path) as running:
        opened = await running.configure()
        await running.append(opened, 1, b"the payload itself")
        entry = running.journal[running.journal.last_index - running.journal.first_index]
        assert entry[0][:1] == b"\x00"
        assert commands.decode(entry[0][1:]).kind == commands.APPEND
        assert b"the payload itself" in entry[0]


def test_the_librarys_own_journal_is_still_made_for_others():
    assert isinstance(pysyncobj.syncobj.createJournal(None), MemoryJournal)
