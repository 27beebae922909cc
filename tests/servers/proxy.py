"""A proxy between the program and a server that answers rightly: it cuts, delays, garbles or swaps what passes."""

import http.client
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

Reply = tuple[int, bytes]
Deed = Callable[["Handler", Callable[[], Reply]], None]
"""What becomes of one request: it may fetch the right reply, and answers over the handler, or not at all."""


class Handler(BaseHTTPRequestHandler):
    """Hands every request on, or does with it what its proxy was told."""

    protocol_version = "HTTP/1.1"
    proxy: "Proxy"
    body: bytes

    def handle_any(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        deed = self.proxy.deed_for(self.path)
        if deed is None:
            self.answer(*self.upstream())
        else:
            self.close_connection = True
            deed(self, self.upstream)

    do_GET = do_POST = handle_any

    def upstream(self) -> Reply:
        parts = urlsplit(self.proxy.upstream)
        connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=120)
        try:
            connection.request(self.command, self.path, self.body, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            return reply.status, reply.read()
        except OSError:
            return 502, b"{}"
        finally:
            connection.close()

    def answer(self, status: int, body: bytes, *, said_length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body) if said_length is None else said_length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""


class Proxy(ThreadingHTTPServer):
    """Listens on a free port of this machine; `faulty(path, deed, times)` spoils the next requests to a path."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), type("Bound", (Handler,), {"proxy": self}))
        self.upstream = upstream
        self.spoiled = 0
        self._faults: dict[str, tuple[Deed, int]] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def faulty(self, path: str, deed: Deed, times: int = 1) -> None:
        self._faults[path] = deed, times

    def deed_for(self, path: str) -> Deed | None:
        with self._lock:
            deed, times = self._faults.get(path, (None, 0))
            if deed is None or times == 0:
                return None
            self._faults[path] = deed, times - 1
            self.spoiled += 1
            return deed

    def handle_error(self, request: object, client_address: object) -> None:
        """The other side has hung up: that is what is tried here."""


# --- deeds: ways of the wire


def cut_in_half(handler: Handler, fetch: Callable[[], Reply]) -> None:
    status, body = fetch()
    handler.answer(status, body[: len(body) // 2], said_length=len(body))


def hang(handler: Handler, fetch: Callable[[], Reply]) -> None:
    time.sleep(8)


def drip(handler: Handler, fetch: Callable[[], Reply]) -> None:
    _, body = fetch()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    for byte in body:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        time.sleep(0.1)


def reset(handler: Handler, fetch: Callable[[], Reply]) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def noise(handler: Handler, fetch: Callable[[], Reply]) -> None:
    handler.wfile.write(bytes(range(256)) * 8)


def status(code: int, text: str = "{}") -> Deed:
    return lambda handler, fetch: handler.answer(code, text.encode())


def redirect(handler: Handler, fetch: Callable[[], Reply]) -> None:
    handler.send_response(307)
    handler.send_header("Location", "http://127.0.0.1:9/elsewhere")
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def text(body: str) -> Deed:
    return lambda handler, fetch: handler.answer(200, body.encode())


def changed(change: Callable[[dict[str, Any]], object]) -> Deed:
    """The right reply with something changed in place."""

    def deed(handler: Handler, fetch: Callable[[], Reply]) -> None:
        code, body = fetch()
        reply = json.loads(body)
        change(reply)
        handler.answer(code, json.dumps(reply).encode())

    return deed


def asked_otherwise(change: Callable[[dict[str, Any]], object]) -> Deed:
    """The reply to a request that was changed on the way."""

    def deed(handler: Handler, fetch: Callable[[], Reply]) -> None:
        request = json.loads(handler.body)
        change(request)
        handler.body = json.dumps(request).encode()
        handler.answer(*fetch())

    return deed


class Gate:
    """A deed that holds requests for as long as a test lasts; those for log-probs of a text pass."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self, handler: Handler, fetch: Callable[[], Reply]) -> None:
        if b"prompt_logprobs" in handler.body:
            handler.answer(*fetch())
            return
        self.reached.set()
        self.opened.wait()
