"""The words that everybody speaks: subjects, wire and disk formats, configuration, limits, errors.

Pure: bytes and values in, bytes and values out. No I/O, no clock.
"""
