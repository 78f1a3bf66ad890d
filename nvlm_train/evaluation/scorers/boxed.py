r"""What stands in the last \boxed{…} of a text, as solutions of MATH and many models' answers have it."""


def last_boxed(text: str) -> str | None:
    r"""The contents of the last \boxed{…} or, without one, \fbox{…}; of `\boxed 5$` what stands before the `$`.

    None if there is none, or its braces do not balance.
    """
    if "\\boxed " in text:
        return text.split("\\boxed ")[-1].split("$")[0]
    for name in ("\\boxed", "\\fbox"):
        start = text.rfind(name)
        if start >= 0:
            return _braced(text, start + len(name))
    return None


def _braced(text: str, start: int) -> str | None:
    """What stands between the brace at `start` and its partner."""
    if text[start:start + 1] != "{":
        return None
    depth = 0
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start + 1:place]
    return None
