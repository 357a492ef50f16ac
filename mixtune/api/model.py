"""A model behind an OpenAI-compatible API as a system: questions in, answers out, in order.

Text is asked for at temperature 0 with a seed; a label can be asked for under a JSON schema, which
is a form of its own. Log-probabilities of whole labels no such API gives, so nothing is ranked.

Knows: conversations, requests, who may be asked at the same time, what is kept and what it costs.
Does not know: targets of the questions, tasks' parsers, HTTP.
"""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from mixtune.api.cache import Cache, Said, request_key
from mixtune.api.client import LONGEST_PAUSE, Endpoint, Passing
from mixtune.api.entries import ApiSystem
from mixtune.api.ledger import Ledger, dollars
from mixtune.errors import MixtuneError, RunFailed
from mixtune.identity import digest
from mixtune.records import Answer, Example, Query, Usage
from mixtune.signals import defer_signals
from mixtune.tasks.label_schema import response_format

TURN = 16
"""Tokens that an endpoint may add to a message: role, marks of beginning and end."""
FRAME = 256
"""Tokens that an endpoint may add to a request: its template, a system message of its own."""

Body = dict[str, Any]
Turns = list[dict[str, str]]


def conversation(query: Query, shots: Sequence[Example] = (), instruction: str = "") -> Turns:
    """The messages that a question is put as: instruction, examples with answers, question."""
    turns = [{"role": "system", "content": instruction}] if instruction else []
    own = [{"role": m.role, "content": m.content} for m in query.messages]
    # A task's own system message holds for the examples as well, and stands once.
    turns += [turn for turn in own if turn["role"] == "system"]
    for shot in shots:
        turns += [_turn(m.role, m.content) for m in shot.messages if m.role != "system"]
        turns.append(_turn("assistant", shot.target))
    return turns + [turn for turn in own if turn["role"] != "system"]


def most_tokens(body: Mapping[str, Any]) -> tuple[int, int]:
    """The most prompt and generated tokens of a request.

    A token of a byte-level vocabulary is at least a byte, so a prompt has at most as many tokens as
    bytes, beside what the endpoint adds.
    """
    texts = [turn["content"] for turn in body["messages"]]
    given = sum(len(text.encode()) + TURN for text in texts) + FRAME
    if "response_format" in body:
        given += len(str(body["response_format"]).encode())
    return given, int(body.get("max_completion_tokens") or body["max_tokens"])


@dataclass(frozen=True, slots=True)
class Prompting:
    """What stands before a question: examples of its task, an instruction."""

    shots: tuple[Example, ...] = ()
    instruction: str = ""


def request_body(
    what: ApiSystem, query: Query, prompting: Prompting, max_new_tokens: int, schema: bool
) -> Body:
    """The request that asks a model a question; with `schema` held to the question's choices."""
    turns = conversation(query, prompting.shots, prompting.instruction)
    body = {"model": what.model, "messages": turns, **what.decoding(max_new_tokens)}
    return body | {"response_format": response_format(query.choices)} if schema else body


@dataclass(frozen=True)
class Asking:
    """How requests are made: to whom, how many at a time, what is kept, on whose money."""

    endpoint: Endpoint
    ledger: Ledger
    cache: Cache = field(default_factory=Cache)
    concurrency: int = 8
    on_progress: Callable[[int, int], None] = lambda done, of: None


class ApiModel:
    """An API model with one way of prompting; `usage` says what the last questions took."""

    def __init__(self, what: ApiSystem, asking: Asking, prompting: Prompting) -> None:
        self.what = what
        self.prompting = prompting
        self.usage: list[Usage] = []
        self._asking = asking

    @property
    def system(self) -> str:
        """The id under which its predictions are kept."""
        return self.what.id

    def rank(self, queries: Sequence[Query]) -> list[Answer]:
        """Not to be had.

        Raises:
            RunFailed: always.
        """
        raise RunFailed(f"{self.what.name}: an API gives no log-probabilities of whole labels")

    def generate(self, queries: Sequence[Query], max_new_tokens: int) -> list[Answer]:
        """Text at temperature 0, at most `max_new_tokens` of the endpoint's tokens.

        Raises:
            RunFailed: a question that is not answered however often it is asked.
            CeilingReached: the next request could pass the ceiling. What is answered is kept.
        """
        return self._ask(queries, [self.body(query, max_new_tokens) for query in queries])

    def choose(self, queries: Sequence[Query], max_new_tokens: int) -> list[Answer]:
        """One of each query's choices as JSON (api_schema), as far as the endpoint holds to it.

        Raises:
            RunFailed, CeilingReached: as `generate`.
        """
        bodies = [self.body(query, max_new_tokens, schema=True) for query in queries]
        return self._ask(queries, bodies)

    def body(self, query: Query, max_new_tokens: int, schema: bool = False) -> Body:
        """The request for a question."""
        return request_body(self.what, query, self.prompting, max_new_tokens, schema)

    def prompt_hash(self, query: Query) -> str:
        """Names the conversation that a question is put as."""
        return digest(conversation(query, self.prompting.shots, self.prompting.instruction))

    def _ask(self, queries: Sequence[Query], bodies: Sequence[Body]) -> list[Answer]:
        keyed = {request_key(self.what.base_url, body): body for body in bodies}
        # Another study that asks the same model waits here, and then finds what both ask.
        with self._asking.cache.in_turn(self.what):
            asked = _Round(self.what, self._asking)
            with defer_signals(asked.halt):
                found = asyncio.run(asked.all(keyed))
        answers, self.usage = [], []
        for query, body in zip(queries, bodies, strict=True):
            said, tries = found[request_key(self.what.base_url, body)]
            answers.append(Answer(said.text, (), said.finish, said.latency))
            self.usage.append(self._usage(query, body, said, tries))
        return answers

    def _usage(self, query: Query, body: Body, said: Said, tries: int) -> Usage:
        price = self.what.price
        cost = None if price is None else dollars(cost_of(self.what, body, said))
        return Usage(query.id, said.tokens_in, said.tokens_out, cost, tries, said.served)


def cost_of(what: ApiSystem, body: Mapping[str, Any], said: Said | None) -> int:
    """Picodollars of a request: as counted by the endpoint, or at most where it does not count."""
    if what.price is None:
        return 0
    most_in, most_out = most_tokens(body)
    if said is None:
        return what.price.of(most_in, most_out)
    given = most_in if said.tokens_in is None else said.tokens_in
    made = most_out if said.tokens_out is None else said.tokens_out
    return what.price.of(given, made)


class _Round:
    """Distinct requests asked side by side; after an error no new one begins, and none is cut."""

    def __init__(self, what: ApiSystem, asking: Asking) -> None:
        self.what = what
        self.asking = asking
        self.found: dict[str, tuple[Said, int]] = {}
        self.error: Exception | None = None
        self._room = asyncio.Event()
        self._halted = asyncio.Event()
        self._halts = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._all: asyncio.Task[Any] | None = None

    def halt(self) -> None:
        """Begin nothing more; at a second call, break off what is under way. For any thread."""
        self._halts += 1
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._halt)

    def _halt(self) -> None:
        self.error = self.error or RunFailed(f"{self.what.name}: stopped")
        self._halted.set()
        self._room.set()
        if self._halts > 1 and self._all is not None:
            self._all.cancel()

    async def all(self, bodies: Mapping[str, Body]) -> dict[str, tuple[Said, int]]:
        """Every answer by key, with how many tries it took (0: it was kept)."""
        self._loop, self._all = asyncio.get_running_loop(), asyncio.current_task()
        if self._halts:
            self._halt()
        for key in bodies:
            if (kept := self.asking.cache.get(key)) is not None:
                self.found[key] = kept, 0
        todo = iter([(key, body) for key, body in bodies.items() if key not in self.found])
        if len(self.found) < len(bodies):
            async with self.asking.endpoint.client() as client:
                workers = min(self.asking.concurrency, len(bodies) - len(self.found))
                takers = [self._take(todo, client, len(bodies)) for _ in range(workers)]
                await asyncio.gather(*takers)
        if self.error is not None:
            raise self.error
        return self.found

    async def _take(self, todo: Any, client: Any, of: int) -> None:  # noqa: ANN401
        for key, body in todo:
            try:
                self.found[key] = await self._answer(key, body, client)
            except (MixtuneError, OSError) as error:
                self.error = self.error or error  # raised by `all`, when the others have ended
                self._halted.set()
                return
            self.asking.on_progress(len(self.found), of)

    async def _answer(self, key: str, body: Body, client: Any) -> tuple[Said, int]:  # noqa: ANN401
        patience = self.asking.endpoint.patience
        why = ""
        for tried in range(patience.retries + 1):
            number = await self._enter(body)
            try:
                return await self._paid_for(number, (key, body), client), tried + 1
            except Passing as passing:
                why = str(passing)
                if tried < patience.retries:
                    await self._pause(passing, patience.pause(tried))
        raise RunFailed(
            f"{self.what.host} gave no answer in {patience.retries + 1} tries, last {why}; what is "
            "answered is kept, the same command asks for the rest"
        )

    async def _paid_for(self, number: int, what: tuple[str, Body], client: Any) -> Said:  # noqa: ANN401
        """One try; its answer kept and what it cost entered, whichever way it ends."""
        ledger, (key, body) = self.asking.ledger, what
        try:
            said = await self.asking.endpoint.once(client, body)
        except Passing as passing:
            if passing.paid:
                ledger.leave(number)
            else:
                ledger.drop(number)
            raise
        except RunFailed:
            ledger.drop(number)
            raise
        else:
            # Kept first: a process that is killed in between has paid, and has what it paid for.
            self.asking.cache.put(key, said)
            ledger.settle(number, cost_of(self.what, body, said))
            return said
        finally:
            self._room.set()

    async def _enter(self, body: Body) -> int:
        """A number in the ledger, when there is room under the ceiling."""
        self._go_on()
        most = cost_of(self.what, body, None)
        while (number := self.asking.ledger.enter(self.what.id, most)) is None:
            self._room.clear()
            await self._room.wait()
            self._go_on()
        return number

    async def _pause(self, passing: Passing, pause: float) -> None:
        """Before the next try; a server that asks for too long a pause ends it."""
        if passing.after is not None:
            pause = passing.after
        if not math.isfinite(pause) or pause > LONGEST_PAUSE:
            raise RunFailed(
                f"{self.what.host} asks to wait {pause:.0f} s: {passing}; what is "
                "answered is kept, give the same command then"
            )
        with suppress(TimeoutError):
            await asyncio.wait_for(self._halted.wait(), pause)

    def _go_on(self) -> None:
        """Begin nothing more after an error."""
        if self.error is not None:
            raise self.error


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
