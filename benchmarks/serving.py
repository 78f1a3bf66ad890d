"""Many clients at once against `nvlm serve`: every answer counted, latencies, and what the server holds before and after.

    python -m benchmarks.serving CHECKPOINT [SETTING …] [--clients 64] [--seconds 60] [--warm 60] [--json FILE]

Starts the server itself, on a free port. Each client asks, waits for the answer, and asks again: half of them streamed, half
about a picture; one in eight leaves in the middle of every second answer or so. The server's memory, open files and threads are
read after as much load to warm up, and again after the load, both times at rest; between the two nothing may have grown.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import psutil
from PIL import Image

from benchmarks.results import tell

REST_S, START_S = 3.0, 300.0
QUESTIONS = ("What is it?", "What word is written?", "Calculate 6 + 9.", "Which colour has the shape, and where is it?")


@contextmanager
def server(checkpoint: str, settings: list[str]) -> Iterator[tuple[psutil.Process, str]]:
    """(its process, its address), once it answers; told to stop at the end, which must be with exit code 0."""
    command = [sys.executable, "-m", "nvlm_train", "serve", f"checkpoint={checkpoint}", "serve.port=0", *settings]
    with tempfile.NamedTemporaryFile("w+", suffix=".log") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": os.getcwd()})
        try:
            until, found = time.monotonic() + START_S, None
            while not (found := re.search(r"is served at (\S+)", Path(log.name).read_text())):
                if process.poll() is not None or time.monotonic() > until:
                    raise SystemExit(f"the server did not start:\n{Path(log.name).read_text()}")
                time.sleep(0.1)
            yield psutil.Process(process.pid), found[1]
            process.terminate()
            if code := process.wait(60):
                raise SystemExit(f"the server ended with {code}:\n{Path(log.name).read_text()}")
        finally:
            process.kill()


def held(process: psutil.Process) -> dict[str, float]:
    """What a process holds: resident memory in MiB, open files and sockets, threads."""
    return {"rss_mib": round(process.memory_info().rss / 2**20, 1), "files": process.num_fds(), "threads": process.num_threads()}


def picture(number: int) -> str:
    out = io.BytesIO()
    Image.new("RGB", (128 + 16 * (number % 5), 64), (number * 37 % 256, number * 91 % 256, 128)).save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def body(number: int, ask: int) -> dict:
    text = {"type": "text", "text": QUESTIONS[(number + ask) % len(QUESTIONS)]}
    shown = [{"type": "image_url", "image_url": {"url": picture(number)}}] if number % 2 else []
    return {"messages": [{"role": "user", "content": [*shown, text]}], "max_tokens": 16, "temperature": 1.0, "seed": number,
            "stream": number // 2 % 2 == 0}


async def client(session: aiohttp.ClientSession, url: str, number: int, until: float, seen: Counter,
                 latencies: list[float]) -> None:
    """Ask until the time is over."""
    ask, luck = 0, random.Random(number)
    while time.monotonic() < until:
        ask += 1
        began, asked = time.monotonic(), body(number, ask)
        async with session.post(f"{url}/v1/chat/completions", json=asked) as response:
            if number % 8 == 1 and luck.random() < 0.5:     # one whose answers are streamed
                await response.content.readline()
                response.close()        # gone, with the answer half written
                seen["left"] += 1
                continue
            said = await response.text()
            whole = said.endswith("data: [DONE]\n\n") if asked["stream"] else "choices" in json.loads(said)
            seen["answered" if whole else f"status {response.status}"] += 1
            latencies.append(time.monotonic() - began)


async def load(url: str, clients: int, seconds: float) -> dict:
    """What so many clients saw in so many seconds."""
    seen: Counter = Counter()
    latencies: list[float] = []
    until = time.monotonic() + seconds
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=120)) as session:
        done = await asyncio.gather(*(client(session, url, number, until, seen, latencies) for number in range(clients)),
                                    return_exceptions=True)
    for problem in (each for each in done if each is not None):
        seen[type(problem).__name__] += 1
    cut = statistics.quantiles(latencies, n=100)
    return {"seen": dict(seen), "errors": sum(count for what, count in seen.items() if what not in ("answered", "left")),
            "per_second": round(seen["answered"] / seconds, 1), "p50_s": round(cut[49], 3), "p95_s": round(cut[94], 3),
            "p99_s": round(cut[98], 3)}


async def in_flight(url: str) -> int:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as response:
        return int(re.search(r"^nvlm_requests_in_flight (\d+)$", await response.text(), re.MULTILINE)[1])


def measure(checkpoint: str, settings: list[str], clients: int, seconds: float, warm: float) -> dict:
    """The whole run."""
    with server(checkpoint, settings) as (process, url):
        asyncio.run(load(url, clients, warm))
        time.sleep(REST_S)
        before = held(process)
        found = asyncio.run(load(url, clients, seconds))
        time.sleep(REST_S)
        return {"clients": clients, "seconds": seconds, **found, "before": before, "after": held(process),
                "left_in_flight": asyncio.run(in_flight(url))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--warm", type=float, default=60.0, help="seconds of load before anything is measured")
    parser.add_argument("--json", metavar="FILE", help="also write the result there")
    given = parser.parse_args()
    tell(measure(given.checkpoint, given.settings, given.clients, given.seconds, given.warm), given.json)


if __name__ == "__main__":
    main()
