"""What a client is sent: chat completions whole and in chunks, in OpenAI's form, with timings and tiles of our own in `nvlm`."""

import json
from dataclasses import dataclass

from nvlm_train.serving.asked import Asked
from nvlm_train.serving.desk import Ended
from nvlm_train.serving.prompts import Prompt

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Answer:
    """One answer to be written. created: seconds since 1970."""

    id: str
    model: str
    created: int
    asked: Asked
    prompt: Prompt

    def whole(self, text: str, ended: Ended) -> dict:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": ended.finish}
        return {**self._head("chat.completion"), "choices": [choice], "usage": self.usage(ended),
                "nvlm": {**self._shown(), **self.timings(ended)}}

    def opening(self) -> bytes:
        """The first chunk: who speaks; and the tiles, if they are wanted."""
        shown = self._shown()
        return self._chunk({"role": "assistant", "content": ""}, None, **({"nvlm": shown} if shown else {}))

    def piece(self, text: str) -> bytes:
        return self._chunk({"content": text}, None)

    def closing(self, ended: Ended) -> bytes:
        """The last chunks."""
        last = self._chunk({}, ended.finish, nvlm=self.timings(ended))
        if self.asked.usage:
            last += event({**self._head("chat.completion.chunk"), "choices": [], "usage": self.usage(ended)})
        return last + DONE

    def usage(self, ended: Ended) -> dict:
        read = self.prompt.encoded.length
        return {"prompt_tokens": read, "completion_tokens": ended.tokens, "total_tokens": read + ended.tokens}

    def timings(self, ended: Ended) -> dict:
        """Seconds, and tokens a second of what came after the first token."""
        speed = (ended.rounds - 1) / ended.write_s if ended.rounds > 1 and ended.write_s > 0 else None
        return {"seconds": {"prepare": self.prompt.prepare_s, "wait": ended.wait_s, "read": ended.read_s, "write": ended.write_s},
                "tokens_per_second": speed, "prompt_tokens": self.prompt.encoded.length, "tiles": len(self.prompt.encoded.tiles),
                "completion_tokens": ended.tokens, "seed": self.asked.seed}

    def _shown(self) -> dict:
        return {} if self.prompt.tiles is None else {"pictures": self.prompt.tiles}

    def _head(self, kind: str) -> dict:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, delta: dict, finish: str | None, **more: dict) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event({**self._head("chat.completion.chunk"), "choices": [choice], **more})


def event(content: dict) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(content, ensure_ascii=False).encode() + b"\n\n"
