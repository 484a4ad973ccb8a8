"""How fast the sink tier is beside JetStream: acknowledged publish, history, loss of a node, restart.

Both sides are groups of three nodes with replicated files on this machine: a zone of three sinks behind one gateway,
and three nats-servers with an R3 stream, once with `sync_interval: always` (what our acknowledgement means) and once
with its default (acknowledged before it is synced). They run one after the other, never at the same time.

    tiers.py      the groups of processes: configuration, start, who leads, killing one
    load.py       runs the load generators acks.c and history.c
    readers.py    reads history as applications do: with the client libraries
    rows.py       what is measured, and the goal of each row
    report.py     the table, and the section of docs/performance.md

Load generators publish payloads of which half the bytes are random; each event's payload follows from its number, so
that readers can check every byte. Data lie on a real disk: a folder in memory is refused.
"""
