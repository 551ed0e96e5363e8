"""Headless Chromium over its debugging pipe, by the standard library alone; for docs/check.py."""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import time
from typing import Any

# Chromium's own calls home are off, and names of other machines do not resolve
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--remote-debugging-pipe",
]  # fmt: skip


class Browser:
    """A context manager: `visit(address)` loads a page and returns its faults, `run(script)` a script's value."""

    def __init__(self, chromium: str, home: str, *, timeout: float = 60.0) -> None:
        self.command, self.home, self.timeout = chromium, home, timeout

    def __enter__(self) -> Browser:
        self.folder = tempfile.TemporaryDirectory(prefix="difflayers-check-", ignore_cleanup_errors=True)
        to_read, self.to_write = os.pipe()
        self.to_read, to_write = os.pipe()

        def pipes() -> None:  # Chromium reads file 3 and writes file 4; the numbers given may be these
            first, second = os.dup(to_read), os.dup(to_write)
            os.dup2(first, 3)
            os.dup2(second, 4)

        self.process = subprocess.Popen(
            [self.command, *FLAGS, f"--user-data-dir={self.folder.name}", "about:blank"],
            preexec_fn=pipes, close_fds=False, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        self.buffer, self.events, self.number, self.session = b"", [], 0, None
        pages = [t for t in self._call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        attached = self._call("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.to_read)
        os.close(self.to_write)
        self.folder.cleanup()

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            if not select.select([self.to_read], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"{self.command}: no answer in {self.timeout} s")
            received = os.read(self.to_read, 1 << 16)
            if not received:
                raise RuntimeError(f"{self.command}: ended with status {self.process.wait()}")
            self.buffer += received
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.to_write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + self.timeout
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def run(self, script: str) -> Any:
        """The value of an expression in the page; promises are waited for."""
        result = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{script}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def visit(self, address: str) -> list[str]:
        """Loads a page and waits until it is quiet."""
        self.events.clear()
        self._call("Page.navigate", url=address)
        deadline = time.monotonic() + self.timeout
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive(deadline))
        self.run("new Promise(done => setTimeout(done, 100))")  # what scripts ask for after loading
        return self.faults()

    def faults(self) -> list[str]:
        """What has gone wrong since it was last asked."""
        found, asked = [], {}
        for event in self.events:
            method, about = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                details = about["exceptionDetails"]
                found.append("exception: " + details.get("exception", {}).get("description", details["text"]))
            elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
                found.append(f"console: {[part.get('value', part.get('description')) for part in about['args']]}")
            elif method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
                found.append(f"log: {about['entry']['text']} {about['entry'].get('url', '')}")
            elif method == "Network.requestWillBeSent":
                asked[about["requestId"]] = url = about["request"]["url"]
                if not url.startswith((self.home, "data:", "blob:" + self.home)):
                    found.append(f"asks another machine for {url}")
            elif method == "Network.responseReceived" and about["response"]["status"] >= 400:
                found.append(f"{about['response']['status']} for {about['response']['url']}")
            elif method == "Network.loadingFailed" and not about.get("canceled"):
                found.append(f"{about['errorText']} for {asked.get(about['requestId'])}")
        self.events.clear()
        return found
