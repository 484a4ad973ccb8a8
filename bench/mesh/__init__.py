"""How gateways of a zone pass events to each other, beside a cluster of as many nats-servers.

    zone.py       several gateways of one zone, each a process
    links.py      bytes between nodes, as the kernel counts them
    interests.py  many subscriptions on all nodes: until everybody knows of them
    rows.py       what is measured, and the goal of each row
    report.py     the section of docs/performance.md

The load generators, the rounds and the table are those of the gateway's own rows (`bench`).
"""
