"""What was used last, up to a number of bytes."""

import collections
from typing import Generic, TypeVar

OBJECT_BYTES = 1024  # about what Python needs for an entry beside its text and numbers

Key = TypeVar("Key")
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
    """Values by their keys; the one unused for longest goes first, and the newest always stays."""

    def __init__(self):
        self._entries: collections.OrderedDict[Key, tuple[Value, int]] = collections.OrderedDict()
        self._bytes = 0

    def _found(self, key: Key) -> Value | None:
        """Return the value of a key, which is used now, or None."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def _keep(self, key: Key, value: Value, num_bytes: int, *, most: int) -> None:
        """Keep a value under a new key; most: the bytes of all together."""
        self._entries[key] = value, num_bytes
        self._bytes += num_bytes
        while self._bytes > most and len(self._entries) > 1:
            self._bytes -= self._entries.popitem(last=False)[1][1]
