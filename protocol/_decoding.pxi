# Part of _records.pyx: reading record batches. The reference is `protocol.records`.

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
