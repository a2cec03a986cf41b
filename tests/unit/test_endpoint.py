"""The OpenAI-compatible endpoint against a real server on this machine: answers, and every way in which one fails."""

from __future__ import annotations

import json
import logging
import socket
import threading

import pytest

from tasks.config import Service
from tasks.generation.endpoint import Endpoint, EndpointError
from tests.servers import Body, HangUp, Late, Silence, Status, completion, in_turn

HELLO = [{"role": "user", "content": "hello"}]
KEY = "sk-secret-1234567890"


def endpoint(url: str, **settings: object) -> Endpoint:
    return Endpoint(Service.model_validate({"url": url, "model": "test-model", "timeout": 5, "retries": 0} | settings))


def test_an_answer_and_what_was_asked(chat_server, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    chat_server.replies = lambda messages: f"  you said {messages[-1]['content']}\n"
    asked = endpoint(chat_server.url, key_variable="JUDGE_KEY", temperature=0.3, max_tokens=77)
    assert asked.complete(HELLO) == "you said hello"
    assert chat_server.requests == [{"model": "test-model", "messages": HELLO, "temperature": 0.3, "max_tokens": 77}]
    assert chat_server.headers[0]["authorization"] == f"Bearer {KEY}"


def test_without_a_key_a_local_server_is_still_asked(chat_server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert endpoint(chat_server.url).complete(HELLO) == "good"
    assert chat_server.headers[0]["authorization"] == "Bearer none"


def test_a_failure_that_passes_is_asked_again(chat_server):
    chat_server.replies = in_turn(Status(500), Status(429), "good")
    assert endpoint(chat_server.url, retries=2).complete(HELLO) == "good"
    assert len(chat_server.requests) == 3


@pytest.mark.parametrize(
    ("reply", "retries", "asked", "message"),
    [
        (Status(500, "out of memory"), 2, 3, r"the server failed, 3 attempts: .*out of memory.*server's log"),
        (Status(429, "slow down"), 1, 2, r"too many requests, 2 attempts"),
        (Status(401, "bad key"), 3, 1, r"refuses the key.*bad key.*environment variable OPENAI_API_KEY"),
        (Status(404, "no model test-model"), 3, 1, r"no such model or path.*no model test-model"),
        (Status(400, "context too long"), 3, 1, r"refuses the request.*context too long"),
        (Body("<html>welcome</html>", "text/html"), 3, 1, r"no chat completion: <html>welcome</html>"),
        (Body("{not json"), 3, 1, r"no chat completion: \{not json"),
        (Body("[1, 2]"), 3, 1, r"no chat completion: \[1, 2\]"),
        (Body('{"choices": null}'), 3, 1, r"no chat completion"),
        (Body(""), 3, 1, r"no chat completion"),
        (Body('{"choices": []}'), 3, 1, r"its answer is empty"),
        (Body(json.dumps(completion(None))), 3, 1, r"its answer is empty"),
        (" \n ", 3, 1, r"its answer is empty"),
        (Body(json.dumps(completion("half a")).replace('"stop"', '"length"')), 3, 1, r"cut off at max_tokens 4096"),
        (HangUp(), 0, 1, r"no connection \(.+\), 1 attempts; start the server"),
    ],
)
def test_each_failure_is_one_clear_error(chat_server, reply, retries, asked, message):
    chat_server.replies = lambda messages: reply
    with pytest.raises(EndpointError, match=message) as caught:
        endpoint(chat_server.url, retries=retries).complete(HELLO)
    assert len(chat_server.requests) == asked
    text = str(caught.value)
    assert chat_server.url in text and "test-model" in text and "\n" not in text and len(text) < 400


def test_a_server_that_never_answers_costs_the_timeout(chat_server):
    chat_server.replies = lambda messages: Silence()
    with pytest.raises(EndpointError, match=r"no whole answer within 0\.2 s, 1 attempts"):
        endpoint(chat_server.url, timeout=0.2).complete(HELLO)


def test_a_slow_answer_in_time_is_an_answer(chat_server):
    chat_server.replies = lambda messages: Late("at last", 0.2)
    assert endpoint(chat_server.url).complete(HELLO) == "at last"


def test_blank_lines_that_keep_the_connection_alive_do_not_hold_it_open_for_ever():
    """Some services send them while they think: each restarts the library's timeout, the deadline ends it all the same."""
    listener, over = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def drip() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
            try:
                while not over.wait(0.02):
                    connection.sendall(b"\n")
            except OSError:
                pass

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        with pytest.raises(EndpointError, match="no whole answer within"):
            endpoint(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", timeout=0.3).complete(HELLO)
    finally:
        over.set()
        thread.join()
        listener.close()


def test_blank_lines_before_the_answer_are_skipped(chat_server):
    chat_server.replies = lambda messages: Body("\n\n" + json.dumps(completion("good")))
    assert endpoint(chat_server.url).complete(HELLO) == "good"


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(EndpointError, match=rf"127\.0\.0\.1:{port}/v1 \(model test-model\): no connection \(.+\)"):
        endpoint(f"http://127.0.0.1:{port}/v1").complete(HELLO)


def test_the_key_is_in_no_error_and_no_log(chat_server, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n")  # a line break at the end, as from a file
    chat_server.replies = lambda messages: Status(401, f"Incorrect API key provided: {KEY}")
    with pytest.raises(EndpointError, match=r"provided: \*\*\*") as caught:
        endpoint(chat_server.url).complete(HELLO)
    assert chat_server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert KEY not in str(caught.value) and KEY not in caplog.text
    monkeypatch.setenv("OPENAI_API_KEY", "sk-se\ncret")
    with pytest.raises(EndpointError, match="the key in the environment variable OPENAI_API_KEY is not printable ASCII") as caught:
        endpoint(chat_server.url)
    assert "sk-se" not in str(caught.value)


def test_many_are_asked_at_a_time_and_come_back_in_order(chat_server):
    """Eight are in flight together: each waits until all of them have arrived."""
    together = threading.Barrier(8)

    def reply(messages: list[dict[str, str]]) -> str | Status:
        together.wait(5)
        number = int(messages[0]["content"])
        return Status(400, "odd") if number % 2 else str(number)

    chat_server.replies = reply
    found = endpoint(chat_server.url).complete_all([[{"role": "user", "content": str(i)}] for i in range(16)], 8)
    assert found[::2] == [str(i) for i in range(0, 16, 2)]
    assert all(isinstance(error, EndpointError) and "odd" in str(error) for error in found[1::2])
    assert endpoint(chat_server.url).complete_all([]) == []


def test_no_more_than_the_concurrency_are_asked_at_a_time(chat_server):
    lock, open_now, most = threading.Lock(), [0], [0]

    def reply(messages: list[dict[str, str]]) -> str:
        with lock:
            open_now[0] += 1
            most[0] = max(most[0], open_now[0])
        threading.Event().wait(0.02)
        with lock:
            open_now[0] -= 1
        return "good"

    chat_server.replies = reply
    assert endpoint(chat_server.url).complete_all([HELLO] * 9, 3) == ["good"] * 9
    assert most[0] <= 3
