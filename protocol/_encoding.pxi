# Part of _records.pyx: making record batches. The reference is `protocol.records`.

cdef struct Lines:
    # The headers that a block becomes: its lines, or itself.
    bint plain
    Py_ssize_t count
    Py_ssize_t size


cdef inline const char* _line_end(const char* here, const char* end) noexcept nogil:
    """Where the line ends that begins here: at CR LF, or at `end`."""
    cdef const char* found = here
    while found < end:
        found = <const char*>memchr(found, c"\r", end - found)
        if found == NULL:
            return end
        if found + 1 < end and found[1] == c"\n":
            return found
        found += 1
    return end


cdef bint _is_ascii(const char* data, Py_ssize_t size) noexcept nogil:
    cdef uint64_t word, seen = 0
    cdef Py_ssize_t i = 0
    while i + 8 <= size:
        memcpy(&word, data + i, 8)
        seen |= word
        i += 8
    while i < size:
        seen |= <unsigned char>data[i]
        i += 1
    return (seen & 0x8080808080808080u) == 0


cdef int _read_lines(const char* block, Py_ssize_t size, Lines* lines) except -1:
    """As `_plain_headers` of the reference: whether the block can be rebuilt from its lines, and their bytes."""
    cdef const char* here = block + STATUS_BYTES
    cdef const char* end = block + size - 4
    cdef const char* line_end
    cdef const char* colon
    lines.plain = False
    lines.count = 1
    lines.size = _chunk_bytes(RAW_NAME_BYTES) + _chunk_bytes(size)
    if size <= STATUS_BYTES + 4 or memcmp(block, b"NATS/1.0\r\n", STATUS_BYTES) or memcmp(end, b"\r\n\r\n", 4):
        return 0
    if not _is_ascii(block, size) and _plain_headers(PyBytes_FromStringAndSize(block, size)) is None:
        return 0
    cdef Py_ssize_t count = 0, total = 0
    while True:
        line_end = _line_end(here, end)
        colon = <const char*>memchr(here, c":", line_end - here) if line_end > here else NULL
        if colon == NULL or colon == here or colon + 1 >= line_end or colon[1] != c" ":
            return 0
        if count == 0 and colon - here == RAW_NAME_BYTES and memcmp(here, _RAW_NAME, RAW_NAME_BYTES) == 0:
            return 0
        count += 1
        total += _chunk_bytes(colon - here) + _chunk_bytes(line_end - colon - 2)
        if line_end == end:
            break
        here = line_end + 2
    lines.plain = True
    lines.count = count
    lines.size = total
    return 0


cdef char* _put_lines(char* out, const char* block, Py_ssize_t size, Lines* lines) noexcept nogil:
    cdef const char* here = block + STATUS_BYTES
    cdef const char* end = block + size - 4
    cdef const char* line_end
    cdef const char* colon
    if not lines.plain:
        out = _put_chunk(out, _RAW_NAME, RAW_NAME_BYTES)
        return _put_chunk(out, block, size)
    while True:
        line_end = _line_end(here, end)
        colon = <const char*>memchr(here, c":", line_end - here)
        out = _put_chunk(out, here, colon - here)
        out = _put_chunk(out, colon + 2, line_end - colon - 2)
        if line_end == end:
            return out
        here = line_end + 2


@cython.final
@cython.no_gc
cdef class BatchBuilder:
    def __dealloc__(self):
        _clear(&self.out)

    def add(self, bytes subject not None, bytes key not None, int64_t timestamp_ms, bytes header_block not None,
            bytes payload not None):
        self.put(
            PyBytes_AS_STRING(subject), PyBytes_GET_SIZE(subject), PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key),
            timestamp_ms, PyBytes_AS_STRING(header_block), PyBytes_GET_SIZE(header_block),
            PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload),
        )

    cdef int put(self, const char* subject, Py_ssize_t subject_size, const char* key, Py_ssize_t key_size,
                 int64_t timestamp_ms, const char* block, Py_ssize_t block_size,
                 const char* payload, Py_ssize_t payload_size) except -1:
        """One more event. Its time may be before the first one's: then all are encoded anew."""
        cdef Lines lines
        cdef Py_ssize_t length
        cdef int64_t delta_ms
        cdef char* out
        lines.plain = False
        lines.count = lines.size = 0
        if block_size:
            _read_lines(block, block_size, &lines)
        if self.out.size == 0:
            self.begin(timestamp_ms)
        elif timestamp_ms < self.base_ms:
            self.begin_earlier(timestamp_ms)
        delta_ms = <int64_t>(<uint64_t>timestamp_ms - <uint64_t>self.base_ms)
        length = (
            1 + _varint_bytes(delta_ms) + _varint_bytes(self.count) + _chunk_bytes(key_size) + _chunk_bytes(payload_size)
            + _varint_bytes(lines.count + 1) + _chunk_bytes(SUBJECT_NAME_BYTES) + _chunk_bytes(subject_size) + lines.size
        )
        _reserve(&self.out, length + NUMBER_BYTES_MAX, 0)
        out = _put_varint(self.out.data + self.out.size, length)
        out[0] = 0
        out = _put_varint(out + 1, delta_ms)
        out = _put_varint(out, self.count)
        out = _put_chunk(out, key, key_size)
        out = _put_chunk(out, payload, payload_size)
        out = _put_varint(out, lines.count + 1)
        out = _put_chunk(out, _SUBJECT_NAME, SUBJECT_NAME_BYTES)
        out = _put_chunk(out, subject, subject_size)
        if block_size:
            out = _put_lines(out, block, block_size, &lines)
        self.out.size = out - self.out.data
        self.max_ms = max(self.max_ms, timestamp_ms)
        self.count += 1
        self.size_bytes += subject_size + key_size + payload_size + 5 * block_size + BOUND_BYTES
        return 0

    cdef int begin(self, int64_t timestamp_ms) except -1:
        _reserve(&self.out, HEADER_BYTES, BATCH_ROOM_MIN)
        self.out.size = HEADER_BYTES
        self.base_ms = self.max_ms = timestamp_ms
        return 0

    cdef int begin_earlier(self, int64_t timestamp_ms) except -1:
        """The clock went back: the first time is the smallest of a batch, so that readers can search by it."""
        records = read_records(self.seal())
        self.begin(timestamp_ms)
        for _, at_ms, key, subject, block, payload in records:
            self.add(subject, key, at_ms, block, payload)
        return 0

    def seal(self):
        cdef bytes batch
        cdef char* head
        cdef Py_ssize_t count = self.count
        if count == 0:
            raise ValueError("a record batch holds at least one event")
        self.count = self.size_bytes = 0
        batch = _take(&self.out)
        head = PyBytes_AS_STRING(batch)
        memset(head, 0, HEADER_BYTES)
        _put_big(head + 8, PyBytes_GET_SIZE(batch) - LENGTH_FROM, 4)
        head[16] = MAGIC
        _put_big(head + 23, count - 1, 4)
        _put_big(head + 27, <uint64_t>self.base_ms, 8)
        _put_big(head + 35, <uint64_t>self.max_ms, 8)
        memset(head + 43, 0xFF, 14)  # no producer, no sequence
        _put_big(head + 57, count, 4)
        _put_big(head + 17, <uint32_t>_crc(memoryview(batch)[CRC_FROM:]), 4)
        return batch


def encode_batch(events):
    cdef BatchBuilder builder = BatchBuilder.__new__(BatchBuilder)
    cdef int64_t smallest_ms = _OFFSET_MAX
    for event in events:
        smallest_ms = min(smallest_ms, <int64_t>event[2])
    builder.begin(smallest_ms)
    for subject, key, timestamp_ms, block, payload in events:
        builder.add(subject, key, timestamp_ms, block, payload)
    return builder.seal()
