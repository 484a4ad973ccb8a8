"""The journal: what goes in comes back, and PySyncObj finds in it what it needs and no more."""

import os
import shutil
import threading
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from unittest import mock

import pysyncobj.syncobj
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pysyncobj import SyncObj, SyncObjConf
from pysyncobj.node import Node
from pysyncobj.transport import Transport
from support.disk import flip
from support.journals import contents, entry, fill, numbered, refused, reopen

from protocol.errors import DamagedFile
from protocol.limits import JOURNAL_RECENT_BYTES, JOURNAL_SLICE_BYTES_MAX, JOURNAL_SLICE_ENTRIES_MAX, MIB
from sinkd.core.formats import RECORD_HEADER_BYTES
from sinkd.shell import journal_files
from sinkd.shell.files import FileGone


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "journal"


# -- what goes in comes back ------------------------------------------------------------------------------------------


def test_entries_and_vote_come_back_over_many_files(folder):
    journal = reopen(folder)
    assert (len(journal), journal.getCurrentTerm(), journal.getVotedForNodeId()) == (0, 0, None)
    journal.setCurrentTerm(7, "sink1")
    entries = (
        fill(journal, 40) + fill(journal, 1, size_bytes=0) + fill(journal, 1, size_bytes=20_000) + fill(journal, 9)
    )
    journal.sync()
    assert contents(journal) == entries
    journal.close()
    journal = reopen(folder)
    assert contents(journal) == entries
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (7, "sink1")
    assert (journal.first_index, journal.last_index) == (1, 51)
    assert journal.file_count == len(numbered(folder)) > 3
    journal.close()


def test_closed_in_order_even_the_mark_is_on_the_disk(folder, monkeypatch):
    journal, synced, fdatasync = reopen(folder), [], os.fdatasync
    fill(journal, 3)
    journal.sync()

    def noting(descriptor):
        synced.append(os.pread(descriptor, 1 << 20, 0))
        fdatasync(descriptor)

    monkeypatch.setattr(os, "fdatasync", noting)
    journal.close_in_order()
    journal.close()
    assert synced[-1] == numbered(folder)[-1].read_bytes()


def test_a_vote_for_nobody_is_not_a_vote_for_the_empty_name(folder):
    journal = reopen(folder)
    journal.setCurrentTerm(1, "")
    journal.sync()
    journal.close()
    journal = reopen(folder)
    assert journal.getVotedForNodeId() == ""
    journal.setCurrentTerm(2, None)
    journal.close()
    journal = reopen(folder)
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (2, None)
    journal.close()


def test_a_truncated_tail_stays_void_even_when_it_was_in_an_older_file(folder):
    journal = reopen(folder)
    entries = fill(journal, 40)
    journal.deleteEntriesFrom(5)
    journal.deleteEntriesFrom(5)  # nothing is there any more
    entries = entries[:5] + fill(journal, 20, term=2)
    journal.sync()
    assert contents(journal) == entries
    journal.close()
    journal = reopen(folder)
    assert contents(journal) == entries
    journal.close()


def test_only_the_next_index_can_be_added_and_the_first_entry_stays(folder):
    journal = reopen(folder)
    with pytest.raises(ValueError, match="1 is next"):
        journal.add(b"x", 2, 1)
    fill(journal, 2)
    with pytest.raises(ValueError, match="first entry stays"):
        journal.deleteEntriesFrom(0)
    with pytest.raises(ValueError, match="is the most"):
        journal.add(bytes(17 * MIB), 3, 1)
    journal.close()


class JournalModel(RuleBasedStateMachine):
    """Any order of what PySyncObj and the flush loop do; a list is the model."""

    def __init__(self):
        super().__init__()
        self.folder = Path(mkdtemp())
        self.journal = reopen(self.folder / "journal")
        self.entries, self.term, self.vote, self.checkpoint = [], 1, None, None

    def teardown(self):
        self.journal.close()
        shutil.rmtree(self.folder)

    @rule(size_bytes=st.sampled_from([0, 1, 7, 8, 100, 1000, 3000, 6000]))
    def add(self, size_bytes):
        added = entry(self.journal.last_index + 1, self.term, size_bytes)
        self.journal.add(*added)
        self.entries.append(added)

    @rule(vote=st.sampled_from([None, "sink1", "sink2"]))
    def next_term(self, vote):
        self.term, self.vote = self.term + 1, vote
        self.journal.setCurrentTerm(self.term, vote)

    @precondition(lambda self: self.entries and self.uncommitted)
    @rule(data=st.data())
    def truncate(self, data):
        index = data.draw(st.sampled_from(self.uncommitted))
        position = index - self.journal.first_index
        self.journal.deleteEntriesFrom(position)
        del self.entries[position:]

    @property
    def uncommitted(self):
        lowest = max(2, self.checkpoint[0] + 1 if self.checkpoint else 0)
        return [index for _, index, _ in self.entries if index >= lowest]

    @rule()
    def sync(self):
        self.journal.sync()
        assert not self.journal.dirty

    @rule()
    def prepare(self):
        self.journal.prepare_spare()

    @precondition(lambda self: len(self.entries) > 3)
    @rule(data=st.data())
    def cut(self, data):
        at = data.draw(st.integers(1, len(self.entries) - 2))
        _, index, term = self.entries[at]
        self.checkpoint = index, term, self.entries[at - 1][2]
        self.journal.cut(index - 1)
        self.entries = self.entries[at - 1 :]

    @rule(beyond=st.integers(1, 5))
    def take_the_leaders_checkpoint(self, beyond):
        self.journal.sync()
        over, self.term = self.journal.last_index, self.term + 1
        self.journal.setCurrentTerm(self.term, None)
        self.vote = None
        index = over + beyond
        self.checkpoint = index, self.term, self.term, over
        self.journal.reset(*self.checkpoint[:3])
        self.entries = [(b"\x01", one, self.term) for one in (index - 1, index) if one]

    @rule()
    def restart(self):
        self.journal.close()
        self.journal = reopen(self.folder / "journal", self.checkpoint)

    @invariant()
    def is_what_it_should_be(self):
        assert contents(self.journal) == self.entries
        assert (self.journal.getCurrentTerm() or 1, self.journal.getVotedForNodeId()) == (self.term, self.vote)


JournalModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestJournalModel = JournalModel.TestCase


# -- how PySyncObj looks at it ----------------------------------------------------------------------------------------


def test_an_entry_is_read_when_its_command_is_looked_at(folder):
    journal = reopen(folder)
    fill(journal, 3)
    journal.close()
    journal = reopen(folder)
    place = journal.locate(2)
    late = journal[1]
    flip(numbered(folder)[0], place.position + 5)
    assert (late[1], late[2], late.length, len(late)) == (2, 1, 300, 3)
    with pytest.raises(DamagedFile) as caught:
        late[0]
    assert caught.value.file == str(numbered(folder)[0])
    assert caught.value.position == place.position - RECORD_HEADER_BYTES
    assert journal[2] == entry(3)
    journal.close()


def test_what_was_added_last_is_not_read_from_the_disk(folder):
    journal = reopen(folder, file_bytes=MIB)
    entries = fill(journal, 60, size_bytes=JOURNAL_RECENT_BYTES // 50)
    with mock.patch("sinkd.shell.journal.read_at", side_effect=AssertionError):
        assert [journal.command(index, 1) for index in range(12, 61)] == [command for command, _, _ in entries[11:]]
        assert journal.head(60, 4) == entries[59][0][:4]
        with pytest.raises(AssertionError):
            journal.command(11, 1)
        with pytest.raises(IndexError, match="another term"):
            journal.command(60, 2)
    assert journal.command(11, 1) == entries[10][0]
    journal.close()


@pytest.mark.parametrize("opened_anew", [False, True])
def test_the_head_of_a_command_is_its_first_bytes(folder, opened_anew):
    journal = reopen(folder)
    fill(journal, 4)
    journal.add(b"abcdef", 5, 1)
    journal.add(b"", 6, 1)
    if opened_anew:
        journal.sync()
        journal.close()
        journal = reopen(folder, (4, 1, 1))
    assert [journal.head(index, 3) for index in (4, 5, 6)] == [entry(4)[0][:3], b"abc", b""]
    assert (journal.head(5, 6), journal.head(5, 7)) == (b"abcdef", b"abcdef")
    with pytest.raises(IndexError):
        journal.head(7, 3)
    journal.deleteEntriesFrom(5 - journal.first_index)
    journal.add(b"other", 5, 2)
    assert journal.head(5, 3) == b"oth"
    journal.reset(10, 2, 2)
    assert (journal.head(10, 3), journal.command(9, 2)) == (b"\x01", b"\x01")
    journal.add(b"behind", 11, 2)
    assert journal.head(11, 3) == b"beh"
    journal.close()


def test_an_entry_that_was_cut_or_replaced_meanwhile_is_not_taken_for_another(folder):
    journal = reopen(folder)
    fill(journal, 5)
    gone, replaced = journal[0], journal[4]
    journal.deleteEntriesFrom(4)
    fill(journal, 1, term=2)
    journal.cut(3)
    for late in (gone, replaced):
        with pytest.raises(IndexError):
            late[0]
    journal.close()


def test_slices_are_bounded_and_never_count_from_the_end(folder):
    journal = reopen(folder, file_bytes=MIB)
    fill(journal, JOURNAL_SLICE_ENTRIES_MAX + 50, size_bytes=10)
    indexes = [one[1] for one in journal[3:]]
    assert indexes == list(range(4, 4 + JOURNAL_SLICE_ENTRIES_MAX))
    assert [one[1] for one in journal[300:302]] == [301, 302]
    assert [one[1] for one in journal[-3:2]] == [1, 2]
    assert journal[5:5] == journal[400:] == journal[0:-1] == []
    assert journal[-1][1] == journal.last_index == 306
    with pytest.raises(IndexError):
        journal[306]
    journal.close()


def test_a_slice_holds_at_least_one_entry_and_stops_at_its_bytes(folder):
    journal = reopen(folder, file_bytes=MIB)
    fill(journal, 2, size_bytes=JOURNAL_SLICE_BYTES_MAX + 1)
    fill(journal, 3, size_bytes=JOURNAL_SLICE_BYTES_MAX // 2)
    assert [one[1] for one in journal[0:]] == [1]
    assert [one[1] for one in journal[2:]] == [3, 4]
    journal.close()


def test_what_pysyncobj_must_not_do_is_refused(folder):
    journal = reopen(folder)
    fill(journal, 3)
    with pytest.raises(RuntimeError, match="clear"):
        journal.clear()
    with pytest.raises(RuntimeError, match="compaction is off"):
        journal.deleteEntriesTo(1)
    journal.setRaftCommitIndex(3)
    assert journal.getRaftCommitIndex() == 1
    journal.close()
    journal = reopen(folder, checkpoint=(3, 1, 1))
    assert journal.getRaftCommitIndex() == 3
    journal.close()


class Alone(Transport):
    """The transport of a group of one."""

    def __init__(self):
        super().__init__(None, None, [])

    @property
    def ready(self):
        return True

    def destroy(self):
        pass


class Applier(SyncObj):
    """A real PySyncObj member that notes what it applies."""

    def __init__(self, journal, applied_index=0):
        self.applied = []
        with mock.patch.object(pysyncobj.syncobj, "createJournal", return_value=journal):
            configuration = SyncObjConf(
                autoTick=False, commandsWaitLeader=False, raftMinTimeout=0.4, raftMaxTimeout=0.8
            )
            super().__init__(Node("sink1"), [], configuration, transport=Alone())
        self._SyncObj__raftElectionDeadline = 0  # nobody else could lead
        if applied_index:
            self._SyncObj__raftLastApplied = applied_index

    def _SyncObj__doApplyCommand(self, command):  # noqa: N802  # the library's private method, overridden
        if command[:1] == b"\x00":
            self.applied.append(command[1:])

    def tick_until(self, count):
        for _ in range(1000):
            self.doTick(0)
            self._SyncObj__raftLog.sync()
            if len(self.applied) >= count:
                return
        raise AssertionError(f"{len(self.applied)} of {count} commands applied after 1000 ticks")


def test_it_is_a_journal_for_a_real_pysyncobj(folder):
    commands = [b"%d " % number * 50 for number in range(600)]
    journal = reopen(folder, file_bytes=16384)
    member = Applier(journal)
    for command in commands:
        member._applyCommand(b"\x00" + command, None)
    member.tick_until(len(commands))
    assert member.applied == commands
    term, index = journal.getCurrentTerm(), journal.last_index - 100
    checkpoint = index, journal[index - 1][2], journal[index - 2][2]
    journal.cut(index - 1)
    member.destroy()

    journal = reopen(folder, checkpoint, file_bytes=16384)
    member = Applier(journal, applied_index=index)
    member._applyCommand(b"\x00more", None)
    member.tick_until(101)
    assert member.applied == [*commands[-100:], b"more"]
    assert journal.getCurrentTerm() == term + 1
    assert journal.getVotedForNodeId() == "sink1"
    member.destroy()


# -- checkpoints and forgetting ---------------------------------------------------------------------------------------


def test_cut_recycles_what_is_old_and_keeps_the_vote(folder):
    journal = reopen(folder)
    journal.setCurrentTerm(3, "sink2")
    entries = fill(journal, 100, term=3)
    files_before = journal.file_count
    journal.cut(80)
    assert contents(journal) == entries[79:]
    assert journal.file_count == len(numbered(folder)) < files_before
    size_bytes, recycled = journal.size_bytes, (folder / "recycled").read_bytes()
    journal.prepare_spare()
    assert not (folder / "recycled").exists()
    assert (folder / "spare").read_bytes() == recycled
    assert journal.size_bytes == size_bytes == sum(path.stat().st_size for path in folder.iterdir())
    journal.sync()
    journal.close()
    journal = reopen(folder, checkpoint=(81, 3, 3))
    assert contents(journal) == entries[79:]
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (3, "sink2")
    with pytest.raises(ValueError, match="ends at 100"):
        journal.cut(101)
    journal.close()


@pytest.mark.parametrize("cut_at", [50, 51, 52, 60])
def test_the_two_entries_of_the_checkpoint_are_there_even_when_their_files_are_gone(folder, cut_at):
    journal = reopen(folder)
    entries = fill(journal, 59, term=1, size_bytes=3000)  # one entry a file
    entries += fill(journal, 10, term=2, size_bytes=3000)
    journal.sync()
    journal.cut(cut_at)
    journal.close()
    journal = reopen(folder, checkpoint=(cut_at, 1 if cut_at < 60 else 2, 1))
    before, last = entries[cut_at - 2], entries[cut_at - 1]
    assert [(one[1], one[2]) for one in journal[:2]] == [before[1:], last[1:]]
    assert journal[0][0] == b"\x01"  # entry cut_at - 1 was cut away: a no-op in its place
    assert contents(journal)[2:] == entries[cut_at:]
    with pytest.raises(IndexError, match="stands in no file"):
        journal.locate(cut_at - 1)
    journal.close()


def test_the_checkpoint_is_a_witness(folder):
    journal = reopen(folder)
    fill(journal, 20, size_bytes=3000)
    journal.sync()
    journal.close()
    assert "rolled back" in str(refused(folder, (21, 1, 1)))
    assert "checkpoint says 9" in str(refused(folder, (20, 9, 1)))
    assert "checkpoint says 8" in str(refused(folder, (20, 1, 8)))
    for path in numbered(folder)[:10]:
        path.unlink()
    assert "there is no checkpoint" in str(refused(folder))
    assert "files are missing" in str(refused(folder, (5, 1, 1)))
    reopen(folder, (15, 1, 1)).close()


def test_an_older_copy_of_the_whole_journal_is_refused(folder, tmp_path):
    journal = reopen(folder)
    fill(journal, 10)
    journal.sync()
    shutil.copytree(folder, tmp_path / "copy")
    fill(journal, 10)
    journal.sync()
    journal.close()
    error = refused(tmp_path / "copy", (18, 1, 1))
    assert "ends at entry 10, the checkpoint knows 18" in str(error)
    assert error.file == str(numbered(tmp_path / "copy")[-1])
    shutil.rmtree(folder)
    assert "rolled back" in str(refused(folder, (18, 1, 1)))


# -- reading parts from other threads ---------------------------------------------------------------------------------


def test_a_part_of_a_command_is_read_by_its_position(folder):
    journal = reopen(folder)
    journal.add(b"abcdefghij", 1, 1)
    place = journal.locate(1)
    assert place.length == 10
    assert journal.read(place, 3, 4) == b"defg"
    with pytest.raises(ValueError, match="of a command of 10"):
        journal.read(place, 3, 8)
    fill(journal, 40)
    journal.cut(40)
    with pytest.raises(FileGone):
        journal.read(place, 0, 10)
    with pytest.raises(IndexError):
        journal.locate(1)
    journal.close()


def test_readers_see_right_bytes_or_none_while_files_come_and_go(folder):
    journal = reopen(folder)
    fill(journal, 1)
    places = [(1, journal.locate(1))]
    wrong, reads, stop = [], [0], threading.Event()

    def read() -> None:
        random = Random(1)
        while not stop.is_set():
            index, place = random.choice(places[-60:])
            try:
                if journal.read(place, 0, 300) != entry(index)[0]:
                    wrong.append(index)
                reads[0] += 1
            except FileGone:
                continue

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(2, 1500):
        fill(journal, 1)
        places.append((number, journal.locate(number)))
        if number % 20 == 0:
            journal.sync()
            journal.cut(number - 15)
            journal.prepare_spare()
    stop.set()
    for reader in readers:
        reader.join()
    journal.close()
    assert not wrong
    assert reads[0] > 0


def test_a_spare_made_while_a_file_is_begun_is_another_file(tmp_path, monkeypatch):
    """Until a file has its number, it lies under the spare's name."""
    journal = reopen(tmp_path)
    expected = fill(journal, 1)
    makers = []
    real_rename = journal_files.rename

    def rename_slowly(old, new):
        if old.name == journal_files.SPARE_NAME:
            makers.append(threading.Thread(target=journal.prepare_spare))
            makers[-1].start()
            makers[-1].join(0.1)
        real_rename(old, new)

    monkeypatch.setattr(journal_files, "rename", rename_slowly)
    while journal.file_count < 3:
        expected += fill(journal, 1)
        journal.sync()
    for maker in makers:
        maker.join()
    monkeypatch.undo()
    journal.close()
    journal = reopen(tmp_path)
    assert contents(journal) == expected
    journal.close()
