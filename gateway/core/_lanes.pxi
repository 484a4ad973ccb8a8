# Part of _forwarding.pyx: the short way of events to the log. The reference is `gateway.core.lanes`.

@cython.final
@cython.no_gc
cdef class Room:
    cdef public Py_ssize_t bytes_max
    cdef public Py_ssize_t used_bytes


@cython.final
@cython.no_gc
cdef class Lane:
    cdef public bint answers
    cdef public bint takes_headers
    cdef public Py_ssize_t taken
    cdef public BatchBuilder builder
    cdef readonly Room room

    def __init__(self, Room room not None):
        self.room = room
        self.answers = self.takes_headers = True

    def take(self, bytes subject not None, bytes key not None, int64_t timestamp_ms, bytes header_block not None,
             bytes payload not None):
        return self.put(
            PyBytes_AS_STRING(subject), PyBytes_GET_SIZE(subject), key, timestamp_ms,
            PyBytes_AS_STRING(header_block), PyBytes_GET_SIZE(header_block),
            PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload),
        )

    cdef bint put(self, const char* subject, Py_ssize_t subject_size, bytes key, int64_t timestamp_ms,
                  const char* block, Py_ssize_t block_size, const char* payload, Py_ssize_t payload_size) except -1:
        cdef BatchBuilder builder = self.builder
        cdef Room room = self.room
        cdef Py_ssize_t size_bytes
        if builder is None:
            return False
        size_bytes = subject_size + PyBytes_GET_SIZE(key) + payload_size + 5 * block_size + RECORD_BOUND_BYTES
        if builder.size_bytes + size_bytes > _BATCH_BYTES_TARGET or room.used_bytes + size_bytes >= room.bytes_max:
            return False
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
