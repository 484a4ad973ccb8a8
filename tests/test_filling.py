"""What a sink that is being filled keeps of what it has pulled: the batches that are due, and where history begins."""

import pytest

from protocol.errors import FrameError
from protocol.records import Event, encode_batch, place_batch
from sinkd.shell.filling import _keep
from sinkd.shell.segments import PartitionLog


@pytest.fixture
def log(tmp_path):
    log = PartitionLog.open(
        tmp_path / "0", incarnation=b"i" * 16, partition=0, segment_bytes=1 << 20, durable_end=0, first_offset=0
    )
    yield log
    log.close()


def batch(offset: int, count: int = 10) -> bytes:
    return place_batch(encode_batch([Event(b"a", b"a", 5, b"", b"x")] * count), offset, 3)


def test_batches_up_to_the_end_are_kept_and_durable(log):
    _keep(log, batch(0) + batch(10) + batch(20), 20, 0)
    assert (log.start_offset, log.end_offset) == (0, 20)


def test_a_hole_is_refused(log):
    with pytest.raises(FrameError, match="offset 10 where 0 is due"):
        _keep(log, batch(10), 20, 5)
    assert log.append_end == 0


def test_history_that_peers_have_trimmed_meanwhile_is_not_waited_for(log):
    _keep(log, batch(0), 40, 0)
    _keep(log, batch(20), 40, 25)
    assert (log.start_offset, log.end_offset) == (20, 30)


def test_a_log_that_was_trimmed_whole_begins_at_its_end(log):
    _keep(log, batch(0), 40, 0)
    _keep(log, batch(50), 40, 55)
    assert (log.start_offset, log.end_offset) == (40, 40)
