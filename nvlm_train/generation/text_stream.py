"""Tokens to text, piece by piece: never half a character, and never a letter of what stops an answer."""

from collections.abc import Callable, Sequence

_INCOMPLETE = "\ufffd"      # what a decoder writes for bytes that are no character, or not yet


class Detokenizer:
    """The pieces that `push` and `finish` give, put together, are `decode` of all tokens."""

    def __init__(self, decode: Callable[[Sequence[int]], str]):
        self._decode = decode
        self._tokens: list[int] = []
        # Text is decoded from `_context` on: some decoders treat the first token of a text in a way of its own.
        self._context = self._read = 0
        self._given = 0     # characters given of the tokens from `_read` on

    def push(self, token: int) -> str:
        """What the next token adds; "" while it may be the beginning of a character."""
        self._tokens.append(token)
        fresh = self._fresh()
        complete = fresh.rstrip(_INCOMPLETE)
        piece, self._given = complete[self._given:], max(self._given, len(complete))
        if complete and complete == fresh:
            self._context, self._read, self._given = self._read, len(self._tokens), 0
        return piece

    def finish(self) -> str:
        """What was kept back: bytes that have become no character."""
        piece = self._fresh()[self._given:]
        self._context, self._read, self._given = self._read, len(self._tokens), 0
        return piece

    def _fresh(self) -> str:
        """Text of the tokens from `_read` on."""
        known = self._decode(self._tokens[self._context:self._read])
        return self._decode(self._tokens[self._context:])[len(known):]


class StopStrings:
    """Text up to the first of some strings, whatever pieces it comes in.

    The first is the one that is whole first; of two that end together, the longer. stopped: it has come.
    """

    def __init__(self, stops: Sequence[str]):
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """What can be given of the text so far; what may be the beginning of a stop string is kept back."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[:min(found)[1]]
        kept = max((size for stop in self._stops for size in range(1, len(stop)) if text.endswith(stop[:size])), default=0)
        self._held = text[len(text) - kept:]
        return text[:len(text) - kept]

    def finish(self) -> str:
        """What was kept back, now that nothing follows."""
        piece, self._held = self._held, ""
        return piece


class TextStream:
    """Both in one: tokens in, text out, up to the first stop string."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()):
        self._text, self._stop = Detokenizer(decode), StopStrings(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come: nothing will be given any more."""
        return self._stop.stopped

    def push(self, token: int) -> str:
        return self._stop.push(self._text.push(token))

    def finish(self) -> str:
        """The rest, once the last token was pushed. A stop string may come to light in it."""
        piece = self._stop.push(self._text.finish())
        return piece if self.stopped else piece + self._stop.finish()


def printable(text: str) -> str:
    """For a terminal, which obeys control characters: a model may write any."""
    return text.translate(_REPLACED)


_REPLACED = {code: _INCOMPLETE for code in (*range(0x20), *range(0x7f, 0xa0)) if chr(code) not in "\n\t"}
