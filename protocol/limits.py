"""Every bound of the mesh in one place, its unit in its name.

What an operator may change stands in the configuration (`protocol.config`), with its default from here; what is a
property of the formats or of our memory promises stands here alone.
"""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# -- NATS client protocol: nats-server's names and defaults -----------------------------------------------------------
MAX_PAYLOAD_BYTES: Final = 1 * MIB
MAX_CONTROL_LINE_BYTES: Final = 4096
MAX_CONNECTIONS: Final = 65_536
MAX_PENDING_BYTES: Final = 64 * MIB
WRITE_DEADLINE_MS: Final = 10_000
PING_INTERVAL_MS: Final = 120_000
PINGS_OUTSTANDING_MAX: Final = 2
AUTH_TIMEOUT_MS: Final = 2_000
SUBJECT_TOKENS_MAX: Final = 1_024  # of a subscription; deeper ones only cost memory
ROUTE_PLANS_MAX: Final = 65_536  # cached subjects of one gateway, then the cache starts anew

# -- record batches and the way to the sink ---------------------------------------------------------------------------
BATCH_BYTES_TARGET: Final = 256 * KIB  # a batch is closed when it reaches this
BATCH_BYTES_MAX: Final = 8 * MIB  # one oversized record makes a batch of its own
BATCH_LINGER_MS: Final = 1
BATCHES_IN_FLIGHT_MAX: Final = 8  # per producer and partition
PRODUCER_RESULTS_KEPT: Final = 16  # answers a sink can repeat, per producer and partition; above BATCHES_IN_FLIGHT_MAX
OUTBOX_BYTES_MAX: Final = 64 * MIB  # per stream
NEVER_SENT_REFUSE_MS: Final = 5_000  # no leader for this long and never sent: 503
COMMAND_BYTES_TARGET: Final = 1 * MIB  # envelopes packed into one Raft command
LINK_FRAME_BYTES_MAX: Final = 16 * MIB

# -- the log ----------------------------------------------------------------------------------------------------------
JOURNAL_FILE_BYTES: Final = 64 * MIB
JOURNAL_SLICE_ENTRIES_MAX: Final = 256  # bounds what one tick applies and sends
JOURNAL_SLICE_BYTES_MAX: Final = 8 * MIB
SEGMENT_BYTES: Final = 64 * MIB
INDEX_INTERVAL_BYTES: Final = 64 * KIB  # one sparse index entry per this many bytes of a segment
FLUSH_BYTES: Final = 4 * MIB  # journal bytes that wait for a segment before the writer runs
FLUSH_INTERVAL_MS: Final = 1_000
DISK_RESERVE_BYTES: Final = 1024 * MIB
DEDUP_WINDOW_MS: Final = 120_000
DEDUP_IDS_MAX: Final = 250_000  # per partition

# -- reading history --------------------------------------------------------------------------------------------------
FETCH_RECORDS_DEFAULT: Final = 1_000
FETCH_BYTES_DEFAULT: Final = 1 * MIB
FETCH_BYTES_MAX: Final = 64 * MIB
FETCH_WAIT_MS_MAX: Final = 60_000
FETCH_CHUNK_BYTES: Final = 1 * MIB  # what the gateway pulls from a sink at a time
FETCHES_PER_CONNECTION_MAX: Final = 64
