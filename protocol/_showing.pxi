# Part of _records.pyx: messages for readers, made of whole batches. The reference is `protocol.replay`.

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

    cdef inline Py_ssize_t surplus(self):
        """An estimate, in bytes, of what a message has that its record has not."""
        cdef Py_ssize_t edges = PyBytes_GET_SIZE(self.opening) + MESSAGE_EDGES_BYTES
        return edges + PyBytes_GET_SIZE(self.log_lines) + FIXED_LINES_BYTES + STATUS_BYTES if self.headed else edges

    cdef frames(self):
        is_full = self.is_full
        counts = self.records, self.size_bytes, self.carried_bytes, self.next_offset
        return _Frames(_take(&self.out), *counts, is_full)


def frames(batches, window, bytes opening not None, bint headed, bytes log_lines not None, passes):
    cdef _Showing showing = _Showing.__new__(_Showing)
    cdef Py_buffer view
    showing.opening, showing.log_lines, showing.headed = opening, log_lines, headed
    PyObject_GetBuffer(batches, &view, PyBUF_SIMPLE)
    try:
        if _show(showing, &view, window, passes):
            return showing.frames()
    finally:
        PyBuffer_Release(&view)
    return replay.frames(batches, window, opening, headed, log_lines, passes)


cdef bint _show(_Showing showing, Py_buffer* view, window, passes) except -1:
    """Whether all that was looked at is as it should be."""
    cdef int64_t offset, end_offset = window.end_offset
    cdef Py_ssize_t index, size, position = 0, records_max = window.records_max, room = window.bytes_max
    cdef bint shows_one = window.shows_one, shown = True
    cdef bytes asked = None
    cdef const char* data = <const char*>view.buf
    cdef Batch batch
    cdef Raw raw
    showing.next_offset = window.offset
    if view.len < room:
        _reserve(&showing.out, view.len + _records_in(data, view.len) * showing.surplus(), 0)
    while position < view.len:
        size = _batch_bytes(data + position, view.len - position)
        if not _open(data + position, size, &batch):
            return False
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
        if batch.here != batch.end:
            return False
        position += size
    return True


cdef inline Py_ssize_t _batch_bytes(const char* data, Py_ssize_t size) noexcept nogil:
    """The size of the batch that `data` begins with, 0 if it is not all there."""
    cdef int64_t batch_bytes = 0
    if size >= HEADER_BYTES:
        batch_bytes = <int32_t>_big(data + 8, 4) + <int64_t>LENGTH_FROM
    return batch_bytes if HEADER_BYTES <= batch_bytes <= size else 0


cdef Py_ssize_t _records_in(const char* data, Py_ssize_t size) noexcept nogil:
    """As many as the headers of these batches claim, but no more than their bytes could be."""
    cdef Py_ssize_t position = 0, count = 0, batch_bytes
    while (batch_bytes := _batch_bytes(data + position, size - position)) > 0:
        count += min(max(<int32_t>_big(data + position + 57, 4), 0), batch_bytes // RECORD_BYTES_MIN)
        position += batch_bytes
    return count


cdef inline bint _is_same(bytes asked, Raw* raw):
    return (
        asked is not None
        and PyBytes_GET_SIZE(asked) == raw.subject_size
        and memcmp(PyBytes_AS_STRING(asked), raw.subject, raw.subject_size) == 0
    )
