"""The memory that a thread hashes in stays with it from one hash to the next, in huge pages, where it comes from glibc.

The kernel clears 19 MiB before it hands them out, and takes them back from all of a process's cores: a tenth of what a
hash costs (docs/library-notes.md). By itself glibc either asks for them each time or keeps eight times as much. Here
each thread has room for one hash in the middle of its heap. The next hash fits in there; where it does not, whatever
the reason, glibc asks the kernel for it, as it did before.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

import structlog

log = structlog.get_logger(__name__)

_LARGE: Final = 1024 * 1024
"""From this size on, what fits nowhere in the heap is asked of the kernel, and given back when it is freed. By itself
glibc keeps it from the second time on, and that of Debian 12 keeps eight times 19 MiB in each thread before one fits
again (docs/library-notes.md)."""

_NONE_IS_LARGE: Final = 32 * 1024 * 1024
_M_MMAP_THRESHOLD: Final = -3
_HUGE: Final = 2 * 1024 * 1024
_ALIGNMENT: Final = 64
"""Of a hash's memory."""

_BEHIND: Final = 128 * 1024
"""Too large to lie in front of the room, where small pieces are free. One page of it is written to."""

_SMALL: Final = range(24, 1040, 16)
_SMALL_AT_HAND: Final = 16
"""Freed pieces of each of these sizes that glibc keeps at hand in each thread, apart from what is free beside them: 7,
and 16 from glibc 2.42 on."""

_own: Final = threading.local()
_threshold: Final = threading.Lock()
"""It is one for all threads."""


@contextmanager
def kept(size: int, *, first: Callable[[], object]) -> Iterator[None]:
    """Until the end of the block, the memory of a hash of this size serves this thread's next one. Then the kernel has
    it again, but for 2 MiB, and half a MiB in small pieces.

    Args:
        first: a small hash. What a thread's first one leaves in the heap for good is then not where others are to fit.
    """
    if not hasattr(_own, "room"):
        try:
            first()
            _own.room = _set_aside(size)
        except Exception as error:  # noqa: BLE001 - the hashes go on without, or fail and tell whom they are for
            _tell(type(error).__name__)
    try:
        yield
    finally:
        room = getattr(_own, "room", None)
        if room is not None and not room.is_given_back():
            _own.room = None


@cache
def _tell(error: str) -> None:
    """Once for each kind: every hash tries again."""
    log.warning("passwords.memory_not_kept", error=error, hint="hashes are slower until it can be")


@cache
def give_large_back() -> None:
    """Have large memory given back to the kernel when it is freed, in all threads."""
    heap = _glibc()
    if heap is not None:
        with _threshold:
            heap.mallopt(_M_MMAP_THRESHOLD, _LARGE)


class _Room:
    """Free memory for a hash in the heap of the thread that made it."""

    def __init__(self, heap: Any, size: int, begin: int, end: int) -> None:
        self._heap = heap
        self._size = size
        self._begin = begin
        self._end = end

    def is_given_back(self) -> bool:
        """Have the kernel take its whole huge pages, which nobody else may use meanwhile: for that long, it is ours.

        Returns: whether a hash still fits in here. If not, all that is free in the heap is given back, for good.
        """
        # Half a huge page more than a hash takes, so that the last one is whole. As much again may lie in front of it.
        room = _aligned(self._heap, self._size + _HUGE // 2)
        if room is None:
            return False
        end = room + self._size + _HUGE // 2
        is_here = self._begin <= room and end <= self._end
        if is_here:
            begin = room + -room % _HUGE
            self._heap.madvise(begin, end - end % _HUGE - begin, mmap.MADV_DONTNEED)
        self._heap.free(room)
        if not is_here:
            self._heap.malloc_trim(0)
        return is_here


def _set_aside(size: int) -> _Room | None:
    """Room for hashes of this size in this thread's heap; None where there is none to be had or needed."""
    heap = _glibc()
    if heap is None or size < _LARGE:
        return None
    for small in _SMALL:  # so that what a hash cuts off at its end is not kept at hand, but joined with the rest
        for piece in [heap.malloc(small) for _ in range(_SMALL_AT_HAND)]:
            heap.free(piece)
    with _threshold:
        heap.mallopt(_M_MMAP_THRESHOLD, _NONE_IS_LARGE)
        room = _aligned(heap, size + _HUGE)
        heap.mallopt(_M_MMAP_THRESHOLD, _LARGE)
    behind = heap.malloc(_BEHIND)  # or the room would be the end of the heap, which glibc gives back
    if room is None or behind is None:
        heap.free(room)
        return None
    end = room + size + _HUGE
    heap.madvise(room - room % _HUGE, end - room + room % _HUGE, mmap.MADV_HUGEPAGE)
    heap.free(room)
    return _Room(heap, size, room, end)


def _aligned(heap: Any, size: int) -> int | None:
    found = ctypes.c_void_p()
    return None if heap.posix_memalign(ctypes.byref(found), _ALIGNMENT, size) else found.value


@cache
def _glibc() -> Any:
    """Its functions, or None if the C library is another one."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return None
    address, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for name, result, arguments in (
        ("malloc", address, (size,)),
        ("free", None, (address,)),
        ("posix_memalign", number, (ctypes.POINTER(address), size, size)),
        ("madvise", number, (address, size, number)),
        ("mallopt", number, (number, number)),
        ("malloc_trim", number, (size,)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
