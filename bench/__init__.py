"""How fast the gateway is beside nats-server: the same load, on the same machine, in one run, as ratios.

`python -m bench` measures every row of `bench.rows` in rounds; in each round our gateway, nats-server and, where it
makes sense, the relay (`bench.relay`: it only copies the same bytes) take their turn, in another order each time. What
counts is the median of the rounds. Absolute figures belong to one machine and one hour; ratios travel better.

    rows.py       what is measured, and the goal of each row
    traffic.py    frames: what is sent, what has to arrive, in bytes
    processes.py  a measured process: CPU time, memory, bytes written, its end
    servers.py    the processes measured: configuration and start
    wire.py       connections of the load generators
    stream.py     the load generator of one-way traffic
    requests.py   that of requests, around the program requests.c
    programs.py   makes the programs in C, which have client.h in common
    standing.py   what only stands there: idle connections, subscriptions
    report.py     results, the table, docs/performance.md
    acked.py      what an acknowledged event costs a gateway, with a sink that has nothing to do (ready_sink.py)
    sinks/        the sink tier beside JetStream: rows of their own
    mesh/         several gateways beside a cluster of nats-servers: rows of their own
    zones/        copies between zones beside JetStream's mirrors: rows of their own

Nothing here is imported by the programs, and speed is never asserted by a test.
"""
