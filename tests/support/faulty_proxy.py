"""An HTTP proxy that injects faults into some requests: errors, resets, delays, truncated bodies."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

HOP = {"connection", "transfer-encoding", "content-length", "server", "date"}
ERRORS = {403: "AccessDenied", 500: "InternalError", 503: "SlowDown"}


@dataclass
class Fault:
    """A fault for requests of ``method`` whose path contains ``path``, ``times`` times (-1: always).

    kind: an HTTP status (403, 500, 503), "reset" (connection reset without an answer), "cut" (half of the body, then
    the connection closes), "short" (half of the body as a complete answer), or "delay" (the answer after ``seconds``).
    """

    kind: int | str
    method: str = "GET"
    path: str = ""
    times: int = 1
    seconds: float = 0.5
    after: int = 0
    """Number of matching requests that pass before the first fault."""


@dataclass
class Proxy:
    """The proxy's address, the pending faults, and the log of injected ones."""

    url: str
    faults: list[Fault] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    uploaded: int = 0
    """Bytes of the request bodies so far."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self, method: str, path: str) -> Fault | None:
        """Return the fault of this request, if any, and count it."""
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and fault.path in path:
                    if fault.after:
                        fault.after -= 1
                        return None
                    fault.times -= 1
                    self.done.append(f"{fault.kind} {method} {path}")
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy
    upstream: tuple[str, int]

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""

    def _any(self) -> None:
        body = self._body()
        with self.proxy.lock:
            self.proxy.uploaded += len(body)
        fault = self.proxy.next(self.command, self.path)
        if fault is None:
            self._answer(*self._ask(body))
        elif isinstance(fault.kind, int):
            xml = f"<?xml version='1.0'?><Error><Code>{ERRORS[fault.kind]}</Code><Message>a fault</Message></Error>"
            self._answer(fault.kind, [("Content-Type", "application/xml")], xml.encode())
        elif fault.kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
        elif fault.kind == "delay":
            time.sleep(fault.seconds)
            self._answer(*self._ask(body))
        else:
            status, headers, content = self._ask(body)
            half = content[: len(content) // 2]
            self._answer(status, headers, half, len(half) if fault.kind == "short" else len(content))
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _any  # noqa: N815

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        if self.headers.get("Expect", "").lower() == "100-continue":
            pass  # BaseHTTPRequestHandler has already answered
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        line = http.client.HTTPConnection(*self.upstream, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("transfer-encoding", "expect")}
        headers["Content-Length"] = str(len(body))
        line.request(self.command, self.path, body, headers)
        answer = line.getresponse()
        content = answer.read()
        self._size = answer.headers.get("Content-Length")
        line.close()
        return answer.status, answer.getheaders(), content

    def _answer(
        self, status: int, headers: list[tuple[str, str]], content: bytes, said: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in HOP:
                self.send_header(name, value)
        length = self._size if self.command == "HEAD" and status < 300 else said
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def faulty_proxy(upstream: str) -> Iterator[Proxy]:
    """Run a proxy for ``upstream`` on a free local port; it has no faults until the test adds some."""
    address = urlsplit(upstream)
    assert address.hostname
    assert address.port
    handler = type("Handler", (_Handler,), {"upstream": (address.hostname, address.port)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    handler.proxy = Proxy(f"http://127.0.0.1:{server.server_address[1]}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield handler.proxy  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
