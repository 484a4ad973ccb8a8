"""Which code for record batches runs: the compiled one where it was built, else its reference, which is slower.

Whoever encodes or reads many records takes these functions from here: `BEST.encode_batch(events)`.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, Protocol

from protocol import columns, records, replay
from protocol.records import BatchBuilder, Event, Record
from protocol.replay import Frames, Passes, Window


class Encode(Protocol):
    def __call__(self, events: Sequence[Event]) -> bytes:
        """As `protocol.records.encode_batch`."""


class Read(Protocol):
    def __call__(self, batch: bytes | memoryview) -> Iterable[Record]:
        """As `protocol.records.read_records`."""


class Show(Protocol):
    def __call__(
        self,
        batches: bytes | memoryview,
        window: Window,
        opening: bytes,
        headed: bool,
        log_lines: bytes,
        passes: Passes | None,
    ) -> Frames:
        """As `protocol.replay.frames`."""


class TakeApart(Protocol):
    def __call__(self, batches: bytes | memoryview) -> bytes | None:
        """As `protocol.columns.take_apart`."""


class PutTogether(Protocol):
    def __call__(self, columns: bytes | memoryview, size_bytes: int) -> bytes:
        """As `protocol.columns.put_together`."""


class Engine(NamedTuple):
    """What both have; `builder` makes a batch event by event."""

    name: str
    builder: type[BatchBuilder]
    encode_batch: Encode
    read_records: Read
    frames: Show
    take_apart: TakeApart
    put_together: PutTogether


def _compiled() -> Engine | None:
    try:
        from protocol import _records as twin
    except ImportError:  # built without a C compiler
        return None
    return Engine(
        "compiled", twin.BatchBuilder, twin.encode_batch, twin.read_records, twin.frames,
        twin.take_apart, twin.put_together,
    )  # fmt: skip


REFERENCE: Final = Engine(
    "reference", BatchBuilder, records.encode_batch, records.read_records, replay.frames,
    columns.take_apart, columns.put_together,
)  # fmt: skip
COMPILED: Final = _compiled()
BEST: Final = COMPILED or REFERENCE
