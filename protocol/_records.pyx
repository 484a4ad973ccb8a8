# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The compiled twin of the hot parts of `protocol.records` and `protocol.replay`: read those first.

It does the ordinary case: records as our encoder makes them, header blocks of plain lines. At anything else in a batch
that is read, the whole call goes to the reference, which finds the same thing again and says what it is; so there are no
errors of this module's own. A header block that takes a closer look (other bytes than ASCII on the way in, names that
could pass for ours on the way out) is asked of the reference alone.

Batches and messages are written into a `bytes` object that grows and is then handed out as it is.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyTypeObject
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from cpython.tuple cimport PyTuple_SET_ITEM
from libc.stdint cimport int16_t, int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, memset

import fastcrc

from protocol import history
from protocol import records as reference
from protocol import replay

cdef extern from "Python.h":
    int _PyBytes_Resize(PyObject** bytes, Py_ssize_t newsize) except -1
    object PyType_GenericAlloc(PyTypeObject* kind, Py_ssize_t items)

cdef extern from *:
    """
    #define add_overflows(a, b, sum) __builtin_add_overflow(a, b, sum)
    """
    bint add_overflows(int64_t a, int64_t b, int64_t* sum) nogil

cdef object _crc = fastcrc.crc32.iscsi
cdef object _Record = reference.Record
cdef object _plain_headers = reference._plain_headers
cdef object _shown_headers = history.shown_headers
cdef object _Frames = replay.Frames

cdef enum:
    HEADER_BYTES = 61
    CRC_FROM = 21
    LENGTH_FROM = 12
    MAGIC = 2
    STATUS_BYTES = 10  # NATS/1.0 and a line end
    SUBJECT_NAME_BYTES = 12
    RAW_NAME_BYTES = 17
    NUMBER_BYTES_MAX = 10
    BOUND_BYTES = 96  # as in record_bytes_max
    BATCH_ROOM_MIN = 512
    FIXED_LINES_BYTES = 49  # of a message: what stands around offset, time and subject, and the last line end
    MESSAGE_EDGES_BYTES = 64  # two sizes, two line ends

cdef int64_t _OFFSET_MAX = 0x7FFFFFFFFFFFFFFF
cdef const char* _SUBJECT_NAME = b"nats-subject"
cdef const char* _RAW_NAME = b"nats-header-block"


# -- buffers and numbers ----------------------------------------------------------------------------------------------


cdef int _reserve(Buffer* out, Py_ssize_t size, Py_ssize_t room_min) except -1:
    """Room for `size` bytes more."""
    cdef Py_ssize_t room
    if out.size + size <= out.room:
        return 0
    room = max(out.size + size, 2 * out.room, room_min)
    if out.object == NULL:
        made = PyBytes_FromStringAndSize(NULL, room)
        Py_INCREF(made)
        out.object = <PyObject*>made
        made = None
    else:
        try:
            _PyBytes_Resize(&out.object, room)
        except MemoryError:  # what was there is gone too
            out.object = NULL
            out.data = NULL
            out.size = out.room = 0
            raise
    out.data = PyBytes_AS_STRING(<object>out.object)
    out.room = room
    return 0


cdef bytes _take(Buffer* out):
    """What was written; the buffer is empty then."""
    cdef PyObject* taken = out.object
    cdef Py_ssize_t size = out.size
    if taken == NULL:
        return b""
    memset(out, 0, sizeof(Buffer))
    _PyBytes_Resize(&taken, size)
    result = <bytes>taken
    Py_DECREF(result)
    return result


cdef void _clear(Buffer* out) noexcept:
    if out.object != NULL:
        Py_DECREF(<object>out.object)
    memset(out, 0, sizeof(Buffer))


cdef inline Py_ssize_t _varint_bytes(int64_t value) noexcept nogil:
    cdef uint64_t zigzag = (<uint64_t>value << 1) ^ <uint64_t>(value >> 63)
    cdef Py_ssize_t size = 1
    while zigzag > 0x7F:
        zigzag >>= 7
        size += 1
    return size


cdef inline char* _put_varint(char* out, int64_t value) noexcept nogil:
    cdef uint64_t zigzag = (<uint64_t>value << 1) ^ <uint64_t>(value >> 63)
    while zigzag > 0x7F:
        out[0] = <char>(zigzag & 0x7F | 0x80)
        out += 1
        zigzag >>= 7
    out[0] = <char>zigzag
    return out + 1


cdef inline char* _put(char* out, const char* data, Py_ssize_t size) noexcept nogil:
    memcpy(out, data, size)
    return out + size


cdef inline char* _put_chunk(char* out, const char* data, Py_ssize_t size) noexcept nogil:
    return _put(_put_varint(out, size), data, size)


cdef inline Py_ssize_t _chunk_bytes(Py_ssize_t size) noexcept nogil:
    return _varint_bytes(size) + size


cdef inline char* _put_number(char* out, int64_t value) noexcept nogil:
    """In decimal."""
    cdef char digits[24]
    cdef int count = 0
    cdef uint64_t rest = <uint64_t>value
    if value < 0:
        out[0] = c"-"
        out += 1
        rest = 0 - rest
    while True:
        digits[count] = <char>(c"0" + rest % 10)
        count += 1
        rest //= 10
        if rest == 0:
            break
    while count:
        count -= 1
        out[0] = digits[count]
        out += 1
    return out


cdef inline Py_ssize_t _number_bytes(int64_t value) noexcept nogil:
    cdef char digits[24]
    return _put_number(digits, value) - digits


cdef inline void _put_big(char* out, uint64_t value, int size) noexcept nogil:
    """Big endian."""
    cdef int i
    for i in range(size):
        out[size - 1 - i] = <char>(value & 0xFF)
        value >>= 8


cdef inline uint64_t _big(const char* data, int size) noexcept nogil:
    cdef uint64_t value = 0
    cdef int i
    for i in range(size):
        value = value << 8 | <unsigned char>data[i]
    return value


# -- encoding ---------------------------------------------------------------------------------------------------------


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


# -- decoding ---------------------------------------------------------------------------------------------------------


cdef struct Batch:
    int64_t base_offset
    int64_t base_ms
    Py_ssize_t count
    const char* here  # of the next record
    const char* end


cdef struct Raw:
    int64_t timestamp_ms
    const char* key
    Py_ssize_t key_size
    const char* value
    Py_ssize_t value_size
    const char* subject
    Py_ssize_t subject_size
    Py_ssize_t lines  # headers behind the subject
    const char* first_line
    const char* end


cdef bint _open(const char* data, Py_ssize_t size, Batch* batch) noexcept nogil:
    """Whether it is a batch of events, as far as its header says."""
    cdef int64_t count
    if size < HEADER_BYTES or data[16] != MAGIC or <int32_t>_big(data + 8, 4) != size - LENGTH_FROM:
        return False
    count = <int32_t>_big(data + 57, 4)
    if count < 1 or <int32_t>_big(data + 23, 4) != count - 1 or _big(data + 21, 2) != 0:
        return False
    batch.base_offset = <int64_t>_big(data, 8)
    batch.base_ms = <int64_t>_big(data + 27, 8)
    batch.count = count
    batch.here = data + HEADER_BYTES
    batch.end = data + size
    return batch.base_offset <= _OFFSET_MAX - count


cdef inline bint _read_number(const char** here, const char* end, int64_t* value) noexcept nogil:
    """A zig-zag varint of at most 64 bits."""
    cdef const char* at = here[0]
    cdef uint64_t zigzag = 0
    cdef uint64_t byte
    cdef int shift = 0
    while at < end:
        byte = <unsigned char>at[0]
        at += 1
        if shift == 63 and byte > 1:
            return False
        zigzag |= (byte & 0x7F) << shift
        if byte < 0x80:
            here[0] = at
            value[0] = <int64_t>((zigzag >> 1) ^ (0 - (zigzag & 1)))
            return True
        shift += 7
    return False


cdef inline bint _read_chunk(const char** here, const char* end, const char** data, Py_ssize_t* size) noexcept nogil:
    cdef int64_t length
    if not _read_number(here, end, &length) or length < -1 or length > end - here[0]:
        return False
    data[0] = here[0]
    size[0] = max(length, 0)
    here[0] += size[0]
    return True


cdef bint _read_record(Batch* batch, Py_ssize_t index, Raw* raw) noexcept nogil:
    """The next record, if it is as it should be to its last byte."""
    cdef const char* here = batch.here
    cdef const char* name
    cdef const char* value
    cdef Py_ssize_t name_size, value_size
    cdef int64_t length, delta_ms, delta, count
    cdef Py_ssize_t i
    if not _read_number(&here, batch.end, &length) or length < 1 or length > batch.end - here:
        return False
    raw.end = here + length
    here += 1
    if not _read_number(&here, raw.end, &delta_ms) or add_overflows(batch.base_ms, delta_ms, &raw.timestamp_ms):
        return False
    if not _read_number(&here, raw.end, &delta) or delta != index:
        return False
    if not _read_chunk(&here, raw.end, &raw.key, &raw.key_size):
        return False
    if not _read_chunk(&here, raw.end, &raw.value, &raw.value_size):
        return False
    if not _read_number(&here, raw.end, &count) or count < 1 or not _read_chunk(&here, raw.end, &name, &name_size):
        return False
    if name_size != SUBJECT_NAME_BYTES or memcmp(name, _SUBJECT_NAME, SUBJECT_NAME_BYTES):
        return False
    if not _read_chunk(&here, raw.end, &raw.subject, &raw.subject_size):
        return False
    raw.lines = count - 1
    raw.first_line = here
    for i in range(raw.lines):
        if not _read_chunk(&here, raw.end, &name, &name_size) or not _read_chunk(&here, raw.end, &value, &value_size):
            return False
    batch.here = raw.end
    return here == raw.end


cdef inline bint _is_raw(const char* name, Py_ssize_t size) noexcept nogil:
    return size == RAW_NAME_BYTES and memcmp(name, _RAW_NAME, RAW_NAME_BYTES) == 0


cdef bytes _header_block(Raw* raw):
    """The publisher's header block, from the headers that it became."""
    cdef const char* here = raw.first_line
    cdef const char* name = NULL
    cdef const char* value = NULL
    cdef Py_ssize_t name_size = 0, value_size = 0, i
    cdef Py_ssize_t size = STATUS_BYTES + 2
    cdef bytes block
    cdef char* out
    if raw.lines == 0:
        return b""
    for i in range(raw.lines):
        _read_chunk(&here, raw.end, &name, &name_size)
        _read_chunk(&here, raw.end, &value, &value_size)
        if i == 0 and _is_raw(name, name_size):
            return PyBytes_FromStringAndSize(value, value_size)
        size += name_size + value_size + 4
    block = PyBytes_FromStringAndSize(NULL, size)
    out = _put(PyBytes_AS_STRING(block), b"NATS/1.0\r\n", STATUS_BYTES)
    here = raw.first_line
    for i in range(raw.lines):
        _read_chunk(&here, raw.end, &name, &name_size)
        _read_chunk(&here, raw.end, &value, &value_size)
        out = _put(_put(out, name, name_size), b": ", 2)
        out = _put(_put(out, value, value_size), b"\r\n", 2)
    _put(out, b"\r\n", 2)
    return block


cdef object _record(int64_t offset, Raw* raw):
    """A `Record`, made without a call."""
    record = PyType_GenericAlloc(<PyTypeObject*>_Record, 6)
    _set(record, 0, offset)
    _set(record, 1, raw.timestamp_ms)
    _set(record, 2, PyBytes_FromStringAndSize(raw.key, raw.key_size))
    _set(record, 3, PyBytes_FromStringAndSize(raw.subject, raw.subject_size))
    _set(record, 4, _header_block(raw))
    _set(record, 5, PyBytes_FromStringAndSize(raw.value, raw.value_size))
    return record


cdef inline int _set(object record, Py_ssize_t place, object value) except -1:
    Py_INCREF(value)  # the tuple takes one over
    PyTuple_SET_ITEM(record, place, value)
    return 0


def read_records(batch):
    cdef Py_buffer view
    cdef Batch read
    cdef Raw raw
    cdef Py_ssize_t index
    cdef list records = []
    PyObject_GetBuffer(batch, &view, PyBUF_SIMPLE)
    try:
        if _open(<const char*>view.buf, view.len, &read):
            for index in range(read.count):
                if not _read_record(&read, index, &raw):
                    break
                records.append(_record(read.base_offset + index, &raw))
            else:
                if read.here == read.end:
                    return records
    finally:
        PyBuffer_Release(&view)
    return reference.read_records(batch)


# -- messages for readers ---------------------------------------------------------------------------------------------


cdef inline bint _begins(const char* name, Py_ssize_t size, const char* what, Py_ssize_t what_size) noexcept nogil:
    """`what` in lower case, `name` in any."""
    cdef Py_ssize_t i
    cdef char letter
    if size < what_size:
        return False
    for i in range(what_size):
        letter = name[i]
        if c"A" <= letter <= c"Z":
            letter += 32
        if letter != what[i]:
            return False
    return True


cdef bint _is_ours(const char* name, Py_ssize_t size) noexcept nogil:
    """Whether such a header could pass for one of ours, so that it is shown under another name."""
    return (
        _begins(name, size, b"log-", 4)
        or _begins(name, size, b"original-", 9)
        or (size == 12 and _begins(name, size, b"nats-subject", 12))
        or (size == 6 and _begins(name, size, b"status", 6))
        or (size == 11 and _begins(name, size, b"description", 11))
    )


cdef bint _is_plain(const char* name, Py_ssize_t name_size, const char* value, Py_ssize_t value_size) noexcept nogil:
    """Whether clients read such a line in one way only."""
    cdef Py_ssize_t i
    if name_size == 0:
        return False
    for i in range(name_size):
        if name[i] < c"!" or name[i] > c"~" or name[i] == c":":
            return False
    return (
        memchr(value, 0, value_size) == NULL
        and memchr(value, c"\r", value_size) == NULL
        and memchr(value, c"\n", value_size) == NULL
    )


cdef Py_ssize_t _shown_lines_bytes(Raw* raw) noexcept nogil:
    """What the publisher's lines take if they are shown as they are; -1: they are not."""
    cdef const char* here = raw.first_line
    cdef const char* name = NULL
    cdef const char* value = NULL
    cdef Py_ssize_t name_size = 0, value_size = 0, i, size = 0
    for i in range(raw.lines):
        _read_chunk(&here, raw.end, &name, &name_size)
        _read_chunk(&here, raw.end, &value, &value_size)
        if i == 0 and _is_raw(name, name_size):
            return -1
        if not _is_plain(name, name_size, value, value_size) or _is_ours(name, name_size):
            return -1
        size += name_size + value_size + 4
    return size


cdef char* _put_shown(char* out, int64_t offset, Raw* raw, const char* log_lines, Py_ssize_t log_size) noexcept nogil:
    """The header block of `shown_headers`, where the publisher's lines are shown as they are."""
    cdef const char* here = raw.first_line
    cdef const char* name = NULL
    cdef const char* value = NULL
    cdef Py_ssize_t name_size = 0, value_size = 0, i
    out = _put(out, b"NATS/1.0\r\n", STATUS_BYTES)
    out = _put(out, log_lines, log_size)
    out = _put_number(_put(out, b"Log-Offset: ", 12), offset)
    out = _put_number(_put(out, b"\r\nLog-Timestamp: ", 17), raw.timestamp_ms)
    out = _put(_put(out, b"\r\nNats-Subject: ", 16), raw.subject, raw.subject_size)
    out = _put(out, b"\r\n", 2)
    for i in range(raw.lines):
        _read_chunk(&here, raw.end, &name, &name_size)
        _read_chunk(&here, raw.end, &value, &value_size)
        out = _put(_put(out, name, name_size), b": ", 2)
        out = _put(_put(out, value, value_size), b"\r\n", 2)
    return _put(out, b"\r\n", 2)


cdef inline char* _put_sizes(char* out, Py_ssize_t block_size, Py_ssize_t payload_size, bint headed) noexcept nogil:
    if headed:
        out = _put_number(out, block_size)
        out[0] = c" "
        return _put(_put_number(out + 1, block_size + payload_size), b"\r\n", 2)
    return _put(_put_number(out, payload_size), b"\r\n", 2)


@cython.final
@cython.no_gc
cdef class _Showing:
    """The messages of one batch in the making: what `frames` of the reference keeps in variables."""

    cdef Buffer out
    cdef Py_ssize_t records, size_bytes, carried_bytes
    cdef int64_t next_offset
    cdef bint is_full
    cdef bytes opening, log_lines
    cdef bint headed

    def __dealloc__(self):
        _clear(&self.out)

    cdef bint show(self, int64_t offset, Raw* raw, Py_ssize_t room, bint shows_one) except -1:
        """One more message, if there is room for it."""
        cdef Py_ssize_t lines = _shown_lines_bytes(raw), block_size, total
        cdef bytes block = None
        cdef char* out
        if lines < 0:
            block = _shown_headers(self.log_lines, _record(offset, raw))
            block_size = PyBytes_GET_SIZE(block)
        else:
            block_size = (
                STATUS_BYTES + PyBytes_GET_SIZE(self.log_lines) + _number_bytes(offset) + _number_bytes(raw.timestamp_ms)
                + raw.subject_size + lines + FIXED_LINES_BYTES
            )
        total = block_size + raw.value_size
        if not (shows_one and self.records == 0) and self.size_bytes + total > room:
            return False
        _reserve(&self.out, PyBytes_GET_SIZE(self.opening) + total + MESSAGE_EDGES_BYTES, 0)
        out = _put(self.out.data + self.out.size, PyBytes_AS_STRING(self.opening), PyBytes_GET_SIZE(self.opening))
        out = _put_sizes(out, block_size, raw.value_size, self.headed)
        if self.headed and block is not None:
            out = _put(out, PyBytes_AS_STRING(block), block_size)
        elif self.headed:
            out = _put_shown(out, offset, raw, PyBytes_AS_STRING(self.log_lines), PyBytes_GET_SIZE(self.log_lines))
        out = _put(_put(out, raw.value, raw.value_size), b"\r\n", 2)
        self.out.size = out - self.out.data
        self.records += 1
        self.size_bytes += total
        self.carried_bytes += total if self.headed else raw.value_size
        return True

    cdef frames(self):
        is_full = self.is_full
        counts = self.records, self.size_bytes, self.carried_bytes, self.next_offset
        return _Frames(_take(&self.out), *counts, is_full)


def frames(batch, window, bytes opening not None, bint headed, bytes log_lines not None, passes):
    cdef _Showing showing = _Showing.__new__(_Showing)
    cdef Py_buffer view
    showing.opening, showing.log_lines, showing.headed = opening, log_lines, headed
    PyObject_GetBuffer(batch, &view, PyBUF_SIMPLE)
    try:
        if _show(showing, &view, window, passes):
            return showing.frames()
    finally:
        PyBuffer_Release(&view)
    return replay.frames(batch, window, opening, headed, log_lines, passes)


cdef bint _show(_Showing showing, Py_buffer* view, window, passes) except -1:
    """Whether all that was looked at is as it should be."""
    cdef int64_t offset, end_offset = window.end_offset
    cdef Py_ssize_t index, records_max = window.records_max, room = window.bytes_max
    cdef bint shows_one = window.shows_one, shown = True
    cdef bytes asked = None
    cdef Batch batch
    cdef Raw raw
    showing.next_offset = window.offset
    if not _open(<const char*>view.buf, view.len, &batch):
        return False
    if view.len < room:
        _reserve(&showing.out, view.len, 0)
    for index in range(batch.count):
        if not _read_record(&batch, index, &raw):
            return False
        offset = batch.base_offset + index
        if offset < showing.next_offset:
            continue
        if showing.records >= records_max or offset >= end_offset:
            showing.is_full = True
            return True
        if passes is not None and not _is_same(asked, &raw):
            asked = PyBytes_FromStringAndSize(raw.subject, raw.subject_size)
            shown = passes(asked)
        if shown and not showing.show(offset, &raw, room, shows_one):
            showing.is_full = True
            return True
        showing.next_offset = offset + 1
    return batch.here == batch.end


cdef inline bint _is_same(bytes asked, Raw* raw):
    return (
        asked is not None
        and PyBytes_GET_SIZE(asked) == raw.subject_size
        and memcmp(PyBytes_AS_STRING(asked), raw.subject, raw.subject_size) == 0
    )
