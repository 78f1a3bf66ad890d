"""A real Chromium without a window, driven over its DevTools protocol."""

import asyncio
import base64
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-extensions", "--disable-default-apps", "--mute-audio",
         "--hide-scrollbars", "--remote-debugging-port=0")
LIMIT_S = 90


def chromium() -> str | None:
    """Where it is; None: nowhere."""
    return next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)


class Tab:
    """One page. errors: what its scripts threw, and what its policy blocked. asked: addresses that it asked for."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wire: aiohttp.ClientWebSocketResponse):
        self._loop, self._wire, self._count = loop, wire, 0
        self.errors: list[str] = []
        self.asked: list[str] = []
        self._loaded: set[str] = set()
        self._at = ""

    def call(self, method: str, **parameters) -> dict:
        """A command of the protocol, and its result."""
        return self._loop.run_until_complete(asyncio.wait_for(self._call(method, parameters), LIMIT_S))

    def open(self, url: str) -> None:
        """Go to a page, and wait until it is loaded. The address is with its path."""
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=url)
        while url not in self._loaded:      # until then scripts may still meet the page before
            self._loop.run_until_complete(asyncio.wait_for(self._receive(), LIMIT_S))

    def value(self, script: str):
        """What an expression gives; promises are awaited."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, script: str) -> None:
        """Until an expression is true."""
        until = time.monotonic() + LIMIT_S
        while not self.value(f"Boolean({script})"):
            assert time.monotonic() < until, (script, self.errors, self.value("document.body.innerText"))
            time.sleep(0.02)

    def type(self, selector: str, text: str) -> None:
        self.value(f"document.querySelector({json.dumps(selector)}).focus()")
        self.call("Input.insertText", text=text)

    def press_enter(self) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")

    def click(self, selector: str) -> None:
        """Where it is, as a hand would: what lies under something else is not reached."""
        x, y = self.value(f"(() => {{ const box = document.querySelector({json.dumps(selector)}).getBoundingClientRect(); "
                          "return [box.x + box.width / 2, box.y + box.height / 2]; })()")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def drop(self, *files: Path) -> None:
        """Drag files over the middle of the page, and let go."""
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=300, y=300, data=data)

    def look(self, width: int, height: int, dark: bool = False) -> None:
        """The size of the window in pixels, and the colours that the person prefers."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def screenshot(self) -> bytes:
        """PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    async def _call(self, method: str, parameters: dict) -> dict:
        self._count += 1
        await self._wire.send_json({"id": self._count, "method": method, "params": parameters})
        while (told := await self._receive()).get("id") != self._count:
            pass
        assert "error" not in told, (method, told["error"])
        return told["result"]

    async def _receive(self) -> dict:
        told = await self._wire.receive_json()
        self._note(told.get("method"), told.get("params", {}))
        return told

    def _note(self, event: str | None, facts: dict) -> None:
        if event == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(facts["exceptionDetails"]))
        elif event == "Log.entryAdded" and facts["entry"]["level"] == "error":
            self.errors.append(facts["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            self.asked.append(facts["request"]["url"])
        elif event == "Page.frameNavigated":
            self._at = facts["frame"]["url"]
        elif event == "Page.loadEventFired":
            self._loaded.add(self._at)


@contextmanager
def tab(folder: Path) -> Iterator[Tab]:
    """A browser of its own, with an empty profile in `folder`, and one page in it."""
    profile = folder / "profile"
    with (folder / "chromium.log").open("wb") as log:
        process = subprocess.Popen([chromium(), *FLAGS, f"--user-data-dir={profile}", "about:blank"], stdout=log, stderr=log,
                                   start_new_session=True, env={**os.environ, "HOME": str(folder)})
    loop = asyncio.new_event_loop()
    session = None
    try:
        port = _port(profile / "DevToolsActivePort", process)
        session, wire = loop.run_until_complete(asyncio.wait_for(_connect(port), LIMIT_S))
        yield Tab(loop, wire)
    finally:
        if session:
            loop.run_until_complete(session.close())
        loop.close()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _port(file: Path, process: subprocess.Popen) -> int:
    until = time.monotonic() + LIMIT_S
    while not (file.exists() and file.read_text().count("\n")):
        assert process.poll() is None and time.monotonic() < until, "the browser did not start"
        time.sleep(0.05)
    return int(file.read_text().split("\n")[0])


async def _connect(port: int) -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
    session = aiohttp.ClientSession()
    async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
        page = next(each for each in await response.json() if each["type"] == "page")
    return session, await session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)
