"""An OpenAI-compatible chat endpoint that refines or judges: answers or one clear error, within bounded time.

What goes wrong (refused connection, silence, HTTP errors, an answer that is none) is an EndpointError with URL, model and remedy.
The key comes from an environment variable and never appears in an error or a log.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any, cast

import openai
from pydantic import BaseModel, ValidationError

from tasks.config import Service
from tasks.errors import SecondThoughtError

Messages = list[dict[str, str]]
LONGEST_PAUSE = 8.0  # seconds that the openai library waits between attempts, at most, unless the server asks for more
SHOWN = 120  # characters of a server's text that an error shows


class EndpointError(SecondThoughtError):
    """An endpoint gave no usable answer."""


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Completion(BaseModel):
    choices: list[_Choice]


class Endpoint:
    """Asks one model of one endpoint. Safe to use from several threads.

    The library's own read timeout starts anew with every byte, and some services send blank lines while they think; so an answer
    with all its attempts has a deadline of its own (`budget`).

    Raises:
        EndpointError: the key cannot be sent in an HTTP header.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self._key = os.environ.get(service.key_variable, "").strip()
        self.budget = service.timeout * (service.retries + 1) + LONGEST_PAUSE * service.retries  # seconds
        if not (self._key.isascii() and self._key.isprintable()):
            raise self._error(f"the key in the environment variable {service.key_variable} is not printable ASCII: set it again")

    def complete(self, messages: Messages) -> str:
        """The model's answer to one conversation, stripped and never empty.

        Raises:
            EndpointError: there is none.
        """
        answer = self.complete_all([messages], 1)[0]
        if isinstance(answer, EndpointError):
            raise answer
        return answer

    def complete_all(self, conversations: Sequence[Messages], concurrency: int = 8) -> list[str | EndpointError]:
        """Answers in the order of the conversations, `concurrency` of them asked at a time; a failure stands in its own place."""
        return asyncio.run(self._all(conversations, concurrency))

    async def _all(self, conversations: Sequence[Messages], concurrency: int) -> list[str | EndpointError]:
        service, gate, key = self.service, asyncio.Semaphore(concurrency), self._key or "none"
        async with openai.AsyncOpenAI(api_key=key, base_url=service.url, timeout=service.timeout, max_retries=service.retries) as client:

            async def one(messages: Messages) -> str | EndpointError:
                async with gate:
                    try:
                        return await self._ask(client, messages)
                    except EndpointError as error:
                        return error

            return await asyncio.gather(*map(one, conversations))

    async def _ask(self, client: openai.AsyncOpenAI, messages: Messages) -> str:
        service = self.service
        settings: dict[str, Any] = {"model": service.model, "temperature": service.temperature, "max_tokens": service.max_tokens}
        try:
            async with asyncio.timeout(self.budget):
                raw = await client.chat.completions.with_raw_response.create(messages=cast(Any, messages), **settings)
        except (openai.APITimeoutError, TimeoutError) as error:
            raise self._error(f"no whole answer within {service.timeout:g} s, {self._attempts}; raise its timeout or ask less") from error
        except openai.APIConnectionError as error:
            cause = self._quote(str(error.__cause__ or error))
            raise self._error(f"no connection ({cause}), {self._attempts}; start the server or correct the url") from error
        except openai.APIStatusError as error:
            raise self._error(self._status(error)) from None  # its headers are nobody's business
        return self._read(raw.text)

    @property
    def _attempts(self) -> str:
        return f"{self.service.retries + 1} attempts"

    def _status(self, error: openai.APIStatusError) -> str:
        code, said = error.status_code, self._quote(error.message)
        if code in (401, 403):
            return f"it refuses the key: {said}; put a valid key into the environment variable {self.service.key_variable}"
        if code == 404:
            return f"it knows no such model or path: {said}; correct url (it ends in /v1 as a rule) or model"
        if code == 429:
            return f"too many requests, {self._attempts}: {said}; wait, or raise retries"
        if code >= 500:
            return f"the server failed, {self._attempts}: {said}; see the server's log"
        return f"it refuses the request: {said}; check the model's limits, temperature and max_tokens"

    def _read(self, body: str) -> str:
        try:
            choices = _Completion.model_validate_json(body.strip()).choices
        except ValidationError:
            raise self._error(
                f"its answer is no chat completion: {self._quote(body)}; is the url that of an OpenAI-compatible API?"
            ) from None
        if not choices or not (text := (choices[0].message.content or "").strip()):
            raise self._error("its answer is empty; ask another model or look at the server's log")
        if choices[0].finish_reason == "length":
            raise self._error(f"its answer was cut off at max_tokens {self.service.max_tokens}: raise max_tokens")
        return text

    def _quote(self, text: str) -> str:
        """A server's text in one line, shortened, without the key (some servers repeat it)."""
        text = " ".join(text.split())
        if self._key:
            text = text.replace(self._key, "***")
        return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."

    def _error(self, what: str) -> EndpointError:
        return EndpointError(f"the endpoint {self.service.url} (model {self.service.model}): {what}")
