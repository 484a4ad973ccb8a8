"""Trees of logs: the same whatever they are made from, and made anew when a file of theirs is missing or wrong."""

from pathlib import Path
from random import Random

import pytest
from structlog.testing import capture_logs
from support.disk import flip

from protocol.coverage import digest_of
from protocol.errors import DamagedFile, LogError
from protocol.merkle import check_consistency, check_inclusion, frontier_of, grow, leaf_hash, root_of
from protocol.records import Event, encode_batch, place_batch, read_header
from sinkd.core.formats import SEGMENT_HEADER_BYTES, TreePosition, decode_leaves, decode_tree
from sinkd.shell import leaves as leaf_files
from sinkd.shell.segments import PartitionLog

INCARNATION = b"0123456789abcdef"
BEGIN = TreePosition(0, 0, 0, ())


def reopen(folder: Path, durable_end: int = 0, *, keeps_leaves: bool = True, first_offset: int = 0) -> PartitionLog:
    log = PartitionLog.open(
        folder, incarnation=INCARNATION, partition=3, segment_bytes=4096, durable_end=durable_end,
        first_offset=first_offset,
    )  # fmt: skip
    log.keeps_leaves = keeps_leaves
    return log


def fill(log: PartitionLog, count: int, seed: int = 1) -> list[tuple[int, bytes]]:
    """(offset behind it, leaf hash) of each batch."""
    random, found = Random(f"{seed} {log.append_end}"), []
    for _ in range(count):
        events = [
            Event(b"a", b"", 5, b"", random.randbytes(random.randrange(700))) for _ in range(random.randint(1, 4))
        ]
        offset = log.append_end
        placed = place_batch(encode_batch(events), offset, 7)
        log.append(placed, offset, 7)
        found.append((offset + len(events), leaf_hash(offset, digest_of(placed))))
    log.sync()
    return found


def position(batches: list[tuple[int, bytes]]) -> TreePosition:
    return TreePosition(0, batches[-1][0], len(batches), tuple(frontier_of(leaf for _, leaf in batches)))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "orders" / "3"


@pytest.mark.parametrize("keeps_leaves", [True, False])
def test_the_tree_is_that_of_the_batches_at_every_end(folder, keeps_leaves):
    log = reopen(folder, keeps_leaves=keeps_leaves)
    batches = fill(log, 60)
    assert log.segment_count > 5
    for order in (range(1, 61), reversed(range(1, 61))):
        for count in order:
            assert log.tree.position_at(BEGIN, batches[count - 1][0]) == position(batches[:count])
    size, root = log.tree.root_at(BEGIN, log.end_offset)
    assert (size, root) == (60, root_of(frontier_of(leaf for _, leaf in batches)))
    log.close()


def test_it_grows_while_batches_come_and_segments_are_finished(folder):
    log, batches = reopen(folder), []
    for _ in range(50):
        batches += fill(log, 1)
        assert log.tree.position_at(BEGIN, log.end_offset) == position(batches)
    log.close()


def test_after_a_restart_the_walk_goes_on_behind_the_finished_segments(folder):
    log = reopen(folder)
    batches = fill(log, 60)
    whole = log.tree.position_at(BEGIN, log.end_offset)
    log.close()
    saved = decode_tree((folder / "tree").read_bytes())
    assert saved[:2] == (INCARNATION, 3)
    assert saved[2] == position([batch for batch in batches if batch[0] <= saved[2].offset])
    log = reopen(folder, durable_end=batches[-1][0])
    assert saved[2].offset == log.finished()[-1].next_offset
    for segment in log.finished():  # not looked at
        segment.leaves_path.unlink()
        segment.path.write_bytes(b"")
    assert log.tree.position_at(BEGIN, log.end_offset) == whole
    log.close()


@pytest.mark.parametrize("harm", ["missing", "flipped", "cut", "of another segment", "all", "tree flipped", "tree cut"])
def test_a_file_that_is_missing_or_wrong_is_made_anew(folder, harm):
    log = reopen(folder)
    batches = fill(log, 60)
    log.tree.position_at(BEGIN, log.end_offset)
    first, second, *others = [segment.leaves_path for segment in log.finished()]
    log.close()
    good = {path: path.read_bytes() for path in (first, second, *others)}
    if harm == "missing":
        second.unlink()
    elif harm == "flipped":
        flip(second, 70)
    elif harm == "cut":
        second.write_bytes(good[second][:-40])
    elif harm == "of another segment":
        second.write_bytes(good[first])
    elif harm == "all":
        for path in good:
            path.write_bytes(b"")
    elif harm == "tree flipped":
        flip(folder / "tree", 60)
    else:
        (folder / "tree").write_bytes((folder / "tree").read_bytes()[:-1])
    log = reopen(folder, durable_end=batches[-1][0])
    if "tree" not in harm:
        (folder / "tree").unlink()
    assert log.tree.position_at(BEGIN, log.end_offset) == position(batches)
    assert {path: path.read_bytes() for path in good} == good
    log.close()


def test_leaves_are_never_made_from_a_segment_that_is_bad(folder):
    log = reopen(folder)
    fill(log, 60)
    segment = log.finished()[1]
    segment.leaves_path.unlink()
    flip(segment.path, SEGMENT_HEADER_BYTES + 100)
    with pytest.raises(DamagedFile) as caught:
        log.tree.position_at(BEGIN, log.end_offset)
    assert caught.value.file == str(segment.path)
    assert not segment.leaves_path.exists()
    log.close()


def test_what_is_trimmed_stays_under_the_root(folder):
    log = reopen(folder)
    batches = fill(log, 60)
    keep_from = log.finished()[2].next_offset
    start = log.tree.position_at(BEGIN, keep_from)
    log.trim(keep_from)
    assert log.start_offset == keep_from
    assert len(list(folder.glob("*.leaves"))) == len(log.finished())
    batches += fill(log, 30)
    assert log.tree.position_at(start, log.end_offset) == position(batches)
    with pytest.raises(LogError, match="not all of 0 to"):
        list(log.tree.leaves(0, keep_from))
    log.close()
    (folder / "tree").unlink()
    log = reopen(folder, durable_end=batches[-1][0])
    assert log.tree.position_at(start, log.end_offset) == position(batches)
    log.close()


def test_a_log_that_begins_anew_further_on_goes_on_from_there(folder):
    log = reopen(folder)
    batches = fill(log, 20)
    here = position(batches)
    there = TreePosition(0, 1000, here.size + 1, tuple(grown(here, b"\1" * 32)))
    log.begin_at(1000)
    more = fill(log, 20)
    expected = list(there.frontier)
    for number, (_, leaf) in enumerate(more):
        grow(expected, there.size + number, leaf)
    assert log.tree.position_at(there, log.end_offset) == (0, log.end_offset, there.size + 20, tuple(expected))
    assert min(path.stem for path in folder.glob("*.leaves")) == f"{1000:020d}"
    log.close()


def grown(here: TreePosition, leaf: bytes) -> list[bytes]:
    frontier = list(here.frontier)
    grow(frontier, here.size, leaf)
    return frontier


def test_a_tree_that_began_within_the_log(folder):
    log = reopen(folder, keeps_leaves=False)
    before = fill(log, 25)
    begin = TreePosition(before[-1][0], before[-1][0], 0, ())
    log.keeps_leaves = True
    batches = fill(log, 40)
    expected = (begin.begin_offset, log.end_offset, 40, tuple(frontier_of(leaf for _, leaf in batches)))
    assert log.tree.position_at(begin, log.end_offset) == expected
    log.close()


def test_orphans_go(folder):
    log = reopen(folder)
    batches = fill(log, 60)
    segment = log.finished()[0]
    log.close()
    segment.path.unlink()
    segment.index_path.unlink()
    log = reopen(folder, durable_end=batches[-1][0])
    assert not segment.leaves_path.exists()
    log.close()


def test_a_place_between_no_two_batches_is_none(folder):
    log = reopen(folder)
    batches = fill(log, 20)
    inside = next(end - 1 for (end, _), (before, _) in zip(batches[1:], batches, strict=False) if end - 1 > before)
    with pytest.raises(LogError, match="no batch begins at offset"):
        list(log.tree.leaves(inside, log.end_offset))
    for one in (log, reopened := reopen(folder, durable_end=log.end_offset, keeps_leaves=False)):
        for (end, _), (before, _) in zip(batches[1:], batches, strict=False):
            for offset in range(before + 1, end):
                with pytest.raises(LogError, match="no batch ends at offset"):
                    one.tree.position_at(BEGIN, offset)
    reopened.close()
    with pytest.raises(LogError, match="not all of"):
        log.tree.position_at(BEGIN, log.end_offset + 1)
    assert log.tree.position_at(BEGIN, 0) == BEGIN
    log.close()


def test_leaves_that_are_too_many_for_memory_are_read_from_the_batches(folder, monkeypatch):
    monkeypatch.setattr(leaf_files, "LEAVES_KEPT_BYTES_MAX", 200)
    log, batches = reopen(folder), []
    for _ in range(30):
        batches += fill(log, 2)
        assert log.tree.position_at(BEGIN, log.end_offset) == position(batches)
    log.close()


def test_proofs_of_inclusion_and_consistency(folder):
    log = reopen(folder)
    batches = fill(log, 45)
    trimmed = log.finished()[1].next_offset
    start = log.tree.position_at(BEGIN, trimmed)
    log.trim(trimmed)
    tree = log.tree.tree(start, log.end_offset)
    root = tree.root()
    assert root == root_of(position(batches).frontier)
    for number in range(start.size, 45):
        assert check_inclusion(batches[number][1], number, 45, tree.inclusion(number), root)
        old = root_of(position(batches[: number + 1]).frontier)
        assert check_consistency(number + 1, old, 45, root, tree.consistency(number + 1))
    log.close()


# -- from the disk ----------------------------------------------------------------------------------------------------


def test_what_is_read_again_is_what_the_leaves_say(folder):
    log = reopen(folder)
    batches = fill(log, 60)
    for first, last in ((0, 60), (7, 51), (30, 31)):
        begin = batches[first - 1][0] if first else 0
        found = [leaf.hash for leaf, _, _ in log.tree.reread(begin, batches[last - 1][0])]
        assert found == [leaf for _, leaf in batches[first:last]]
    log.close()


@pytest.mark.parametrize("which", [1, -1])
def test_a_bit_that_flips_on_the_disk_is_read_again(folder, which):
    log = reopen(folder)
    batches = fill(log, 60)
    log.tree.position_at(BEGIN, log.end_offset)
    path = sorted(folder.glob("*.segment"))[which]
    data = path.read_bytes()
    header = read_header(data, SEGMENT_HEADER_BYTES)
    flip(path, SEGMENT_HEADER_BYTES + header.size_bytes - 1)
    number = [base for base, _ in [(0, b""), *batches]].index(header.base_offset)
    found = [leaf.hash for leaf, _, _ in log.tree.reread(0, log.end_offset)]
    assert [found[i] == batches[i][1] for i in range(60)] == [i != number for i in range(60)]
    assert log.tree.position_at(BEGIN, log.end_offset) == position(batches)  # the leaves still say what was written
    log.close()


@pytest.mark.parametrize("harm", ["length", "cut", "magic"])
def test_a_segment_that_cannot_be_read_through_is_named(folder, harm):
    log = reopen(folder)
    fill(log, 60)
    segment = log.finished()[2]
    if harm == "cut":
        segment.path.write_bytes(segment.path.read_bytes()[:-5])
    else:
        flip(segment.path, SEGMENT_HEADER_BYTES + (9 if harm == "length" else 16))
    with pytest.raises(DamagedFile) as caught:
        list(log.tree.reread(0, log.end_offset))
    assert caught.value.file == str(segment.path)
    log.close()


def test_a_batch_that_is_written_and_not_synced_is_not_read(folder):
    log = reopen(folder)
    batches = fill(log, 20)
    end = log.end_offset
    log.append(encode_batch([Event(b"a", b"", 5, b"", b"x" * 100)]), end, 7)
    with open(sorted(folder.glob("*.segment"))[-1], "r+b") as file:
        file.truncate(file.seek(0, 2) - 20)  # as if not all of it were there yet
    assert [leaf.hash for leaf, _, _ in log.tree.reread(0, end)] == [leaf for _, leaf in batches]
    log.close()


def test_no_word_in_the_log_while_nothing_is_wrong(folder):
    with capture_logs() as logs:
        log = reopen(folder)
        fill(log, 60)
        log.tree.position_at(BEGIN, log.end_offset)
        log.close()
    assert logs == []
    header, _ = decode_leaves(sorted(folder.glob("*.leaves"))[0].read_bytes())
    assert header[:3] == (INCARNATION, 3, 0)
