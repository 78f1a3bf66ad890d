"""A server of chat completions that says what a test wants, and remembers what it was asked."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Reply = tuple[int, object, dict[str, str]]      # status, body (JSON, or bytes as they are), headers


def said(text: str, **usage: int) -> Reply:
    return 200, {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}], "usage": usage}, {}


def refusal(status: int, message: str, **headers: str) -> Reply:
    return status, {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}, headers


class Stub:
    """asked: (path, headers, body) of every request. answer: body -> reply to it. models: names that /models gives."""

    def __init__(self):
        self.asked: list[tuple[str, dict, dict]] = []
        self.answer: Callable[[dict], Reply] = lambda body: said("yes", prompt_tokens=7, completion_tokens=1)
        self.models = ["tiny"]
        self.url = ""

    @property
    def bodies(self) -> list[dict]:
        return [body for path, _, body in self.asked if path.endswith("/chat/completions")]


@contextmanager
def serving() -> Iterator[Stub]:
    """The stub at an address of this machine, until the test ends."""
    stub = Stub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self._reply(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in stub.models]}, {})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            stub.asked.append((self.path, dict(self.headers), body))
            self._reply(*stub.answer(body))

        def _reply(self, status, content, headers):
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
