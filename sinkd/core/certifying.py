"""What a group says of a partition in a certificate: its statement, as `protocol.certificate` has it."""

from protocol.certificate import Accounts, Partition, Producer, Recorded, Sums
from protocol.certified_data import Found
from protocol.errors import LogError
from protocol.merkle import root_of
from sinkd.core.formats import TreePosition
from sinkd.core.state import StatedAccount, Statement


def partition_of(number: int, begins: TreePosition, to_offset: int, found: Found) -> Partition:
    """What is on the disk: a tree that was as `begins` says at the first offset, and its batches from there on."""
    return Partition(
        partition=number,
        begin=begins.begin_offset,
        from_=begins.offset,
        to=to_offset,
        from_size=begins.size,
        from_frontier=tuple(one.hex() for one in begins.frontier),
        size=found.size,
        frontier=tuple(one.hex() for one in found.frontier),
        root=root_of(found.frontier).hex(),
        control=found.control,
        damaged=found.damaged,
        previous=None,
    )


def accounts_of(statement: Statement) -> Accounts:
    """LogError STORAGE_ERROR: it holds fewer offsets than its producers have written."""
    producers = tuple(_producer(one) for one in statement.accounts if one.account is not None)
    held = sum(one.held + one.before.held for one in producers)
    tree = statement.tree
    unaccounted = statement.end_offset - tree.begin_offset - held - tree.control
    if unaccounted < 0:
        what = f"{held} events and {tree.control} offsets of control batches at offsets {tree.begin_offset} to "
        raise LogError("STORAGE_ERROR", f"partition {statement.partition}: {what}{statement.end_offset}")
    return Accounts(
        partition=statement.partition,
        statement=statement.statement_id.hex(),
        control=tree.control,
        unaccounted=unaccounted,
        producers=producers,
    )


def _producer(stated: StatedAccount) -> Producer:
    account = stated.account
    assert account is not None
    before = account.before
    return Producer(
        node=stated.node,
        worker=stated.worker,
        run=account.run.hex(),
        base=account.base,
        last=stated.last_sequence,
        chain=account.chain.hex(),
        held=account.held,
        batches=account.batches,
        bytes=account.size_bytes,
        duplicates=account.duplicates,
        refused=account.refused,
        gaps=account.gaps,
        before=Sums(
            held=before.held,
            batches=before.batches,
            bytes=before.size_bytes,
            duplicates=before.duplicates,
            refused=before.refused,
            gaps=before.gaps,
        ),
        marks=tuple((sequence, chain.hex()) for sequence, chain in account.marks),
        lost=stated.lost,
        recorded=tuple(
            Recorded(run=one.run.hex(), reason=one.reason, events=one.events, offset=one.offset)
            for one in stated.recorded
        ),
        beacon=-1,
    )
