"""A keyed shuffle of 0..n-1 that needs no memory: any place can be asked alone."""

import hashlib
from functools import lru_cache
from math import isqrt

_MASK = (1 << 64) - 1
_HALF_ROUNDS = 6


@lru_cache(maxsize=1024)
def key_of(*parts: object) -> int:
    """64-bit key from any printable parts, the same on every machine and in every Python."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:8], "little")


def _mix(value: int) -> int:
    """SplitMix64's finaliser: every input bit reaches every output bit."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def permuted(place: int, n: int, key: int) -> int:
    """The number at `place` of the shuffle of 0..n-1 that `key` names. O(1); a bijection of `place` for every n and key.

    A Feistel network on Z_a x Z_b with a*b just over n, and cycle walking for the few values beyond n.
    """
    if not 0 <= place < n:
        raise IndexError(f"place {place} of {n}")
    a = isqrt(n - 1) + 1
    b = -(-n // a)
    value = place
    while True:
        left, right = value % a, value // a
        for turn in range(0, _HALF_ROUNDS, 2):
            left = (left + _mix(key ^ (right << 8 | turn))) % a
            right = (right + _mix(key ^ (left << 8 | turn + 1))) % b
        value = right * a + left
        if value < n:
            return value
