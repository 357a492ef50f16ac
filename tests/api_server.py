"""A server that answers chat completions as a script says, and counts what it was asked.

Knows: HTTP, the shape of a completion, ways to fail. Does not know: mixtune.
"""

import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HANGS = 30.0
"""Seconds that a hanging socket stays open at most; the server's end lets it go."""


@dataclass(frozen=True)
class Reply:
    """Bytes with a status; or a way to fail while they are sent."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    how: str = ""


def say(
    text: str | None,
    finish: str = "stop",
    refusal: str | None = None,
    tokens: tuple[int, int] | None = (20, 3),
) -> Reply:
    """A completion."""
    body: dict[str, Any] = {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "served-by-this",
        "choices": [
            {
                "index": 0,
                "finish_reason": finish,
                "message": {"role": "assistant", "content": text, "refusal": refusal},
            }
        ],
    }
    if tokens:
        body["usage"] = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    return Reply(json.dumps(body).encode())


def fault(status: int, message: str = "no", code: str = "", **headers: str) -> Reply:
    """An HTTP error; headers with _ for -."""
    body = {"error": {"message": message, "code": code}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(json.dumps(body).encode(), status, named)


def garbage(text: str) -> Reply:
    """A success whose body is no completion."""
    return Reply(text.encode())


HALF = Reply(say("wet").body, how="half")
HANG = Reply(how="hang")
RESET = Reply(how="reset")

Script = Callable[[dict[str, Any], int], Reply]
"""The request's body, and how often this very request was asked before → a reply."""


class Server(ThreadingHTTPServer):
    """`asked`: every request's body in order; `answered`: how often each got a whole answer."""

    daemon_threads = True

    def __init__(self, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.asked: list[dict[str, Any]] = []
        self.headers_seen: list[dict[str, str]] = []
        self.answered: Counter[str] = Counter()
        self.most_at_once = 0
        self.released = threading.Event()
        self._times: Counter[str] = Counter()
        self._now = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @contextmanager
    def at_work(self, body: dict[str, Any]) -> Iterator[tuple[str, int]]:
        key = json.dumps(body, sort_keys=True)
        with self._lock:
            before = self._times[key]
            self._times[key] += 1
            self.asked.append(body)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            yield key, before
        finally:
            with self._lock:
                self._now -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up on purpose here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/chat/completions"
        self.server.headers_seen.append({k.lower(): v for k, v in self.headers.items()})
        with self.server.at_work(body) as (key, before):
            reply = self.server.script(body, before)
            if reply.how == "hang":
                self.server.released.wait(HANGS)
            elif reply.how == "reset":
                self.connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
            else:
                self._send(reply)
                if reply.status == 200 and not reply.how:
                    self.server.answered[key] += 1
        if reply.how:
            self.close_connection = True
            self.connection.close()

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply.body)))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body[: len(reply.body) // 2] if reply.how == "half" else reply.body)
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@contextmanager
def serving(script: Script) -> Iterator[Server]:
    """A server for as long as the body runs."""
    server = Server(script)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
