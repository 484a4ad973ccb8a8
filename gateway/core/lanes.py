"""The short way of an event to the log: lanes, from the forwarder straight into a batch.

    publish ─► Lane.take ─┬─ encoded behind the events before it: nothing else is made of it
                          └─ no ─► the long way: Outbox.publish

Most events ask nothing of the log but to be kept, and at most that their publisher is told. Where they go does not
change from one to the next of a subject, so the forwarder keeps with the plan of a subject the lane of its partition. A
lane takes an event only while the outbox has left it open and where nothing has to be decided: there is room, the batch
does not become too big, the link is up if somebody waits for the answer. What it does not take goes the long way, which
opens the lane again when it may be used.

Who waits is noted beside the events, as a reply subject and the number of the event; when the batch is in the log,
`Forwarder.answer` answers them all.

These are the references of the classes of the same names in the compiled forwarder.
"""

from protocol.limits import BATCH_BYTES_TARGET
from protocol.records import BatchBuilder, record_bytes_max

REPLY_BYTES = 100  # of memory for one who waits, beside the reply subject itself


class Room:
    """What the events of one stream take up in the outbox, and may take up, in bytes."""

    __slots__ = ("bytes_max", "used_bytes")

    def __init__(self) -> None:
        self.bytes_max = self.used_bytes = 0


class Replies:
    """Who waits for the outcome of events that stand side by side. `size_bytes` is what that takes up in the outbox."""

    __slots__ = ("_items", "size_bytes")

    def __init__(self) -> None:
        self._items: list[tuple[int, bytes]] = []
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    def add(self, number: int, reply: bytes) -> None:
        """`reply` waits for event `number`, counted from 0."""
        self._items.append((number, reply))
        self.size_bytes += REPLY_BYTES + len(reply)

    def items(self) -> list[tuple[int, bytes]]:
        """(number, reply subject) in the order in which they came."""
        return list(self._items)


class Lane:
    """The way into one partition. `builder` is its last batch, while events may be added to it; else None.

    With `answers` the log answers every publish that has a reply subject; that is noted in `replies`, and while there
    are none, such a one does not come this way. Without `takes_headers` one with headers does not: they may say where
    it goes. `taken` counts events.
    """

    __slots__ = ("answers", "builder", "replies", "room", "taken", "takes_headers")

    def __init__(self, room: Room) -> None:
        self.room = room
        self.builder: BatchBuilder | None = None
        self.replies: Replies | None = None
        self.answers = self.takes_headers = True
        self.taken = 0

    def new_replies(self) -> Replies:
        """Such as this lane can take."""
        return Replies()

    def take(
        self, subject: bytes, key: bytes, timestamp_ms: int, header_block: bytes, payload: bytes, reply: bytes = b""
    ) -> bool:
        """Whether the event is taken; then it waits like any other, and if `answers`, so does who gave a `reply`."""
        builder, replies, room = self.builder, self.replies, self.room
        waits = self.answers and bool(reply)
        if builder is None or (waits and (replies is None or reply.startswith(b"$"))):
            return False
        record_bytes = record_bytes_max(subject, key, header_block, payload)
        size_bytes = record_bytes + (REPLY_BYTES + len(reply) if waits else 0)
        if builder.size_bytes + record_bytes > BATCH_BYTES_TARGET or room.used_bytes + size_bytes >= room.bytes_max:
            return False
        if replies is not None and waits:
            replies.add(builder.count, reply)
        builder.add(subject, key, timestamp_ms, header_block, payload)
        room.used_bytes += size_bytes
        self.taken += 1
        return True
