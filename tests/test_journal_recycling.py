"""Journal files that are used again as they lie: what they held in earlier lives never counts, and harms nothing."""

import shutil
from pathlib import Path
from random import Random
from unittest import mock

import pytest
from structlog.testing import capture_logs
from support.disk import Crash, DyingProcess, PowerFailure, flip
from support.journals import FILE_BYTES, JOURNAL_ID, contents, fill, numbered, refused, reopen

from sinkd.core.formats import (
    JOURNAL_HEADER_BYTES,
    MARK_BYTES,
    RECORD_HEADER_BYTES,
    JournalHeader,
    decode_journal_header,
    encode_journal_header,
    record_size,
    records_end,
)
from sinkd.shell import journal_files, journal_recovery
from sinkd.shell.journal import Journal


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "journal"


@pytest.fixture
def small_pages(monkeypatch):
    """Stale bytes begin right behind the last record; with pages of 4 KiB, zeros would fill these small files."""
    for module in (journal_files, journal_recovery):
        monkeypatch.setattr(module, "JOURNAL_PAGE_BYTES", 8)


def live_long(folder: Path, rounds: int = 8) -> Journal:
    """A journal whose files have all been recycled; every entry is synced, the last ones are in the last file."""
    journal = reopen(folder)
    for _ in range(rounds):
        fill(journal, 10)
        journal.sync()
        journal.cut(journal.last_index - 1)
        journal.prepare_spare()
    return journal


def end_of(path: Path) -> int:
    return records_end(path.read_bytes())


def stale_bytes(path: Path) -> int:
    return len(path.read_bytes()[end_of(path) :].strip(b"\0"))


def number_of(path: Path) -> int:
    return decode_journal_header(path.read_bytes()).number


def checkpoint_of(journal: Journal) -> tuple[int, int, int]:
    return journal.first_index + 1, 1, 1


# -- used as they lie -------------------------------------------------------------------------------------------------


def test_after_a_while_no_file_is_made_any_more(folder):
    journal = reopen(folder)
    with mock.patch.object(journal_files, "write_zeros", side_effect=journal_files.write_zeros) as zeros:
        for _ in range(30):
            entries = fill(journal, 10)
            journal.sync()
            journal.cut(journal.last_index)
            journal.prepare_spare()
            assert contents(journal) == entries[-1:]
    assert zeros.call_count == 1  # for the second; it was time to make the third when the first was free
    assert journal.file_count == 1
    assert journal.size_bytes == sum(path.stat().st_size for path in folder.iterdir())
    journal.close()


def test_a_file_of_another_size_is_not_used_again(folder):
    journal = reopen(folder)
    fill(journal, 3, size_bytes=6000)
    journal.sync()
    journal.cut(3)
    journal.prepare_spare()
    assert {path.stat().st_size for path in folder.iterdir()} - {path.stat().st_size for path in numbered(folder)} == {
        FILE_BYTES
    }
    journal.close()


def test_behind_a_record_the_page_is_zeros(folder):
    """The kernel need not read it, and bytes right behind the last record tell of a torn write."""
    live_long(folder).close()
    last = numbered(folder)[-1]
    assert last.read_bytes()[end_of(last) :] == bytes(FILE_BYTES - end_of(last))


# -- restarts ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_pages")
def test_a_restart_clears_stale_bytes_once_and_warns_of_nothing(folder):
    journal = live_long(folder)
    checkpoint, entries = checkpoint_of(journal), contents(journal)
    journal.close()
    last = numbered(folder)[-1]
    assert stale_bytes(last) > 1000
    for events in (["journal_tail_cleared"], []):
        with capture_logs() as logs:
            journal = reopen(folder, checkpoint)
        assert [(line["event"], line["log_level"]) for line in logs] == [(event, "info") for event in events]
        assert contents(journal) == entries
        assert not stale_bytes(last)
        journal.close()


def test_a_write_that_was_torn_over_stale_bytes_is_warned_of(folder):
    journal = live_long(folder)
    checkpoint, entries = checkpoint_of(journal), contents(journal)
    last = numbered(folder)[-1]
    end = end_of(last)
    with DyingProcess(1).running(), pytest.raises(Crash):
        fill(journal, 1, size_bytes=2000)  # half of it is written
    journal.close()
    with capture_logs() as logs:
        journal = reopen(folder, checkpoint)
    assert [(line["event"], line["file"], line["position"]) for line in logs] == [("journal_tail_cut", str(last), end)]
    assert contents(journal) == entries
    journal.close()


@pytest.mark.usefixtures("small_pages")
def test_bytes_of_this_life_behind_a_lost_one_do_not_come_back(folder):
    """The disk has lost a write, has what lay there before instead, and has the writes behind it."""
    journal = live_long(folder)
    last = numbered(folder)[-1]
    before = last.read_bytes()
    checkpoint, kept = checkpoint_of(journal), contents(journal)
    fill(journal, 3)
    start = journal.locate(journal.last_index - 2).position - RECORD_HEADER_BYTES
    journal.close()
    data = bytearray(last.read_bytes())
    data[start : start + 336] = before[start : start + 336]
    last.write_bytes(data)
    journal = reopen(folder, checkpoint)
    assert contents(journal) == kept
    more = fill(journal, 1)  # takes exactly the place of what was lost
    journal.close()
    journal = reopen(folder, checkpoint)
    assert contents(journal) == kept + more
    journal.close()


@pytest.mark.usefixtures("small_pages")
def test_damage_is_found_among_stale_bytes_and_stale_bytes_are_not_damaged(folder, tmp_path):
    journal = live_long(folder)
    checkpoint, entries = checkpoint_of(journal), contents(journal)
    journal.close()
    last = numbered(folder)[-1]
    end, random = end_of(last), Random(1)
    assert stale_bytes(last) > 1000
    synced = range(JOURNAL_HEADER_BYTES + record_size(0), end - 2 * MARK_BYTES)  # the head is watched in any case
    for position in [*random.sample(synced, 40), *random.sample(range(end, FILE_BYTES), 20)]:
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        flip(copy / last.name, position)
        if position < end:
            assert "a mark says that bytes up to" in str(refused(copy, checkpoint))
        else:
            journal = reopen(copy, checkpoint)
            assert contents(journal) == entries
            journal.close()
        shutil.rmtree(copy)


# -- what a crash leaves ----------------------------------------------------------------------------------------------


def head(number: int, journal_id: bytes = JOURNAL_ID) -> bytes:
    return encode_journal_header(JournalHeader(journal_id, number, FILE_BYTES, 1, 0))


@pytest.mark.parametrize(
    ("name", "data", "is_kept"),
    [
        ("spare", bytes(FILE_BYTES), True),
        ("spare", head(1).ljust(FILE_BYTES, b"x"), True),
        ("recycled", head(1).ljust(FILE_BYTES, b"x"), True),
        ("spare", head(3).ljust(FILE_BYTES, b"x"), False),  # was being begun: the number comes again
        ("recycled", head(4).ljust(FILE_BYTES, b"x"), False),  # of a later state of the folder
        ("spare", head(1, b"f" * 16).ljust(FILE_BYTES, b"x"), False),
        ("spare", b"x" * FILE_BYTES, False),
        ("spare", head(1).ljust(FILE_BYTES - 8, b"x"), False),
        ("spare", b"", False),
    ],
)
def test_only_what_cannot_hold_records_to_come_is_kept(folder, name, data, is_kept):
    journal = reopen(folder)
    entries = fill(journal, 12)  # two files
    journal.close()
    (folder / name).write_bytes(data)
    journal = reopen(folder)
    assert (folder / name).exists() == is_kept
    assert journal.size_bytes == (3 if is_kept else 2) * FILE_BYTES
    with mock.patch.object(journal_files, "write_zeros", side_effect=journal_files.write_zeros) as zeros:
        journal.prepare_spare()
    assert zeros.called != is_kept
    entries += fill(journal, 15)
    journal.close()
    journal = reopen(folder)
    assert contents(journal) == entries
    journal.close()


@pytest.mark.usefixtures("small_pages")
def test_records_of_a_later_state_of_the_folder_do_not_come_back(folder, tmp_path):
    """Numbered files were put back to an older state, the recycled ones were not: numbers come a second time."""
    journal = live_long(folder, rounds=5)
    checkpoint = checkpoint_of(journal)
    shutil.copytree(folder, tmp_path / "copy")
    last = int(numbered(folder)[-1].stem, 16)
    while not (folder / "recycled").exists() or number_of(folder / "recycled") <= last:
        journal.prepare_spare()
        fill(journal, 10)
        journal.cut(journal.last_index - 1)
    shutil.copy(folder / "recycled", tmp_path / "copy")
    journal.close()
    journal = reopen(tmp_path / "copy", checkpoint)
    entries = contents(journal) + fill(journal, 30, size_bytes=200)
    journal.close()
    journal = reopen(tmp_path / "copy", checkpoint)
    assert contents(journal) == entries
    journal.close()


# -- processes that die, power that fails -----------------------------------------------------------------------------


@pytest.mark.usefixtures("small_pages")
def test_a_process_that_dies_while_files_are_recycled_leaves_a_whole_journal(tmp_path):
    live_long(tmp_path / "origin", rounds=5).close()
    origin = reopen(tmp_path / "origin", (49, 1, 1))
    origin.close()
    last_call, calls = 0, 1
    while last_call < calls:
        last_call += 1
        folder = tmp_path / str(last_call)
        shutil.copytree(tmp_path / "origin", folder)
        journal = reopen(folder, (49, 1, 1))
        synced = journal.last_index
        with DyingProcess(last_call).running() as process:
            try:
                for _ in range(2):
                    fill(journal, 10)
                    journal.sync()
                    synced = journal.last_index
                    journal.cut(49)
                    journal.prepare_spare()
                calls = process.calls
            except Crash:
                calls = last_call + 1
        journal.close()
        journal = reopen(folder, (49, 1, 1))
        assert synced <= journal.last_index <= synced + 10
        entries = contents(journal)[2:] + fill(journal, 12)
        journal.close()
        journal = reopen(folder, (49, 1, 1))
        assert contents(journal)[2:] == entries
        journal.close()
        shutil.rmtree(folder)
    assert last_call > 30


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("seed", range(30))
def test_a_power_failure_among_stale_bytes_loses_nothing_that_was_synced(folder, seed):
    random = Random(seed)
    checkpoint, entries, durable = None, {}, 0
    for life in range(1, 9):
        with PowerFailure(random).watching() as power:
            journal = reopen(folder, checkpoint)
            assert journal.last_index >= durable
            first = checkpoint[0] + 1 if checkpoint else 1
            held = {one[1]: one for one in contents(journal) if one[1] >= first}
            assert held == {index: entries[index] for index in range(first, journal.last_index + 1)}
            entries = {index: entries[index] for index in range(1, journal.last_index + 1)}
            durable = journal.last_index
            for _ in range(random.randrange(12)):
                added = fill(journal, random.randrange(6), term=life, size_bytes=random.choice([10, 300, 300, 700]))
                entries |= {one[1]: one for one in added}
                if random.random() < 0.5:
                    journal.sync()
                    durable = journal.last_index
                if durable > 4 and random.random() < 0.5:
                    checkpoint = durable, entries[durable][2], entries[durable - 1][2]
                    journal.cut(durable - 1)
                    journal.prepare_spare()
            journal.close()
            power.strike(folder)
