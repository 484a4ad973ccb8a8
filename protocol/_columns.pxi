# Part of _records.pyx: batches taken apart into columns, and put together. The reference is `protocol.columns`.

cdef enum:
    TIMES = 0
    KEYS = 1
    VALUES = 2
    RESTS = 3
    TEXTS = 4
    PAYLOADS = 5
    COLUMNS = 6
    DIRECTORY_BYTES = 24

cdef int64_t _TIME_DELTA_END = columns_reference.TIME_DELTA_END


cdef struct Piece:
    # A record's own: what stands in columns.
    int64_t at_ms
    const char* key
    Py_ssize_t key_size
    const char* value
    Py_ssize_t value_size
    const char* rest
    Py_ssize_t rest_size


cdef struct Apart:
    # Where the next of each column goes. While `heads` is NULL nothing is written, and the sizes are added up.
    Py_ssize_t batches
    Py_ssize_t batches_put
    char* heads
    char* columns[COLUMNS]
    Py_ssize_t sizes[COLUMNS]


cdef inline void _put_little(char* out, uint64_t value, int size) noexcept nogil:
    """Little endian."""
    cdef int i
    for i in range(size):
        out[i] = <char>(value & 0xFF)
        value >>= 8


cdef inline uint64_t _little(const char* data, int size) noexcept nogil:
    cdef uint64_t value = 0
    cdef int i
    for i in range(size - 1, -1, -1):
        value = value << 8 | <unsigned char>data[i]
    return value


# -- apart ------------------------------------------------------------------------------------------------------------


cdef inline bint _read_shortest(const char** here, const char* end, int64_t* value) noexcept nogil:
    """A number that takes no more bytes than it has to."""
    cdef const char* begin = here[0]
    return _read_number(here, end, value) and here[0] - begin == _varint_bytes(value[0])


cdef inline bint _read_text(const char** here, const char* end, const char** text, Py_ssize_t* size) noexcept nogil:
    cdef int64_t length
    if not _read_shortest(here, end, &length) or length < 0 or length > end - here[0]:
        return False
    text[0] = here[0]
    size[0] = length
    here[0] += length
    return True


cdef bint _read_piece(const char** here, const char* end, int64_t index, Piece* piece) noexcept nogil:
    """The next record, if it can be made again from its piece."""
    cdef const char* at = here[0]
    cdef const char* record_end
    cdef int64_t length, delta
    if not _read_shortest(&at, end, &length) or length < 1 or length > end - at:
        return False
    record_end = at + length
    if at[0] != 0:
        return False
    at += 1
    if not _read_shortest(&at, record_end, &piece.at_ms) or not _read_shortest(&at, record_end, &delta):
        return False
    if delta != index or not -_TIME_DELTA_END < piece.at_ms < _TIME_DELTA_END:
        return False
    if not _read_text(&at, record_end, &piece.key, &piece.key_size):
        return False
    if not _read_text(&at, record_end, &piece.value, &piece.value_size):
        return False
    piece.rest = at
    piece.rest_size = record_end - at
    here[0] = record_end
    return True


cdef inline void _put_piece(Apart* apart, Piece* piece, int64_t before_ms) noexcept nogil:
    cdef char** columns = apart.columns
    columns[TIMES] = _put_varint(columns[TIMES], piece.at_ms - before_ms)
    columns[KEYS] = _put_varint(columns[KEYS], piece.key_size)
    columns[VALUES] = _put_varint(columns[VALUES], piece.value_size)
    columns[RESTS] = _put_varint(columns[RESTS], piece.rest_size)
    columns[TEXTS] = _put(_put(columns[TEXTS], piece.key, piece.key_size), piece.rest, piece.rest_size)
    columns[PAYLOADS] = _put(columns[PAYLOADS], piece.value, piece.value_size)


cdef inline void _add_piece(Apart* apart, Piece* piece, int64_t before_ms) noexcept nogil:
    cdef Py_ssize_t* sizes = apart.sizes
    sizes[TIMES] += _varint_bytes(piece.at_ms - before_ms)
    sizes[KEYS] += _varint_bytes(piece.key_size)
    sizes[VALUES] += _varint_bytes(piece.value_size)
    sizes[RESTS] += _varint_bytes(piece.rest_size)
    sizes[TEXTS] += piece.key_size + piece.rest_size
    sizes[PAYLOADS] += piece.value_size


cdef bint _take_batch(const char* data, const char* end, Apart* apart) noexcept nogil:
    cdef const char* here = data + HEADER_BYTES
    cdef int64_t index, before_ms = 0
    cdef int64_t count = <int32_t>_big(data + 57, 4)
    cdef Piece piece
    cdef Py_ssize_t place
    if apart.heads == NULL:
        apart.batches += 1
    else:
        for place in range(HEADER_BYTES):
            apart.heads[place * apart.batches + apart.batches_put] = data[place]
        apart.batches_put += 1
    for index in range(count):
        if not _read_piece(&here, end, index, &piece):
            return False
        if apart.heads == NULL:
            _add_piece(apart, &piece, before_ms)
        else:
            _put_piece(apart, &piece, before_ms)
        before_ms = piece.at_ms
    return here == end


cdef bint _take_batches(const char* data, Py_ssize_t size, Apart* apart) noexcept nogil:
    cdef const char* here = data
    cdef const char* end = data + size
    cdef int64_t batch_size
    while here < end:
        if end - here < HEADER_BYTES:
            return False
        batch_size = <int64_t><int32_t>_big(here + 8, 4) + LENGTH_FROM
        if batch_size < HEADER_BYTES or batch_size > end - here or not _take_batch(here, here + batch_size, apart):
            return False
        here += batch_size
    return True


cdef bytes _taken_apart(const char* data, Py_ssize_t size):
    """None: as the reference."""
    cdef Apart apart
    cdef bytes whole
    cdef char* out
    cdef Py_ssize_t column, total
    cdef bint fits
    memset(&apart, 0, sizeof(Apart))
    with nogil:
        fits = _take_batches(data, size, &apart)
    total = DIRECTORY_BYTES + apart.batches * HEADER_BYTES
    for column in range(COLUMNS):
        total += apart.sizes[column]
    if not fits or total >= size:
        return None
    whole = PyBytes_FromStringAndSize(NULL, total)
    out = PyBytes_AS_STRING(whole)
    with nogil:
        _put_little(out, apart.batches, 4)
        apart.heads = out + DIRECTORY_BYTES
        out = apart.heads + apart.batches * HEADER_BYTES
        for column in range(COLUMNS):
            if column < PAYLOADS:
                _put_little(apart.heads - DIRECTORY_BYTES + 4 + 4 * column, apart.sizes[column], 4)
            apart.columns[column] = out
            out += apart.sizes[column]
        _take_batches(data, size, &apart)
    return whole


def take_apart(batches):
    cdef Py_buffer view
    PyObject_GetBuffer(batches, &view, PyBUF_SIMPLE)
    try:
        return _taken_apart(<const char*>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


# -- together ---------------------------------------------------------------------------------------------------------


cdef struct Together:
    # What is left of each column.
    const char* columns[COLUMNS]
    const char* ends[COLUMNS]


cdef bint _next_text(
    Together* read, int column, int lengths, const char** text, Py_ssize_t* size
) noexcept nogil:
    cdef int64_t length
    if not _read_number(&read.columns[lengths], read.ends[lengths], &length):
        return False
    if length < 0 or length > read.ends[column] - read.columns[column]:
        return False
    text[0] = read.columns[column]
    size[0] = length
    read.columns[column] += length
    return True


cdef bint _next_piece(Together* read, Piece* piece) noexcept nogil:
    """`at_ms` is that of the piece before."""
    cdef int64_t delta_ms
    if not _read_number(&read.columns[TIMES], read.ends[TIMES], &delta_ms):
        return False
    if add_overflows(piece.at_ms, delta_ms, &piece.at_ms) or not -_TIME_DELTA_END < piece.at_ms < _TIME_DELTA_END:
        return False
    return (
        _next_text(read, TEXTS, KEYS, &piece.key, &piece.key_size)
        and _next_text(read, PAYLOADS, VALUES, &piece.value, &piece.value_size)
        and _next_text(read, TEXTS, RESTS, &piece.rest, &piece.rest_size)
    )


cdef char* _put_record(char* out, const char* end, int64_t index, Piece* piece) noexcept nogil:
    """Behind the record; NULL where it has no room."""
    cdef Py_ssize_t length = (
        1 + _varint_bytes(piece.at_ms) + _varint_bytes(index) + _chunk_bytes(piece.key_size)
        + _chunk_bytes(piece.value_size) + piece.rest_size
    )
    if _chunk_bytes(length) > end - out:
        return NULL
    out = _put_varint(out, length)
    out[0] = 0
    out = _put_varint(_put_varint(out + 1, piece.at_ms), index)
    out = _put_chunk(out, piece.key, piece.key_size)
    out = _put_chunk(out, piece.value, piece.value_size)
    return _put(out, piece.rest, piece.rest_size)


cdef bint _open_columns(const char* data, Py_ssize_t size, Py_ssize_t batches, Together* read) noexcept nogil:
    cdef const char* here = data + DIRECTORY_BYTES
    cdef const char* end = data + size
    cdef Py_ssize_t column, column_size = batches * HEADER_BYTES
    for column in range(COLUMNS):
        if column_size > end - here:
            return False
        here += column_size
        read.columns[column] = here
        if column > 0:
            read.ends[column - 1] = here
        column_size = <Py_ssize_t>_little(data + 4 + 4 * column, 4) if column < PAYLOADS else 0
    read.ends[PAYLOADS] = end
    return True


cdef bint _join(const char* data, Py_ssize_t size, char* out, Py_ssize_t out_size) noexcept nogil:
    """Whether that were the columns of so much."""
    cdef Together read
    cdef Piece piece
    cdef char* end = out + out_size
    cdef const char* heads = data + DIRECTORY_BYTES
    cdef Py_ssize_t batches, number, place
    cdef int64_t count, index
    if size < DIRECTORY_BYTES:
        return False
    batches = <Py_ssize_t>_little(data, 4)
    if not _open_columns(data, size, batches, &read):
        return False
    for number in range(batches):
        if end - out < HEADER_BYTES:
            return False
        for place in range(HEADER_BYTES):
            out[place] = heads[place * batches + number]
        count = <int32_t>_big(out + 57, 4)
        out += HEADER_BYTES
        piece.at_ms = 0
        for index in range(count):
            if not _next_piece(&read, &piece):
                return False
            out = _put_record(out, end, index, &piece)
            if out == NULL:
                return False
    for place in range(COLUMNS):
        if read.columns[place] != read.ends[place]:
            return False
    return out == end


def put_together(columns, Py_ssize_t size_bytes):
    cdef Py_buffer view
    cdef bytes batches = PyBytes_FromStringAndSize(NULL, size_bytes)
    cdef char* out = PyBytes_AS_STRING(batches)
    cdef bint fits
    PyObject_GetBuffer(columns, &view, PyBUF_SIMPLE)
    try:
        with nogil:
            fits = _join(<const char*>view.buf, view.len, out, size_bytes)
    finally:
        PyBuffer_Release(&view)
    if not fits:
        raise FrameError(f"columns that do not make {size_bytes} bytes of batches")
    return batches
