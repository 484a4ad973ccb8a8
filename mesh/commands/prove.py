"""`mesh coverage prove`: the proof that one event is in a log, from the Merkle tree that a sink keeps of it.

Under the root of a certificate it proves that what was certified has this very event, to whoever has both files.
"""

import itertools
from pathlib import Path

import click
import msgspec

from mesh.commands import verify as verifying
from mesh.commands.failure import Failure
from mesh.commands.sinks import Zone, leader_of
from protocol import certificate, certified, link
from protocol.certificate import NotProved, Proof
from protocol.records import read_records
from protocol.signing import Authorities

READ_S_MAX = 600.0  # for a sink to read the leaves of a partition
_numbers = itertools.count(1)


async def run(
    zone: Zone, stream: str, partition: int, offset: int, file: Path | None, under: Path | None,
    authorities: Authorities | None, as_json: bool,
) -> None:  # fmt: skip
    """Prints it, or writes it into `file`. Failure: there is no such event, or it is not proved."""
    shown, end_offset = None, -1
    if under is not None:
        try:
            shown, _ = verifying.read(under)
            if authorities is not None:
                certified.check(shown, certified.verifier(authorities, shown.mesh))
        except NotProved as error:
            raise Failure("\n".join(f"{under}: {problem}" for problem in error.problems)) from error
        one = next((one for one in shown.partitions if one.partition == partition), None)
        if one is None or shown.stream != stream:
            raise Failure(f"{under}: it is of {shown.stream}, and has partitions 0 to {len(shown.partitions) - 1}")
        if not one.from_ <= offset < one.to:
            raise Failure(f"{under}: offset {offset} is not in it: it has {one.from_} to {one.to}")
        end_offset = one.to
    proof, data = await _asked(zone, link.Prove(next(_numbers), stream, partition, end_offset, offset))
    if shown is not None:
        try:
            verifying.check_proof(shown, proof)
        except NotProved as error:
            raise Failure(str(error)) from error
    if file is not None:
        verifying.write(file, data)
    elif as_json:
        click.echo(data, nl=False)
    _print(proof, under, file, quiet=as_json and file is None)


async def _asked(zone: Zone, question: link.Prove) -> tuple[Proof, bytes]:
    """From the leader of the partition's group."""
    for number, told in enumerate(await zone.groups()):
        rows = [row for one in told.values() for row in one.get("logs", ())]
        if not any((row["stream"], row["partition"]) == (question.stream, question.partition) for row in rows):
            continue
        leader = leader_of(told)
        if leader is None:
            raise Failure(f"nobody leads group {number} of zone {zone.name}")
        frame = await zone.ask(leader["node"], question, number, READ_S_MAX)
        return msgspec.json.decode(frame.tail, type=Proof), frame.tail
    raise Failure(f"zone {zone.name} has no partition {question.partition} of {question.stream}")


def _print(proof: Proof, under: Path | None, file: Path | None, *, quiet: bool) -> None:
    if quiet:
        return
    batch = certificate.from_base64(proof.batch)
    record = read_records(batch)[proof.offset - proof.base_offset] if batch[22] == 0 else None
    what = f"event on {record.subject.decode()}, {len(record.payload)} bytes" if record is not None else "a gap record"
    click.echo(f"{proof.log}/{proof.partition} offset {proof.offset}: {what}")
    click.echo(f"batch at offset {proof.base_offset}, SHA-256 {proof.digest}")
    whose = f"the certified root of {under}" if under is not None else "root"
    click.echo(f"leaf {proof.number} of {proof.size} under {whose} {proof.root}, by {len(proof.path)} hashes")
    if file is not None:
        click.echo(f"written into {file}")
