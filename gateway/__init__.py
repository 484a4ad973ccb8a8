"""The gateway: speaks the NATS protocol to applications and turns what they publish into record batches for the sinks.

`core` decides (state machines without I/O), `shell` moves bytes and timers.
"""
