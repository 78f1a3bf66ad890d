"""What must never be written down: the values of secret settings, and secrets inside texts. The one home of that knowledge.

`redact` is for trees of settings, `redact_text` for anything else that leaves the process: log lines, errors, paths in manifests. A
secret is known by the name it goes by (`hub_token`, `WANDB_API_KEY`), by its place (the login of an address, the signature in
its query, an Authorization header), or by its shape (`hf_…`). What has none of these looks like any other text: it belongs in
the environment, whose secrets are known by their names wherever they turn up (`of_environment`).
"""

import logging
import re
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Mapping
from typing import Any

REDACTED = "[redacted]"

# As whole words of a name: `hub_token` is a secret, `max_tokens` and `tokenizer` are not. `key` alone is the key of a sample.
_WORDS = (r"token|secrets?|passw(?:or)?d|passphrase|credentials?|authorization|signature|sig|cookies?"
          r"|(?:api|access|account|auth|deploy|encryption|license|private|secret|shared|signing|ssh|storage)[_.\- ]?keys?(?:[_.\- ]?id)?")
_SECRET_NAME = re.compile(rf"(?:^|[^a-z])(?:{_WORDS})(?:$|[^a-z])", re.IGNORECASE)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")      # apiKey is api_Key

# user:password@ up to the last @ before the path; a password may hold slashes, unless what follows the colon is a port.
# Lengths are bounded, so that the time of a search grows with the text and no faster.
_LOGIN = re.compile(r"(?P<protocol>[A-Za-z][\w+.\-]{0,20}://)"
                    r"(?:[^\s/?#\"'<>]{0,500}|[^\s/:@\"'<>]{0,200}:(?!\d+(?:[/?#\s]|$))[^\s\"'<>]{0,500})@")
_ASSIGNED = re.compile(r"(?<![\w.\-])(?P<name>[\w.\-]{1,200})(?P<is>=)(?P<value>\"[^\"\n]*\"?|'[^'\n]*'?|[^\s&\"']+)")
_QUOTED = re.compile(r"(?P<name>[\"'][\w.\- ]+[\"'])(?P<is>\s*:\s*)(?P<value>\"(?:[^\"\\\n]|\\.)*\"?|'(?:[^'\\\n]|\\.)*'?)")
# Of a whole line of YAML or of a header; an error says more than a word of a setting that it names.
_LINE = re.compile(r"(?P<name>^[ \t+\-]*[\w.\-]{1,200})(?P<is>:[ \t]+)(?P<value>\S+)(?=[ \t]*$)", re.MULTILINE)
_HEADER = re.compile(r"\b(?P<kind>Bearer|Basic)\s+[A-Za-z0-9._~+/\-]{8,}=*")
_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|gh[oprsu]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w\-]{16,}|(?:AKIA|ASIA)[A-Z0-9]{16}"
    r"|nvapi-[\w\-]{20,}|sk-[A-Za-z0-9_\-]{20,}|xox[abprs]-[\w\-]{10,}|wandb_v\d_\w{20,}|eyJ[\w\-]{8,}\.[\w\-]{8,}\.[\w\-]*)")
_NO_SECRET = frozenset({"", "true", "false", "null", "none", "yes", "no", "on", "off", REDACTED})
_SHORTEST = 8       # characters: a shorter value of the environment may be an ordinary word


def is_secret(name: str) -> bool:
    """Whether a key or an environment variable of this name is to be kept out of sight."""
    return bool(_SECRET_NAME.search(_CAMEL.sub("_", name)))


def of_environment(environ: Mapping[str, str]) -> frozenset[str]:
    """The secrets of an environment, known by the names of its variables."""
    return frozenset(value for name, value in environ.items()
                     if len(value) >= _SHORTEST and is_secret(name) and not value.startswith("/"))     # a path to a secret is none


def redact(tree: Any, known: Collection[str] = ()) -> Any:
    """A copy with the values of secret keys, and secrets inside texts, replaced. known: values that are secret wherever they stand."""
    if isinstance(tree, dict):
        return {redact(key, known): REDACTED if _tells(str(key), value) else redact(value, known) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [redact(item, known) for item in tree]
    return redact_text(tree, known) if isinstance(tree, str) else tree


def redact_text(text: str, known: Collection[str] = ()) -> str:
    """A text without the secrets in it: logins and signatures of addresses, `KEY=VALUE` and `key: value` of secret keys, headers,
    tokens of well-known shapes, and the values in `known`."""
    for value in sorted(known, key=len, reverse=True):
        text = text.replace(value, REDACTED)
    text = _LOGIN.sub(rf"\g<protocol>{REDACTED}@", text)
    for pattern in (_ASSIGNED, _QUOTED, _LINE):
        text = pattern.sub(_hide, text)
    text = _HEADER.sub(rf"\g<kind> {REDACTED}", text)
    return _SHAPES.sub(REDACTED, text)


def _tells(key: str, value: Any) -> bool:
    """Whether a value is a secret: that something is on or off (`class_token: true`) is none, nor is nothing."""
    return is_secret(key) and value is not None and not isinstance(value, bool)


def _hide(found: re.Match) -> str:
    name, value = found["name"], found["value"]
    bare = value.strip("\"'")
    if not is_secret(name.strip("\"' \t+-")) or bare.rstrip(",;.)]}").lower() in _NO_SECRET or bare.startswith(REDACTED):
        return found[0]
    quote = value[0] if value[0] in "\"'" else ""
    return f"{name}{found['is']}{quote}{REDACTED}{quote}"


class RedactingFormatter(logging.Formatter):
    """Log lines, tracebacks included, without secrets."""

    def __init__(self, form: str, known: Collection[str] = ()) -> None:
        super().__init__(form)
        self._known = known

    def format(self, record: logging.LogRecord) -> str:
        return redact_text(super().format(record), self._known)


def redact_tracebacks(known: Collection[str] = (), write: Callable[[str], object] | None = None, lead: str = "") -> None:
    """From now on an error that ends this process, or a thread of it, is printed without secrets, in one piece. write: default, to
    stderr. lead: stands before it."""

    def tell(kind, error, trace) -> None:
        (write or sys.stderr.write)(lead + redact_text("".join(traceback.format_exception(kind, error, trace)), known))

    sys.excepthook = tell
    threading.excepthook = lambda args: tell(args.exc_type, args.exc_value, args.exc_traceback)
