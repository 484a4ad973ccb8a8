# Part of _forwarding.pyx: the short way of events to the log. The reference is `gateway.core.lanes`.

@cython.final
@cython.no_gc
cdef class Room:
    cdef public Py_ssize_t bytes_max
    cdef public Py_ssize_t used_bytes


cdef struct Waiting:
    # What stands in front of each reply subject in the text of `Replies`.
    uint32_t number
    uint32_t size


@cython.final
@cython.no_gc
cdef class Replies:
    cdef char* text  # for each: a `Waiting`, and the reply subject
    cdef Py_ssize_t text_size
    cdef Py_ssize_t text_room
    cdef Py_ssize_t count
    cdef readonly Py_ssize_t size_bytes

    def __dealloc__(self):
        free(self.text)

    def __len__(self):
        return self.count

    def add(self, uint32_t number, bytes reply not None):
        self.put(number, PyBytes_AS_STRING(reply), <uint32_t>PyBytes_GET_SIZE(reply))

    cdef int put(self, uint32_t number, const char* reply, uint32_t size) except -1:
        cdef Py_ssize_t end = self.text_size + <Py_ssize_t>sizeof(Waiting) + size
        cdef Waiting waiting
        cdef char* grown
        if end > self.text_room:
            grown = <char*>realloc(self.text, max(2 * self.text_room, end, REPLIES_ROOM_MIN))
            if grown == NULL:
                raise MemoryError
            self.text = grown
            self.text_room = max(2 * self.text_room, end, REPLIES_ROOM_MIN)
        waiting.number = number
        waiting.size = size
        memcpy(self.text + self.text_size, &waiting, sizeof(Waiting))
        memcpy(self.text + self.text_size + sizeof(Waiting), reply, size)
        self.text_size = end
        self.count += 1
        self.size_bytes += _REPLY_BYTES + size
        return 0

    def items(self):
        cdef Py_ssize_t at = 0
        cdef const char* reply
        cdef Waiting waiting
        cdef list found = []
        while at < self.text_size:
            at = self.read(at, &waiting, &reply)
            found.append((waiting.number, PyBytes_FromStringAndSize(reply, waiting.size)))
        return found

    cdef inline Py_ssize_t read(self, Py_ssize_t at, Waiting* waiting, const char** reply) noexcept:
        """The one that stands at `at` of the text; where the next one does."""
        memcpy(waiting, self.text + at, sizeof(Waiting))
        reply[0] = self.text + at + sizeof(Waiting)
        return at + <Py_ssize_t>sizeof(Waiting) + waiting.size


@cython.final
@cython.no_gc
cdef class Lane:
    cdef public bint answers
    cdef public bint takes_headers
    cdef public Py_ssize_t taken
    cdef public BatchBuilder builder
    cdef public Replies replies
    cdef readonly Room room

    def __init__(self, Room room not None):
        self.room = room
        self.answers = self.takes_headers = True

    def new_replies(self):
        return Replies()

    def take(self, bytes subject not None, bytes key not None, int64_t timestamp_ms, bytes header_block not None,
             bytes payload not None, bytes reply not None=b""):
        return self.put(
            PyBytes_AS_STRING(subject), PyBytes_GET_SIZE(subject), key, timestamp_ms,
            PyBytes_AS_STRING(header_block), PyBytes_GET_SIZE(header_block),
            PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload),
            PyBytes_AS_STRING(reply), PyBytes_GET_SIZE(reply),
        )

    cdef bint put(self, const char* subject, Py_ssize_t subject_size, bytes key, int64_t timestamp_ms,
                  const char* block, Py_ssize_t block_size, const char* payload, Py_ssize_t payload_size,
                  const char* reply, Py_ssize_t reply_size) except -1:
        cdef BatchBuilder builder = self.builder
        cdef Replies replies = self.replies
        cdef Room room = self.room
        cdef Py_ssize_t record_bytes, size_bytes
        cdef bint waits = self.answers and reply_size > 0
        if builder is None or (waits and (replies is None or reply[0] == c"$")):
            return False
        record_bytes = subject_size + PyBytes_GET_SIZE(key) + payload_size + 5 * block_size + RECORD_BOUND_BYTES
        size_bytes = record_bytes + (_REPLY_BYTES + reply_size if waits else 0)
        if builder.size_bytes + record_bytes > _BATCH_BYTES_TARGET or room.used_bytes + size_bytes >= room.bytes_max:
            return False
        if waits:
            replies.put(<uint32_t>builder.count, reply, <uint32_t>reply_size)
        builder.put(
            subject, subject_size, PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), timestamp_ms,
            block, block_size, payload, payload_size,
        )
        room.used_bytes += size_bytes
        self.taken += 1
        return True


cdef bint _may_ask(const char* block, Py_ssize_t size) noexcept nogil:
    """As `publish.may_ask`."""
    cdef const char* here = block
    cdef const char* end = block + size
    while True:
        here = <const char*>memchr(here, c"\r", end - here)
        if here == NULL:
            return False
        if end - here >= 7 and memcmp(here, b"\r\nNats-", 7) == 0:
            return True
        if end - here >= 11 and memcmp(here, b"\r\nMesh-Ack:", 11) == 0:
            return True
        here += 1
