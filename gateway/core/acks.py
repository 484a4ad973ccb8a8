"""How those who wait for an event of the log are told where it stands: each by itself, or many of one partition."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from gateway.core.lanes import REPLY_BYTES, Replies
from protocol import publish, subjects
from protocol.publish import AckForm
from protocol.streams import StreamState

Answer = Callable[[str, str, bytes], None]
"""answer(account, reply subject in it, JSON)"""
AnswerMany = Callable[[str, Replies, AckForm, int], None]
"""answer_many(account, reply subjects in it, their PubAcks, the offset of event 0)"""


class Place(Protocol):
    """A partition of a stream, in the outbox."""

    stream: StreamState
    number: int
    group: int


class Asker(NamedTuple):
    """Who waits for the outcome of an event; with `geo` also for other zones, whatever its stream says."""

    reply: str
    is_duplicate: bool
    geo: bool = False

    @property
    def size_bytes(self) -> int:
        """What it takes up in the outbox."""
        return REPLY_BYTES + len(subjects.encode(self.reply))


Askers = Replies | Sequence[Asker]
"""Those of events side by side, or of one event."""


def held_bytes(askers: Askers) -> int:
    """What they take up in the outbox."""
    return sum(each.size_bytes for each in askers) if isinstance(askers, Sequence) else askers.size_bytes


class PubAcks:
    """Those of `zone`. Without `answer_many`, `answer` is called for each."""

    def __init__(self, zone: str, answer: Answer, answer_many: AnswerMany | None) -> None:
        self._zone, self._answer, self._answer_many = zone, answer, answer_many or self._answer_each

    def tell(self, place: Place, askers: Askers, offset: int, copies: Sequence[str] | None = None) -> None:
        """Their event, or event 0 of theirs, stands at `offset`; `copies` as in `protocol.publish.pub_ack`."""
        stream = place.stream
        names = stream.name, self._zone, place.number, stream.partitions
        if not isinstance(askers, Sequence):
            self._answer_many(stream.account, askers, publish.ack_form(*names, copies=copies), offset)
            return
        for asker in askers:
            answer = publish.pub_ack(*names, offset, duplicate=asker.is_duplicate, copies=copies)
            self._answer(stream.account, asker.reply, answer)

    def _answer_each(self, account: str, replies: Replies, form: AckForm, base_offset: int) -> None:
        for number, reply in replies.items():
            self._answer(account, subjects.decode(reply), form.ack(base_offset + number))
