"""A model behind an API: what is sent, what comes back, what goes wrong, what it costs."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from api_kit import KEY, LABELS, alone, query, system
from api_server import HALF, HANG, RESET, Reply, fault, garbage, say, serving
from hypothesis import given
from hypothesis import strategies as st

from mixtune.api.client import Endpoint, Patience
from mixtune.api.entries import OPENAI_KEY
from mixtune.api.ledger import Cache, Completion, Ledger, request_key
from mixtune.api.model import ApiModel, Asking, Prompting, conversation, request_body
from mixtune.api.response import retry_after
from mixtune.errors import ModelError, RunFailed
from mixtune.evaluation.answers import predict, score
from mixtune.identity import digest
from mixtune.records import Example, Message, Query
from mixtune.study.api_spec import ApiEntry
from mixtune.tasks.parsers.labels import as_json, chosen
from mixtune.tasks.task import parse_task

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
def place(tmp_path, monkeypatch):
    alone(tmp_path, monkeypatch)


REASONS = ("eos", "end_turn", "stop_sequence", "tool_calls", None, "", 7)
CUT_OFF = ("length", "max_tokens", "model_length", "abort")


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


def choice(finish, **message):
    """A completion with one choice, of any shape."""
    choices = [{"index": 0, "finish_reason": finish, "message": message}]
    return garbage(json.dumps({"choices": choices, "usage": {"prompt_tokens": 9}}))


PARTS = [{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "w"}, {"text": "et"}, 3]


@pytest.mark.parametrize(
    ("reply", "output", "finish", "reasoning"),
    [
        *((choice(reason, content="wet"), "wet", "stop", "") for reason in REASONS),
        *((choice(reason, content="w"), "w", "length", "") for reason in CUT_OFF),
        (choice("stop", content=None), "", "stop", ""),
        (choice("stop"), "", "stop", ""),
        (garbage('{"choices": [{"message": null}]}'), "", "stop", ""),
        (choice("stop", content={"a": 1}, tool_calls=[]), "", "stop", ""),
        (choice("stop", content=None, reasoning_content="wet"), "", "stop", "wet"),
        (choice("stop", content="wet", reasoning="rain"), "wet", "stop", "rain"),
        (choice("length", content=None, reasoning_content="hm"), "", "length", "hm"),
        (choice("stop", content=PARTS), "wet", "stop", "hm"),
        (choice("SAFETY", content=None), "", "refused", ""),
    ],
)
def test_every_answer_that_was_paid_for_is_kept(tmp_path, reply, output, finish, reasoning):
    with serving(lambda body, _: reply) as server:
        for _ in range(2):
            (answer,) = model(server, tmp_path).generate([query("a")], 5)
            assert (answer.output, answer.finish, answer.reasoning) == (output, finish, reasoning)
    assert len(server.asked) == 1


def test_a_cached_answer_of_an_earlier_version_is_still_read():
    fields = {"text": "wet", "finish": "stop", "tokens_in": 1, "tokens_out": 1}
    earlier = {**fields, "served": "m", "latency": 0.5}
    cache = Cache()
    path = cache._path("abc")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"said": earlier, "digest": digest(earlier)}))
    assert cache.get("abc") == Completion(**earlier)
    cache.put("abc", Completion(**earlier, reasoning="rain"))
    assert cache.get("abc").reasoning == "rain"


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
        garbage('{"error": {"message": "overloaded", "code": 503}}'),
        garbage('data: {"choices": []}\n\ndata: [DONE]'),
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
        (HANG, "no answer within 2 s"),
        (RESET, "no answer in 4 tries"),
    ],
)
def test_what_does_not_pass_ends_it_says_why_and_loses_nothing(tmp_path, reply, message):
    script = lambda body, _: say("wet") if asked_for(body) < "c" else reply  # noqa: E731
    # Long enough that a busy machine answers what the script answers at once.
    patience = Patience(timeout=2, retries=3, first=0.001)
    with serving(script) as server:
        asking = model(server, tmp_path, patience)
        with pytest.raises(RunFailed, match=message) as wrong:
            asking.generate([query(name) for name in "abcdef"], 5)
        assert KEY not in str(wrong.value)
        first = len(server.asked)
        answers = model(server, tmp_path, patience).generate([query("a"), query("b")], 5)
    assert [a.output for a in answers] == ["wet", "wet"]
    assert len(server.asked) == first


SEED = {"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Not permitted"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"detail": [SEED]}, r"body\.seed: Not permitted; set omit: \[seed\] for"),
        ({"detail": "no such lora"}, "no such lora"),
        ({"error": "temperature is fixed"}, r"is fixed; set omit: \[temperature\] for"),
        ({"error": {"message": "One value.", "param": "temperature"}}, "temperature: One value."),
        ({"error": {"message": "use max_completion_tokens, not max_tokens"}}, "omit: .max_tokens."),
        (
            {"object": "error", "message": "context length is 64 (max_tokens 9)"},
            "set a smaller max",
        ),
        ({"errors": [{"title": "first"}, {"detail": {"reason": "second"}}]}, "first; second"),
        ({"code": 17}, r'\{"code": 17\}; if the endpoint'),
        ({"message": "response_format is unknown"}, "structured: false"),
        ("plain text", "plain text"),
    ],
)
def test_the_servers_words_and_the_key_that_helps(tmp_path, body, message):
    raw = body if isinstance(body, str) else json.dumps(body)
    schema = "response_format" in raw
    with serving(lambda *_: Reply(raw.encode(), 400)) as server:
        asking = model(server, tmp_path)
        with pytest.raises(RunFailed, match=message):
            (asking.choose if schema else asking.generate)([query("a")], 5)
    assert len(server.asked) == 1


def test_words_in_a_success_that_is_no_completion_reach_the_user(tmp_path):
    words = "x" * 150 + f" your key {KEY} is fine, the model is overloaded"
    reply = garbage(json.dumps({"error": {"message": words}}))
    sent = pytest.raises(RunFailed, match="the server sent: xxx")
    with serving(lambda *_: reply) as server, sent as wrong:
        model(server, tmp_path).generate([query("a")], 5)
    assert KEY[:9] not in str(wrong.value)


@pytest.mark.parametrize(
    ("changes", "sent"),
    [
        ({}, {"max_tokens": 7, "temperature": 0, "seed": 1}),
        ({"omit": ("seed", "temperature")}, {"max_tokens": 7}),
        ({"omit": ("max_tokens", "seed")}, {"max_completion_tokens": 7, "temperature": 0}),
        (
            {"omit": ("max_completion_tokens", "seed"), "reasoning_effort": "low"},
            {"max_tokens": 7, "reasoning_effort": "low"},
        ),
    ],
)
def test_omitted_parameters_are_not_sent(changes, sent):
    assert system(**changes).decoding(7) == sent
    assert (system(**changes).id == system().id) == (not changes)


def test_one_limit_is_always_sent():
    with pytest.raises(ValueError, match="keep one"):
        ApiEntry(name="a", model="m", omit=("max_tokens", "max_completion_tokens"))


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
        drawn = [patience.backoff(tried) for _ in range(50)]
        assert 0 <= min(drawn) <= max(drawn) <= min(60, 2**tried)
    assert max(patience.backoff(3) for _ in range(300)) > 6
    assert min(patience.backoff(3) for _ in range(300)) < 2


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
    said = Completion("wet", "stop", 3, None, "m", 0.25)
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
