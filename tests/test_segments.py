"""A partition's segments: batches come back as they were, by offset and by time; torn tails are cut, damage refused."""

import errno
import os
import shutil
import threading
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

from protocol.errors import DamagedFile, DataError, LogError
from protocol.limits import INDEX_INTERVAL_BYTES, SEGMENTS_OPEN_MAX
from protocol.records import Event, encode_batch, place_batch, read_header, read_records, split_batches
from sinkd.core.formats import SEGMENT_HEADER_BYTES
from sinkd.shell.segments import PartitionLog

INCARNATION = b"0123456789abcdef"
EPOCH = 7


def reopen(folder: Path, durable_end: int = 0, segment_bytes: int = 4096, **keywords: int) -> PartitionLog:
    return PartitionLog.open(
        folder, incarnation=INCARNATION, partition=3, segment_bytes=segment_bytes, durable_end=durable_end, **keywords
    )


def refused(folder: Path, durable_end: int = 0) -> DamagedFile:
    with pytest.raises(DamagedFile) as caught:
        reopen(folder, durable_end).close()
    return caught.value


def batch(times_ms: list[int], payload: bytes = b"x" * 300) -> bytes:
    return encode_batch([Event(b"orders", b"key", time_ms, b"", payload) for time_ms in times_ms])


def fill(log: PartitionLog, count: int, records: int = 2, first_ms: int | None = None) -> list[bytes]:
    """Batches whose record at offset N has time N (+ `first_ms`); as they stand in the log."""
    placed = []
    for _ in range(count):
        offset = log.append_end
        one = batch([offset + (first_ms or 0) + number for number in range(records)])
        log.append(one, offset, EPOCH)
        placed.append(place_batch(one, offset, EPOCH))
    return placed


def read_all(log: PartitionLog, max_bytes: int = 1) -> list[bytes]:
    batches, offset = [], log.start_offset
    while data := log.read(offset, max_bytes):
        got = [bytes(one) for one in split_batches(data)]
        batches += got
        offset = read_header(got[-1]).next_offset
    assert offset == log.end_offset
    return batches


def open_and_read_all(folder: Path, durable_end: int) -> None:
    log = reopen(folder, durable_end)
    try:
        read_all(log)
    finally:
        log.close()


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.segment"))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "orders" / "3"


# -- reading by offset ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_bytes", [1, 2000, 1_000_000])
def test_batches_come_back_as_they_were_before_and_after_a_restart(folder, max_bytes):
    log = reopen(folder)
    batches = fill(log, 40)
    log.sync()
    assert log.segment_count == len(segments(folder)) > 5
    assert read_all(log, max_bytes) == batches
    assert log.size_bytes == sum(path.stat().st_size for path in segments(folder))
    log.close()
    with capture_logs() as logs:
        log = reopen(folder, durable_end=80)
    assert read_all(log, max_bytes) == batches
    batches += fill(log, 3)
    log.sync()
    assert read_all(log, max_bytes) == batches
    assert logs == []
    log.close()


def test_a_file_holds_what_a_kafka_broker_would_store(folder):
    log = reopen(folder)
    batches = fill(log, 3)
    log.sync()
    assert segments(folder)[0].name == "00000000000000000000.segment"
    assert segments(folder)[0].read_bytes()[SEGMENT_HEADER_BYTES:] == b"".join(batches)
    assert [read_header(one).leader_epoch for one in read_all(log)] == [EPOCH] * 3
    log.close()


def test_reading_starts_with_the_batch_that_holds_the_offset(folder):
    log = reopen(folder, segment_bytes=1_000_000)
    batches = fill(log, 600, records=3)  # several index blocks
    log.sync()
    for offset in (0, 1, 2, 3, 700, 1000, 1799):
        assert log.read(offset, 1) == batches[offset // 3]
    size = len(batches[0])
    assert log.read(4, 2 * size) == batches[1] + batches[2]
    assert log.read(4, 3 * size - 1) == batches[1] + batches[2]
    assert log.read(1800, 100) == b""
    log.close()


def test_offsets_outside_are_refused_with_the_range_that_exists(folder):
    log = reopen(folder)
    with pytest.raises(LogError, match="0 to 0"):
        log.read(1, 100)
    assert log.read(0, 100) == b""
    fill(log, 40)
    log.sync()
    log.trim(30)
    with pytest.raises(LogError, match=rf"{log.start_offset} to 80") as caught:
        log.read(0, 100)
    assert caught.value.name == "OFFSET_OUT_OF_RANGE"
    with pytest.raises(LogError):
        log.read(81, 100)
    log.close()


def test_nothing_is_read_before_it_is_fsynced(folder):
    log = reopen(folder)
    fill(log, 2)
    log.sync()
    fill(log, 1)
    assert (log.end_offset, log.append_end) == (4, 6)
    assert log.read(4, 100) == b""
    assert log.offset_for_time(4) is None
    assert log.offset_until_time(100) == 4
    with pytest.raises(LogError):
        log.read(5, 100)
    assert log.batch_crc_at(4) is not None  # a replay has to know it
    log.sync()
    assert read_header(log.read(5, 100)).base_offset == 4
    log.close()


def test_a_batch_larger_than_a_segment_has_one_of_its_own(folder):
    log = reopen(folder)
    large = batch([1], b"y" * 200_000)
    for offset in range(3):
        log.append(large, offset, EPOCH)
    log.sync()
    assert [path.stem.lstrip("0") for path in segments(folder)] == ["", "1", "2"]
    assert read_all(log) == [place_batch(large, offset, EPOCH) for offset in range(3)]
    log.close()


def test_what_does_not_belong_at_the_end_is_not_appended(folder):
    log = reopen(folder, first_offset=100)
    with pytest.raises(ValueError, match="100 is due"):
        log.append(batch([1]), 0, EPOCH)
    bad = bytearray(batch([1]))
    bad[-1] ^= 1
    with pytest.raises(DataError, match="damaged already"):
        log.append(bytes(bad), 100, EPOCH)
    assert log.append_end == 100
    fill(log, 1)
    log.sync()
    log.close()
    log = reopen(folder, durable_end=102)
    assert (log.start_offset, log.end_offset) == (100, 102)
    log.close()


def test_a_replay_can_ask_what_stands_at_an_offset(folder):
    log = reopen(folder)
    batches = fill(log, 20)
    log.sync()
    for number, one in enumerate(batches):
        assert log.batch_crc_at(2 * number) == read_header(one).crc
        assert log.batch_crc_at(2 * number + 1) is None
    assert log.batch_crc_at(40) is None
    log.close()


# -- reading by time --------------------------------------------------------------------------------------------------

time_lists = st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=3), max_size=25)


@given(time_lists, st.integers(-1, 31), st.sampled_from([400, 4096]))
@settings(max_examples=80, deadline=None)
def test_times_find_the_same_as_looking_at_every_record(batches_ms, timestamp_ms, segment_bytes):
    """Times in any order: every gateway has its own clock."""
    with (
        TemporaryDirectory() as name,
        mock.patch("sinkd.core.blocks.INDEX_INTERVAL_BYTES", 500),
    ):
        log = reopen(Path(name) / "log", segment_bytes=segment_bytes)
        for times_ms in batches_ms:
            log.append(batch(times_ms, b"12"), log.append_end, EPOCH)
        log.sync()
        for _ in range(2):  # before and after a restart
            records = [(one, record) for one in read_all(log) for record in read_records(one)]
            late = [read_header(one).base_offset for one, record in records if record.timestamp_ms >= timestamp_ms]
            early = [read_header(one).next_offset for one, record in records if record.timestamp_ms < timestamp_ms]
            assert log.offset_for_time(timestamp_ms) == (late[0] if late else None)
            assert log.offset_until_time(timestamp_ms) == (early[-1] if early else 0)
            log.close()
            log = reopen(Path(name) / "log", segment_bytes=segment_bytes)
        log.close()


# -- trimming ---------------------------------------------------------------------------------------------------------


def test_trim_removes_whole_segments_and_never_the_last(folder):
    log = reopen(folder)
    batches = fill(log, 40)
    log.sync()
    log.trim(31)
    assert log.start_offset <= 31
    assert segments(folder)[0].name == f"{log.start_offset:020d}.segment"
    assert read_all(log) == batches[log.start_offset // 2 :]
    log.trim(1000)
    assert (log.segment_count, log.end_offset) == (1, 80)
    assert len(list(folder.iterdir())) == 1
    log.close()
    log = reopen(folder, durable_end=80)
    assert (log.segment_count, log.end_offset) == (1, 80)
    log.close()


def test_only_a_few_finished_segments_are_kept_open(folder):
    before = len(os.listdir("/proc/self/fd"))
    log = reopen(folder)
    fill(log, 200)
    log.sync()
    assert log.segment_count > 2 * SEGMENTS_OPEN_MAX
    for _ in range(2):
        assert len(os.listdir("/proc/self/fd")) <= before + SEGMENTS_OPEN_MAX + 1
        read_all(log)
    log.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_reader_whose_segment_is_trimmed_goes_on_with_what_is_left(folder):
    log = reopen(folder)
    fill(log, 40)
    log.sync()
    log.close()
    log = reopen(folder, durable_end=80)  # nothing is open but the active segment
    open_finished = log.files.open_finished

    def trim_first(segment):
        log.trim(40)
        return open_finished(segment)

    with mock.patch.object(log.files, "open_finished", trim_first):
        assert log.offset_for_time(0) == log.start_offset > 20
    log.close()


# -- beginning anew ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("synced", [True, False])
@pytest.mark.parametrize("count", [0, 3, 40])
def test_a_log_begins_anew_further_on(folder, count, synced):
    log = reopen(folder)
    fill(log, count)
    if synced:
        log.sync()
        assert len(read_all(log)) == count  # finished segments are open now
    with pytest.raises(ValueError, match=r"is due|ends at offset"):
        log.begin_at(2 * count - 1)
    log.begin_at(2 * count)
    assert (log.append_end, log.start_offset) == (2 * count, 0)
    log.begin_at(1001)
    assert (log.start_offset, log.end_offset, log.append_end, log.segment_count) == (1001, 1001, 1001, 1)
    assert [path.name for path in folder.iterdir()] == [f"{1001:020d}.segment"]
    with pytest.raises(LogError, match="1001 to 1001"):
        log.read(0, 1)
    assert log.batch_crc_at(0) is log.offset_for_time(0) is None
    with pytest.raises(ValueError, match="1001 is due"):
        log.append(batch([1]), 1000, EPOCH)
    batches = fill(log, 20)
    log.sync()
    assert read_all(log) == batches
    log.close()
    log = reopen(folder, durable_end=2 * count)  # what the checkpoint of the old log knows
    assert (log.start_offset, read_all(log)) == (1001, batches)
    log.begin_at(2000)
    log.begin_at(2001)
    log.close()
    log = reopen(folder, durable_end=1041)
    assert (log.start_offset, log.end_offset) == (2001, 2001)
    log.close()


def test_a_process_that_dies_while_its_log_begins_anew_leaves_the_old_or_the_new_one(tmp_path):
    found = set()
    for last_call in range(1, 99):
        folder = tmp_path / str(last_call)
        log = reopen(folder)
        durable = fill(log, 15)
        log.sync()
        unsynced = fill(log, 1)
        with DyingProcess(last_call).running() as process, suppress(Crash):
            log.begin_at(1000)
        log.close()
        log = reopen(folder, durable_end=30)
        if log.start_offset == 0:
            assert read_all(log) == durable + unsynced
        else:
            assert (log.start_offset, log.end_offset, log.segment_count) == (1000, 1000, 1)
            assert len(list(folder.iterdir())) == 1
        found.add(log.start_offset)
        log.begin_at(1000)
        batches = fill(log, 15)
        log.sync()
        assert read_all(log) == batches
        log.close()
        if process.calls < last_call:
            break
    assert found == {0, 1000}
    assert 15 < last_call < 98


def test_no_gap_is_taken_for_a_new_beginning_that_was_none(folder):
    log = reopen(folder)
    log.begin_at(100)
    fill(log, 20)
    log.sync()
    log.close()
    first, second, *others = segments(folder)
    aside = folder / "aside"
    second.rename(aside)
    for durable_end in (0, 140):
        assert refused(folder, durable_end).file == str(others[0])
    aside.rename(second)
    shutil.copy(first, folder / f"{50:020d}.segment")  # of what lies before, nothing is believed unchecked
    assert "it is of incarnation" in str(refused(folder))


def test_readers_go_on_while_the_log_begins_anew(folder):
    log = reopen(folder, segment_bytes=2000)
    fill(log, 20)
    log.sync()
    wrong, served, stop = [], [0], threading.Event()

    def read() -> None:
        random = Random(1)
        while not stop.is_set():
            start, end = log.start_offset, log.end_offset
            try:
                data = log.read(random.randint(start, max(start, end - 1)), 3000)
                served[0] += len(data)
                log.offset_for_time(start)
                log.offset_until_time(end)
            except LogError:
                continue  # it has begun anew meanwhile
            except (DamagedFile, OSError, ValueError, LookupError) as error:
                wrong.append(error)
                return

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for _ in range(8):
        log.begin_at(log.append_end + 7)
        fill(log, 20)
        log.sync()
    stop.set()
    for reader in readers:
        reader.join()
    log.close()
    assert wrong == []
    assert served[0] > 0


def test_a_sink_that_died_while_it_was_filled_keeps_the_longest_whole_prefix(folder):
    log = reopen(folder)
    log.begin_at(50)
    batches = fill(log, 30)
    log.sync()
    batches += fill(log, 3)
    log.close()
    path = segments(folder)[-1]
    os.truncate(path, path.stat().st_size - 5)
    with capture_logs() as logs:
        log = reopen(folder, durable_end=0)
    assert [line["event"] for line in logs] == ["segment_tail_cut"]
    assert read_all(log) == batches[:-1]
    log.close()


# -- torn, damaged, rolled back ---------------------------------------------------------------------------------------


@given(st.floats(0, 1, exclude_max=True), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_torn_tail_above_what_was_durable_is_cut(part, short):
    with TemporaryDirectory() as name:
        folder = Path(name) / "log"
        log = reopen(folder, segment_bytes=100_000)
        batches = fill(log, 4)
        log.sync()
        durable_bytes = log.size_bytes
        batches += fill(log, 4)
        log.close()
        path = segments(folder)[0]
        position = durable_bytes + int(part * (path.stat().st_size - durable_bytes))
        if short:
            os.truncate(path, position)
        else:
            flip(path, position)
        size = len(batches[0])
        whole = (position - SEGMENT_HEADER_BYTES) // size
        if not short and (position - SEGMENT_HEADER_BYTES) % size in range(12, 16):
            whole = 8  # the leader epoch is not covered by Kafka's CRC
        with capture_logs() as logs:
            log = reopen(folder, durable_end=8, segment_bytes=100_000)
        assert log.end_offset == 2 * whole
        assert [one[16:] for one in read_all(log)] == [one[16:] for one in batches[:whole]]
        at_boundary = short and (position - SEGMENT_HEADER_BYTES) % size == 0
        assert [line["event"] for line in logs] == ([] if at_boundary or whole == 8 else ["segment_tail_cut"])
        assert path.stat().st_size == SEGMENT_HEADER_BYTES + whole * size
        fill(log, 2)
        log.sync()
        assert log.end_offset == 2 * whole + 4
        log.close()


@cache
def _durable_log() -> tuple[Path, TemporaryDirectory]:
    holder = TemporaryDirectory()
    folder = Path(holder.name) / "log"
    log = reopen(folder)
    fill(log, 14)
    log.sync()
    log.close()
    assert len(segments(folder)) == 3
    return folder, holder


@given(st.integers(0, 2), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
@settings(max_examples=200, deadline=None)
def test_any_flipped_byte_is_found_before_it_is_served(file, part, mask):
    original, _ = _durable_log()
    with TemporaryDirectory() as name:
        folder = Path(name) / "log"
        shutil.copytree(original, folder)
        path = segments(folder)[file]
        position = int(part * path.stat().st_size)
        if position >= SEGMENT_HEADER_BYTES and (position - SEGMENT_HEADER_BYTES) % len(batch([0, 1])) in range(12, 16):
            return  # the leader epoch
        flip(path, position, mask)
        with pytest.raises(DamagedFile) as caught:
            open_and_read_all(folder, 28)
        assert caught.value.file == str(path)
        assert abs(caught.value.position - position) <= 800


def test_missing_short_foreign_and_older_segments_are_refused(folder):
    original, _ = _durable_log()

    def broken(change, durable_end: int = 28) -> str:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(original, folder)
        change(*segments(folder))
        return str(refused(folder, durable_end))

    assert "the segment before it ends at offset" in broken(lambda a, b, c: b.unlink())
    assert "rolled back" in broken(lambda a, b, c: c.unlink())
    assert "rolled back" in broken(lambda *paths: [path.unlink() for path in paths])
    assert "bytes where" in broken(lambda a, b, c: os.truncate(b, b.stat().st_size - 1))
    assert "bytes where" in broken(lambda a, b, c: os.truncate(c, c.stat().st_size - 1))
    assert "rolled back" in broken(lambda a, b, c: None, 29)
    assert "it is of incarnation" in broken(lambda a, b, c: shutil.copy(a, c))
    shutil.rmtree(folder)
    shutil.copytree(original, folder)
    with pytest.raises(DamagedFile, match="it is of incarnation"):
        PartitionLog.open(folder, incarnation=b"x" * 16, partition=3, segment_bytes=4096, durable_end=28)


@pytest.mark.parametrize("position", [0, 30, 77, 80, 90, -1])
def test_a_wrong_or_missing_index_is_made_anew(folder, position):
    original, _ = _durable_log()
    shutil.copytree(original, folder)
    indexes = sorted(folder.glob("*.index"))
    right = [path.read_bytes() for path in indexes]
    flip(indexes[0], position)
    indexes[1].unlink()
    with capture_logs() as logs:
        log = reopen(folder, durable_end=28)
        assert len(read_all(log)) == 14
        log.close()
    assert [path.read_bytes() for path in indexes] == right
    assert {line["event"] for line in logs} == {"segment_index_rebuilt"}


def test_a_failed_fsync_is_final(folder):
    log = reopen(folder)
    fill(log, 1)
    failing = mock.patch.object(os, "fdatasync", side_effect=OSError(errno.EIO, "Input/output error"))
    with failing, pytest.raises(OSError, match="Input"):
        log.sync()
    with pytest.raises(OSError, match="an earlier write"):
        fill(log, 1)
    with pytest.raises(OSError, match="an earlier write"):
        log.sync()
    assert log.end_offset == 0
    log.close()


# -- processes that die, power that fails -----------------------------------------------------------------------------


def test_a_process_that_dies_in_any_system_call_leaves_a_whole_log(tmp_path):
    last_call = 0
    while True:
        last_call += 1
        folder, ends, trims = tmp_path / str(last_call), [0], [0]
        log = None
        with DyingProcess(last_call).running():
            try:
                log = reopen(folder)
                for number in range(12):
                    fill(log, 3)
                    log.sync()
                    ends.append(log.end_offset)
                    if number % 5 == 4:
                        trims.append(ends[-3])
                        log.trim(trims[-1])
            except Crash:
                pass
            else:
                log.close()
                break
        if log is not None:
            log.close()
        log = reopen(folder, durable_end=ends[-1])
        assert log.end_offset >= ends[-1]
        assert log.start_offset <= trims[-1]
        assert [read_header(one).base_offset for one in read_all(log)] == list(
            range(log.start_offset, log.end_offset, 2)
        )
        fill(log, 3)
        log.sync()
        log.close()
    assert last_call > 60


def test_what_a_restart_has_found_is_on_the_disk_before_it_counts(folder):
    with PowerFailure(Random(1)).watching() as power:
        log = reopen(folder)
        batches = fill(log, 3)
        log.close()  # the process was killed: its writes are in the page cache
        reopen(folder).close()
        power.strike(folder)
    log = reopen(folder, durable_end=6)
    assert read_all(log) == batches
    log.close()


@pytest.mark.parametrize("seed", range(25))
def test_a_power_failure_loses_nothing_that_was_synced(tmp_path, seed):
    random = Random(seed)
    folder, end = tmp_path / "log", 0
    for _ in range(4):
        with PowerFailure(random).watching() as power:
            log = reopen(folder, durable_end=end)
            end = log.end_offset
            assert len(read_all(log)) == end // 2
            for _ in range(random.randrange(8)):
                fill(log, random.randrange(5))
                if random.random() < 0.5:
                    log.sync()
            end = log.end_offset
            log.close()
            power.strike(folder)


# -- threads ----------------------------------------------------------------------------------------------------------


def test_readers_get_whole_batches_while_the_log_grows_and_is_trimmed(folder):
    log = reopen(folder, segment_bytes=20_000)
    wrong: list[object] = []
    reads, stop = [0], threading.Event()

    def read() -> None:
        random = Random(1)
        while not stop.is_set():
            offset = random.randint(log.start_offset, log.end_offset)
            try:
                data = log.read(offset, 3000)
                time = log.offset_for_time(offset)
                until = log.offset_until_time(offset)
            except LogError:  # trimmed meanwhile
                continue
            if data and not read_header(data).base_offset <= offset < read_header(data).next_offset:
                wrong.append((offset, read_header(data)))
            if time is not None and time > offset and time != log.start_offset and log.start_offset <= offset:
                wrong.append((offset, time))
            if until < min(offset - 2, log.start_offset):
                wrong.append((offset, until))
            reads[0] += 1

    def watched_read() -> None:
        try:
            read()
        except Exception as error:  # noqa: BLE001  # whatever a reader meets is what this test reports
            wrong.append(error)

    readers = [threading.Thread(target=watched_read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(400):
        fill(log, 3)
        log.sync()
        if number % 10 == 9:
            log.trim(log.end_offset - 150)
    stop.set()
    for reader in readers:
        reader.join()
    log.close()
    assert wrong == []
    assert reads[0] > 0


def test_the_index_is_sparse(folder):
    log = reopen(folder, segment_bytes=10 * INDEX_INTERVAL_BYTES)
    while log.segment_count < 2:
        fill(log, 1, records=10)
    log.close()
    index = next(folder.glob("*.index"))
    assert index.stat().st_size < 80 + 11 * 32
