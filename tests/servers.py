"""A real OpenAI-compatible chat server on 127.0.0.1, whose manners a test chooses. The fixture is `chat_server` (conftest.py).

chat_server.replies = lambda messages: "7"           # what it says, or one of the behaviours below
chat_server.replies = in_turn(Status(500), "7")      # fails once, then answers
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Status:
    """Answers with an HTTP error; asks the client to come back at once, so that a retry costs a test nothing."""

    code: int
    message: str = "the server is broken"


@dataclass(frozen=True)
class Body:
    """Answers 200 with this very body, whatever it is."""

    text: str
    content_type: str = "application/json"


@dataclass(frozen=True)
class Late:
    """Answers after a while."""

    text: str
    seconds: float


class Silence:
    """Takes the request and never answers."""


class HangUp:
    """Closes the connection without an answer."""


Reply = str | Status | Body | Late | Silence | HangUp


@dataclass
class ChatServer:
    """The server as a test sees it. `requests` are the bodies and `headers` the headers in the order of arrival."""

    url: str
    replies: Callable[[Messages], Reply] = lambda messages: "good"
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)


def in_turn(*replies: Reply) -> Callable[[Messages], Reply]:
    """Each reply once, in order; the last for ever."""
    lock, left = threading.Lock(), list(replies)

    def next_one(messages: Messages) -> Reply:
        with lock:
            return left.pop(0) if len(left) > 1 else left[0]

    return next_one


def completion(content: str | None) -> dict[str, Any]:
    """The body of a good answer."""
    message = {"role": "assistant", "content": content}
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": "test-model",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }  # fmt: skip


def _handler(server: ChatServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                server.requests.append(body)
                server.headers.append({key.lower(): value for key, value in self.headers.items()})
            if self.path != "/v1/chat/completions":
                return self.send(404, json.dumps({"error": {"message": f"no route {self.path}"}}))
            return self.answer(server.replies(body["messages"]))

        def answer(self, reply: Reply) -> None:
            match reply:
                case str():
                    self.send(200, json.dumps(completion(reply)))
                case Status(code, message):
                    self.send(code, json.dumps({"error": {"message": message}}))
                case Body(text, content_type):
                    self.send(200, text, content_type)
                case Late(text, seconds):
                    server.closing.wait(seconds)
                    self.send(200, json.dumps(completion(text)))
                case Silence():
                    server.closing.wait()
                    self.close_connection = True
                case HangUp():
                    self.close_connection = True

        def send(self, status: int, text: str, content_type: str = "application/json") -> None:
            data = text.encode()
            try:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(data)))
                if status >= 400:
                    self.send_header("retry-after-ms", "1")  # the client's own backoff starts at half a second
                self.end_headers()
                self.wfile.write(data)
            except (BrokenPipeError, ConnectionResetError):  # the client gave up waiting
                self.close_connection = True

    return Handler


@contextmanager
def serve() -> Iterator[ChatServer]:
    """A running server; silent connections are let go at the end."""
    server = ChatServer("")
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        http.shutdown()
        thread.join()
        http.server_close()
