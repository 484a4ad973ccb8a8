# Part of _forwarding.pyx: PubAcks for a whole batch at once. The reference is `Forwarder.answer`.
#
# Reply subjects are all different, but most differ only in their last token from the one before: an inbox of one client,
# under the wildcard that it has subscribed to. So who gets an answer is found once for the tokens before the last, and
# holds for as long as the subscriptions stay what they are, if the last one makes no difference. (An empty one does.)

cdef enum:
    NUMBER_BYTES = 24  # of an offset or a sequence in decimal, at most


cdef struct Form:
    # As `protocol.publish.AckForm`.
    const char* begin
    const char* middle
    const char* end
    Py_ssize_t begin_size, middle_size, end_size
    int64_t partition, partitions


@cython.final
@cython.no_gc
cdef class Answered:
    """Who gets answers to reply subjects that begin alike."""

    cdef Sublist sublist
    cdef const char* begin  # of the reply subject before, with the dot at its end
    cdef Py_ssize_t begin_size
    cdef uint32_t bucket
    cdef uint64_t generation  # that `common` is of
    cdef Receivers common  # of all that begin so, or None: the last token may make a difference

    cdef Receivers find(self, const char* reply, Py_ssize_t size):
        """The receivers of `reply`. Its text has to stay where it is until the next call."""
        cdef Py_ssize_t begin_size = _begin_size(reply, size)
        cdef uint64_t generation
        if begin_size == 0 or begin_size != self.begin_size or memcmp(reply, self.begin, begin_size) != 0:
            self.begin, self.begin_size = reply, begin_size
            self.bucket = _bucket(reply, size)
            self.generation = _NEVER
            self.common = None
            return self.look_up(reply, size)
        generation = self.sublist.wild + self.sublist.buckets[self.bucket]
        if generation != self.generation:
            self.generation = generation
            self.common = self.find_common(reply, size)
        if self.common is None or size == begin_size or (self.sublist.literals and self.is_literal(reply, size)):
            return self.look_up(reply, size)
        return self.common

    cdef Receivers look_up(self, const char* reply, Py_ssize_t size):
        cdef list plain = []
        cdef dict queues = self.sublist.find(PyBytes_FromStringAndSize(reply, size), plain)
        return _arrange(plain, queues, None)

    cdef bint is_literal(self, const char* reply, Py_ssize_t size) except -1:
        return PyBytes_FromStringAndSize(reply, size) in self.sublist.literals

    cdef Receivers find_common(self, const char* reply, Py_ssize_t size):
        cdef list plain = []
        cdef dict queues = None
        if not _is_routable(reply, size) or not _is_common(self.sublist.root, reply, 0, self.begin_size):
            return None
        queues = _walk(self.sublist.root, PyBytes_FromStringAndSize(reply, size), 0, plain, queues)
        return _arrange(plain, queues, None)


cdef inline Py_ssize_t _begin_size(const char* reply, Py_ssize_t size) noexcept nogil:
    """Of the tokens before the last, with the dot behind them."""
    while size > 0 and reply[size - 1] != c".":
        size -= 1
    return size


cdef bint _is_common(_Node node, const char* text, Py_ssize_t at, Py_ssize_t last) except -1:
    """Whether below `node` the token that begins at `last` makes no difference: no pattern names it, nobody filters."""
    cdef Py_ssize_t end = at
    cdef _Node child
    if node.rest is not None and _filters(node.rest):
        return False
    if at == last:
        return not node.children and (node.star is None or not _filters(node.star))
    while text[end] != c".":
        end += 1
    if node.children is not None:
        child = node.children.get(PyBytes_FromStringAndSize(text + at, end - at))
        if child is not None and not _is_common(child, text, end + 1, last):
            return False
    return node.star is None or _is_common(node.star, text, end + 1, last)


cdef bint _filters(_Node node) except -1:
    """Whether one who is subscribed there may not get everything."""
    cdef Subscription entry
    for entry in node.plain or ():
        if entry.session.filters:
            return True
    for members in (node.queues or {}).values():
        for entry in members:
            if entry.session.filters:
                return True
    return False


cdef inline int _digits(int64_t value, char* out) noexcept nogil:
    """A number that is not below 0, in decimal; how many digits."""
    cdef char reversed[NUMBER_BYTES]
    cdef int i, count = 0
    while True:
        reversed[count] = <char>(c"0" + value % 10)
        count += 1
        value //= 10
        if value == 0:
            break
    for i in range(count):
        out[i] = reversed[count - 1 - i]
    return count


cdef inline char* _append(char* out, const char* text, Py_ssize_t size) noexcept nogil:
    memcpy(out, text, size)
    return out + size


cdef void _put_ack(char* out, int64_t offset, const Form* form, Message* message) noexcept nogil:
    """The rest of a MSG with the PubAck of `offset`, and what `message` says of it."""
    cdef char seq[NUMBER_BYTES]
    cdef char place[NUMBER_BYTES]
    cdef int seq_size = _digits(offset * form.partitions + form.partition + 1, seq)
    cdef int place_size = _digits(offset, place)
    cdef Py_ssize_t size = form.begin_size + seq_size + form.middle_size + place_size + form.end_size
    message.rest = out
    out += _digits(size, out)
    out = _append(out, b"\r\n", 2)
    message.payload, message.payload_size = out, size
    out = _append(out, form.begin, form.begin_size)
    out = _append(out, seq, seq_size)
    out = _append(out, form.middle, form.middle_size)
    out = _append(out, place, place_size)
    out = _append(out, form.end, form.end_size)
    out = _append(out, b"\r\n", 2)
    message.rest_size = out - message.rest


cdef int _answer(Forwarder self, Account account, Replies replies, form, int64_t base_offset) except -1:
    cdef bytes begin = form.begin, middle = form.middle, end = form.end, head = b""
    cdef bytes room = PyBytes_FromStringAndSize(NULL, len(begin) + len(middle) + len(end) + 4 * NUMBER_BYTES)
    cdef Answered answered = Answered.__new__(Answered)
    cdef Receivers receivers
    cdef Form known
    cdef Message message
    cdef Waiting waiting
    cdef const char* reply
    cdef Py_ssize_t at = 0
    known.begin, known.begin_size = PyBytes_AS_STRING(begin), PyBytes_GET_SIZE(begin)
    known.middle, known.middle_size = PyBytes_AS_STRING(middle), PyBytes_GET_SIZE(middle)
    known.end, known.end_size = PyBytes_AS_STRING(end), PyBytes_GET_SIZE(end)
    known.partition, known.partitions = form.partition, form.partitions
    message.reply = NULL
    message.reply_size = message.header_size = 0
    answered.sublist = account.sublist
    while at < replies.text_size:
        at = replies.read(at, &waiting, &reply)
        receivers = answered.find(reply, waiting.size)
        if PyBytes_GET_SIZE(head) == waiting.size + HEAD_BYTES:  # nobody else has it: the next one can stand in it
            memcpy(PyBytes_AS_STRING(head) + 5, reply, waiting.size)
        else:
            head = _head(reply, waiting.size)
        _put_ack(PyBytes_AS_STRING(room), base_offset + waiting.number, &known, &message)
        self._send(None, account, head, receivers, NULL, &message)
    return 0
