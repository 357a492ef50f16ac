"""A model behind an API: what is sent, what comes back, what goes wrong, what it costs."""

import asyncio
import json
import math
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from api_server import HALF, HANG, RESET, fault, garbage, say, serving
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtune.api_spec import ApiEntry
from mixtune.errors import ModelError, RunFailed, SpecError
from mixtune.evaluation.predict import predict
from mixtune.evaluation.score import score
from mixtune.models.api import ApiModel, Asking, Prompting, conversation, most_tokens, request_body
from mixtune.models.api_cache import Cache, Said, request_key
from mixtune.models.api_calls import Endpoint, Passing, Patience, retry_after
from mixtune.models.api_cost import CeilingReached, Ledger, dollars
from mixtune.models.api_entries import OPENAI_KEY, ApiSystem, Price, presets, resolve
from mixtune.models.api_schema import as_json, chosen
from mixtune.records import Example, Message, Query
from mixtune.tasks.task_file import parse_task

KEY = "sk-test-0123456789-not-a-real-key"
LABELS = ("dry", "wet")
TASK = """
name: north
labels: [dry, wet]
prompt: "Is it dry or wet? {{ text }}"
fields: {label: label}
parser: label
metrics: [accuracy]
source: {toy: {}}
"""


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """A cache of its own, a key that can be looked for, and no proxy between test and server."""
    monkeypatch.setenv("MIXTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(OPENAI_KEY, KEY)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def query(text, choices=LABELS):
    return Query(text, "", (Message("user", text),), choices)


def system(url="http://127.0.0.1:9/v1", **changes):
    price = Price.per_million(2.5, 10, "test")
    given = {"name": "mine", "model": "m", "base_url": url, "key_env": OPENAI_KEY, "price": price}
    return ApiSystem(**(given | changes))


def model(server, tmp_path, patience=None, ceiling=None, prompting=None, **changes):
    pytest.importorskip("openai")
    what = system(server.url, **changes)
    endpoint = Endpoint(what, patience or Patience(timeout=5, retries=3, first=0.001))
    ledger = Ledger(tmp_path / "api.sqlite", ceiling)
    return ApiModel(what, Asking(endpoint, ledger, concurrency=4), prompting or Prompting())


def asked_for(body):
    return body["messages"][-1]["content"]


# ---- what is sent, what comes back --------------------------------------------------------------


def test_a_request_says_how_the_answer_is_made_and_an_answer_how_it_ended(tmp_path):
    replies = {
        "a": say("wet"),
        "b": say("we", finish="length"),
        "c": say(None, refusal="I will not"),
        "d": say("", finish="content_filter"),
        "e": fault(400, "filtered", "content_filter"),
        "f": say("\ud800 wet"),
    }
    with serving(lambda body, _: replies[asked_for(body)]) as server:
        asking = model(server, tmp_path)
        answers = asking.generate([query(name) for name in replies], 7)
    assert [(a.output, a.finish) for a in answers] == [
        ("wet", "stop"),
        ("we", "length"),
        ("I will not", "refused"),
        ("", "refused"),
        ("", "refused"),
        ("? wet", "stop"),
    ]
    for body in server.asked:
        named = {k: v for k, v in body.items() if k != "messages"}
        assert named == {"model": "m", "max_tokens": 7, "temperature": 0, "seed": 1}
    assert {seen["authorization"] for seen in server.headers_seen} == {f"Bearer {KEY}"}
    first = asking.usage[0]
    assert (first.tokens_in, first.tokens_out, first.served, first.tries) == (
        20,
        3,
        "served-by-this",
        1,
    )
    assert first.cost == pytest.approx((20 * 2.5 + 3 * 10) / 1e6)


def test_without_a_key_of_its_own_no_key_is_sent(tmp_path):
    with serving(lambda body, _: say("wet")) as server:
        model(server, tmp_path, key_env=None).generate([query("a")], 7)
    assert KEY not in json.dumps(server.headers_seen)


def test_a_model_that_reasons_is_given_no_temperature(tmp_path):
    with serving(lambda body, _: say("wet")) as server:
        model(server, tmp_path, reasoning_effort="low").generate([query("a")], 7)
    (body,) = server.asked
    assert "temperature" not in body
    assert (body["max_completion_tokens"], body["reasoning_effort"]) == (7, "low")


def test_a_label_is_asked_for_by_schema_and_read_as_a_form_of_its_own(tmp_path):
    """What breaks the schema is unparsed, also where it holds the right word."""
    said = {
        "1": as_json("wet"),
        "2": as_json("dry"),
        "3": "wet",
        "4": '{"answer": "damp"}',
        "5": '{"answer": "wet", "sure": true}',
        "6": '["wet"]',
        "7": "{" * 5000,
    }
    with serving(lambda body, _: say(said[asked_for(body)])) as server:
        asking = model(server, tmp_path)
        examples = [
            Example("north", n, "test", n, "", (Message("user", n),), "wet", LABELS) for n in said
        ]
        found = predict(asking, examples, "schema", "test", 30, asking.prompt_hash)
    form = server.asked[0]["response_format"]["json_schema"]
    assert form["strict"] is True
    assert form["schema"]["properties"]["answer"]["enum"] == ["dry", "wet"]
    assert form["schema"]["additionalProperties"] is False
    assert {row.form for row in found} == {"schema"}
    assert {row.logprobs for row in found} == {()}
    rows = score(found, examples, parse_task(TASK, "north.yaml"))
    assert [(row.status, row.value) for row in rows] == [("ok", 1.0), ("ok", 0.0)] + [
        ("unparsed", 0.0)
    ] * 5
    with pytest.raises(RunFailed, match="no log-probabilities"):
        asking.rank([query("1")])


@given(st.sampled_from(["dry", "wet", 'a "b"\n', "日"]))
def test_a_label_in_the_schemas_form_is_read_as_itself(label):
    assert chosen(as_json(label), ("dry", "wet", 'a "b"\n', "日")) == label
    assert chosen(as_json(label), ("other",)) is None


def test_shots_stand_between_instruction_and_question():
    shot = Example(
        "t",
        "1",
        "train",
        "g",
        "",
        (Message("system", "rules"), Message("user", "q1")),
        "wet",
        LABELS,
    )
    asked = Query("2", "", (Message("system", "rules"), Message("user", "q2")), LABELS)
    turns = conversation(asked, (shot,), "be brief")
    assert [(t["role"], t["content"]) for t in turns] == [
        ("system", "be brief"),
        ("system", "rules"),
        ("user", "q1"),
        ("assistant", "wet"),
        ("user", "q2"),
    ]


# ---- what goes wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply",
    [
        fault(429),
        fault(429, Retry_After="0"),
        fault(500),
        fault(503, "x" * 10_000),
        fault(408),
        HALF,
        RESET,
        garbage("not json"),
        garbage('{"choices": []}'),
        garbage("null"),
        say(None),
        say("wet", finish="tool_calls"),
    ],
    ids=lambda reply: f"{reply.status}-{reply.how}-{len(reply.body)}",
)
def test_what_passes_is_asked_again_until_it_is_answered_and_then_no_more(tmp_path, reply):
    script = lambda body, before: reply if before < 2 else say("wet")  # noqa: E731
    with serving(script) as server:
        asking = model(server, tmp_path)
        answers = asking.generate([query(name) for name in "abc"], 5)
        assert {a.output for a in answers} == {"wet"}
        assert len(server.asked) == 9
        again = model(server, tmp_path).generate([query(name) for name in "cab"], 5)
        assert {a.output for a in again} == {"wet"}
    assert len(server.asked) == 9, "what was answered was asked again"
    assert {row.tries for row in asking.usage} == {3}


def test_a_hanging_socket_is_left_and_asked_again(tmp_path):
    script = lambda body, before: HANG if before == 0 else say("wet")  # noqa: E731
    with serving(script) as server:
        patience = Patience(timeout=0.3, retries=2, first=0.001)
        begun = time.monotonic()
        (answer,) = model(server, tmp_path, patience).generate([query("a")], 5)
    assert answer.output == "wet"
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (fault(401, f"wrong key {KEY}"), "HTTP 401; check the key"),
        (fault(404, "no model m"), "no model m"),
        (fault(400, f"you sent {KEY}"), r"you sent \[key\]"),
        (fault(429, "pay", "insufficient_quota"), "no quota"),
        (fault(500), "no answer in 4 tries, last HTTP 500"),
        (fault(429, Retry_After="86400"), "asks to wait 86400 s"),
        (HANG, "no answer within 0.2 s"),
        (RESET, "no answer in 4 tries"),
    ],
)
def test_what_does_not_pass_ends_it_says_why_and_loses_nothing(tmp_path, reply, message):
    script = lambda body, _: say("wet") if asked_for(body) < "c" else reply  # noqa: E731
    patience = Patience(timeout=0.2, retries=3, first=0.001)
    with serving(script) as server:
        asking = model(server, tmp_path, patience)
        with pytest.raises(RunFailed, match=message) as wrong:
            asking.generate([query(name) for name in "abcdef"], 5)
        assert KEY not in str(wrong.value)
        first = len(server.asked)
        answers = model(server, tmp_path, patience).generate([query("a"), query("b")], 5)
    assert [a.output for a in answers] == ["wet", "wet"]
    assert len(server.asked) == first


def test_nobody_there_is_said_and_costs_nothing(tmp_path):
    pytest.importorskip("openai")
    ledger = Ledger(tmp_path / "api.sqlite", 1.0)
    endpoint = Endpoint(system(), Patience(timeout=2, retries=1, first=0.001))
    with pytest.raises(RunFailed, match=r"127\.0\.0\.1:9 gave no answer in 2 tries"):
        ApiModel(system(), Asking(endpoint, ledger), Prompting()).generate([query("a")], 5)
    assert ledger.spent() == (0, 0)


def test_the_same_question_twice_is_asked_once_and_never_more_at_once_than_allowed(tmp_path):
    def slow(body, _):
        time.sleep(0.02)
        return say("wet")

    with serving(slow) as server:
        texts = [str(i % 20) for i in range(60)]
        answers = model(server, tmp_path).generate([query(text) for text in texts], 5)
    assert len(answers) == 60
    assert len(server.asked) == 20
    assert 1 < server.most_at_once <= 4


def test_two_studies_that_ask_the_same_at_once_pay_once(tmp_path):
    def slow(body, _):
        time.sleep(0.01)
        return say("wet")

    with serving(slow) as server:
        asking = [model(server, folder) for folder in (tmp_path, tmp_path / "b")]
        (tmp_path / "b").mkdir()
        queries = [query(str(i)) for i in range(12)]
        with ThreadPoolExecutor() as threads:
            found = list(threads.map(lambda one: one.generate(queries, 5), asking))
    assert len(server.asked) == 12
    assert [a.output for a in found[0]] == [a.output for a in found[1]] == ["wet"] * 12


@pytest.mark.parametrize(
    ("said", "least", "most"),
    [
        ("3", 3, 3),
        ("0.5", 0.5, 0.5),
        ("-4", 0, 0),
        ("soon", None, None),
        ("nan", None, None),
        ("inf", None, None),
        (None, None, None),
    ],
)
def test_retry_after_is_seconds(said, least, most):
    found = retry_after({} if said is None else {"retry-after": said})
    assert found is None if least is None else least <= found <= most


def test_retry_after_is_a_date():
    for minutes, least, most in ((5, 295, 300), (-5, 0, 0)):
        said = format_datetime(datetime.now(UTC) + timedelta(minutes=minutes), usegmt=True)
        assert least <= retry_after({"retry-after": said}) <= most


def test_pauses_grow_to_a_limit_and_are_anything_below():
    patience = Patience(first=1, longest=60)
    for tried in range(40):
        drawn = [patience.pause(tried) for _ in range(50)]
        assert 0 <= min(drawn) <= max(drawn) <= min(60, 2**tried)
    assert max(patience.pause(3) for _ in range(300)) > 6
    assert min(patience.pause(3) for _ in range(300)) < 2


# ---- keys ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, "", "  ", "a b", "a\nb", "schlüssel"])
def test_a_key_that_cannot_be_one_is_refused_and_not_shown(monkeypatch, value):
    pytest.importorskip("openai")
    if value is None:
        monkeypatch.delenv(OPENAI_KEY)
    else:
        monkeypatch.setenv(OPENAI_KEY, value)
    with pytest.raises(ModelError, match=OPENAI_KEY) as wrong:
        Endpoint(system(), Patience())
    assert not (value or "").strip() or value not in str(wrong.value)


def test_no_representation_shows_the_key(tmp_path):
    with serving(lambda body, _: say("wet")) as server:
        asking = model(server, tmp_path)
        asking.generate([query("a")], 5)
        shown = [repr(thing) for thing in (asking, asking._asking, asking._asking.endpoint)]
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 2
    assert KEY not in "".join(shown)
    assert KEY.encode() not in b"".join(files)


def test_without_the_client_it_is_named_what_installs_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(ModelError, match=r"pip install 'mixtune\[api\]'"):
        Endpoint(system(), Patience())


# ---- the cache ----------------------------------------------------------------------------------


def test_a_kept_answer_is_what_was_said_and_a_damaged_one_is_none(tmp_path):
    cache = Cache(tmp_path)
    said = Said("wet", "stop", 3, None, "m", 0.25)
    key = request_key("http://x/v1", {"model": "m"})
    assert cache.get(key) is None
    cache.put(key, said)
    assert cache.get(key) == said
    (path,) = tmp_path.rglob("*.json")
    whole = path.read_text(encoding="utf-8")
    for text in (whole[: len(whole) // 2], "", "[]", whole.replace("wet", "dry"), "{}", "\x00"):
        path.write_text(text, encoding="utf-8")
        assert cache.get(key) is None
    path.write_bytes(b"\xff\xfe")
    assert cache.get(key) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"base_url": "http://127.0.0.1:8/v1"},
        {"model": "n"},
        {"seed": 2},
        {"reasoning_effort": "low"},
    ],
)
def test_another_request_is_another_entry_and_another_system(changes):
    def key(what, limit=5, schema=False, prompting=None):
        body = request_body(what, query("a"), prompting or Prompting(), limit, schema)
        return request_key(what.base_url, body)

    one, other = system(), system(**changes)
    assert key(one) == key(system(name="x", key_env=None, price=None))
    assert one.id == system(name="x", key_env=None, price=None).id
    keys = [key(one), key(other), key(one, 6), key(one, schema=True)]
    keys.append(key(one, prompting=Prompting(instruction="x")))
    assert len(set(keys)) == 5
    assert one.id != other.id


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

    async def once(self, client, body):
        most_in, most_out = most_tokens(body)
        kind, share, turns = self.fates[len(self.billed) % len(self.fates)]
        self.billed.append(kind)
        for _ in range(turns):
            await asyncio.sleep(0)
        tokens = int(most_in * share), int(most_out * share)
        if kind != "free":
            self.bill += self.what.price.of(*tokens)
        if kind == "said":
            return Said("wet", "stop", *tokens, "m", 0.0)
        if kind == "uncounted":
            return Said("wet", "stop", None, None, "m", 0.0)
        raise Passing("x", paid=kind == "lost")


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

    async def once(self, client, body):
        await asyncio.sleep(3600)


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
    number = first.enter("a", 4 * 10**11)
    first.settle(first.enter("a", 5 * 10**11), 10**11)
    assert number is not None
    second = Ledger(path, 1.0)  # the process died, another begins
    assert second.spent() == (10**11, 4 * 10**11)
    with pytest.raises(CeilingReached, match=r"raise api\.max_cost"):
        second.enter("a", 6 * 10**11)
    assert second.enter("a", 5 * 10**11) is not None


@pytest.mark.weights
def test_a_prompt_never_has_more_tokens_than_are_set_aside(smollm2):
    from mixtune.tokens import Tokens

    tokens = Tokens.load(smollm2.folder)
    for text in ("a", "日本語のテキスト" * 20, "\U0001f600" * 50, "naïve café " * 30, "   \n\n"):
        messages = (Message("user", text),)
        body = request_body(system(), Query("1", "", messages, ()), Prompting(), 5, False)
        assert len(tokens.prompt_ids(messages)) <= most_tokens(body)[0]


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
