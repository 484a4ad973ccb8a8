# Part of _forwarding.pyx: messages to peers and from them. The reference is `gateway.core.forwarding`, the frames are
# described in `protocol.routes`.
#
# RMSG and HRMSG end as the publish does that they carry: account, subject and the names of queue groups stand before
# that. So both ways are copies of pieces of what was read, like those from client to client.

cdef enum:
    GROUPS_FEW = 16  # of one message, for which no memory has to be found
    NAMES_LOOKED_AT = 16  # bytes of names that cost as much as to look at a receiver
    NAMES_BYTES_MAX = 256  # of groups in a frame that is not given to the parser, which makes a set of them


cdef Py_ssize_t _send_groups(Forwarder self, Session sender, Session silent, Account account, bytes head,
                             Receivers receivers, Names* names, Message* message) except -1:
    """To one member of each group, here or at a peer, and to the peers; how many got it, with each peer as one."""
    cdef PyObject* few[GROUPS_FEW]
    cdef PyObject** asked = few  # by group: the peer whose member is to get it, or NULL
    cdef Subscription chosen
    cdef Session peer
    cdef bint is_plain, is_counted
    cdef Py_ssize_t i, count = 0, groups = PyList_GET_SIZE(receivers.groups)
    if groups > GROUPS_FEW:
        room = PyBytes_FromStringAndSize(NULL, groups * sizeof(PyObject*))
        asked = <PyObject**>PyBytes_AS_STRING(room)
    for i in range(groups):
        asked[i] = NULL
        if names != NULL and not _is_named(names, <bytes>PyList_GET_ITEM(receivers.names, i)):
            continue
        chosen = self._choose(receivers.groups[i], receivers.near[i], silent)
        if chosen is None:
            chosen = self._choose(_NONE, receivers.far[i], silent)
        if chosen is None:
            chosen = self._choose(_NONE, receivers.beyond[i], silent)
        if chosen is None:
            continue
        peer = chosen.session
        if peer.is_peer:
            asked[i] = <PyObject*>peer  # `receivers.peers` holds it
        else:
            self._put(chosen, head, message, sender)
            count += 1
    for i in range(PyList_GET_SIZE(receivers.peers)):
        peer = <Session>PyList_GET_ITEM(receivers.peers, i)
        is_plain, is_counted = i < receivers.plain_peers, i < receivers.counted_peers
        count += _put_route(self, peer, is_plain, is_counted, account, head, receivers.names, asked, message, sender)
    return count


cdef bint _put_route(Forwarder self, Session peer, bint is_plain, bint is_counted, Account account, bytes head,
                     list names, PyObject** asked, Message* message, Session sender) except -1:
    """To a peer where it `is_plain` or a group is `asked`; one that is too far behind: counted as dropped.

    Whether somebody is there who gets it, as far as one knows.
    """
    cdef Py_ssize_t i, named_size = 0, subject_size = PyBytes_GET_SIZE(head) - 5  # with the space behind it
    cdef Py_ssize_t name_size = PyBytes_GET_SIZE(account.wire_name)
    cdef Py_ssize_t size = (6 if message.header_size else 5) + name_size + 1 + subject_size + message.rest_size
    cdef bint is_marked = message.reply_size == 1 and message.reply[0] in (c"+", c"|")
    cdef char* out
    for i in range(PyList_GET_SIZE(names)):
        if asked[i] == <PyObject*>peer:
            named_size += PyBytes_GET_SIZE(<bytes>PyList_GET_ITEM(names, i)) + 1
    if peer.closing is not None or not (is_plain or named_size):
        return False
    if named_size or is_marked:
        size += 2 + named_size
    self.turn_bytes += size
    if peer.out_size + peer.unsent_bytes > self.stall_bytes:
        self.policy.falls_behind(peer, sender)
        self.interrupted = True
        if peer.out_size + peer.unsent_bytes + size > 2 * self.stall_bytes:
            self.stats.dropped_for_peers += 1
            peer.dropped_msgs += 1
            return is_counted or named_size > 0
    if self.interest_waits:
        self.policy.tell_peers()
    peer.out_msgs += 1
    peer.out_bytes += message.header_size + message.payload_size
    peer.last_activity_ms = self.now_ms
    out = peer.reserve(size)
    if message.header_size:
        out[0] = c"H"
        out += 1
    memcpy(out, b"RMSG ", 5)
    out = _put_word(out + 5, account.wire_name)
    memcpy(out, PyBytes_AS_STRING(head) + 5, subject_size)
    out += subject_size
    if named_size or is_marked:
        memcpy(out, b"+ " if message.reply_size else b"| ", 2)
        out += 2
        for i in range(PyList_GET_SIZE(names)):
            if asked[i] == <PyObject*>peer:
                out = _put_word(out, <bytes>PyList_GET_ITEM(names, i))
    memcpy(out, message.rest, message.rest_size)
    peer.out_size += size
    self._touch(peer)
    return is_counted or named_size > 0


cdef inline char* _put_word(char* out, bytes word):
    """With a space behind it."""
    memcpy(out, PyBytes_AS_STRING(word), PyBytes_GET_SIZE(word))
    out += PyBytes_GET_SIZE(word)
    out[0] = c" "
    return out + 1


cdef int _forward_routed(Forwarder self, Session peer, const char* data, Py_ssize_t size, Py_ssize_t* at) except -1:
    """Handles messages of a peer from `at` on, up to the first piece that is something else or incomplete."""
    cdef Plan plan = peer.last
    cdef Sublist sublist
    cdef Message message
    cdef Names names
    cdef const char* end = data + size
    cdef const char* line = data + at[0]
    cdef const char* name
    cdef const char* subject
    cdef const char* after
    cdef Py_ssize_t name_size, subject_size, learned
    cdef Py_ssize_t max_line = peer.parser.max_control_line_bytes, max_payload = peer.parser.max_payload_bytes
    cdef int numbers
    self.interrupted = False
    try:
        while end - line >= PUBLISH_BYTES_MIN and self.turn_bytes <= _TURN_BYTES_MAX:
            numbers = 1 if line[0] == c"R" else 2
            if memcmp(line, b"RMSG " if numbers == 1 else b"HRMSG ", 4 + numbers) != 0:
                learned = _learn(self, peer, line, min(end, line + max_line))
                if learned == 0:
                    break
                line += learned
                self.turn_bytes += learned * TURN_LINE_FACTOR
                continue
            name = line + 4 + numbers
            name_size = _word(name, end)
            if name_size == 0 or name[name_size] != c" ":
                break
            subject = name + name_size + 1
            subject_size = _word(subject, end)
            if subject_size == 0 or subject[subject_size] != c" ":
                break
            after = _read_names(subject + subject_size + 1, end, numbers, &names)
            if after != NULL:
                after = _read_rest(after, end, numbers, max_payload, &message)
            if after == NULL or message.line_end - name > max_line:
                break
            line = after
            self.turn_bytes += line - name
            peer.in_msgs += 1
            peer.in_bytes += message.header_size + message.payload_size
            peer.last_activity_ms = self.now_ms
            if not _equals(peer._account.wire_name, name, name_size):
                peer.account = self.policy.account(PyBytes_FromStringAndSize(name, name_size).decode())
                plan = None
            sublist = peer._account.sublist
            if (
                plan is None
                or plan.subject_size != subject_size
                or memcmp(subject, plan.subject, subject_size) != 0
                or plan.generation != sublist.wild + sublist.buckets[plan.bucket] + self.epoch
            ):
                plan = self._plan(peer, subject, subject_size)
            self.turn_bytes += TURN_LOOK_BYTES * names.size * PyList_GET_SIZE(plan.receivers.groups) // NAMES_LOOKED_AT
            if self._send(peer, peer._account, plan.head, plan.receivers, &names, &message) == 0:
                peer.unwanted_msgs += 1
            if self.interrupted:
                if peer.stopped():
                    break
                plan = peer.last
                self.interrupted = False
    finally:
        at[0] = line - data
    return 0


cdef Py_ssize_t _learn(Forwarder self, Session peer, const char* line, const char* end) except -1:
    """A complete RS+ for plain subscribers: done as `interest.Learned.change` would. Its size, or 0 for anything else."""
    cdef const char* words[3]
    cdef Py_ssize_t sizes[3]
    cdef const char* here
    cdef bytes key
    cdef Subscription subscription
    cdef uint64_t digest
    cdef int count
    learned = peer.learned
    if learned is None or memcmp(line, b"RS+ ", 4) != 0:
        return 0
    here = _words(line + 4, end, words, sizes, &count)
    if here == NULL or count != 2:
        return 0
    key = PyBytes_FromStringAndSize(words[0], here - 1 - words[0])  # a space for the CR
    (PyBytes_AS_STRING(key))[here - 2 - words[0]] = c" "
    peer.last_activity_ms = self.now_ms
    learned.sequence += 1
    if learned.before is not None:
        learned.before.discard(key)
    if key in peer.subscriptions:
        return here - line
    subscription = Subscription.__new__(Subscription)
    subscription.session = peer
    subscription.account = peer._account
    if not _equals(peer._account.wire_name, words[0], sizes[0]):
        subscription.account = self.policy.account(PyBytes_FromStringAndSize(words[0], sizes[0]).decode())
    subscription.wire_pattern = PyBytes_FromStringAndSize(words[1], sizes[1])
    subscription.sid = key
    subscription.weight = 1
    peer.subscriptions[key] = subscription
    subscription.account.sublist.insert(subscription)
    digest = routes.digest_of(key, 1)
    learned.count += 1
    learned.digest += digest
    if learned.changed is not None:
        learned.changed(subscription, 1)
    return here - line


cdef const char* _read_names(const char* here, const char* end, int numbers, Names* names) noexcept nogil:
    """The groups that a frame names, behind its subject. Where that begins which a publish has behind its subject, too.

    NULL: it is not as we would write it ourselves, or not complete.
    """
    cdef const char* begins[4]  # those of the last four words
    cdef Py_ssize_t size
    cdef int count = 0, behind
    names.text, names.size = here, 0
    if end - here < 2 or here[0] not in (c"+", c"|") or here[1] != c" ":
        return here
    behind = numbers + (here[0] == c"+")
    here += 2
    names.text = here
    while True:
        size = _word(here, end)
        if size == 0 or here - names.text > NAMES_BYTES_MAX:
            return NULL
        begins[count & 3] = here
        count += 1
        here += size
        if here[0] == c"\r":
            break
        if here[0] != c" ":
            return NULL
        here += 1
    if count < behind:
        return NULL
    here = begins[(count - behind) & 3]
    names.size = here - names.text
    return here


cdef bint _is_named(Names* names, bytes name):
    cdef Py_ssize_t size = PyBytes_GET_SIZE(name), at = 0
    cdef const char* space
    while at < names.size:
        space = <const char*>memchr(names.text + at, c" ", names.size - at)
        if space - names.text - at == size and memcmp(names.text + at, PyBytes_AS_STRING(name), size) == 0:
            return True
        at = space + 1 - names.text
    return False


cdef inline bint _equals(bytes known, const char* text, Py_ssize_t size):
    return PyBytes_GET_SIZE(known) == size and memcmp(PyBytes_AS_STRING(known), text, size) == 0
