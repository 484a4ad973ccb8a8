# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The compiled twin of the hot parts of `protocol.records`, `columns` and `replay`: read those first.

It does the ordinary case: records as our encoder makes them, header blocks of plain lines. At anything else in a batch
that is read, the whole call goes to the reference, which finds the same thing again and says what it is; so there are no
errors of this module's own (but one for columns, which are no batches, however one looks at them). A header block that takes a closer look (other bytes than ASCII on the way in, names that
could pass for ours on the way out) is asked of the reference alone.

Batches and messages are written into a `bytes` object that grows and is then handed out as it is.

Here are these buffers, and numbers; making, reading and showing batches, and their columns, stand in files of their own,
compiled into this one module: `_encoding.pxi`, `_decoding.pxi`, `_showing.pxi`, `_columns.pxi`.
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

from protocol import columns as columns_reference
from protocol import history
from protocol import records as reference
from protocol import replay
from protocol.errors import FrameError

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
    RECORD_BYTES_MIN = 16  # of an event: its subject header alone takes so much

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


include "_encoding.pxi"
include "_decoding.pxi"
include "_showing.pxi"
include "_columns.pxi"
