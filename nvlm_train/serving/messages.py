"""A conversation as OpenAI's API has it: messages of text and pictures, pictures as data addresses and nothing else."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nvlm_train.serving.problems import Refusal

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# Media type -> what its bytes begin with.
KINDS = {"image/png": b"\x89PNG\r\n\x1a\n", "image/jpeg": b"\xff\xd8\xff", "image/jpg": b"\xff\xd8\xff", "image/webp": b"RIFF"}
_KEYS = {"role", "content", "name"}
_SHOWN = 40     # characters of a client's words in an answer to it


@dataclass(frozen=True)
class Message:
    """role: system, user or assistant. parts: texts and pictures (their bytes), in the client's order."""

    role: str
    parts: tuple[str | bytes, ...]


def read_messages(value: Any, max_images: int) -> list[Message]:
    """Raises Refusal: not of this form, of a kind that is not supported, too many pictures, or not ending with the user."""
    if not isinstance(value, list) or not value:
        raise Refusal("messages must be a list of at least one message", "messages", "missing_messages" if value is None else None)
    messages: list[Message] = []
    images = 0
    for number, message in enumerate(value):
        messages.append(_message(message, f"messages[{number}]", max_images - images))
        images += sum(isinstance(part, bytes) for part in messages[-1].parts)
    if messages[-1].role != "user":
        raise Refusal(f"the last message is the {messages[-1].role}'s, and the model answers a user: end with a user's message",
                      f"messages[{len(messages) - 1}].role")
    return messages


def _message(value: Any, where: str, room: int) -> Message:
    if not isinstance(value, dict):
        raise Refusal(f"{where} must be an object with role and content", where)
    if unknown := sorted(key for key in set(value) - _KEYS if value[key] not in (None, [])):
        raise Refusal(f"{where}.{_cut(unknown[0])} is not supported: a message has role and content", where, "unsupported_parameter")
    role = value.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise Refusal(f"{where}.role must be one of {', '.join(ROLES)}, got {_cut(role)}", f"{where}.role")
    content = value.get("content")
    if isinstance(content, str):
        return Message(ROLES[role], (encodable(content, f"{where}.content"),))
    if not isinstance(content, list) or not content:
        raise Refusal(f"{where}.content must be text, or a list of parts", f"{where}.content")
    parts: list[str | bytes] = []
    for number, part in enumerate(content):
        parts.append(_part(part, f"{where}.content[{number}]", ROLES[role], room))
        room -= isinstance(parts[-1], bytes)
    return Message(ROLES[role], tuple(parts))


def _part(value: Any, where: str, role: str, room: int) -> str | bytes:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text" and isinstance(value.get("text"), str):
        return encodable(value["text"], f"{where}.text")
    if kind != "image_url":
        raise Refusal(f'{where} must be {{"type": "text", "text": …}} or {{"type": "image_url", "image_url": {{"url": …}}}}', where)
    if role != "user":
        raise Refusal(f"{where} is a picture in a {role} message: only a user shows pictures", where)
    if room < 1:
        raise Refusal(f"{where} is one picture too many for this server's limit on a request (serve.max_images)", where,
                      "too_many_images")
    return _picture(value.get("image_url"), f"{where}.image_url")


def _picture(value: Any, where: str) -> bytes:
    """The bytes of a data address. What is in them is looked at later, when they are decoded."""
    url = value.get("url") if isinstance(value, Mapping) else None
    if not isinstance(url, str):
        raise Refusal(f'{where} must be {{"url": "data:image/png;base64,…"}}', where)
    if value.get("detail") not in (None, "auto", "low", "high"):
        raise Refusal(f"{where}.detail must be auto, low or high, which all mean the same here", f"{where}.detail")
    lead, comma, content = url.partition(",")
    if not lead.lower().startswith("data:"):
        raise Refusal(f"{where}.url: this server fetches nothing; send the picture itself, as data:image/png;base64,… "
                      f"(got {_cut(url)})", f"{where}.url", "url_not_supported")
    media, *marks = lead[len("data:"):].lower().split(";")
    if media not in KINDS:
        raise Refusal(f"{where}.url: pictures are image/png, image/jpeg or image/webp, got {_cut(media)}", f"{where}.url",
                      "unsupported_media_type")
    if not comma or [mark.strip() for mark in marks] != ["base64"]:
        raise Refusal(f"{where}.url: write data:{media};base64,…", f"{where}.url")
    try:
        data = base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(f"{where}.url: not base64 ({error})", f"{where}.url", "invalid_base64") from error
    if not data.startswith(KINDS[media]):
        raise Refusal(f"{where}.url: said to be {media}, and starts with {data[:8]!r}, which no {media} does", f"{where}.url",
                      "unsupported_media_type")
    return data


def encodable(text: str, where: str) -> str:
    """The text. Raises Refusal for half of a surrogate pair, which JSON can spell and no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Refusal(f"{where} holds half of a surrogate pair at character {error.start}, which is no character", where) from error
    return text


def texts_of(messages: Sequence[Message]) -> int:
    """Characters of all texts."""
    return sum(len(part) for message in messages for part in message.parts if isinstance(part, str))


def _cut(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
