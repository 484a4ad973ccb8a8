"""Which mirror of another zone is sent something next."""

from types import SimpleNamespace

from support.streams import state

from protocol import coverage
from protocol.limits import MIRROR_TAIL_BYTES
from protocol.link import Subscribe
from sinkd.core.mirroring import Feed, TokenBucket
from sinkd.shell.feeds import Feeds, _Served


def served(number: int, name: str, behind_bytes: int, turn: int, *, account: str = "$G") -> _Served:
    partition = SimpleNamespace(stream=state(name, account=account), high_watermark=behind_bytes)
    store = SimpleNamespace(bytes_from=lambda partition, offset: partition.high_watermark - offset)
    asked, server = Subscribe(number, name, b"", 0, 0, 1_000_000), SimpleNamespace(store=store)
    made = _Served(asked, Feed("us", 0, 1_000_000), server, partition)  # type: ignore[arg-type]
    made.turn = turn
    return made


def test_beacons_go_first_then_what_is_at_the_tail_then_the_others_in_turn() -> None:
    feeds = Feeds({}, "us", TokenBucket(0), *[lambda *_: None] * 4)  # type: ignore[arg-type]
    far, late = served(1, "far", 10 * MIRROR_TAIL_BYTES, 5), served(2, "late", 10 * MIRROR_TAIL_BYTES, 4)
    tail, done = served(3, "tail", 10, 6), served(4, "done", 0, 1)
    own = coverage.STREAM
    beacons = served(5, own, 10 * MIRROR_TAIL_BYTES, 7, account=coverage.ACCOUNT)
    mirrored = served(6, f"{own}@us", 10, 8, account=coverage.ACCOUNT)
    feeds._served = {each.number: each for each in (far, late, tail, done, beacons, mirrored)}
    order = []
    while (chosen := feeds._next()) is not None:
        order.append(chosen)
        del feeds._served[chosen.number]
    assert order == [mirrored, beacons, tail, late, far]
