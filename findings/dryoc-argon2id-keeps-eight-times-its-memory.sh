#!/usr/bin/env bash
# dryoc 2.0.0 (Rust, from its wheel) on glibc 2.36 (Debian 12).
#
# Each argon2id hash takes one aligned piece of memory (19 MiB here) and frees it, so the next one of the same size is
# expected to reuse it. glibc asks mmap for the first one, learns from its release that such sizes come again, and then
# serves them from the thread's heap. There an aligned request needs 96 bytes more than the piece just freed has, since
# what was cut off its end went to the thread's cache, which keeps neighbours from being joined. So one hash after another
# extends the heap, and only when the cache has its seven small remainders are the pieces joined: from then on nothing
# grows. Each thread that hashes keeps 152 MiB for good, eight times what one hash needs. Two ways out: a fixed
# M_MMAP_THRESHOLD (mallopt) below that size, which gives each piece back to the kernel, or fewer threads.
#
# Seen (MiB resident beside those before the first hash, after that many hashes in one thread):
#   1: 0, 4: 57, 8: 133, 12: 152; with a fixed threshold after 12: 0
set -euo pipefail
source "$(dirname "$0")/support/common.sh"
case "$(getconf GNU_LIBC_VERSION 2>/dev/null || true)" in
    "glibc 2.36") ;;
    *) echo "cannot be tried: this is about glibc 2.36"; exit 2 ;;
esac
install dryoc==2.0.0
python <<'PYTHON'
import ctypes
import resource
import sys
import threading

from dryoc import pwhash

MEMORY = 19 * 1024 * 1024


def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 1024 / 1024


def measured(hashes, seen):
    for done in range(1, hashes + 1):
        pwhash.derive_key("a password", b"sixteen bytes ..", length=32, opslimit=2, memlimit=MEMORY)
        seen[done] = resident() - before


def in_a_thread(hashes):
    seen = {}
    thread = threading.Thread(target=measured, args=(hashes, seen))
    thread.start()
    thread.join()
    return seen


pwhash.derive_key("a password", b"sixteen bytes ..", length=32, opslimit=1, memlimit=8192)
before = resident()
by_itself = in_a_thread(12)
print(", ".join(f"{done}: {by_itself[done]:.0f}" for done in (1, 4, 8, 12)), "MiB")

M_MMAP_THRESHOLD = -3
ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1024 * 1024)
before = resident()
fixed = in_a_thread(12)[12]
print(f"with a fixed threshold after 12: {fixed:.0f} MiB")
sys.exit(0 if by_itself[12] > 6 * 19 and fixed < 10 else 1)
PYTHON
