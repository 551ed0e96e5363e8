"""An interpreter without a network: what a program in it may connect to is the machine itself.

`environment(folder)` gives variables under which Python and all Python processes below it refuse connections, names to
look up and data to send, and note each attempt in a file, so that none can be swallowed.
"""

from __future__ import annotations

import os
from pathlib import Path

# Dask connects a datagram socket, which sends nothing, to learn the machine's own address
SITE = """
import socket, sys

LOCAL = {"127.0.0.1", "::1", "localhost", "0.0.0.0", "", None}

def refuse(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        opened, address = arguments[:2]
        harmless = event == "socket.connect" and opened.type == socket.SOCK_DGRAM
        host = address[0] if isinstance(address, tuple) and not harmless else None
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = arguments[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host not in LOCAL and host != socket.gethostname():
        with open(LOG, "a") as log:
            log.write(f"{event} {host}\\n")
        raise PermissionError(f"no network here: {event} {host}")

sys.addaudithook(refuse)
"""


def environment(folder: Path) -> dict[str, str]:
    """Variables for a process without a network; attempts are noted in `folder / "attempts"`."""
    (folder / "sitecustomize.py").write_text(SITE.replace("LOG", repr(str(folder / "attempts"))))
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)}


def attempts(folder: Path) -> list[str]:
    """What was attempted."""
    path = folder / "attempts"
    return path.read_text().splitlines() if path.exists() else []
