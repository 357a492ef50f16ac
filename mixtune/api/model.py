"""A model behind an OpenAI-compatible API as a system: queries in, answers out, in order.

Text is generated at temperature 0 with a seed. A label can be constrained to a JSON schema, which
is a form of its own. No such API returns log-probabilities of whole labels, so nothing is ranked.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mixtune.api.client import MAX_RETRY_AFTER, Endpoint, RequestFailed, RetryableError
from mixtune.api.entries import ApiSystem
from mixtune.api.ledger import Cache, Completion, Ledger, dollars, request_key
from mixtune.errors import MixtuneError, RunFailed
from mixtune.identity import digest
from mixtune.records import Answer, Example, Message, Query, Usage
from mixtune.signals import defer_signals
from mixtune.tasks.parsers.labels import response_format

TOKENS_PER_MESSAGE = 16
"""Tokens that a chat template may add to a message: role, start and end markers."""
TOKENS_PER_REQUEST = 256
"""Tokens that an endpoint may add to a request: its template, a system message of its own."""

FAILED_SHARE = 20
"""One in so many requests may fail for good and count as unparsed; one always may."""
FAILED_AT_FIRST = 3
"""Requests that fail before any is answered, after which no further one is sent."""

Body = dict[str, Any]
Messages = list[dict[str, str]]


class TokenBounds(NamedTuple):
    """Maximum prompt and generated tokens of a request."""

    prompt: int
    generated: int


class Reply(NamedTuple):
    """A completion and the attempts it took; 0 attempts for a cache hit."""

    completion: Completion
    attempts: int


@dataclass(frozen=True, slots=True)
class Prompting:
    """Text before a query: few-shot examples of its task, an instruction."""

    shots: tuple[Example, ...] = ()
    instruction: str = ""


@dataclass(frozen=True)
class Asking:
    """Settings of a study's requests: endpoint, ledger, cache, concurrency, callbacks."""

    endpoint: Endpoint
    ledger: Ledger
    cache: Cache = field(default_factory=Cache)
    concurrency: int = 8
    on_progress: Callable[[int, int], None] = lambda done, total: None
    on_note: Callable[[str], None] = lambda text: None


def conversation(query: Query, shots: Sequence[Example] = (), instruction: str = "") -> Messages:
    """The messages of a query: instruction, shots with their targets, question."""
    turns = [Message("system", instruction)] if instruction else []
    # A task's system message applies to the shots as well, so it appears once, before them.
    turns += [turn for turn in query.messages if turn.role == "system"]
    for shot in shots:
        turns += [turn for turn in shot.messages if turn.role != "system"]
        turns.append(Message("assistant", shot.target))
    turns += [turn for turn in query.messages if turn.role != "system"]
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def request_body(
    system: ApiSystem, query: Query, prompting: Prompting, max_new_tokens: int, schema: bool
) -> Body:
    """The request body for a query; `schema` constrains the answer to the query's choices."""
    messages = conversation(query, prompting.shots, prompting.instruction)
    body = {"model": system.model, "messages": messages, **system.decoding(max_new_tokens)}
    return body | {"response_format": response_format(query.choices)} if schema else body


def token_bounds(body: Mapping[str, Any]) -> TokenBounds:
    """Upper bounds on the tokens of a request, without its tokenizer."""
    # A token of a byte-level vocabulary covers at least one byte, so bytes bound the tokens.
    contents = [message["content"] for message in body["messages"]]
    prompt = sum(len(text.encode()) + TOKENS_PER_MESSAGE for text in contents) + TOKENS_PER_REQUEST
    if "response_format" in body:
        prompt += len(str(body["response_format"]).encode())
    return TokenBounds(prompt, int(body.get("max_completion_tokens") or body["max_tokens"]))


def cost_of(
    system: ApiSystem, body: Mapping[str, Any], completion: Completion | None = None
) -> int:
    """Cost of a request in picodollars, 0 without a price.

    Without a completion its maximum; counts that the endpoint omits are taken as maximal too.
    """
    if system.price is None:
        return 0
    prompt, generated = token_bounds(body)
    if completion is not None:
        prompt = prompt if completion.tokens_in is None else completion.tokens_in
        generated = generated if completion.tokens_out is None else completion.tokens_out
    return system.price.of(prompt, generated)


class ApiModel:
    """An API model with a fixed prompting; `usage` holds one row per query of the last call."""

    def __init__(self, spec: ApiSystem, asking: Asking, prompting: Prompting) -> None:
        self.spec = spec
        self.system = spec.id
        self.prompting = prompting
        self.usage: list[Usage] = []
        self._asking = asking

    def rank(self, queries: Sequence[Query]) -> list[Answer]:
        """Not supported: always raises RunFailed."""
        raise RunFailed(f"{self.spec.name}: an API gives no log-probabilities of whole labels")

    def generate(self, queries: Sequence[Query], max_new_tokens: int) -> list[Answer]:
        """Text at temperature 0, at most `max_new_tokens` of the endpoint's tokens.

        Raises:
            RunFailed: requests failed for good, or all of their attempts did. A few of many that
                the endpoint cannot answer are unparsed answers instead, and noted.
            CeilingReached: the next request could exceed the budget. All completions are cached.
        """
        return self._answers(queries, max_new_tokens, schema=False)

    def choose(self, queries: Sequence[Query], max_new_tokens: int) -> list[Answer]:
        """One of each query's choices as JSON, if the endpoint complies; raises as `generate`."""
        return self._answers(queries, max_new_tokens, schema=True)

    def prompt_hash(self, query: Query) -> str:
        """Digest of the messages of a query."""
        return digest(conversation(query, self.prompting.shots, self.prompting.instruction))

    def _answers(self, queries: Sequence[Query], max_new_tokens: int, schema: bool) -> list[Answer]:
        spec = self.spec
        bodies = [request_body(spec, q, self.prompting, max_new_tokens, schema) for q in queries]
        keys = [request_key(spec.base_url, body) for body in bodies]
        # Another study with the same model waits here; afterwards, shared requests are cache hits.
        with self._asking.cache.lock(spec):
            batch = _Batch(spec, self._asking, dict(zip(keys, bodies, strict=True)))
            with defer_signals(batch.stop):
                replies = asyncio.run(batch.run())
        answers, self.usage = [], []
        for query, key, body in zip(queries, keys, bodies, strict=True):
            reply, tries = replies[key]
            answers.append(Answer(reply.text, (), reply.finish, reply.latency, reply.reasoning))
            cost = None if spec.price is None else dollars(cost_of(spec, body, reply))
            counts = reply.tokens_in, reply.tokens_out
            self.usage.append(Usage(query.id, *counts, cost, tries, reply.served))
        return answers


class _Batch:
    """Concurrent distinct requests, by key; after an error none is started and pending ones finish.

    Pending requests are not cancelled, because they may be charged all the same.
    """

    def __init__(self, spec: ApiSystem, asking: Asking, bodies: Mapping[str, Body]) -> None:
        self._spec = spec
        self._asking = asking
        self._bodies = bodies
        self._replies: dict[str, Reply] = {}
        self._failures: list[RequestFailed] = []
        self._error: Exception | None = None
        self._budget_freed = asyncio.Event()
        self._stopped = asyncio.Event()
        self._stops = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None

    def stop(self) -> None:
        """Start no further request; a second call cancels pending ones. Thread-safe."""
        self._stops += 1
        # A signal handler may not touch events of a running loop; the loop does it itself.
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        self._error = self._error or RunFailed(f"{self._spec.name}: stopped")
        self._stopped.set()
        self._budget_freed.set()
        if self._stops > 1 and self._task is not None:
            self._task.cancel()

    async def run(self) -> dict[str, Reply]:
        """Every reply by key; the first error is raised after the pending requests have ended."""
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        if self._stops:  # a signal came before the loop was known
            self._stop()
        for key in self._bodies:
            if (cached := self._asking.cache.get(key)) is not None:
                self._replies[key] = Reply(cached, 0)
        missing = [key for key in self._bodies if key not in self._replies]
        if missing:
            queue = iter(missing)  # shared: each worker takes the next request
            async with self._asking.endpoint.client() as client:
                count = min(self._asking.concurrency, len(missing))
                await asyncio.gather(*(self._worker(queue, client) for _ in range(count)))
        self._raise_error()
        self._note_failures()
        return self._replies

    def _note_failures(self) -> None:
        count, total = len(self._failures), len(self._bodies)
        if count == total:
            raise self._failures[0]
        if count:
            self._asking.on_note(
                f"{count} of {total} requests got no answer and count as unparsed; the first: "
                f"{self._failures[0]}"
            )

    async def _worker(self, queue: Iterator[str], client: Any) -> None:  # noqa: ANN401
        for key in queue:
            try:
                self._replies[key] = await self._reply(key, client)
            except RequestFailed as error:
                self._replies[key] = self._unanswered(error)
                if self._fails_for_most():
                    self._error = self._error or self._failures[0]
                    self._stopped.set()
                    return
            except (MixtuneError, OSError) as error:
                # Not raised here: gather would cancel the other workers' pending requests.
                self._error = self._error or error
                self._stopped.set()
                return
            self._asking.on_progress(len(self._replies), len(self._bodies))

    def _unanswered(self, error: RequestFailed) -> Reply:
        """An empty answer, which is unparsed; never cached, so that another study asks again."""
        self._failures.append(error)
        tokens = None if error.maybe_charged else 0
        return Reply(Completion("", "stop", tokens, tokens, "", 0.0), error.attempts)

    def _fails_for_most(self) -> bool:
        """True where the failures are the endpoint's rather than those of a few requests."""
        count = len(self._failures)
        answered = len(self._replies) - count
        at_first = not answered and count >= FAILED_AT_FIRST
        return at_first or count > max(1, len(self._bodies) // FAILED_SHARE)

    async def _reply(self, key: str, client: Any) -> Reply:  # noqa: ANN401
        patience = self._asking.endpoint.patience
        for attempt in range(patience.retries + 1):
            entry = await self._reserve(self._bodies[key])
            try:
                return Reply(await self._attempt(entry, key, client), attempt + 1)
            except RetryableError as error:
                if attempt == patience.retries:
                    raise self._gave_up(error) from None
                await self._back_off(error, patience.backoff(attempt))
        raise AssertionError("there is at least one attempt")

    def _gave_up(self, error: RetryableError) -> RunFailed:
        attempts = self._asking.endpoint.patience.retries + 1
        text = (
            f"{self._spec.host} gave no answer in {attempts} tries, last {error}; all "
            "answers so far are cached, the same command requests the rest"
        )
        if error.one_request:
            return RequestFailed(text, error.maybe_charged, attempts)
        return RunFailed(text)

    async def _attempt(self, entry: int, key: str, client: Any) -> Completion:  # noqa: ANN401
        """One attempt; updates the ledger entry on every outcome except cancellation."""
        ledger, body = self._asking.ledger, self._bodies[key]
        try:
            completion = await self._asking.endpoint.send(client, body)
            # Cache first: if the process is killed in between, the reservation still covers the
            # cost and the completion is not lost.
            self._asking.cache.put(key, completion)
            ledger.settle(entry, cost_of(self._spec, body, completion))
            return completion
        except RetryableError as error:
            (ledger.keep_reserved if error.maybe_charged else ledger.release)(entry)
            raise
        except RunFailed as error:
            charged = isinstance(error, RequestFailed) and error.maybe_charged
            (ledger.keep_reserved if charged else ledger.release)(entry)
            raise
        finally:
            self._budget_freed.set()

    async def _reserve(self, body: Body) -> int:
        """A ledger entry, once the request fits into the budget."""
        self._raise_error()
        cost = cost_of(self._spec, body)
        while (entry := self._asking.ledger.reserve(self._spec.id, cost)) is None:
            # No await between the check and clear, so a release cannot be missed.
            self._budget_freed.clear()
            await self._budget_freed.wait()
            self._raise_error()
        return entry

    async def _back_off(self, error: RetryableError, backoff: float) -> None:
        """Wait for the server's `Retry-After`, else the backoff; returns early when stopped."""
        seconds = backoff if error.retry_after is None else error.retry_after
        if seconds > MAX_RETRY_AFTER:
            raise RunFailed(
                f"{self._spec.host} asks to wait {seconds:.0f} s: {error}; all answers so far are "
                "cached, run the same command then"
            )
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)

    def _raise_error(self) -> None:
        """Raise the batch's first error, so that no further request is started."""
        if self._error is not None:
            raise self._error
