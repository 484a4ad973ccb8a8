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
TLS_TIMEOUT_MS: Final = 2_000  # for the handshake of a client
LAME_DUCK_DURATION_MS: Final = 120_000  # a gateway that retires takes so long to part with its clients
LAME_DUCK_DURATION_MS_MIN: Final = 30_000
LAME_DUCK_PAUSE_MS_MAX: Final = 1_000  # between two of them, however few they are
LAME_DUCK_GRACE_PERIOD_MS: Final = 10_000  # before it begins to
SUBJECT_TOKENS_MAX: Final = 1_024  # of a subscription; deeper ones only cost memory
ROUTE_PLANS_MAX: Final = 131_072  # cached subjects of one account and set of permissions
ROUTE_PLAN_BYTES_MAX: Final = 64 * MIB  # of those plans' subjects and receivers
PERMISSION_VERDICTS_MAX: Final = 4_096  # cached publish permissions of one user, then the cache starts anew
RESPONSES_TRACKED_MAX: Final = 4_096  # reply subjects that one connection may still answer (allow_responses)
FIRST_PING_MS: Final = 2_000  # after CONNECT, as in nats-server
STALL_MS: Final = 10  # a publisher waits this long per read for a subscriber that falls behind
READ_BYTES: Final = 512 * KIB  # of one read; after a full one the other connections have their turn
PLAIN_BYTES: Final = READ_BYTES + 32 * KIB  # one read, decrypted, with the record that had begun before it
TLS_RECORD_BYTES: Final = 16 * KIB  # of plain text, at most (RFC 8446)
TLS_PIECE_BYTES: Final = 32 * KIB  # decrypted at a time: bounds what OpenSSL keeps for each connection
READ_SLACK_BYTES: Final = 64  # behind the read buffer, so that a parser may look a little past what was read
TURN_BYTES_MAX: Final = 1 * MIB  # work for one connection, in and out, until the others have their turn
DROP_AT_ONCE_MAX: Final = 1_000  # subscriptions of a closed connection that one turn forgets: two milliseconds
TURN_EVENT_BYTES: Final = 4 * KIB  # what a protocol event that Python acts on counts as, beside its bytes
INTEREST_CONFIRM_MS: Final = 1_000  # a PONG waits so long at most until peers know of what was subscribed before it
INTEREST_PATTERNS_MAX: Final = 250_000  # that peers are told one by one; then prefixes stand for them
INTEREST_SLICE_MAX: Final = 1_000  # of what is told whole, in one turn
ROUTE_LINE_BYTES_MAX: Final = 64 * KIB  # of a control line between gateways: subject, reply and queue names together
CLIENT_TICK_MS: Final = 100  # how exact the timers of client connections are
CLOSE_LINGER_MS: Final = 500  # how long a closed client may take to read our last words
SERVER_STOP_GRACE_MS: Final = 5_000  # for sending what waits, when a gateway stops
PASSWORD_THREADS: Final = 2  # bcrypt lets go of the interpreter; two do not starve the loop
NONCE_BYTES: Final = 11  # that a client with an nkey signs; nats-server's number
CLIENT_BACKLOG: Final = 1_024  # connections that wait to be accepted
PASSWORD_BYTES_MAX: Final = 72  # what bcrypt looks at; longer ones are refused
MONITOR_LIST_DEFAULT: Final = 1_024  # connections or subscriptions in one answer of the monitor
MONITOR_LIST_MAX: Final = 16_384  # the same, when more is asked for
MONITOR_TURN_ITEMS: Final = 128  # of a list, until the others have their turn
MONITOR_CLOSED_MAX: Final = 10_000  # closed connections that are remembered
MONITOR_CLOSED_CHARACTERS_MAX: Final = 128  # of what a closed client called itself
MONITOR_INDENTED_BYTES_MAX: Final = 256 * KIB  # a longer page is not laid out for human eyes

# -- record batches and the way to the sink ---------------------------------------------------------------------------
STREAM_PLANS_MAX: Final = 65_536  # cached subjects with their streams and partitions, then the cache starts anew
STREAM_PLAN_CHARACTERS_MAX: Final = 8 * MIB  # of those subjects
BATCH_BYTES_TARGET: Final = 512 * KIB  # a batch is closed when it reaches this
BATCH_BYTES_MAX: Final = 8 * MIB  # one oversized record makes a batch of its own
BATCH_LINGER_MS: Final = 1
BATCHES_IN_FLIGHT_MAX: Final = 8  # per producer and partition
PRODUCER_RESULTS_KEPT: Final = 16  # answers a sink can repeat, per producer and partition; above BATCHES_IN_FLIGHT_MAX
OUTBOX_BYTES_MAX: Final = 64 * MIB  # per stream
NEVER_SENT_REFUSE_MS: Final = 5_000  # no leader for this long and never sent: 503
OUTBOX_DRAIN_MS_MAX: Final = 10_000  # a stopping gateway waits so long for what it has taken in
SPOOL_FILE_BYTES: Final = 4 * MIB  # then the next one is begun
SPOOL_FILES_SLACK: Final = 4  # files that may be there beside twice what the outbox holds, until old ones are tidied
SPOOL_MOVE_BYTES: Final = 1 * MIB  # of an old file, written again at a time
SPOOL_DISK_RESERVE_BYTES: Final = 64 * MIB  # with less left the outbox takes nothing more, so that it can be emptied
COMMAND_BYTES_TARGET: Final = 1 * MIB  # envelopes packed into one Raft command
LINK_FRAME_BYTES_MAX: Final = 16 * MIB
LINK_READ_BYTES: Final = 64 * KIB  # of a link, read at a time; larger frames are read into blocks of their own
LINK_BLOCK_BYTES: Final = 2 * MIB  # ... which begin with so much at most
LINK_FETCH_BYTES_MAX: Final = 8 * MIB  # a sink answers a fetch with no more; a single batch may have as much
LINK_REQUESTS_MAX: Final = 4_096  # reads under way on one link; another one is refused
LINK_REQUEST_MS_MAX: Final = 10_000  # for an answer, beside what the request itself may wait
LINK_PING_INTERVAL_MS: Final = 250
LINK_SILENCE_MS_MAX: Final = 2_000  # a sink that says nothing for so long is given up; others have elected by then
LINK_DIAL_MS_MAX: Final = 1_000  # for a connection to a sink, and as much again for its greeting
LINK_RETRY_MS_MAX: Final = 500  # pause after all sinks of a zone were tried in vain

# -- between the sinks of a group -------------------------------------------------------------------------------------
RAFT_PING_INTERVAL_MS: Final = 250
RAFT_DOUBT_MS_MAX: Final = 30_000  # for so long members whose machine has been started anew wait for all others
RAFT_SILENCE_MS_MAX: Final = 1_500  # a peer that says nothing for so long is dialled anew
RAFT_DIAL_MS_MAX: Final = 1_000
RAFT_RETRY_MS_MIN: Final = 50
RAFT_RETRY_MS_MAX: Final = 1_000
RAFT_BUFFER_BYTES_MAX: Final = 64 * MIB  # that wait to be sent to one peer
PULL_BYTES: Final = 1 * MIB  # of the log, that a sink which is being filled asks for at a time
PULL_MS_MAX: Final = 5_000  # for an answer to that

# -- the log ----------------------------------------------------------------------------------------------------------
JOURNAL_FILE_BYTES: Final = 64 * MIB
JOURNAL_RECENT_BYTES: Final = 16 * MIB  # of commands added last, kept in memory: each is read up to three times soon
FSYNC_INTERVAL_MS: Final = 1_000  # with fsync = "interval": what a power cut may cost
JOURNAL_FILES_HELD_MAX: Final = 32  # that are kept for a sink which is being filled
JOURNAL_SLICE_ENTRIES_MAX: Final = 256  # bounds what one tick applies and sends
JOURNAL_SLICE_BYTES_MAX: Final = 8 * MIB
JOURNAL_FILE_BYTES_MIN: Final = 4 * KIB  # head, a vote and one small entry
JOURNAL_ROLL_EARLY_PART: Final = 16  # a file is left when less than this part of it is free, at a sync
VOTED_FOR_BYTES_MAX: Final = 512  # node id in a vote
ZERO_CHUNK_BYTES: Final = 1 * MIB  # files are zeroed in writes of this size
SEGMENT_BYTES: Final = 64 * MIB
INDEX_INTERVAL_BYTES: Final = 64 * KIB  # one sparse index entry per this many bytes of a segment
SEGMENTS_OPEN_MAX: Final = 8  # finished segments whose descriptor and index one partition keeps at hand
SEGMENT_SCAN_BYTES: Final = 1 * MIB  # a scan that checks batches reads so much at a time
SEGMENT_WALK_BYTES: Final = 16 * KIB  # a search that looks at batch headers alone reads so much at a time
CERTIFICATE_BYTES_MAX: Final = 8 * MIB
CERTIFICATE_GAPS_MAX: Final = 10_000  # control batches that one speaks of
CERTIFICATE_BEACON_BYTES_MAX: Final = 2 * MIB  # of all beacons that one quotes
CERTIFICATE_BEACONS_READ_MS: Final = 3_600_000  # so far back it is looked for the latest beacon of each gateway
CERTIFICATE_BEACONS_READ_BYTES: Final = 64 * MIB  # ... in so much of `$COVERAGE` at most
CERTIFICATE_SKEW_MS_MAX: Final = 600_000  # between its time and the clock of a sink that is to sign it
CERTIFICATE_WAIT_MS_MAX: Final = 30_000  # a sink that does not hold so much yet waits so long for it
STATEMENT_WAIT_MS_MAX: Final = 5_000  # ... and one that does not lead, for a statement to be committed there too
ATTEST_RATE_BYTES: Final = 256 * MIB  # a second, that a sink reads again before it signs
ATTESTED_MS_MAX: Final = 600_000  # from then on statements, and what was read again for them, do not count any more
ATTESTED_KEPT: Final = 4_096  # of both
LEAVES_POSITIONS_KEPT: Final = 128  # ends of segments at which the tree of a log is known; some 1 KiB each
LEAVES_KEPT_BYTES_MAX: Final = 4 * MIB  # of the segment that is written, for its part of the log's Merkle tree
SCRUB_RATE_BYTES: Final = 4 * MIB  # a second, of finished segments that are read again
SCRUB_BEGIN_MS: Final = 60_000  # from the start of a sink to its first round
SCRUB_ROUND_MS_MIN: Final = 3_600_000  # from the end of a round to the next one, unless somebody asks for it
FLUSH_BYTES: Final = 16 * MIB  # journal bytes that wait for a segment before the writer runs
FLUSH_INTERVAL_MS: Final = 1_000
DISK_RESERVE_BYTES: Final = 1024 * MIB
DEDUP_WINDOW_MS: Final = 120_000
DEDUP_IDS_MAX: Final = 250_000  # per partition

# -- between zones ----------------------------------------------------------------------------------------------------
MIRROR_FRAME_BYTES: Final = 1 * MIB  # of batches, before compression, unless one batch alone has more
MIRROR_FRAME_BYTES_MIN: Final = 64 * KIB  # where a rate is so low that a frame would take long
MIRROR_WINDOW_BYTES: Final = 8 * MIB  # of one partition, under way and not yet durable in the mirror
MIRROR_LINK_BYTES_MAX: Final = 32 * MIB  # the same of all partitions of a link
MIRROR_TAIL_BYTES: Final = 1 * MIB  # who lacks no more than this is at the tail, and served first
MIRROR_TELL_MS: Final = 1_000  # between two words about how far a mirror is behind
HELD_TELL_MS: Final = 2  # a sink that does not lead passes on so soon what a mirror holds
MIRROR_PACE_MS: Final = 250  # between two looks whether the rate that holds a frame back is still the same
MIRROR_LOOK_MS: Final = 250  # between two looks at what should be mirrored
MIRROR_SILENCE_MS_MAX: Final = 5_000  # an origin that says nothing for so long is given up
MIRROR_RETRY_MS_MAX: Final = 2_000  # pause after all sinks of an origin were tried in vain
ELSEWHERE_BYTES: Final = 64 * KIB  # of a log, that is asked of another zone at a time to mend a segment with
ELSEWHERE_MS_MAX: Final = 60_000  # for that, under the rate of copies
MIRROR_SPACE_PART: Final = 4  # mirrors stop a quarter of the reserve before own writes do

# -- reading history --------------------------------------------------------------------------------------------------
FETCH_RECORDS_DEFAULT: Final = 1_000
FETCH_BYTES_DEFAULT: Final = 1 * MIB
FETCH_BYTES_MAX: Final = 1024 * MIB  # of one request: no faster than its reader takes it
FETCH_WAIT_MS_MAX: Final = 60_000
FETCH_CHUNK_BYTES: Final = 2 * MIB  # what the gateway pulls from a sink at a time
FETCH_CHUNKS_BYTES_MAX: Final = 16 * MIB  # pulled and not shown yet for a connection; or a batch for each request
FETCH_TURN_BYTES: Final = 512 * KIB  # of the log, shown before others have their turn; a batch may have more
FETCHES_PER_CONNECTION_MAX: Final = 64
FETCHES_AHEAD_MAX: Final = 4  # of a gateway, that have a chunk read before it can be shown
FETCH_SCAN_BYTES_MAX: Final = 64 * MIB  # of the log, looked at for one request with a filter
RING_BATCH_BYTES: Final = 512  # of memory for each batch of a gateway's ring, beside its bytes
FETCH_PENDING_PART: Final = 4  # a reader has at most 1/4 of its pending limit queued before more is shown
FETCH_QUEUE_BYTES_MAX: Final = 8 * MIB  # ... and no more than this: enough for a fast reader until the next look

# -- contracts --------------------------------------------------------------------------------------------------------
CONTRACTS_MAX: Final = 1_000  # of one zone, all accounts together
CONTRACT_SUBJECTS_MAX: Final = 100  # patterns of one contract
CONTRACT_BYTES_MAX: Final = 64 * KIB  # of one, its schema included
CONTRACTS_BYTES_MAX: Final = 4 * MIB  # of all of a zone; below a link frame, which carries them
CONTRACT_PLANS_MAX: Final = 65_536  # cached subjects with their contracts, then the cache starts anew
CONTRACT_REQUESTS_MAX: Final = 4  # about contracts, under way for one connection
CONTRACTS_WAIT_MS_MAX: Final = 3_000  # a gateway that enforces them waits so long for them before it serves clients
CONTRACT_LOG_INTERVAL_MS: Final = 10_000  # between two lines of the log about violations of one contract
CONTRACT_REASON_CHARACTERS_MAX: Final = 200  # of what the validator says about an event

# -- audit ------------------------------------------------------------------------------------------------------------
AUDIT_WINDOW_MS: Final = 60_000  # what one source repeats within it is summed up in one event
AUDIT_SOURCES_MAX: Final = 4_096  # of one node in such a window; what others do is only counted
AUDIT_TEXT_CHARACTERS_MAX: Final = 256  # of one field
AUDIT_OUTBOX_BYTES: Final = 4 * MIB
AUDIT_DRAIN_MS_MAX: Final = 500  # a gateway that stops waits so long, if these events are all it still holds
AUDIT_AGE_MS: Final = 365 * 86_400_000
AUDIT_BYTES: Final = 1024 * MIB
AUDIT_DEDUP_MS: Final = 3_600_000  # within which a sink that leads anew finds what was written of the same
AUDIT_NOTES_MAX: Final = 256  # of one sink, that wait to be written
AUDIT_NOTE_MS_MAX: Final = 1_800_000  # then a note is given up; well inside AUDIT_DEDUP_MS

# -- coverage ---------------------------------------------------------------------------------------------------------
COVERAGE_AGE_MS: Final = 30 * 86_400_000
COVERAGE_BYTES: Final = 1024 * MIB
COVERAGE_DEDUP_MS: Final = 3_600_000  # within which a sink that leads anew finds what was reported of the same
COVERAGE_OUTBOX_BYTES: Final = 16 * MIB  # what does not fit is a gap in `$COVERAGE`; the next whole beacon says all
BEACON_INTERVAL_MS: Final = 1_000
BEACON_SILENCE_MS_MAX: Final = 5_000  # then a gateway says a beacon although nothing has changed
BEACON_WHOLE_MS: Final = 60_000  # between two beacons that tell all rows
BEACON_DRAIN_MS_MAX: Final = 2_000  # a gateway that stops waits so long for its last beacon to be in the log
BEACON_ROWS_MAX: Final = 8_000  # of one beacon: some 4 MiB, which a batch has room for; more are told in several
BATCHES_HASHED_AHEAD_MAX: Final = 64  # of one outbox, while their answers are awaited; others when those are there
RUNS_OVER_KEPT: Final = 8  # of one partition, until a beacon has said so
COVERAGE_GAP_GRACE_MS: Final = 10_000  # what a beacon names and a sink lacks for so long is reported
COVERAGE_GAP_GRACE_MS_MIN: Final = 2_000  # two beacons
COVERAGE_SPEAKERS_MAX: Final = 4_096  # gateway workers whose beacons a sink knows
COVERAGE_LINES_MAX: Final = 65_536  # of all of them, in all partitions
COVERAGE_STATUS_ROWS_MAX: Final = 10_000  # of beacons, and as many accounts: a frame carries both
COVERAGE_NOTES_MAX: Final = 4_096  # reports of one sink, that wait to be written
COVERAGE_ALTERED_MAX: Final = 1_024  # runs found altered, of which a sink knows until it is started anew
COVERAGE_RECORDED_MAX: Final = 4_096  # gaps of which a sink knows that they were reported as recorded
COVERAGE_SILENCE_MS: Final = 7_500  # gateways speak every five seconds at least
COVERAGE_LOOK_MS: Final = 1_000  # between two looks at what beacons name and accounts have
COVERAGE_SUMMARY_MS: Final = 600_000  # between two summaries
COVERAGE_BACK_MS: Final = 1_500_000  # that a sink which starts reads back: two of them
COVERAGE_BACK_MS_MAX: Final = 3_600_000  # ... or this, if it has not found any
COVERAGE_HEAR_MAX: Final = 32  # events, until others have their turn: each has a signature to be checked
COVERAGE_READ_BYTES: Final = 1 * MIB  # of `$COVERAGE`, at a time
ACCOUNT_RUNS_KEPT: Final = 16  # runs of a producer that are over, of which a sink knows where they ended
ACCOUNT_MARKS_KEPT: Final = 16  # sequences at which a sink knows the chain of a producer: as many seconds
GAPS_RECORDED_KEPT: Final = 32  # that a group knows to have written, per producer and partition
DIGEST_INTERVAL_MS: Final = 60_000  # between two comparisons of replicas
DIGESTS_SAID_MAX: Final = 65_536  # roots that other sinks have told and this one has not compared yet
ROOTS_OF_EVENT_MAX: Final = 4_096  # some 1.5 MiB
DAMAGED_BATCHES_MAX: Final = 1_024  # of one partition, for which gap records may stand since all disks spoilt them
STATEMENTS_KEPT: Final = 8  # per group
STATEMENT_ID_BYTES: Final = 16

# -- configuration ----------------------------------------------------------------------------------------------------
CONFIG_CHARACTERS_MAX: Final = 4 * MIB  # of the whole file
CONFIG_DURATION_MS_MAX: Final = 36_500 * 86_400_000  # a hundred years
CONFIG_PAYLOAD_BYTES_MAX: Final = 64 * MIB  # what `max_payload` may be raised to
NATS_CONFIG_DEPTH_MAX: Final = 100  # maps in maps, and files that include files, of a nats.conf
NAME_CHARACTERS_MAX: Final = 128  # of a mesh, zone, node or stream
ACCOUNTS_MAX: Final = 1_000  # declared in one configuration
STREAMS_MAX: Final = 1_000
STREAM_SUBJECTS_MAX: Final = 2_000  # patterns of all streams together
PARTITIONS_MAX: Final = 1_024  # of one stream
SINKS_MAX: Final = 7  # of one zone
GROUPS_MAX: Final = 64  # Raft groups of one zone
GROUPS_SUCCEEDED_MAX: Final = 16  # that a Raft group remembers to have taken the place of
PORT_MAX: Final = 65_535
WORKERS_MAX: Final = 256  # processes on one client port
WORKER_PAUSE_MS_MIN: Final = 100  # before a worker that has ended is started again; doubled while it does not last
WORKER_PAUSE_MS_MAX: Final = 10_000
WORKER_CALM_MS: Final = 30_000  # one that has lived so long has lasted
WORKER_STOP_MS_MAX: Final = 20_000  # above OUTBOX_DRAIN_MS_MAX and SERVER_STOP_GRACE_MS: then it is killed
WORKER_PORT_ATTEMPTS_MAX: Final = 8  # to find a port that is free on all addresses of a host
WORKER_ORDERS_BYTES_MAX: Final = 16 * MIB  # above CONFIG_CHARACTERS_MAX, in UTF-8 and base64
WORKER_PAGE_MS_MAX: Final = 3_000  # for a worker to make a page
PEER_RETRY_MS_MIN: Final = 10  # before a link to another worker is tried again; doubled while it fails
PEER_RETRY_MS_MAX: Final = 250
PEER_WAIT_MS_MAX: Final = 3_000  # a worker that begins waits so long for the others, then it serves clients without
GATEWAY_RETRY_MS_MAX: Final = 1_000  # the same for a link to another gateway
GATEWAY_WAIT_MS_MAX: Final = 1_000  # a gateway that begins waits so long for the others, then it serves without
GATEWAY_HELLO_MS_MAX: Final = 2_000  # for a gateway that was dialled or has dialled to say who it is
GATEWAY_HELLO_BYTES_MAX: Final = 4 * KIB
GATEWAY_MEET_AGAIN_MS: Final = 30_000  # in a mesh without a file: known addresses are asked again for others
GATEWAY_FORGET_MS: Final = 60_000  # in such a mesh: a gateway without a link for so long is no member any more
GATEWAY_KNOWN_MAX: Final = 64  # in such a mesh: other gateways; their addresses fit into a HELLO
GATEWAY_MEETINGS_MAX: Final = 128  # in such a mesh: addresses that are dialled at a time to meet whoever is there
GATEWAY_TAKEOVER_MS: Final = 1_000  # a gateway waits so long for each that comes before it to link its zone to another
GATEWAY_INFLATE_BYTES: Final = 1 * KIB  # of what is compressed, at a time: at most 32 MiB come out of it
GATEWAY_WINDOW_BYTES_MAX: Final = 8 * MIB  # that a peer may make us remember, to decompress what it sends
GATEWAY_PACE_MS: Final = 10  # between pieces of what a rate holds back
ROUTE_PIECE_BYTES_MAX: Final = 1 * MIB  # of the channel of a zone
GATEWAY_PING_INTERVAL_MS: Final = 250
GATEWAY_STALE_MS: Final = 750  # a gateway that is silent for so long is sent everything; below INTEREST_CONFIRM_MS
GATEWAY_SILENCE_MS_MAX: Final = 5_000  # then a link between gateways is given up and dialled anew
GATEWAY_REFUSALS_TOLD_MAX: Final = 256  # dialling hosts of which the last refusal is remembered, to log it once
PEER_BYE_MS_MAX: Final = 2_000  # a worker that stops waits so long for what the others still have to say
DEDUP_IDS_CEILING: Final = 10_000_000  # what `dedup.ids_max` may be raised to
HOLD_AGE_MS: Final = 86_400_000  # kept for a zone that lags
HOLD_BYTES: Final = 10 * 1024 * MIB
OUTBOX_STALL_MS: Final = 30_000  # a full outbox pauses one client connection for at most this long
GEO_TIMEOUT_MS: Final = 5_000
RESPONSES_MAX: Final = 1  # allow_responses = true: replies to one request, as in nats-server
RESPONSES_EXPIRE_MS: Final = 120_000

# -- the client library and the commands ------------------------------------------------------------------------------
CLIENT_FETCH_BYTES: Final = 1 * MIB  # read ahead per partition
CLIENT_FETCHES_MAX: Final = 32  # under way at a time for one consumer; below FETCHES_PER_CONNECTION_MAX
CLIENT_ANSWER_MS: Final = 10_000  # for the next message of an answer, beside what the request itself may wait
CLIENT_RETRY_MS: Final = 40_000  # without an answer on a standing connection, then the caller is told
CLIENT_RETRY_PAUSE_MS: Final = 200
CLIENT_ABANDON_MS: Final = 100  # for closing what did not become a connection
CLIENT_WATCH_MS: Final = 200  # how often a wait looks whether its connection is still the same
PUBLISH_WINDOW_EVENTS: Final = 512  # sent and not yet acknowledged
PUBLISH_WINDOW_BYTES: Final = 8 * MIB
PUBLISH_GIVE_UP_MS: Final = 30_000  # without any acknowledgement; well inside DEDUP_WINDOW_MS, so that a retry is known
LINES_CHUNK_BYTES: Final = 256 * KIB  # of a file or pipe, read at a time
