"""What gateways say to each other: NATS's route protocol, as far as events and interest go.

    HELLO {"version":3,"mesh":...,"zone":...,"node":...,"worker":0,"workers":1,"server_id":...,"compression":"zstd"}
    CONNECT {"version":4,"name":...}             RS+ <account> <pattern> [<queue> <weight>]     PING
    RMSG <account> <subject> [reply] <size>      RS- <account> <pattern> [queue]                PONG
    RSALL <epoch>          RSSUM <epoch> <sequence> <digest>          RSASK <epoch>
    RMSG <account> <subject> + <queue>... <reply> <size>          (with a reply, for members of these queue groups too)
    RMSG <account> <subject> | <queue>... <size>                  (without a reply)
    HRMSG ... <header size> <size>                                (the same three forms, with a header block)
    RVIA <zone> <size>     RFOR <zone> <size>

RMSG, HRMSG, RVIA and RFOR are followed by as many bytes as their last argument says, and CR LF. RS+ says that somebody
behind the sender wants what matches the pattern, and of a queue group how many members (another RS+ says how many there
are now); RS- says that nobody does any more. Between RSALL and the next RSSUM of that epoch comes all that is wanted.
RSSUM says what the receiver should hold now: how many RS+ and RS- the sender has sent to its peers up to here (the
sequence), and in 16 hexadecimal digits the sum modulo 2^64 of the hashes of what they leave wanted (`digest_of`); with
the RSSUM that ends a table the receiver's sequence begins. Who holds something else asks by RSASK for the table of the
next epoch. A table is split up by RS+ and RS- for changes; to hear something twice does no harm. A PONG says that
everything before the PING has been acted on. A message goes to plain subscribers, and to one member of each queue group
that it names. The groups stand before the reply, not behind it as with nats-server: so what a client wrote behind its
subject stays in one piece.

Between processes of two gateways HELLO comes first, both ways: nothing else is said or listened to before it was
checked; -ERR instead of it tells why not. Workers of the same gateway need none: nobody else reaches their sockets. One
connection carries several *channels*, each with lines as above: that of the two gateways, and one for each other zone
to which one of the two leads (`Side`). What is said on the channel of a zone stands in *pieces*
between the lines of the two gateways: RVIA where the sender leads there, RFOR where the receiver does. A piece is whole
lines and messages, or a part of one that is longer. A channel to a zone is there from the first piece on of the gateway
that leads there, until an empty one. Between zones there is the one channel; with compression on both sides everything
behind HELLO is one zstd stream.

Source: nats-server `server/parser.go`, `server/route.go`; CONNECT carries our own version of this page.
"""

import hashlib
import re
from enum import Enum
from typing import Final

import msgspec

from protocol import nats, subjects
from protocol.errors import FrameError
from protocol.limits import ROUTE_PIECE_BYTES_MAX
from protocol.nats import ClientParser, Event, Extension

VERSION: Final = 4
HELLO_VERSION: Final = 3
ZSTD: Final = "zstd"
DIGEST_MASK: Final = 2**64 - 1
_DIGITS_MAX: Final = 9  # of a number
_SEQUENCE_DIGITS_MAX: Final = 18
_HEXADECIMAL: Final = re.compile(rb"[0-9a-f]{16}")
_VERSIONS: Final = (b"RSALL", b"RSSUM", b"RSASK")


class Interest(Extension, frozen=True):
    """RS+ or, with `weight` 0, RS-. `queue` is b"" for plain subscriptions, `weight` how many members a group has."""

    account: bytes
    pattern: bytes
    queue: bytes
    weight: int


class Table(Extension, frozen=True):
    """RSALL."""

    epoch: int


class Digest(Extension, frozen=True):
    """RSSUM."""

    epoch: int
    sequence: int
    digest: int


class Again(Extension, frozen=True):
    """RSASK."""

    epoch: int


class RouteMessage(Extension, frozen=True):
    """RMSG or HRMSG; `queues` are the groups of which one member each is to get it."""

    account: bytes
    subject: bytes
    reply: bytes
    queues: tuple[bytes, ...]
    header_block: bytes
    payload: bytes


class Side(Enum):
    """What a channel is about: the two gateways themselves, or a zone to which the sender or the receiver leads."""

    GATEWAYS = b""
    SENDER = b"RVIA"
    RECEIVER = b"RFOR"


class Piece(Extension, frozen=True):
    """RVIA or RFOR: what is said on the channel of a zone."""

    side: Side
    zone: str
    data: bytes


class RouteParser(ClientParser):
    """Bytes of one peer in, events out: as `ClientParser`, with the events of this module beside its own."""

    _verb = re.compile(
        rb"(?:(RMSG|HRMSG|RS\+|RS-|RSALL|RSSUM|RSASK|RVIA|RFOR|-ERR)[ \t]|(CONNECT|INFO|PING|PONG|\+OK))[ \t]*",
        re.IGNORECASE,
    )
    _beginnings = (
        *(b"RMSG ", b"HRMSG ", b"RS+ ", b"RS- ", b"RSALL ", b"RSSUM ", b"RSASK ", b"RVIA ", b"RFOR "),
        b"-ERR ",
        *(b"CONNECT", b"INFO", b"PING", b"PONG", b"+OK"),
    )

    def __init__(self, max_payload_bytes: int, max_control_line_bytes: int, *, takes_pieces: bool = False) -> None:
        super().__init__(max_payload_bytes, max_control_line_bytes)
        self._takes_pieces = takes_pieces
        self.pedantic = False
        self._account = b""
        self._queues: tuple[bytes, ...] = ()
        self._side = Side.GATEWAYS  # of the payload that comes

    def _argument(self, verb: bytes, argument: bytes) -> Event | None:
        if verb in (b"RMSG", b"HRMSG"):
            return self._message(argument.split(), 1 + verb.startswith(b"H"))
        if verb in (b"RS+", b"RS-"):
            return self._interest(argument.split(), verb == b"RS+")
        if verb in _VERSIONS:
            return self._version(verb, argument.split())
        if verb in (b"RVIA", b"RFOR"):
            return self._piece(Side(verb), argument.split())
        return super()._argument(verb, argument)

    def _interest(self, words: list[bytes], wanted: bool) -> Event | None:
        of_group = 4 if wanted else 3
        if len(words) == 2:
            return Interest(words[0], words[1], b"", int(wanted))
        weight = _number(words[3]) if wanted and len(words) == of_group else 0
        if len(words) != of_group or (wanted and weight < 1):
            return self._fail(None, f"RS with bad arguments: {b' '.join(words)[:64]!r}")
        return Interest(words[0], words[1], words[2], weight)

    def _version(self, verb: bytes, words: list[bytes]) -> Event | None:
        numbers = [_number(word, _SEQUENCE_DIGITS_MAX) for word in words[:2]]
        if len(words) != (3 if verb == b"RSSUM" else 1) or min(numbers) < 0:
            return self._fail(None, f"{verb.decode()} with bad arguments")
        if verb == b"RSSUM":
            if not _HEXADECIMAL.fullmatch(words[2]):
                return self._fail(None, "RSSUM with a bad digest")
            return Digest(numbers[0], numbers[1], int(words[2], 16))
        return Table(numbers[0]) if verb == b"RSALL" else Again(numbers[0])

    def _message(self, words: list[bytes], numbers: int) -> Event | None:
        sizes = [_number(word) for word in words[-numbers:]]
        address = words[2:-numbers]
        if len(words) < 2 + numbers or min(sizes) < 0 or sizes[0] > sizes[-1]:
            return self._fail(None, "RMSG with bad arguments")
        marked = bool(address) and address[0] in (b"+", b"|")
        if marked:
            named = address[1:]
            reply, queues = (named[-1], named[:-1]) if address[0] == b"+" and named else (b"", named)
        else:
            reply, queues = address[0] if address else b"", []
        self._account, self._queues = words[0], tuple(queues)
        return self._expect_payload(words[1], reply, sizes[0] if numbers == 2 else 0, sizes[-1], False)

    def _piece(self, side: Side, words: list[bytes]) -> Event | None:
        size_bytes = _number(words[-1])
        if not self._takes_pieces or len(words) != 2 or not 0 <= size_bytes <= ROUTE_PIECE_BYTES_MAX:
            return self._fail(None, f"{side.value.decode()} with bad arguments, or where there is but one channel")
        self._side, self._publish, self._read = side, (words[0], b"", 0, size_bytes, False), self._read_payload
        return None

    def _published(self, subject: bytes, reply: bytes, header_block: bytes, payload: bytes) -> Event:
        if self._side is not Side.GATEWAYS:
            side, self._side = self._side, Side.GATEWAYS
            return Piece(side, subject.decode("utf-8", "replace"), payload)
        return RouteMessage(self._account, subject, reply, self._queues, header_block, payload)


def _number(word: bytes, digits_max: int = _DIGITS_MAX) -> int:
    """-1 where it is none."""
    return int(word) if word.isdigit() and len(word) <= digits_max else -1


def connect_line(name: str, zone: str = "") -> bytes:
    """The first line on a link or channel: who speaks, about which other zone, and which version of this protocol."""
    about = {"zone": zone} if zone else {}
    return b"CONNECT " + msgspec.json.encode({"version": VERSION, "name": name} | about) + b"\r\n"


def peer_name(node: str, worker: int) -> str:
    """What peers call a process of a gateway: `gw1` its first or only one, `gw1/1` the next."""
    return f"{node}/{worker}" if worker else node


def node_of(peer: str) -> str:
    """The gateway of a process with that `peer_name`."""
    return peer.partition("/")[0]


def rank(zone: str, other: str, peer: str) -> int:
    """Which process of a zone comes first where one is to be chosen for a pair of zones: that of the lowest rank."""
    pair = " ".join(sorted((zone, other)))
    return int.from_bytes(hashlib.blake2b(f"{pair} {peer}".encode(), digest_size=8).digest(), "big")


def check_connect(argument: bytes) -> str:
    """What speaks against the peer that sent CONNECT with this; "" if nothing."""
    try:
        version = msgspec.json.decode(argument, type=_Connect).version
    except msgspec.MsgspecError as error:
        return f"a peer's CONNECT is not readable: {error}"
    return "" if version == VERSION else f"a peer speaks version {version} of the route protocol, this is {VERSION}"


class _Connect(msgspec.Struct):
    version: int
    name: str


class Meeting(msgspec.Struct, frozen=True):
    """How gateways that are in no file find each other (`gateway.shell.discovery`): addresses as "host:port".

    `links` and `clients` are those of the sender, "" where clients of others are not to be told; a host that means all
    interfaces stands for the one from which the connection comes. `known` are those of its links to others. With
    `introduces` there will be no link: the connection ends with the HELLOs.
    """

    links: str
    clients: str = ""
    known: tuple[str, ...] = ()
    introduces: bool = False


class Hello(msgspec.Struct, frozen=True):
    """Which gateway speaks, and which of its `workers`, from 0.

    `server_id` is another one for each start of a gateway; `compression` is `ZSTD` or nothing. `revision` and `digests`
    are those of its file, see `gateway.core.differing`.
    """

    mesh: str
    zone: str
    node: str
    server_id: str
    version: int = HELLO_VERSION
    compression: str = ""
    revision: int = 0
    digests: dict[str, str] = {}
    meeting: Meeting | msgspec.UnsetType = msgspec.UNSET
    worker: int = 0
    workers: int = 1

    @property
    def peer(self) -> str:
        """What the sender is called among peers."""
        return peer_name(self.node, self.worker)


def hello_line(hello: Hello) -> bytes:
    """The first line on a link between gateways."""
    return b"HELLO " + msgspec.json.encode(hello) + nats.LINE_END


def read_hello(line: bytes) -> Hello:
    """`line` without its end. FrameError: it is no HELLO that can be read; `RefusedByPeer` where it says why not."""
    if line.startswith(b"-ERR "):
        raise RefusedByPeer(line[5:].decode("utf-8", "replace").strip(" '"))
    if not line.startswith(b"HELLO "):
        raise FrameError("the peer does not begin with HELLO")
    try:
        return msgspec.json.decode(line[6:], type=Hello)
    except msgspec.MsgspecError as error:
        raise FrameError(f"the peer's HELLO is not readable: {error}") from error


class RefusedByPeer(FrameError):
    """The other end has said why it does not want this link."""


def pieces(side: Side, zone: str, data: bytes) -> list[bytes]:
    """`data` of a channel as it goes over the link, in parts. For a zone at least one piece, though it be empty."""
    if side is Side.GATEWAYS:
        return [data]
    parts = []
    for at in range(0, len(data) or 1, ROUTE_PIECE_BYTES_MAX):
        piece = data[at : at + ROUTE_PIECE_BYTES_MAX]
        parts += [b"%b %b %d\r\n" % (side.value, zone.encode(), len(piece)), piece, nats.LINE_END]
    return parts


def interest_key(account: str, pattern: str, queue: str) -> bytes:
    """Account, pattern and queue as they stand in a line, with a space between each."""
    return b"%b %b %b" % (account.encode(), subjects.encode(pattern), subjects.encode(queue))


def interest_line(key: bytes, weight: int) -> bytes:
    """RS+ or, with `weight` 0, RS-, about an `interest_key`. `weight`: how many are subscribed."""
    if key.endswith(b" "):
        return (b"RS+ %b\r\n" if weight else b"RS- %b\r\n") % key[:-1]
    return b"RS+ %b %d\r\n" % (key, weight) if weight else b"RS- %b\r\n" % key


def table_line(epoch: int) -> bytes:
    """RSALL."""
    return b"RSALL %d\r\n" % epoch


def digest_line(epoch: int, sequence: int, digest: int) -> bytes:
    """RSSUM."""
    return b"RSSUM %d %d %016x\r\n" % (epoch, sequence, digest)


def again_line(epoch: int) -> bytes:
    """RSASK."""
    return b"RSASK %d\r\n" % epoch


def digest_of(key: bytes, weight: int) -> int:
    """What an interest adds to the digest; `key` as `interest_key` makes it."""
    return int.from_bytes(hashlib.blake2b(b"%b %d" % (key, weight), digest_size=8).digest(), "little")


def message(
    account: bytes, subject: bytes, reply: bytes, queues: list[bytes], header_block: bytes, payload: bytes
) -> bytes:
    """RMSG, or HRMSG where there is a header block."""
    words = [b"HRMSG" if header_block else b"RMSG", account, subject]
    if queues or reply in (b"+", b"|"):
        words += [b"+" if reply else b"|", *queues]
    if reply:
        words.append(reply)
    if header_block:
        words.append(b"%d" % len(header_block))
    words.append(b"%d" % (len(header_block) + len(payload)))
    return b" ".join(words) + nats.LINE_END + header_block + payload + nats.LINE_END
