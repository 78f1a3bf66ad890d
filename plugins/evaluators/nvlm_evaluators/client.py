"""Asks an OpenAI-compatible server with nothing but the standard library. Pictures travel as data URLs.

A question that the server refuses (4xx: a picture too large, a text too long) comes back as an answer with a reason. Settings that it
refuses are raised, and so is, once patience ends, whatever else fails: a score over answers that never came would be no score.
"""

import base64
import http.client
import io
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BASE_URL = "http://127.0.0.1:8000/v1"
KEY = "NVLM_API_KEY"        # environment variable: settings of an evaluation are printed and stored, so a key is none of them
LATER = (429, 502, 503, 504)    # statuses of a server that is full, or not there yet
LONGEST_WAIT = 60.0         # seconds between two tries
STOPS = 4                   # stop strings that the interface allows
_KINDS = ((b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff", "jpeg"))


class ServerError(RuntimeError):
    """The server cannot be reached, fails, or answers in another form."""


@dataclass(frozen=True)
class Settings:
    """How answers are written. temperature 0: greedy. stop: an answer ends before any of these."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """refused: why the server would not answer; then there is no text."""

    text: str
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    refused: str | None = None


class Client:
    """base_url: up to and with /v1. model: as the server calls it; None: the one that it has. timeout_s: of one answer.
    patience_s: how long a question is asked again while the server is full or cannot be reached."""

    def __init__(self, base_url: str = BASE_URL, model: str | None = None, timeout_s: float = 600.0, patience_s: float = 600.0):
        self._url, self._timeout_s, self._patience_s = base_url.rstrip("/"), timeout_s, patience_s
        self._key = os.environ.get(KEY)
        # No proxies: the server is one's own, and a proxy would see keys and pictures.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects)
        self.model = model or self._only_model()

    def answer(self, messages: Sequence[dict], settings: Settings) -> Answer:
        """messages: as OpenAI's chat completions take them. Raises ServerError."""
        asked = {"model": self.model, "messages": list(messages), "max_tokens": settings.max_new_tokens, "temperature": settings.temperature,
                 "top_p": settings.top_p}
        if settings.seed is not None:
            asked["seed"] = settings.seed
        if settings.stop:
            asked["stop"] = list(settings.stop[:STOPS])
        status, reply = self._call("/chat/completions", asked)
        if status in (401, 403):
            raise ServerError(f"{self._url} wants another key than ${KEY} has: {_reason(reply)}")
        if status == 404:
            raise ServerError(f"{self._url} has no model {self.model!r}: {_reason(reply)}")
        if status >= 400:
            wrong = reply["error"].get("param") if isinstance(reply, dict) and isinstance(reply.get("error"), dict) else None
            if wrong in asked and wrong != "messages":      # then every question would be refused
                raise ServerError(f"{self._url} does not do {wrong}={asked[wrong]!r}: {_reason(reply)}")
            return Answer("", refused=_reason(reply))
        if status != 200:
            raise ServerError(f"{self._url} answers with status {status}, which no chat completion has: another kind of server is there")
        try:
            text, usage = reply["choices"][0]["message"]["content"], reply.get("usage") or {}
            if not isinstance(text, str):
                raise TypeError(f"content is a {type(text).__name__}")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ServerError(f"{self._url} does not answer as chat completions do: {error!r} in {str(reply)[:200]}") from error
        return Answer(_cut(text, settings.stop), usage.get("prompt_tokens"), usage.get("completion_tokens"))

    def _only_model(self) -> str:
        status, reply = self._call("/models", None)
        names = [model.get("id") for model in reply.get("data", ())] if status == 200 and isinstance(reply, dict) else []
        if len(names) != 1:
            raise ServerError(f"{self._url}/models names {len(names)} models ({', '.join(map(str, names)) or _reason(reply)}): say which "
                              "with model=NAME")
        return names[0]

    def _call(self, path: str, body: dict | None) -> tuple[int, Any]:
        """(status, what the server says). Asks again while it is full or away."""
        deadline, wait_s = time.monotonic() + self._patience_s, 0.5
        while True:
            try:
                status, reply, asked_wait = self._try(path, body)
                problem = f"status {status}: {_reason(reply)}"
                if status not in LATER and status < 500:
                    return status, reply
                if status not in LATER:
                    raise ServerError(f"{self._url}{path} fails with {problem}")
                wait_s = max(wait_s, asked_wait)
            except (OSError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
            wait_s = min(wait_s, LONGEST_WAIT)
            if time.monotonic() + wait_s > deadline:
                raise ServerError(f"{self._url}{path} has not answered for {self._patience_s:g} s: {problem}. Is `nvlm serve` running?")
            time.sleep(wait_s)
            wait_s *= 2

    def _try(self, path: str, body: dict | None) -> tuple[int, Any, float]:
        """(status, what was said, seconds that the server wants one to wait)."""
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self._key}"} if self._key else {})}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._url}{path}", data, headers)
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                return response.status, _json(response.read()), 0.0
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _json(error.read()), _seconds(error.headers.get("Retry-After"))


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A key and pictures go where they were sent, and nowhere else."""

    def redirect_request(self, *_) -> None:
        return None


def picture(image: Any) -> dict:
    """A part of a message: a picture's bytes, its file, or a PIL image. Other kinds than PNG, JPEG and WebP become PNG, by Pillow.

    Raises OSError for a file that is not there or no picture.
    """
    if hasattr(image, "save"):
        kind, data = "png", _png(image)
    else:
        data = image if isinstance(image, bytes) else Path(image).read_bytes()
        kind = next((name for start, name in _KINDS if data.startswith(start)), "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else "")
        if not kind:
            from PIL import Image
            with Image.open(io.BytesIO(data)) as opened:
                kind, data = "png", _png(opened)
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"}}


def text(words: str) -> dict:
    """A part of a message."""
    return {"type": "text", "text": words}


def _png(image: Any) -> bytes:
    out = io.BytesIO()
    (image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA") else image.convert("RGB")).save(out, "PNG")
    return out.getvalue()


def _cut(answer: str, stop: Sequence[str]) -> str:
    """Also for the stops that did not fit into the question."""
    return answer[:min((place for end in stop if end and (place := answer.find(end)) >= 0), default=len(answer))]


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data[:200].decode("utf-8", "replace")


def _reason(reply: Any) -> str:
    error = reply.get("error") if isinstance(reply, dict) else None
    return str(error["message"] if isinstance(error, dict) and "message" in error else error or reply)[:500]


def _seconds(header: str | None) -> float:
    return float(header) if header and header.isdecimal() else 0.0
