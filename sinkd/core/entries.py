"""Where the entries of the journal stand: 20 bytes of memory for each, no Python object; and the latest commands.

Raft indexes are consecutive, so an entry's index is its place in the arrays plus `first_index`.

A table is asked a hundred times for each event that comes alone: so `next_index` is kept, not counted, and whatever
looks an entry up calls nothing.
"""

from array import array
from typing import Final

from sinkd.core.formats import RECORD_ALIGNMENT_BYTES

_FILE_SHIFT: Final = 32
_SLOT_MASK: Final = (1 << _FILE_SHIFT) - 1
COMMAND_OVERHEAD_BYTES: Final = 128  # what Python needs beside the bytes of a small command


class EntryTable:
    """Term, place and command length of the entries from `first_index` to before `next_index`."""

    def __init__(self, first_index: int) -> None:
        self.first_index = self.next_index = first_index
        self._terms = array("Q")
        self._places = array("Q")  # file number above, position in units of the record alignment below
        self._lengths = array("I")

    def __len__(self) -> int:
        return len(self._terms)

    def append(self, term: int, file: int, position: int, length: int) -> None:
        """The entry `next_index`: its record begins at byte `position` of `file`, its command has `length` bytes."""
        self._terms.append(term)
        self._places.append(file << _FILE_SHIFT | position // RECORD_ALIGNMENT_BYTES)
        self._lengths.append(length)
        self.next_index += 1

    def prepend(self, term: int, length: int) -> None:
        """An entry before the first one that stands in no file: its file number is 0."""
        self._terms.insert(0, term)
        self._places.insert(0, 0)
        self._lengths.insert(0, length)
        self.first_index -= 1

    def truncate(self, index: int) -> None:
        """Drops all entries from `index` on; `index` is next, even when it lies before the first entry."""
        kept = max(0, index - self.first_index)
        del self._terms[kept:], self._places[kept:], self._lengths[kept:]
        self.first_index = min(self.first_index, index)
        self.next_index = self.first_index + len(self._terms)

    def forget(self, index: int) -> None:
        """Drops all entries below `index`."""
        count = index - self.first_index
        if count > 0:
            del self._terms[:count], self._places[:count], self._lengths[:count]
            self.first_index = index
            self.next_index = index + len(self._terms)

    def term(self, index: int) -> int:
        if not self.first_index <= index < self.next_index:
            raise self._missing(index)
        return self._terms[index - self.first_index]

    def length(self, index: int) -> int:
        if not self.first_index <= index < self.next_index:
            raise self._missing(index)
        return self._lengths[index - self.first_index]

    def place(self, index: int) -> tuple[int, int]:
        """(file number, position of the record in bytes)."""
        if not self.first_index <= index < self.next_index:
            raise self._missing(index)
        place = self._places[index - self.first_index]
        return place >> _FILE_SHIFT, (place & _SLOT_MASK) * RECORD_ALIGNMENT_BYTES

    def _missing(self, index: int) -> IndexError:
        return IndexError(f"entry {index}: the journal holds {self.first_index} to {self.next_index - 1}")


class RecentCommands:
    """The commands that were added last, `bytes_max` of memory at most. Their indexes are consecutive."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._commands: dict[int, bytes] = {}
        self._first_index = 0  # of those that are held, if any
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._commands)

    def get(self, index: int) -> bytes | None:
        return self._commands.get(index)

    def append(self, index: int, command: bytes) -> None:
        """The entry behind the last one here. The oldest go, if need be: a command that is too large alone, at once."""
        if not self._commands:
            self._first_index = index
        self._commands[index] = command
        self.size_bytes += len(command) + COMMAND_OVERHEAD_BYTES
        while self.size_bytes > self._bytes_max:
            self.forget(self._first_index + 1)

    def truncate(self, index: int) -> None:
        """Drops all from `index` on."""
        for dropped in range(max(index, self._first_index), self._first_index + len(self._commands)):
            self._drop(dropped)

    def forget(self, index: int) -> None:
        """Drops all below `index`."""
        end = min(index, self._first_index + len(self._commands))
        for dropped in range(self._first_index, end):
            self._drop(dropped)
        self._first_index = max(self._first_index, end)

    def _drop(self, index: int) -> None:
        self.size_bytes -= len(self._commands.pop(index)) + COMMAND_OVERHEAD_BYTES
