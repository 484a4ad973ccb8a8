"""The sink daemon: takes record batches through Raft into a durable log and serves history from it.

`core` decides (the replicated state machine, log arithmetic), `shell` moves bytes: Raft, files, sockets.
"""
