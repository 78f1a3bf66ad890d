"""A keyed shuffle of 0..n-1 that needs no memory: any place can be asked alone."""

import hashlib
from functools import lru_cache
from math import isqrt

import numpy as np

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


def permuted_all(places: np.ndarray, n: int, key: int) -> np.ndarray:
    """`permuted` of each of `places` (int64), int64: some 50 times quicker for a thousand of them."""
    if len(places) and not (places.min() >= 0 and places.max() < n):
        raise IndexError(f"places {places.min()} to {places.max()} of {n}")
    a = np.uint64(isqrt(n - 1) + 1)
    b = np.uint64(-(-n // int(a)))
    values = places.astype(np.uint64)
    walking = np.arange(len(values))    # those whose value is not below n yet
    while len(walking):
        left, right = values[walking] % a, values[walking] // a
        for turn in range(0, _HALF_ROUNDS, 2):
            left = (left + _mix_all(key, right, turn) % a) % a
            right = (right + _mix_all(key, left, turn + 1) % b) % b
        values[walking] = right * a + left
        walking = walking[values[walking] >= n]
    return values.astype(np.int64)


def _mix_all(key: int, half: np.ndarray, turn: int) -> np.ndarray:
    value = (np.uint64(key) ^ (half << np.uint64(8) | np.uint64(turn))) + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
