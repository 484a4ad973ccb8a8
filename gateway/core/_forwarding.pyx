# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The compiled twin of `gateway.core.forwarding`, `session` and `sublist`: read those first, they say what it must do.

What is different is where the ordinary case happens. `Forwarder._forward` walks over what was read and handles every
plain PUB and HPUB that is complete in it (`_forward_routed` every RMSG and HRMSG of a peer): the subject is looked up
in the route plans (most often it is that of the message before), and for each receiver `MSG <subject> <sid> ` and then
the rest of the publish, from behind its subject to its last CR LF, are copied to the end of the receiver's output. That
rest is the same in PUB and MSG as long as the publish is written canonically: single spaces, no zeros before numbers,
CR LF. Whatever is written otherwise, is not complete, or is no publish goes piece by piece through the same parser as
in the reference, and then to the policy.

The parts that are no loop stand in files of their own, by the subjects of the reference, and are compiled into this one
module, so that C can inline across them: `_lanes.pxi`, `_subscriptions.pxi`, `_plans.pxi`, `_sessions.pxi`,
`_messages.pxi`, `_managed.pxi`, `_routed.pxi`, `_answers.pxi`.

No Python object is made per message. One is made per read and receiver: the output is written into a `bytes` object
that grows, which the shell then takes and hands to the socket as it is.

Lifetimes: a plan owns its receivers; a removed subscription lets go of its session, so a plan that has outlived them
keeps no connection alive. Subscriptions and plans are invisible to the cycle collector (there may be millions); the
only cycles that they are part of, session ─► subscription ─► session, are cut by `remove`.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memchr, memcmp, memcpy

from protocol._records cimport BatchBuilder

from gateway.core.forwarding import Kind, Stats
from gateway.core.identity import EVERYTHING
from gateway.core.lanes import REPLY_BYTES
from gateway.core.session import Scope
from gateway.core.sublist import Result
from protocol import nats, routes, subjects
from protocol.limits import BATCH_BYTES_TARGET, ROUTE_PLAN_BYTES_MAX, ROUTE_PLANS_MAX, TURN_BYTES_MAX, TURN_EVENT_BYTES

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(object)
    int _PyBytes_Resize(PyObject** bytes, Py_ssize_t newsize) except -1

cdef extern from *:
    """
    #if defined(__GLIBC__)
    #include <malloc.h>
    static void keep_large_blocks(void) {
        mallopt(M_MMAP_THRESHOLD, 16 << 20);
        mallopt(M_TRIM_THRESHOLD, 64 << 20);
    }
    #else
    static void keep_large_blocks(void) {}
    #endif
    """
    void keep_large_blocks()

# Output of more than 128 KiB would be mapped anew for every write, and half of all time would go into page faults.
keep_large_blocks()

cdef object _Publish = nats.Publish
cdef object _RouteMessage = routes.RouteMessage
cdef object _decode = subjects.decode
cdef object _encode = subjects.encode
cdef object _OK = nats.OK
cdef Py_ssize_t _TURN_BYTES_MAX = TURN_BYTES_MAX
cdef Py_ssize_t _TURN_EVENT_BYTES = TURN_EVENT_BYTES
cdef Py_ssize_t _PLAN_BYTES_MAX = ROUTE_PLAN_BYTES_MAX
cdef Py_ssize_t _BATCH_BYTES_TARGET = BATCH_BYTES_TARGET
cdef Py_ssize_t _REPLY_BYTES = REPLY_BYTES
cdef int _KEPT = Kind.KEPT

cdef enum:
    BUCKETS = 256  # of subscription generations, by the first token
    WAYS = 4  # plans with the same place in the table
    SETS_MIN = 16
    SEEN = 4096  # marks of subjects that came once
    OUT_BYTES_MIN = 512
    OUT_BYTES_HINT_MAX = 1048576
    OUT_BYTES_ADOPTED = 16384  # what is written at once and has so much becomes the output itself
    PLAN_BYTES = 256  # what a plan takes beside its subject and its receivers
    LIST_POINTERS = 9  # as much as an empty list takes
    FRAME_HEAD_BYTES = 64  # what a frame needs beside its subject, sid, reply and payload
    MANAGED_BYTES_MAX = 512  # of a SUB or UNSUB that need not be looked at more closely
    RECORD_BOUND_BYTES = 96  # of an event in a batch, beside what is in it: as in record_bytes_max
    HEAD_BYTES = 6  # of a head, beside the subject
    REPLIES_ROOM_MIN = 1024  # of the reply subjects that wait beside a batch
    PUBLISH_BYTES_MIN = 11  # PUB a 0, empty
    # What work counts as in a turn that copies nothing: so many bytes could be copied meanwhile, roughly.
    TURN_LOOK_BYTES = 4  # at a receiver, whether it gets a message
    TURN_LINE_FACTOR = 128  # a byte of a line that is taken apart, like the tokens of a pattern

cdef list _NONE = []
cdef uint64_t _NEVER = <uint64_t>-1  # a generation that never is
cdef uint32_t _SETS_MAX = ROUTE_PLANS_MAX // WAYS
NEVER_MS = -1


include "_lanes.pxi"
include "_subscriptions.pxi"
include "_plans.pxi"
include "_sessions.pxi"
include "_messages.pxi"


@cython.final
cdef class Forwarder:
    cdef readonly object stats
    cdef public bint keeps_events, keeps_log, asks_to_subscribe, tells_peers, interest_waits
    cdef object policy
    cdef Py_ssize_t stall_bytes
    cdef uint32_t random
    cdef readonly list dirty
    cdef dict plans
    cdef uint64_t epoch
    cdef int64_t now_ms
    cdef Py_ssize_t turn_bytes
    cdef int64_t out_msgs, out_bytes  # not in `stats` yet
    cdef int64_t wall_ms  # of this read, once it was asked for
    cdef bint knows_wall_ms
    cdef bint keeps  # lanes have taken something in this read
    cdef bint interrupted  # something was called that may have stopped the session that is read

    def __init__(self, policy, seed, stall_bytes):
        self.stats = Stats()
        self.keeps_events = self.keeps_log = True
        self.policy = policy
        self.stall_bytes = stall_bytes
        self.random = (seed & 0xFFFFFFFF) or 1
        self.dirty = []
        self.plans = {}

    # -- sessions ----

    def write(self, Session session not None, bytes line not None):
        session.write(line)
        self._touch(session)

    def touch(self, Session session not None):
        self._touch(session)

    cdef inline _touch(self, Session session):
        if not session.dirty:
            session.dirty = True
            self.dirty.append(session)

    def take_dirty(self):
        cdef Session session
        taken = self.dirty
        if not taken:
            return []
        self.dirty = []
        for session in taken:
            session.dirty = False
        return taken

    def receive(self, Session session not None, data, int64_t now_ms):
        cdef Py_buffer view
        cdef Py_ssize_t at = 0
        self.now_ms = now_ms
        if session.closing is not None:
            return False
        if session.left is not None:
            if len(data):
                data = session.left[session.left_at:] + bytes(data)
            else:
                data, at = session.left, session.left_at
            session.left = None
        self.turn_bytes = 0
        self.knows_wall_ms = False
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            self._proceed(session, <const char*>view.buf, view.len, &at)
            return at < view.len and not session.stopped()
        finally:
            if at < view.len and session.closing is None:
                if type(data) is bytes:
                    session.left, session.left_at = data, at
                else:
                    session.left = PyBytes_FromStringAndSize(<const char*>view.buf + at, view.len - at)
                    session.left_at = 0
            PyBuffer_Release(&view)
            if self.out_msgs:
                self.stats.out_msgs += self.out_msgs
                self.stats.out_bytes += self.out_bytes
                self.out_msgs = self.out_bytes = 0
            if self.keeps:
                self.keeps = False
                self.policy.kept()

    cdef int _proceed(self, Session session, const char* data, Py_ssize_t size, Py_ssize_t* at) except -1:
        """Acts on what is there from `at` on. Where it stopped stands in `at`, even when a callback has raised."""
        while at[0] < size and not session.stopped():
            if self.turn_bytes > _TURN_BYTES_MAX:
                break
            if session.wanted == 0:
                if session.is_peer:
                    _forward_routed(self, session, data, size, at)
                else:
                    self._forward(session, data, size, at)
                if at[0] == size or session.stopped() or self.turn_bytes > _TURN_BYTES_MAX:
                    break
            self._parse(session, data, size, at)
        return 0

    cdef int _parse(self, Session session, const char* data, Py_ssize_t size, Py_ssize_t* at) except -1:
        """One piece of protocol, or what there is of it, by the parser."""
        cdef const char* begin = data + at[0]
        cdef const char* line_feed
        cdef Py_ssize_t piece = size - at[0], wanted = session.wanted
        if wanted > 0:
            piece = min(piece, wanted)
        else:
            line_feed = <const char*>memchr(begin, c"\n", piece)
            if line_feed != NULL:
                piece = line_feed + 1 - begin
        at[0] += piece
        session.parser.receive(PyBytes_FromStringAndSize(begin, piece))
        event = session.parser.next_event()
        session.wanted = session.parser.wanted_bytes()
        if event is not None:
            self.turn_bytes += _TURN_EVENT_BYTES + (piece if wanted > 0 else piece * TURN_LINE_FACTOR)
            if isinstance(event, _Publish):
                self._publish(session, event)
            elif isinstance(event, _RouteMessage):
                self._arrive(session, event)
            else:
                self.policy.act(session, event)
        return 0

    # -- subscriptions ----

    def insert(self, Subscription subscription not None):
        subscription.account.sublist.insert(subscription)

    def remove(self, Subscription subscription not None):
        subscription.closed = True
        subscription.account.sublist.remove(subscription)
        subscription.session = None

    def invalidate(self, gone=()):
        self.epoch += 1
        self.plans = {key: plans for key, plans in self.plans.items() if key[1] not in gone}

    @property
    def plans_cached(self):
        return sum([len(plans) for plans in self.plans.values()])

    # -- messages ----

    def route(self, Account account not None, Session sender, bytes subject not None, bytes reply not None,
              bytes header_block not None, bytes payload not None):
        cdef list plain
        cdef Plan plan
        if sender is not None:
            plan = self._plan(sender, PyBytes_AS_STRING(subject), PyBytes_GET_SIZE(subject))
            return self._spread(sender, account, plan.head, plan.receivers, NULL, reply, header_block, payload)
        plain = []
        queues = account.sublist.find(subject, plain)
        head = _head(PyBytes_AS_STRING(subject), PyBytes_GET_SIZE(subject))
        return self._spread(None, account, head, _arrange(plain, queues, None), NULL, reply, header_block, payload)

    def answer(self, Account account not None, Replies replies not None, form, int64_t base_offset):
        try:
            _answer(self, account, replies, form, base_offset)
        finally:
            self.stats.out_msgs += self.out_msgs
            self.stats.out_bytes += self.out_bytes
            self.out_msgs = self.out_bytes = 0

    def deliver(self, list receivers not None, bytes subject not None, bytes reply not None,
                bytes header_block not None, bytes payload not None):
        cdef Receivers plain = Receivers.__new__(Receivers)  # some may be closed, and know their session no more
        plain.plain, plain.groups = receivers, _NONE
        head = _head(PyBytes_AS_STRING(subject), PyBytes_GET_SIZE(subject))
        return self._spread(None, None, head, plain, NULL, reply, header_block, payload)

    def hand_over(self, Subscription subscription not None, bytes frames not None, Py_ssize_t count,
                  Py_ssize_t size_bytes):
        cdef Session session = subscription.session
        if count == 0 or subscription.closed or session.closing is not None:
            return 0
        session.write(frames)
        session.out_msgs += count
        session.out_bytes += size_bytes
        session.last_activity_ms = self.now_ms
        self.stats.out_msgs += count
        self.stats.out_bytes += size_bytes
        subscription.received += count
        if subscription.received == subscription.max_messages:
            self.policy.exhausted(subscription)
        self._touch(session)
        if session.out_size + session.unsent_bytes > self.stall_bytes:
            self.policy.falls_behind(session, None)
        return count

    cdef _arrive(self, Session peer, event):
        """A message from a peer: to plain subscribers, and to one member of each group that it names, in its scope."""
        cdef bytes subject = event.subject, text = b"".join([queue + b" " for queue in event.queues])
        cdef Names names
        cdef Plan plan
        peer.in_msgs += 1
        peer.in_bytes += len(event.header_block) + len(event.payload)
        peer.last_activity_ms = self.now_ms
        peer.account = self.policy.account(event.account.decode())
        plan = self._plan(peer, PyBytes_AS_STRING(subject), PyBytes_GET_SIZE(subject))
        names.text, names.size = PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text)
        count = self._spread(
            peer, peer._account, plan.head, plan.receivers, &names, event.reply, event.header_block, event.payload
        )
        peer.unwanted_msgs += count == 0

    cdef Py_ssize_t _spread(self, Session sender, Account account, bytes head, Receivers receivers, Names* names,
                            bytes reply, bytes header_block, bytes payload) except -1:
        cdef Message message
        cdef bytes rest = _rest(reply, header_block, payload)
        message.rest = PyBytes_AS_STRING(rest)
        message.rest_size = PyBytes_GET_SIZE(rest)
        message.reply = PyBytes_AS_STRING(reply)
        message.reply_size = PyBytes_GET_SIZE(reply)
        message.payload_size = PyBytes_GET_SIZE(payload)
        message.payload = message.rest + message.rest_size - 2 - message.payload_size
        message.header_size = PyBytes_GET_SIZE(header_block)
        sent = self._send(sender, account, head, receivers, names, &message)
        self.stats.out_msgs += self.out_msgs
        self.stats.out_bytes += self.out_bytes
        self.out_msgs = self.out_bytes = 0
        return sent

    cdef _publish(self, Session session, event):
        """A publish that the parser has read; as in the reference."""
        cdef bytes subject = event[0], reply = event[1], header_block = event[2], payload = event[3]
        cdef Plan plan
        cdef bint answered
        cdef Py_ssize_t size_bytes = len(header_block) + len(payload)
        session.in_msgs += 1
        session.in_bytes += size_bytes
        session.last_heard_ms = session.last_activity_ms = self.now_ms
        self.stats.in_msgs += 1
        self.stats.in_bytes += size_bytes
        plan = self._plan(session, PyBytes_AS_STRING(subject), PyBytes_GET_SIZE(subject))
        if plan.is_unkept:
            self.stats.unkept_msgs += 1
            self.stats.unkept_bytes += size_bytes
        if plan.kind and (plan.lane is None or not self._keep(
            plan, PyBytes_AS_STRING(header_block), len(header_block), PyBytes_AS_STRING(payload), len(payload),
            PyBytes_AS_STRING(reply), len(reply),
        )):
            self.policy.special(session, event, plan.kind)
            return
        if session.verbose:
            self.write(session, _OK)
        answered = plan.kind and plan.lane.answers
        receivers = self._spread(
            session, session._account, plan.head, plan.receivers, NULL, reply, header_block, payload
        )
        if receivers == 0 and reply and not answered:
            self.policy.unanswered(session, _decode(reply), _decode(subject))

    cdef Plan _plan(self, Session session, const char* subject, Py_ssize_t size):
        """The plan of a subject, made or renewed if need be."""
        cdef Plans plans = session.plans
        cdef Sublist sublist = session._account.sublist
        cdef uint64_t mixed = _mix(subject, size)
        cdef Plan plan
        if plans is None:
            plans = session.plans = self._plans_of(session)
        plan = plans.find(subject, size, mixed)
        if plan is None:
            plan = plans.candidate(mixed)
            plan.generation = _NEVER
            plan.head = _head(subject, size)
            plan.subject = PyBytes_AS_STRING(plan.head) + 5
            plan.subject_size = size
            plan.mixed = mixed
            plan.bucket = _bucket(subject, size)
            self._resolve(session, plan)
            if plan is not plans.passing:
                plans.keep(plan)
        elif plan.generation != sublist.wild + sublist.buckets[plan.bucket] + self.epoch:
            before = plan.size_bytes
            self._resolve(session, plan)
            plans.resized(plan, before)
        session.last = plan
        return plan

    cdef Plans _plans_of(self, Session session):
        key = session._account, session._permissions, session.scope_number, session._zone
        plans = self.plans.get(key)
        if plans is None:
            plans = self.plans[key] = Plans(session._account)
        return plans

    cdef _resolve(self, Session session, Plan plan):
        cdef Sublist sublist = session._account.sublist
        cdef list plain = []
        cdef dict queues
        cdef char first = plan.subject[0] if plan.subject_size else 0
        cdef uint64_t generation = sublist.wild + sublist.buckets[plan.bucket] + self.epoch
        plan.lane = plan.key = None
        if session.unrestricted and first != c"$" and (first == c"_" or not self.keeps_events):
            plan.kind = 0
        else:
            self.turn_bytes += _TURN_EVENT_BYTES // 2
            subject = _decode(PyBytes_FromStringAndSize(plan.subject, plan.subject_size))
            plan.kind = self.policy.kind(session, subject)
            way = self.policy.lane(session, subject) if plan.kind == _KEPT else None
            if way is not None:
                plan.lane, plan.key = way
        plan.is_unkept = first != c"$" and first != c"_" and (
            plan.kind == 0 or (plan.kind == _KEPT and not self.keeps_log)
        )
        if sublist.count == 0:
            queues = None
        else:
            queues = sublist.find(PyBytes_FromStringAndSize(plan.subject, plan.subject_size), plain)
        plan.receivers = _arrange(plain, queues, session)
        plan.size_bytes = sizeof(PyObject*) * plan.receivers.count + PyBytes_GET_SIZE(plan.head) + PLAN_BYTES
        plan.generation = generation
        self.turn_bytes += plan.size_bytes

    cdef int _forward(self, Session session, const char* data, Py_ssize_t size, Py_ssize_t* at) except -1:
        """Handles ordinary publishes from `at` on, up to the first piece that is something else or incomplete."""
        cdef Sublist sublist = session._account.sublist
        cdef Plan plan = session.last
        cdef Message message
        cdef const char* end = data + size
        cdef const char* line = data + at[0]
        cdef const char* subject
        cdef const char* after
        cdef Py_ssize_t subject_size, max_line, max_payload, managed
        cdef Py_ssize_t receivers
        cdef int64_t in_msgs = 0, in_bytes = 0, unkept_msgs = 0, unkept_bytes = 0
        cdef int numbers
        cdef bint answered
        if session.verbose or session.pedantic or not session.connected:
            return 0
        max_line = session.parser.max_control_line_bytes
        max_payload = session.parser.max_payload_bytes
        self.interrupted = False
        try:
            while end - line >= PUBLISH_BYTES_MIN and self.turn_bytes <= _TURN_BYTES_MAX:
                if memcmp(line, b"PUB ", 4) == 0:
                    subject = line + 4
                    numbers = 1
                elif session.headers and memcmp(line, b"HPUB ", 5) == 0:
                    subject = line + 5
                    numbers = 2
                else:
                    managed = _manage(self, session, line, min(end, line + max_line))
                    if managed == 0:
                        break
                    line += managed
                    self.turn_bytes += managed * TURN_LINE_FACTOR
                    continue
                # the subject: that of the message before, or one to look up
                if (
                    plan is not None
                    and end - subject > plan.subject_size
                    and subject[plan.subject_size] == c" "
                    and memcmp(subject, plan.subject, plan.subject_size) == 0
                    and plan.generation == sublist.wild + sublist.buckets[plan.bucket] + self.epoch
                ):
                    subject_size = plan.subject_size
                else:
                    subject_size = _word(subject, end)
                    if subject_size == 0 or subject[subject_size] != c" ":
                        break
                    plan = None
                after = _read_rest(subject + subject_size + 1, end, numbers, max_payload, &message)
                if after == NULL or message.line_end - subject > max_line:
                    break
                line = after
                in_msgs += 1
                in_bytes += message.header_size + message.payload_size
                self.turn_bytes += line - subject
                if plan is None:
                    plan = self._plan(session, subject, subject_size)
                if plan.is_unkept:
                    unkept_msgs += 1
                    unkept_bytes += message.header_size + message.payload_size
                if plan.kind and (plan.lane is None or not self._keep(
                    plan, message.payload - message.header_size, message.header_size, message.payload,
                    message.payload_size, message.reply, message.reply_size,
                )):
                    self._special(session, plan, subject, &message)
                else:
                    answered = plan.kind and plan.lane.answers  # before the plan may go: others are called now
                    receivers = self._send(session, session._account, plan.head, plan.receivers, NULL, &message)
                    if receivers == 0 and message.reply_size and not answered and session.no_responders:
                        self.turn_bytes += _TURN_EVENT_BYTES
                        self.policy.unanswered(
                            session,
                            _decode(PyBytes_FromStringAndSize(message.reply, message.reply_size)),
                            _decode(PyBytes_FromStringAndSize(subject, subject_size)),
                        )
                        self.interrupted = True
                if self.interrupted:
                    if session.stopped():
                        break
                    plan = session.last
                    self.interrupted = False
        finally:
            at[0] = line - data
            if in_msgs:
                session.in_msgs += in_msgs
                session.in_bytes += in_bytes
                session.last_heard_ms = session.last_activity_ms = self.now_ms
                self.stats.in_msgs += in_msgs
                self.stats.in_bytes += in_bytes
            if unkept_msgs:
                self.stats.unkept_msgs += unkept_msgs
                self.stats.unkept_bytes += unkept_bytes
        return 0

    cdef _special(self, Session session, Plan plan, const char* subject, Message* message):
        """Makes the event that the parser would have made."""
        event = _Publish(
            PyBytes_FromStringAndSize(subject, plan.subject_size),
            PyBytes_FromStringAndSize(message.reply, message.reply_size),
            PyBytes_FromStringAndSize(message.payload - message.header_size, message.header_size),
            PyBytes_FromStringAndSize(message.payload, message.payload_size),
        )
        self.turn_bytes += _TURN_EVENT_BYTES
        self.policy.special(session, event, plan.kind)
        self.interrupted = True

    cdef bint _keep(self, Plan plan, const char* block, Py_ssize_t block_size, const char* payload,
                    Py_ssize_t payload_size, const char* reply, Py_ssize_t reply_size) except -1:
        """Whether the lane takes the event, so that nothing about it is special any more."""
        cdef Lane lane = plan.lane
        if lane.builder is None:
            return False
        if block_size and (not lane.takes_headers or _may_ask(block, block_size)):
            return False
        if not self.knows_wall_ms:
            self.wall_ms = self.policy.wall_ms()
            self.knows_wall_ms = True
        if not lane.put(
            plan.subject, plan.subject_size, plan.key, self.wall_ms, block, block_size, payload, payload_size,
            reply, reply_size,
        ):
            return False
        self.keeps = True
        self.turn_bytes += plan.subject_size + block_size + payload_size
        return True

    cdef Py_ssize_t _send(self, Session sender, Account account, bytes head, Receivers receivers, Names* names,
                          Message* message) except -1:
        """To all who get it; how many did, with each peer as one. Where there are `names`, only to groups of these."""
        cdef Session silent = None if sender is None or sender.echo else sender
        cdef list plain = receivers.plain, groups = receivers.groups
        cdef Subscription subscription
        cdef Py_ssize_t i, count = 0
        self.turn_bytes += TURN_LOOK_BYTES * (PyList_GET_SIZE(plain) + PyList_GET_SIZE(groups))
        for i in range(PyList_GET_SIZE(plain)):
            subscription = <Subscription>PyList_GET_ITEM(plain, i)
            if _is_open(subscription) and (silent is None or subscription.session is not silent):
                self._put(subscription, head, message, sender)
                count += 1
        if receivers.peers is not None:
            return count + _send_groups(self, sender, silent, account, head, receivers, names, message)
        for i in range(PyList_GET_SIZE(groups)):
            if names != NULL and not _is_named(names, <bytes>PyList_GET_ITEM(receivers.names, i)):
                continue
            subscription = self._choose(<list>PyList_GET_ITEM(groups, i), _NONE, silent)
            if subscription is not None:
                self._put(subscription, head, message, sender)
                count += 1
        return count

    cdef Subscription _choose(self, list own, list peers, Session silent):
        """One of `own` and of those behind `peers`, picked by weight; if that cannot get it, the next one that can."""
        cdef Py_ssize_t i, at, count = PyList_GET_SIZE(own), places = count + PyList_GET_SIZE(peers), members = count
        cdef Subscription subscription
        for i in range(PyList_GET_SIZE(peers)):
            members += (<Subscription>PyList_GET_ITEM(peers, i)).weight
        if members == 0:
            return None
        at = self._pick(members)
        if at >= count:
            at -= count
            i = 0
            while at >= (<Subscription>PyList_GET_ITEM(peers, i)).weight:
                at -= (<Subscription>PyList_GET_ITEM(peers, i)).weight
                i += 1
            at = count + i
        for i in range(places):
            if at < count:
                subscription = <Subscription>PyList_GET_ITEM(own, at)
            else:
                subscription = <Subscription>PyList_GET_ITEM(peers, at - count)
            if _is_open(subscription) and (silent is None or subscription.session is not silent):
                return subscription
            self.turn_bytes += TURN_LOOK_BYTES
            at = at + 1 if at + 1 < places else 0
        return None

    cdef inline Py_ssize_t _pick(self, Py_ssize_t count) noexcept:
        cdef uint32_t x = self.random
        if count == 1:
            return 0
        x ^= x << 13
        x ^= x >> 17
        x ^= x << 5
        self.random = x
        return x % <uint64_t>count

    cdef int _put(self, Subscription subscription, bytes head, Message* message, Session sender) except -1:
        cdef Session session = subscription.session
        cdef Py_ssize_t head_size = PyBytes_GET_SIZE(head), sid_size = PyBytes_GET_SIZE(subscription.sid)
        cdef Py_ssize_t before = session.out_size, size_bytes = message.payload_size
        cdef const char* head_text = PyBytes_AS_STRING(head)
        cdef char* out
        if message.header_size == 0 or not session.headers:
            head_text += 1  # MSG
            head_size -= 1
        out = session.reserve(head_size + sid_size + message.rest_size + FRAME_HEAD_BYTES)
        memcpy(out, head_text, head_size)
        out += head_size
        memcpy(out, PyBytes_AS_STRING(subscription.sid), sid_size)
        out += sid_size
        out[0] = c" "
        out += 1
        if message.header_size and not session.headers:
            out = _put_plain(out, message)
        else:
            memcpy(out, message.rest, message.rest_size)
            out += message.rest_size
            size_bytes += message.header_size
        session.out_size = out - session.out
        self.turn_bytes += session.out_size - before
        session.out_msgs += 1
        session.out_bytes += size_bytes
        session.last_activity_ms = self.now_ms
        self.out_msgs += 1
        self.out_bytes += size_bytes
        subscription.received += 1
        if subscription.received == subscription.max_messages:
            if self.asks_to_subscribe or session._account.watches:
                self.policy.exhausted(subscription)
                self.interrupted = True
            else:
                _drop(self, subscription)
        if message.reply_size and session.answerable is not None:
            session.answerable.received(PyBytes_FromStringAndSize(message.reply, message.reply_size), self.now_ms)
        if not session.dirty:
            self._touch(session)
        if session.out_size + session.unsent_bytes > self.stall_bytes:
            self.policy.falls_behind(session, sender)
            self.interrupted = True
        return 0


include "_managed.pxi"
include "_routed.pxi"
include "_answers.pxi"
