"""Copies between zones beside JetStream's mirrors: one node on each side, and one relay for both.

    relay.py    the way between the two sides: later, slower, and counted
    pairs.py    two zones of ours, two nats-servers with a leaf link: an origin with `orders`, and a copy of it
    load.py     what is published beside the generators of `bench`
    rows.py     what is measured, and the goal of each row
    driver.py   rounds that alternate
    report.py   the table, and the section of docs/performance.md

Nodes, and the publisher in C, are those of the sink tier's rows (`bench.sinks`).
"""
