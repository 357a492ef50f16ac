"""What an API model costs, the ceiling that is never passed, and which entries there are."""

import asyncio
import math
import signal
import threading
import time

import pytest
from api_kit import KEY, alone, query, system
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtune.api.client import Patience, RetryableError
from mixtune.api.entries import OPENAI_KEY, presets, resolve
from mixtune.api.ledger import Cache, CeilingReached, Completion, Ledger, dollars
from mixtune.api.model import ApiModel, Asking, Prompting, request_body, token_bounds
from mixtune.errors import RunFailed, SpecError
from mixtune.records import Message, Query
from mixtune.study.api_spec import ApiEntry


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    alone(tmp_path, monkeypatch)


# ---- money --------------------------------------------------------------------------------------


class _Client:
    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        return None


class _Invented:
    """An endpoint with invented bills: what it charges, it keeps count of itself."""

    patience = Patience(retries=3, first=0.0)

    def __init__(self, what, fates):
        self.what, self.fates, self.bill, self.billed = what, fates, 0, []

    def client(self):
        return _Client()

    async def send(self, client, body):
        most_in, most_out = token_bounds(body)
        kind, share, turns = self.fates[len(self.billed) % len(self.fates)]
        self.billed.append(kind)
        for _ in range(turns):
            await asyncio.sleep(0)
        tokens = int(most_in * share), int(most_out * share)
        if kind != "free":
            self.bill += self.what.price.of(*tokens)
        if kind == "said":
            return Completion("wet", "stop", *tokens, "m", 0.0)
        if kind == "uncounted":
            return Completion("wet", "stop", None, None, "m", 0.0)
        raise RetryableError("x", maybe_charged=kind == "lost")


@settings(max_examples=40, deadline=None)
@given(
    fates=st.lists(
        st.tuples(
            st.sampled_from(["said", "said", "uncounted", "lost", "free"]),
            st.floats(0, 1),
            st.integers(0, 5),
        ),
        min_size=1,
        max_size=8,
    ),
    ceiling=st.floats(1e-6, 2e-2),
    concurrency=st.integers(1, 16),
    lengths=st.lists(st.integers(1, 2000), min_size=1, max_size=30),
)
def test_the_ceiling_is_never_passed(tmp_path_factory, fates, ceiling, concurrency, lengths):
    """Whatever an endpoint charges up to the most, in whatever order, however many at a time."""
    folder = tmp_path_factory.mktemp("ledger")
    what = system()
    endpoint = _Invented(what, fates)
    queries = [query(f"{i} {'x' * length}") for i, length in enumerate(lengths)]
    cache = Cache(folder / "cache")
    answered = False
    for _ in range(3):  # the same command again: the ledger remembers
        ledger = Ledger(folder / "api.sqlite", ceiling)
        asking = Asking(endpoint, ledger, cache, concurrency)
        try:
            ApiModel(what, asking, Prompting()).generate(queries, 50)
            answered = True
        except (CeilingReached, RunFailed):
            pass
        assert dollars(endpoint.bill) <= ceiling
        paid, open_ = ledger.spent()
        assert endpoint.bill <= paid + open_ <= math.floor(ceiling * 1e12)
    said = [kind for kind in endpoint.billed if kind in ("said", "uncounted")]
    kept = len(list((folder / "cache").rglob("*.json")))
    assert len(said) == kept <= len(queries), "an answer was paid for twice, or lost"
    assert kept == len(queries) if answered else True


class _Silent:
    """An endpoint that never answers."""

    patience = Patience()

    def client(self):
        return _Client()

    async def send(self, client, body):
        await asyncio.sleep(3600)


@pytest.fixture
def heeding():
    """SIGINT as a terminal's process has it; one that runs in the background may ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeding")
def test_a_second_ctrl_c_breaks_off_what_is_under_way(tmp_path):
    ledger = Ledger(tmp_path / "api.sqlite", 1.0)
    asking = Asking(_Silent(), ledger, Cache(tmp_path))
    main = threading.main_thread().ident
    presses = [
        threading.Timer(wait, signal.pthread_kill, (main, signal.SIGINT)) for wait in (0.2, 0.6)
    ]
    for press in presses:
        press.start()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        ApiModel(system(), asking, Prompting()).generate([query("a"), query("b")], 5)
    assert 0.5 < time.monotonic() - begun < 10
    assert ledger.spent()[1] > 0, "what was broken off may have been paid for"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_a_killed_process_had_in_flight_counts_with_the_most(tmp_path):
    path = tmp_path / "api.sqlite"
    first = Ledger(path, 1.0)
    number = first.reserve("a", 4 * 10**11)
    first.settle(first.reserve("a", 5 * 10**11), 10**11)
    assert number is not None
    second = Ledger(path, 1.0)  # the process died, another begins
    assert second.spent() == (10**11, 4 * 10**11)
    with pytest.raises(CeilingReached, match=r"raise api\.max_cost"):
        second.reserve("a", 6 * 10**11)
    assert second.reserve("a", 5 * 10**11) is not None


@pytest.mark.weights
def test_a_prompt_never_has_more_tokens_than_are_set_aside(smollm2):
    from mixtune.tokens import Tokens

    tokens = Tokens.load(smollm2.folder)
    for text in ("a", "日本語のテキスト" * 20, "\U0001f600" * 50, "naïve café " * 30, "   \n\n"):
        messages = (Message("user", text),)
        body = request_body(system(), Query("1", "", messages, ()), Prompting(), 5, False)
        assert len(tokens.prompt_ids(messages)) <= token_bounds(body)[0]


# ---- entries ------------------------------------------------------------------------------------


def entry(**given):
    return ApiEntry.model_validate({"name": "mine", **given})


def test_a_preset_is_a_dated_snapshot_with_a_price_and_its_source():
    assert {"gpt-4o", "gpt-4o-mini"} <= presets().keys()
    for name, preset in presets().items():
        assert preset.model.startswith(name)
        assert any(c.isdigit() for c in preset.price_source), "a price without a date"
    (known,) = resolve([entry(preset="gpt-4o")])
    assert (known.host, known.key_env, known.price.token_in) == (
        "api.openai.com",
        OPENAI_KEY,
        2_500_000,
    )


def test_a_presets_price_is_not_that_of_another_model_or_endpoint():
    others = [
        entry(preset="gpt-4o", model="gpt-4o-2027"),
        entry(name="b", preset="gpt-4o", base_url="http://x/v1"),
    ]
    assert [one.price for one in resolve(others)] == [None, None]
    assert [one.key_env for one in resolve(others)] == [OPENAI_KEY, None]
    (own,) = resolve([entry(preset="gpt-4o", price_in=1, price_out=2)])
    assert (own.price.token_in, own.price.source) == (1_000_000, "stated in the study")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"preset": "gpt-4"}, "did you mean 'gpt-4o'"),
        ({"model": "m", "base_url": "localhost:8000"}, "not an endpoint"),
        ({"model": "m", "base_url": "ftp://x"}, "not an endpoint"),
        ({"model": "m", "base_url": "http://x:99999/v1"}, "not an endpoint"),
        ({"model": "m", "base_url": f"https://me:{KEY}@x/v1"}, "no user, password"),
        ({"model": "m", "base_url": f"https://x/v1?key={KEY}"}, "no user, password"),
    ],
)
def test_an_entry_that_cannot_be_used_is_refused_without_its_secrets(given, message):
    with pytest.raises(SpecError, match=message) as wrong:
        resolve([entry(**given)])
    assert KEY not in str(wrong.value)


def test_one_system_under_two_names_is_refused():
    with pytest.raises(SpecError, match="same system"):
        resolve([entry(name="a", model="m"), entry(name="b", model="m")])
    assert len(resolve([entry(name="a", model="m"), entry(name="b", model="m", shots=1)])) == 2
