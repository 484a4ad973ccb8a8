"""The short way of an event to the log: lanes, from the forwarder straight into a batch.

    publish ─► Lane.take ─┬─ encoded behind the events before it: nothing else is made of it
                          └─ no ─► the long way: Outbox.publish

Most events ask nothing of the log and nobody waits for them. Where they go does not change from one to the next of a
subject, so the forwarder keeps with the plan of a subject the lane of its partition. A lane takes an event only while
the outbox has left it open and where nothing has to be decided: there is room, the batch does not become too big. What
it does not take goes the long way, which opens the lane again when it may be used.

These are the references of the classes of the same names in the compiled forwarder.
"""

from protocol.limits import BATCH_BYTES_TARGET
from protocol.records import BatchBuilder, record_bytes_max


class Room:
    """What the events of one stream take up in the outbox, and may take up, in bytes."""

    __slots__ = ("bytes_max", "used_bytes")

    def __init__(self) -> None:
        self.bytes_max = self.used_bytes = 0


class Lane:
    """The way into one partition. `builder` is its last batch, while events may be added to it; else None.

    With `answers` the log answers every publish that has a reply subject, so such a one does not come this way;
    without `takes_headers` one with headers does not: they may say where it goes. `taken` counts events.
    """

    __slots__ = ("answers", "builder", "room", "taken", "takes_headers")

    def __init__(self, room: Room) -> None:
        self.room = room
        self.builder: BatchBuilder | None = None
        self.answers = self.takes_headers = True
        self.taken = 0

    def take(self, subject: bytes, key: bytes, timestamp_ms: int, header_block: bytes, payload: bytes) -> bool:
        """Whether the event is taken; then it waits like any other."""
        builder, room = self.builder, self.room
        if builder is None:
            return False
        size_bytes = record_bytes_max(subject, key, header_block, payload)
        if builder.size_bytes + size_bytes > BATCH_BYTES_TARGET or room.used_bytes + size_bytes >= room.bytes_max:
            return False
        builder.add(subject, key, timestamp_ms, header_block, payload)
        room.used_bytes += size_bytes
        self.taken += 1
        return True
