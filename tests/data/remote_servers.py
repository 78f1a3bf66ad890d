"""Real servers on the loopback for the tests of remote folders: S3, the web with and without byte ranges, and a bad network."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class BadNetwork:
    """Forwards connections to a port, unless told to treat the next ones badly.

    faults: one a connection, the first first: "reset" breaks it off after some bytes of the answer, "stall" lets nothing through,
    "refuse" closes it at once. Connections are counted.
    """

    def __init__(self, port: int):
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.faults: list[str] = []
        self.connections = 0
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break off every connection that is open, so that clients make new ones."""
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                fault = self.faults.pop(0) if self.faults else ""
                self._open.append(client)
                threading.Thread(target=self._serve, args=(client, fault), daemon=True).start()

    def _serve(self, client: socket.socket, fault: str) -> None:
        if fault == "refuse":
            client.close()
            return
        if fault == "stall":
            time.sleep(60)
            return
        with suppress(OSError):
            server = socket.create_connection(("127.0.0.1", self._target))
            self._open.append(server)
            threading.Thread(target=self._pump, args=(client, server, None), daemon=True).start()
            self._pump(server, client, 300 if fault == "reset" else None)

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket, limit: int | None) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if limit is not None and (limit := limit - len(data)) < 0:
                    sink.sendall(data[:200])
                    break
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class _Ranges(SimpleHTTPRequestHandler):
    """Static files with byte ranges; `asked` gets every path and range."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments, asked: list, ranges: bool, **settings):
        self._asked, self._ranges = asked, ranges
        super().__init__(*arguments, **settings)

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        wanted = self.headers.get("Range")
        self._asked.append((path.name, wanted))
        if not wanted or not self._ranges or not path.is_file():
            super().do_GET()
            return
        first, last = (int(side) for side in wanted.removeprefix("bytes=").split("-"))
        data = path.read_bytes()
        part = data[first:last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *about) -> None:
        pass


@contextmanager
def web(folder: Path, ranges: bool = True) -> Iterator[tuple[int, list]]:
    """A web server over a folder: (port, what was asked)."""
    asked: list = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Ranges, directory=str(folder), asked=asked, ranges=ranges))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1], asked
    finally:
        server.shutdown()
        server.server_close()


def eventually(holds: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    return holds()
