"""What was synced is there after anything that can happen to a process or a disk, or the journal is refused."""

import errno
import os
import shutil
from contextlib import suppress
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs
from support.disk import Crash, DyingProcess, PowerFailure, flip
from support.journals import FILE_BYTES, contents, entry, fill, numbered, refused, reopen

from protocol.errors import DamagedFile
from sinkd.core.formats import (
    JOURNAL_HEADER_BYTES,
    MARK_BYTES,
    RECORD_HEADER_BYTES,
    Kind,
    encode_record,
    journal_seed,
    record_size,
)
from sinkd.shell.journal import Journal


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "journal"


# -- torn, damaged ----------------------------------------------------------------------------------------------------


@given(st.integers(0, 1999), st.integers(1, 255))
@settings(max_examples=60, deadline=None)
def test_a_torn_tail_is_cut_and_what_was_synced_stays(position, mask):
    with TemporaryDirectory() as name:
        folder = Path(name) / "journal"
        journal = reopen(folder)
        synced = fill(journal, 4)
        journal.sync()
        start = journal.locate(4).position + 304 + MARK_BYTES
        unsynced = fill(journal, 6, term=2)
        journal.close()
        flip(numbered(folder)[0], start + position, mask)
        with capture_logs() as logs:
            journal = reopen(folder)
        whole = position // 336  # entries before the torn one
        assert contents(journal) == synced + unsynced[:whole]
        assert [line["event"] for line in logs] == ["journal_tail_cut"]
        assert logs[0]["file"] == str(numbered(folder)[0])
        assert logs[0]["position"] == start + whole * 336
        more = fill(journal, 8, term=3)
        journal.sync()
        journal.close()
        journal = reopen(folder)
        assert contents(journal) == synced + unsynced[:whole] + more
        journal.close()


def test_a_lost_page_in_front_of_a_written_one_is_torn_too(folder):
    journal = reopen(folder)
    entries = fill(journal, 8)
    place = journal.locate(5)
    journal.close()
    path = numbered(folder)[0]
    data = bytearray(path.read_bytes())
    start = place.position - RECORD_HEADER_BYTES
    data[start : start + 336] = bytes(336)
    path.write_bytes(data)
    journal = reopen(folder)
    assert contents(journal) == entries[:4]
    fill(journal, 1)  # takes exactly the place of entry 5: entry 6 must not come back
    journal.close()
    journal = reopen(folder)
    assert len(journal) == 5
    journal.close()


@cache
def _synced_journal() -> tuple[Path, TemporaryDirectory]:
    """Three files, everything synced; the last record is the mark that says so."""
    holder = TemporaryDirectory()
    folder = Path(holder.name) / "journal"
    journal = reopen(folder)
    journal.setCurrentTerm(1, "sink1")
    for _ in range(10):
        fill(journal, 3, size_bytes=333)
        journal.deleteEntriesFrom(len(journal) - 1)
        journal.sync()
    journal.close()
    assert len(numbered(folder)) == 3
    return folder, holder


def _synced_bytes(path: Path) -> int:
    return len(path.read_bytes().rstrip(b"\0")) // 8 * 8 - 2 * MARK_BYTES


@given(st.integers(0, 2), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
@settings(max_examples=250, deadline=None)
def test_any_flipped_byte_of_what_was_synced_is_found(file, part, mask):
    original, _ = _synced_journal()
    with TemporaryDirectory() as name:
        folder = Path(name) / "journal"
        shutil.copytree(original, folder)
        path = numbered(folder)[file]
        position = int(part * _synced_bytes(path))
        flip(path, position, mask)
        error = refused(folder)
        assert error.file == str(path)
        assert position - 400 < error.position <= position
        assert f"{path}: damaged at byte {error.position}" in str(error)


def test_every_byte_of_the_heads_is_watched():
    original, _ = _synced_journal()
    for position in range(JOURNAL_HEADER_BYTES + RECORD_HEADER_BYTES + 8):
        with TemporaryDirectory() as name:
            folder = Path(name) / "journal"
            shutil.copytree(original, folder)
            flip(numbered(folder)[-1], position)
            assert refused(folder).file == str(numbered(folder)[-1])


def test_a_damaged_head_is_refused_before_anything_was_synced_behind_it(folder):
    journal = reopen(folder)
    fill(journal, 12)
    journal.close()
    last = numbered(folder)[1]
    flip(last, JOURNAL_HEADER_BYTES + 20)
    damaged = last.read_bytes()
    assert refused(folder).position == JOURNAL_HEADER_BYTES
    assert last.read_bytes() == damaged  # nothing was cut


def test_missing_short_foreign_and_exchanged_files_are_refused(folder, tmp_path):
    original, _ = _synced_journal()

    def broken(change) -> str:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(original, folder)
        change(*numbered(folder))
        return str(refused(folder))

    assert "the file is missing" in broken(lambda a, b, c: b.unlink())
    assert "it was made with 4096 bytes" in broken(lambda a, b, c: os.truncate(c, 2048))
    assert "it was made with 4096 bytes" in broken(lambda a, b, c: os.truncate(a, 8192))
    assert "its header says that it is file" in broken(lambda a, b, c: shutil.copy(a, b))
    assert "begins with" in broken(lambda a, b, c: c.write_bytes(bytes(FILE_BYTES)))
    shutil.rmtree(folder)
    shutil.copytree(original, folder)
    with pytest.raises(DamagedFile, match="belongs to journal"):
        Journal.open(folder, journal_id=b"f" * 16, file_bytes=FILE_BYTES, checkpoint=None)


def test_bytes_of_an_older_life_of_the_file_never_look_new(folder):
    journal = reopen(folder)
    entries = fill(journal, 12)  # the first file is full, the second holds one entry: the next would stand at 432
    journal.close()
    old, new = numbered(folder)
    end = len(new.read_bytes().rstrip(b"\0")) // 8 * 8 + 8
    old_bytes, data = old.read_bytes(), bytearray(new.read_bytes())
    data[end:] = old_bytes[end:]  # as if the file had been recycled
    new.write_bytes(data)
    journal = reopen(folder)
    assert contents(journal) == entries
    journal.close()


def test_a_payload_that_looks_like_a_mark_does_not_make_a_torn_tail_damage(folder):
    """Who does not know the journal's random id cannot write one into a payload."""
    journal = reopen(folder)
    fill(journal, 1)
    journal.add(b"torn" * 30, 2, 1)
    start = journal.locate(2).position - RECORD_HEADER_BYTES
    at = start + record_size(120) + RECORD_HEADER_BYTES
    forged = b"".join(encode_record(journal_seed(b"?" * 16, 1), at, Kind.SYNCED, at, 1))
    journal.add(forged, 3, 1)
    assert journal.locate(3).position == at
    journal.close()
    flip(numbered(folder)[0], start + 40)
    journal = reopen(folder)
    assert len(journal) == 1
    journal.close()


# -- processes that die, power that fails -----------------------------------------------------------------------------


def _life(folder: Path, synced: list[int]) -> None:
    """Everything that writes: opening, rolling, marking, truncating, cutting. Notes the last index at each sync."""
    journal = reopen(folder, (9, 1, 1) if synced else None)
    try:
        for number in range(12):
            fill(journal, 5)
            if number % 3 == 2:
                journal.deleteEntriesFrom(len(journal) - 1)
                synced.append(min(synced[-1], journal.last_index) if synced else 0)
            journal.sync()
            synced.append(journal.last_index)
            if number % 4 == 1:
                journal.prepare_spare()
        journal.cut(journal.last_index - 3)
    finally:
        journal.close()


def test_a_process_that_dies_in_any_system_call_leaves_a_whole_journal(tmp_path):
    last_call = 0
    while True:
        last_call += 1
        folder = tmp_path / str(last_call)
        synced: list[int] = []
        with DyingProcess(last_call).running() as process:
            try:
                _life(folder, synced)
            except Crash:
                pass
            else:
                break
        last = synced[-1] if synced else 0
        # The cut comes after a checkpoint of what was synced.
        journal = reopen(folder, (last, 1, 1) if len(synced) >= 16 else None)
        assert last - 1 <= journal.last_index <= last + 5
        assert [one[1] for one in journal[0:]] == list(range(journal.first_index, journal.last_index + 1))
        assert all(tuple(one) in (entry(one[1]), (b"\x01", one[1], 1)) for one in journal[0:])
        fill(journal, 3)
        journal.sync()
        journal.close()
    assert process.calls < last_call
    assert last_call > 100


def test_what_a_restart_has_found_is_on_the_disk_before_it_counts(folder):
    with PowerFailure(Random(1)).watching() as power:
        journal = reopen(folder)
        entries = fill(journal, 10)
        journal.close()  # the process was killed: its writes are in the page cache
        reopen(folder).close()
        power.strike(folder)
    journal = reopen(folder)
    assert contents(journal) == entries
    journal.close()


@pytest.mark.parametrize("seed", range(60))
def test_a_power_failure_loses_nothing_that_was_synced(tmp_path, seed):
    random = Random(seed)
    folder = tmp_path / "journal"
    durable: list[tuple[bytes, int, int]] = []
    entries: list[tuple[bytes, int, int]] = []
    vote = (0, None)
    for life in range(1, 6):
        with PowerFailure(random).watching() as power:
            journal = reopen(folder)
            assert journal.getCurrentTerm() >= vote[0]
            assert contents(journal)[: len(durable)] == durable
            assert contents(journal) == entries[: len(journal)]
            entries = contents(journal)
            for _ in range(random.randrange(20)):
                entries += fill(journal, random.randrange(4), term=life, size_bytes=random.choice([10, 300, 1500]))
                if random.random() < 0.2:
                    journal.setCurrentTerm(journal.getCurrentTerm() + 1, f"sink{life}")
                if random.random() < 0.4:
                    journal.sync()
                    durable = list(entries)
                    vote = journal.getCurrentTerm(), journal.getVotedForNodeId()
            journal.close()
            power.strike(folder)


# -- begun anew behind the leader's checkpoint ------------------------------------------------------------------------

LEADERS = (100, 5, 4)  # index, term, term before of its checkpoint
NO_OPS = [(b"\x01", 99, 4), (b"\x01", 100, 5)]


def _old_journal(folder: Path, last_index: int) -> Journal:
    """Several files, an own checkpoint at entry 20, a vote in term 5; from entry 95 on others than the leader's."""
    journal = reopen(folder)
    fill(journal, min(last_index, 94))
    fill(journal, last_index - journal.last_index, term=2)
    journal.setCurrentTerm(5, "sink2")
    journal.sync()
    journal.cut(19)
    return journal


def _is_anew(journal: Journal) -> bool:
    """Whether it stands behind the leader's checkpoint, ready to go on; if not, it is what it was."""
    assert (journal.getCurrentTerm(), journal.getVotedForNodeId()) == (5, "sink2")
    if journal.first_index == 19:
        return False
    assert contents(journal) == NO_OPS
    assert journal.file_count == len(numbered(journal._files.folder)) == 1
    return True


@pytest.mark.parametrize("last_index", [60, 99, 100, 130])
def test_a_reset_begins_behind_the_leaders_checkpoint(folder, last_index):
    journal = _old_journal(folder, last_index)
    journal.reset(*LEADERS)
    assert _is_anew(journal)
    assert journal.getRaftCommitIndex() == 100
    with pytest.raises(IndexError):
        journal.locate(100)
    for installed in (True, True, False):  # then an own checkpoint takes its place
        more = fill(journal, 30, term=5)
        journal.sync()
        assert contents(journal)[-30:] == more
        everything = contents(journal)
        journal.close()
        journal = reopen(folder, (*LEADERS, last_index) if installed else LEADERS)
        assert contents(journal) == everything
    journal.close()


@pytest.mark.parametrize("last_index", [60, 99, 100, 130])
def test_a_process_that_dies_in_a_reset_leaves_the_old_journal_or_the_new_one(tmp_path, last_index):
    last_call = reset_calls = 0
    while not reset_calls or last_call <= reset_calls:
        last_call += 1
        folder = tmp_path / str(last_call)
        journal = _old_journal(folder, last_index)
        with DyingProcess(last_call).running() as process:
            try:
                journal.reset(*LEADERS)
                reset_calls = process.calls
            except Crash:
                pass
        journal.close()
        journal = reopen(folder, (*LEADERS, last_index))
        assert _is_anew(journal)
        more = fill(journal, 5, term=5)
        journal.sync()
        journal.close()
        journal = reopen(folder, (*LEADERS, last_index))
        assert contents(journal) == NO_OPS + more
        journal.close()
    assert reset_calls > 12


@pytest.mark.parametrize("last_index", [60, 100])
def test_a_start_that_dies_while_it_finishes_a_reset_can_be_repeated(tmp_path, last_index):
    for last_call in range(1, 99):
        folder = tmp_path / str(last_call)
        _old_journal(folder, last_index).close()
        with DyingProcess(last_call).running() as process, suppress(Crash):
            reopen(folder, (*LEADERS, last_index)).close()
        journal = reopen(folder, (*LEADERS, last_index))
        assert _is_anew(journal)
        journal.close()
        if process.calls < last_call:
            break
    assert 12 < last_call < 98


@pytest.mark.parametrize("seed", range(20))
def test_a_power_failure_in_a_reset_loses_nothing(tmp_path, seed):
    random = Random(seed)
    folder = tmp_path / "journal"
    with PowerFailure(random).watching() as power:
        journal = _old_journal(folder, random.choice([60, 99, 100, 130]))
        last_index = journal.last_index
        with DyingProcess(random.randrange(1, 30)).running(), suppress(Crash):
            journal.reset(*LEADERS)
        journal.close()
        power.strike(folder)
        journal = reopen(folder, (*LEADERS, last_index))
        assert _is_anew(journal)
        more = fill(journal, 5, term=5)
        journal.sync()
        journal.close()
        power.strike(folder)
    journal = reopen(folder, (*LEADERS, last_index))
    assert contents(journal) == NO_OPS + more
    journal.close()


def test_before_the_leaders_checkpoint_is_there_the_old_journal_counts(folder):
    journal = _old_journal(folder, 60)
    before = contents(journal)
    journal.close()
    journal = reopen(folder, (20, 1, 1))
    assert not _is_anew(journal)
    assert contents(journal) == before
    journal.close()


def test_an_older_copy_is_no_journal_to_be_begun_anew(folder):
    _old_journal(folder, 60).close()
    assert "ends at entry 60, the checkpoint knows 100: it was rolled back" in str(refused(folder, (*LEADERS, 61)))
    assert "rolled back" in str(refused(folder, LEADERS))
    reopen(folder, (*LEADERS, 60)).close()


def test_what_may_have_been_promised_is_not_dropped(folder):
    journal = _old_journal(folder, 60)
    before = contents(journal)
    for index, term in ((50, 1), (60, 1), (15, 1), (15, 9)):
        with pytest.raises(ValueError, match=f"holds entry {index} of term {term}, or was cut behind it"):
            journal.reset(index, term, 1)
    journal._files._recycled = False  # a file that is made anew needs space
    with (
        mock.patch("sinkd.shell.journal_files.write_zeros", side_effect=OSError(errno.ENOSPC, "No space left")),
        pytest.raises(OSError, match="No space"),
    ):
        journal.reset(*LEADERS)
    assert not journal.failed
    assert contents(journal) == before
    journal.close()
    journal = reopen(folder, (50, 1, 1, 40))  # the leader's checkpoint is here, and so is its entry
    assert journal.last_index == 60
    journal.close()


def test_files_that_do_not_join_are_refused_unless_a_checkpoint_has_parted_them(folder, tmp_path):
    journal = _old_journal(folder, 60)
    with mock.patch.object(journal._files, "drop_before"):
        journal.reset(*LEADERS)
    fill(journal, 30, term=5)
    journal.sync()
    journal.close()
    number = len(numbered(folder))
    for checkpoint in (None, LEADERS, (105, 5, 5), (105, 5, 5, 60), (90, 5, 5, 60)):
        shutil.copytree(folder, tmp_path / "copy")
        error = refused(tmp_path / "copy", checkpoint)
        assert "begins at entry 101, the files before it end before that" in str(error)
        assert len(numbered(tmp_path / "copy")) == number
        shutil.rmtree(tmp_path / "copy")
    journal = reopen(folder, (*LEADERS, 60))
    assert (contents(journal)[:2], journal.last_index) == (NO_OPS, 130)
    assert len(numbered(folder)) < number
    journal.close()


# -- disks that refuse ------------------------------------------------------------------------------------------------


def test_room_tells_of_a_full_disk_before_an_entry_is_lost(folder):
    journal = reopen(folder)
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
        mock.patch("sinkd.shell.journal_files.write_zeros", side_effect=full),
        pytest.raises(OSError, match="No space"),
    ):
        journal.prepare_spare()
    assert not journal.failed
    assert not (folder / "spare").exists()
    count = 0
    while journal.room(300):
        fill(journal, 1)
        count += 1
    assert count == 11
    assert journal.file_count == 1
    journal.prepare_spare()
    assert journal.room(300)
    assert not journal.room(5000)
    journal.prepare_spare(5000)
    assert journal.room(5000)
    fill(journal, 1, size_bytes=5000)
    assert journal.file_count == 2
    journal.sync()
    journal.close()
    journal = reopen(folder)
    assert journal.last_index == 12
    journal.close()


@pytest.mark.parametrize("call", ["pwritev", "fdatasync"])
def test_a_failed_write_is_final(folder, call):
    journal = reopen(folder)
    fill(journal, 1)
    with mock.patch.object(os, call, side_effect=OSError(errno.EIO, "Input/output error")):
        failed = pytest.raises(OSError, match="Input")
        if call == "pwritev":
            with failed:
                fill(journal, 1)
        else:
            with failed:
                journal.sync()
    assert journal.failed
    for action in (journal.sync, lambda: fill(journal, 1), lambda: journal.setCurrentTerm(9, None)):
        with pytest.raises(OSError, match="an earlier write"):
            action()
    assert journal[0] == entry(1)
    journal.close()


def sync_and_meanwhile(journal, work):
    """As when another thread adds while an fdatasync is under way."""
    with mock.patch("sinkd.shell.journal.os.fdatasync", side_effect=lambda _: work()):
        journal.sync()


def test_a_sync_covers_what_was_added_before_it_began(folder):
    journal = reopen(folder)
    fill(journal, 3)
    sync_and_meanwhile(journal, lambda: fill(journal, 2))
    assert (journal.synced_index, journal.last_index, journal.dirty) == (3, 5, True)
    journal.sync()
    assert (journal.synced_index, journal.dirty) == (5, False)
    journal.close()


def test_what_is_truncated_while_a_sync_is_under_way_is_not_synced(folder):
    journal = reopen(folder)
    fill(journal, 5)

    def replace():
        journal.deleteEntriesFrom(2)
        fill(journal, 3, term=2)

    sync_and_meanwhile(journal, replace)
    assert (journal.synced_index, journal.last_index) == (2, 5)
    journal.close()


def test_a_mark_speaks_for_what_its_sync_covered_and_not_for_what_stands_between(folder):
    journal = reopen(folder)
    fill(journal, 3)
    sync_and_meanwhile(journal, lambda: fill(journal, 2))  # the mark stands behind entry 5
    position = journal.locate(5).position
    journal.close()
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    flip(numbered(copy)[0], position, 1)
    journal = reopen(copy)
    assert journal.last_index == 4  # a torn tail
    journal.close()
    journal = reopen(folder)  # from now on all that is here counts as synced
    journal.close()
    flip(numbered(folder)[0], position, 1)
    assert "a mark says" in str(refused(folder))


def test_near_the_end_of_a_file_it_goes_on_in_the_spare(folder):
    journal = reopen(folder)
    journal.prepare_spare()
    fill(journal, 11)
    fill(journal, 1, size_bytes=30)  # less than a sixteenth of the file is left
    journal.sync()
    assert journal.is_nearly_full
    journal.roll_early()
    assert journal.file_count == 2
    assert not journal.dirty
    journal.close()
    journal = reopen(folder)
    assert journal.last_index == 12
    journal.close()
