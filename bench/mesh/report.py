"""The section of docs/performance.md about gateways among themselves. Results are kept beside the others."""

from dataclasses import asdict
from typing import Final

from bench.report import Result, bounds, facts, lines, verdict
from bench.rows import Row

KEY_PREFIX: Final = "mesh/"  # of a row among the kept results
HEADS: Final = {
    "work": "work", "ours": "gateways", "theirs": "nats-servers", "ratio": "ratio (min..max)", "goal": "goal",
    "verdict": "reached", "cpu": "server CPU per message",
}  # fmt: skip

HEAD = """
## Several gateways beside a cluster of nats-servers

Gateways of one zone beside a cluster of as many nats-servers, each a process, all on 127.0.0.1, one after the other.

    .venv/bin/python -m bench --group mesh --write docs/performance.md

- {gateway}; nats-server {nats_server}
- Measured: {dates}; {rounds} rounds of {seconds:g} s; load average before it: {load:.1f}

"""

HOW = """
### How several gateways are measured

- Links are plain TCP on both sides. Publishers are clients of the first node, subscribers of the last, or with fan-out
  of all; counting and rounds are as above.
- Bytes between nodes are what the kernel counts as received on their links (`tcpi_bytes_received`): interest, PINGs and
  framing included, TCP's headers not.
- Interests: one connection on each node sends all its SUBs at once. All agree when messages to the last subject of each
  node come through from every other one; with 100,000 each subject is published to from each other node afterwards, and
  exactly these messages have to come.
- Memory is what is resident in all nodes together, once it changes no more.
- With more gateways: all processes are on this machine, so times say nothing; bytes and CPU time are divided by the
  number of nodes. CPU time is counted in steps of 10 ms.
"""


def section(rows: list[Row], results: dict[str, Result]) -> str:
    """Rows without a result are left out, and without any it is empty."""
    measured = [(row, results[KEY_PREFIX + row.key]) for row in rows if KEY_PREFIX + row.key in results]
    if not measured:
        return ""
    text = HEAD.format(**facts([result for _, result in measured]))
    text += "| " + " | ".join(HEADS.values()) + " |\n|" + "---|" * len(HEADS) + "\n"
    for row, result in measured:
        for line in lines(row, result):
            text += "| " + " | ".join(asdict(line)[part] for part in HEADS) + " |\n"
    below = [row for row, result in measured if any(verdict(metric, result) == "no" for metric in row.metrics)]
    return text + bounds([(KEY_PREFIX + row.key, row.title) for row in below], "###") + HOW
