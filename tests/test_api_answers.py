"""Answers that come in other shapes, requests that fail alone, and keys that servers send back."""

import base64
import gzip
import json
import stat
import zlib

import pytest
from api_kit import KEY, alone, query, system
from api_server import Reply, fault, garbage, say, serving
from hypothesis import given
from hypothesis import strategies as st

from mixtune.api import response
from mixtune.api.client import Endpoint, Patience
from mixtune.api.ledger import Cache, Ledger
from mixtune.api.model import ApiModel, Asking, Prompting
from mixtune.api.redaction import Redaction
from mixtune.api.response import parse_completion
from mixtune.errors import ModelError, RunFailed, SpecError
from mixtune.study.reading import parse_study

pytest.importorskip("openai")
PATIENCE = Patience(timeout=5, retries=1, first=0.001)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    alone(tmp_path, monkeypatch)


def model(server, tmp_path, notes=None, ceiling=None):
    endpoint = Endpoint(system(server.url), PATIENCE)
    ledger = Ledger(tmp_path / "api.sqlite", ceiling)
    note = (lambda text: None) if notes is None else notes.append
    return ApiModel(
        endpoint.system, Asking(endpoint, ledger, concurrency=4, on_note=note), Prompting()
    )


def asked_for(body):
    return body["messages"][-1]["content"]


# ---- shapes of answers --------------------------------------------------------------------------


def choice(reason, tokens=2, **message):
    body = {"choices": [{"finish_reason": reason, "message": message}]}
    return json.dumps(body | {"usage": {"completion_tokens": tokens}}).encode()


def events(*bodies, end=b"data: [DONE]\n\n"):
    return b"".join(b"data: " + json.dumps(body).encode() + b"\n\n" for body in bodies) + end


def piece(reason=None, **delta):
    return {"model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


CALL = [{"function": {"name": "answer", "arguments": "{}"}}]


@pytest.mark.parametrize(
    ("raw", "text", "finish", "reasoning"),
    [
        *((choice(reason, 5, content="we"), "we", "length", "") for reason in (None, "", "end")),
        *((choice(reason, 4, content="we"), "we", "stop", "") for reason in (None, "", "end")),
        (choice("stop", 5, content="wet"), "wet", "stop", ""),
        (choice("incomplete", content="wet"), "wet", "length", ""),
        (choice("tool_calls", content=None, tool_calls=CALL), json.dumps(CALL), "stop", ""),
        (choice("stop", content=["we", "t"]), "wet", "stop", ""),
        (b'{"choices": [{"text": "wet"}]}', "wet", "stop", ""),
        (b'{"choices": [{"message": "wet"}]}', "wet", "stop", ""),
        (b'{"choices": [{"delta": {"content": "wet"}}]}', "wet", "stop", ""),
        (events(piece(content="we"), piece(content="t")), "wet", "stop", ""),
        (events(piece(content="wet", reasoning="hm"), piece("length")), "wet", "length", "hm"),
        (events(piece(content="we"), end=b""), "we", "length", ""),
        (events(piece(refusal="no"), piece("stop")), "no", "refused", ""),
        (b": hello\n\n" + events(piece("stop", content="wet")), "wet", "stop", ""),
    ],
)
def test_answers_in_other_shapes(raw, text, finish, reasoning):
    answer = parse_completion(raw, 0.1, limit=5)
    assert (answer.text, answer.finish, answer.reasoning) == (text, finish, reasoning)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda part: (
        st.lists(part, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "message", "content", "delta", "error", "usage", "text"]),
            part,
        )
    ),
    max_leaves=12,
)


@given(JSON, st.booleans())
def test_any_body_is_a_completion_or_none(value, streamed):
    raw = json.dumps(value).encode()
    try:
        answer = parse_completion(b"data: " + raw if streamed else raw, 0.1, limit=5)
    except response.NoCompletionError as error:
        assert "no completion" in str(error)
    else:
        assert isinstance(answer.text, str)


# ---- requests that fail alone -------------------------------------------------------------------

ALONE = [
    garbage("not json"),
    garbage('{"error": {"message": "cannot read this one", "code": 500}}'),
    garbage('{"error": {"message": "cannot read this one", "code": 400}}'),
    fault(500, "cannot read this one"),
    fault(400, "cannot read this one"),
    fault(422, "cannot read this one"),
    fault(413, "cannot read this one"),
    fault(400, "context length is 64"),
    garbage("x" * 3000),
]


@pytest.mark.parametrize("reply", ALONE, ids=range(len(ALONE)))
def test_one_request_that_fails_alone_is_one_unparsed_answer(tmp_path, monkeypatch, reply):
    monkeypatch.setattr(response, "MAX_BODY", 2000)
    notes = []
    with serving(lambda body, _: reply if asked_for(body) == "a" else say("wet")) as server:
        asking = model(server, tmp_path, notes)
        answers = asking.generate([query(name) for name in "abcd"], 5)
    assert [(a.output, a.finish) for a in answers] == [("", "stop"), *[("wet", "stop")] * 3]
    (note,) = notes
    assert note.startswith("1 of 4 requests got no answer and count as unparsed; the first: ")
    assert len(list((Cache().folder).rglob("*.json"))) == 3


@pytest.mark.parametrize("reply", ALONE[:-1], ids=range(len(ALONE) - 1))
def test_a_server_that_fails_all_of_them_is_left_early(tmp_path, reply):
    words = "not json|cannot read this one|context length"
    with serving(lambda body, _: reply) as server, pytest.raises(RunFailed, match=words):
        model(server, tmp_path).generate([query(str(number)) for number in range(60)], 5)
    assert len(server.asked) < 20


def test_more_than_one_in_twenty_end_it(tmp_path):
    def script(body, _):
        return say("wet") if int(asked_for(body)) >= 4 else fault(400, "cannot read this one")

    with serving(script) as server, pytest.raises(RunFailed, match="cannot read this one"):
        model(server, tmp_path).generate([query(str(number)) for number in range(60)], 5)


def test_an_error_in_a_success_that_every_request_would_get_ends_it_at_once(tmp_path):
    reply = garbage(json.dumps({"error": {"message": f"no such key {KEY}", "code": 401}}))
    with serving(lambda body, _: reply) as server, pytest.raises(RunFailed, match="check the key"):
        model(server, tmp_path).generate([query("a")], 5)
    assert len(server.asked) == 1


# ---- bounds -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pack", "encoding"), [(gzip.compress, "gzip"), (zlib.compress, "deflate"), (None, "br")]
)
def test_a_packed_answer_is_bounded_too(tmp_path, monkeypatch, pack, encoding):
    monkeypatch.setattr(response, "MAX_BODY", 2**20)
    body = say("wet").body
    small = Reply(pack(body) if pack else body, headers={"Content-Encoding": encoding})
    large = Reply(pack(bytes(2**24)) if pack else body, headers={"Content-Encoding": encoding})
    with serving(lambda body, _: small if asked_for(body) == "a" else large) as server:
        assert {seen.get("accept-encoding") for seen in server.headers_seen} <= {"identity"}
        if pack:
            assert model(server, tmp_path).generate([query("a")], 5)[0].output == "wet"
        with pytest.raises(RunFailed, match=r"more than 1 MiB|packed as br"):
            model(server, tmp_path).generate([query("b")], 5)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(tmp_path, status):
    with serving(lambda body, _: say("wet")) as other:
        target = {"Location": f"{other.url}/chat/completions"}
        with serving(lambda body, _: Reply(b"", status, target)) as server:
            host = other.url.split("/")[2]
            with pytest.raises(RunFailed, match=f"redirect to {host}.*base_url"):
                model(server, tmp_path).generate([query("a")], 5)
        assert other.asked == []


def test_a_paid_answer_is_read_by_its_owner_alone(tmp_path):
    with serving(lambda body, _: say("wet")) as server:
        model(server, tmp_path).generate([query("a")], 5)
        (path,) = Cache().folder.rglob("*.json")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.chmod(0o644)
        model(server, tmp_path).generate([query("a")], 5)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


# ---- keys ---------------------------------------------------------------------------------------

FORMS = {
    "whole": KEY,
    "cut": KEY[:-8] + "…",
    "end": "…" + KEY[12:],
    "spaced": " ".join(KEY),
    "lines": "\n".join(KEY[i : i + 7] for i in range(0, len(KEY), 7)),
    "capitals": KEY.upper(),
    "backwards": KEY[::-1],
    "hex": KEY.encode().hex(),
    "percent": "".join(f"%{ord(c):02X}" for c in KEY),
    "base64": base64.b64encode(KEY.encode()).decode(),
    "bearer": base64.b64encode(f"Bearer {KEY}".encode()).decode(),
    "pair": base64.urlsafe_b64encode(f"me:{KEY}".encode()).decode(),
}


def pieces_of(form, size=12):
    letters = "".join(c for c in form if c.isalnum()).lower()
    return {letters[i : i + size] for i in range(len(letters) - size + 1)}


@pytest.mark.parametrize("form", FORMS)
def test_a_key_that_a_server_sends_back_in_any_form_is_masked(tmp_path, form):
    body = json.loads(say(f"the key is {FORMS[form]}").body)
    body["model"] = FORMS[form]
    body["choices"][0]["message"]["reasoning_content"] = FORMS[form]
    with serving(lambda sent, _: Reply(json.dumps(body).encode())) as server:
        asking = model(server, tmp_path)
        (answer,) = asking.generate([query("a")], 5)
    sent = pytest.raises(RunFailed, match="rejects the request")
    with serving(lambda *_: fault(400, f"wrong: {FORMS[form]}!")) as server, sent as wrong:
        model(server, tmp_path).generate([query("b")], 5)
    stored = next(Cache().folder.rglob("*.json")).read_text()
    for text in (answer.output, answer.reasoning, asking.usage[0].served, stored, str(wrong.value)):
        assert "[key]" in text
        letters = "".join(c for c in text if c.isalnum()).lower()
        assert not [piece for piece in pieces_of(FORMS[form]) if piece in letters]


@given(st.text(alphabet="abcdefgh -", max_size=60))
def test_words_that_are_no_key_stay(text):
    assert Redaction(KEY).message(text) == text
    assert Redaction("EMPTY").message(f"{text} empty") == f"{text} empty"
    assert Redaction(None).answer(text) == text


LIKE_KEYS = [
    "sk-proj-1234567890abcdef",
    "sk_live_1234567890abcdef",
    "a b",
    "xai1234567890abcdefghij",
]


@pytest.mark.parametrize("key", LIKE_KEYS)
def test_a_key_in_the_place_of_its_variable_is_not_shown(key):
    raw = {
        "name": "a",
        "model": "m",
        "tasks": ["toy-mood"],
        "ingredients": {"toy-mood": {"rows": 8}},
    }
    raw["api_models"] = [{"name": "mine", "model": "m", "key_env": key}]
    with pytest.raises(SpecError, match="name of an environment variable") as wrong:
        parse_study(raw)
    assert key not in str(wrong.value)
    assert "export MY_KEY" in str(wrong.value)


def test_a_variable_that_may_be_a_key_is_not_shown_where_it_is_not_set():
    with pytest.raises(ModelError, match="key_env") as wrong:
        Endpoint(system(key_env="secretletters"), PATIENCE)
    assert "secretletters" not in str(wrong.value)
