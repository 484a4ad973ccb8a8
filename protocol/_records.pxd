from cpython.ref cimport PyObject
from libc.stdint cimport int64_t


cdef struct Buffer:
    # A bytes object that grows; nobody else knows it until it is taken.
    PyObject* object
    char* data
    Py_ssize_t size
    Py_ssize_t room


cdef class BatchBuilder:
    cdef Buffer out
    cdef readonly Py_ssize_t count
    cdef readonly Py_ssize_t size_bytes
    cdef int64_t base_ms, max_ms

    cdef int put(self, const char* subject, Py_ssize_t subject_size, const char* key, Py_ssize_t key_size,
                 int64_t timestamp_ms, const char* block, Py_ssize_t block_size,
                 const char* payload, Py_ssize_t payload_size) except -1
    cdef int begin(self, int64_t timestamp_ms) except -1
    cdef int begin_earlier(self, int64_t timestamp_ms) except -1
