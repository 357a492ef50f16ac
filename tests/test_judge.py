"""The judge on twenty invented items, with a script in its place; the verb on a small study."""

import json
import shutil

import numpy as np
import pytest
from run_kit import finished_study
from scripted import ScriptedModel
from sklearn.metrics import cohen_kappa_score

from mixtune.api.ledger import Cache
from mixtune.errors import DataError, RunFailed, SpecError
from mixtune.evaluation.judge import (
    ORDERS,
    Answered,
    Rubric,
    _kappa,
    agreement,
    judge,
    read_labels,
    self_agreement,
    settle,
    verdict,
)
from mixtune.records import Answer, Example, Judgement, Message, Prediction
from mixtune.results.judgements import Judged
from mixtune.store.folder import Store

RIGHT, PARTLY, WRONG = range(8), range(8, 12), range(12, 16)
SWAYED, MUTE = range(16, 18), range(18, 20)
"""Twenty items: what the script says of them. The swayed takes whatever comes first for right."""


def item(number):
    messages = (Message("user", f"How much did firm {number} earn in 2021?"),)
    example = Example("t", f"e{number:02}", "test", f"g{number}", "", messages, f"{number} million")
    fields = {"form": "strict", "prompt_hash": "", "choices": (), "logprobs": ()}
    answer = {"output": f"It earned {number}m.", "finish": "stop", "latency": 0.0}
    return Answered(Prediction("s", "t", "test", example.id, **fields, **answer), example)


ITEMS = [item(number) for number in range(20)]


def script(query):
    number, order = int(query.id[1:3]), query.id.partition("/")[2]
    if number in SWAYED:
        return "Verdict: 2" if order == "answer-first" else "Verdict: 0"
    if number in MUTE:
        return "I would rather not say." if order == "answer-first" else "Verdict: 1"
    value = 2 if number in RIGHT else 1 if number in PARTLY else 0
    return f"The amounts were compared.\nVerdict: {value}"


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache" / "judge")


def test_only_verdicts_that_are_the_same_in_both_orders_count(cache):
    rows = judge(ScriptedModel(script), Rubric.load(), ITEMS, cache)
    assert len(rows) == 40
    found = {one.example: one for one in settle(rows)}
    assert [found[f"e{n:02}"].verdict for n in (*RIGHT, *PARTLY, *WRONG)] == [2] * 8 + [1] * 4 + [
        0
    ] * 4
    assert {found[f"e{n:02}"].outcome for n in SWAYED} == {"inconsistent"}
    assert {found[f"e{n:02}"].outcome for n in MUTE} == {"unparsable"}
    assert {found[f"e{n:02}"].verdict for n in (*SWAYED, *MUTE)} == {None}


def test_the_judge_sees_question_reference_and_answer_in_both_orders():
    rubric = Rubric.load()
    prediction, example = ITEMS[3]
    texts = [
        rubric.query(example, prediction.output, order).messages[0].content for order in ORDERS
    ]
    for text in texts:
        assert all(part in text for part in ("firm 3 earn", "3 million", "It earned 3m."))
    places = [text.index("<reference>\n3 million") < text.index("<answer>\nIt") for text in texts]
    assert places == [True, False]


def test_nothing_is_asked_twice_but_what_is_asked_again(cache):
    rubric, model = Rubric.load(), ScriptedModel(script)
    first = judge(model, rubric, ITEMS, cache)
    assert model.calls == 1
    assert judge(model, rubric, ITEMS, cache) == first
    assert model.calls == 1
    assert self_agreement(first) == (0, 0)
    again = judge(model, rubric, ITEMS, cache, again=20)
    assert model.calls == 2
    # Thirty-eight of the forty questions have a verdict, and it is the same the second time.
    assert self_agreement(again) == (38, 40)
    assert settle(again) == settle(first)
    moody = iter(range(10**6))
    fresh = ScriptedModel(lambda query: f"Verdict: {next(moody) % 3}", system="moody")
    same, twice = self_agreement(judge(fresh, rubric, ITEMS, cache, again=20))
    assert twice == 40
    assert same < 40
    other = Rubric("correctness-2", rubric.template + " ")
    judge(model, other, ITEMS, cache)
    assert model.calls == 3


def test_what_was_said_before_a_failure_is_kept(cache, monkeypatch):
    monkeypatch.setattr("mixtune.evaluation.judge.AT_ONCE", 10)
    failing = ScriptedModel(script, fail_at=3)
    with pytest.raises(RunFailed, match="scripted failure"):
        judge(failing, Rubric.load(), ITEMS, cache)
    model = ScriptedModel(script)
    judge(model, Rubric.load(), ITEMS, cache)
    assert model.calls == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("Verdict: 0", 0), ("Verdict: 1", 1), ("Verdict: 2", 2), ("verdict 2.", 2)),
        *(("**Verdict: 2**", 2), ("Because.\n\nVerdict:1\n", 1), ("Verdict: 2\nVerdict: 2", 2)),
        *((text, None) for text in ("", "2", "Right", "Verdict: 3", "Verdict: 2/2", "Verdict: -1")),
        *((text, None) for text in ("Verdict: 0, 1 or 2", "Verdict: N", "The verdict: 2 of 3")),
        *((text, None) for text in ("Verdict: 2\nVerdict: 0", "Verdict: two", "Verdict: 22")),
        *((text, None) for text in ("判定: 2", "Verdict: 1.5", "x" * 10_000, "My verdict is 2")),
    ],
)
def test_a_verdict_is_read_or_there_is_none(text, value):
    assert verdict(Answer(text)) == value
    assert verdict(Answer(text, finish="length")) is None
    assert verdict(Answer(text, finish="refused")) is None


# ---- people ------------------------------------------------------------


def test_with_too_few_labels_the_judge_is_not_validated(cache):
    settled = settle(judge(ScriptedModel(script), Rubric.load(), ITEMS, cache))
    labels = {("t", "s", f"e{n:02}"): 2 for n in range(20)}
    found = agreement(settled, labels)
    assert (found.labels, found.compared, found.accuracy) == (20, 16, 0.5)
    assert found.summary == "not validated (16 labels by people, 100 needed)"
    assert agreement(settled, {}).summary.startswith("not validated (0 labels")
    assert agreement(settled, {("t", "other", "e01"): 2}).labels == 0


def test_agreement_is_accuracy_and_cohens_kappa(cache):
    items = [item(number) for number in range(100)]
    said = {f"e{n:02}": (n * 7) % 3 for n in range(100)}
    model = ScriptedModel(lambda query: f"Verdict: {said[query.id[:3]]}")
    settled = settle(judge(model, Rubric.load(), items, cache))
    # People differ on every fifth answer, and say one less or, of 0, two.
    people = {
        ("t", "s", name): value if n % 5 else (value - 1) % 3
        for n, (name, value) in enumerate(said.items())
    }
    found = agreement(settled, people)
    assert found.accuracy == pytest.approx(0.8)
    own = [said[name] for name in sorted(said)]
    theirs = [people["t", "s", name] for name in sorted(said)]
    chance = sum(own.count(v) * theirs.count(v) for v in range(3)) / 100**2
    assert found.kappa == pytest.approx((0.8 - chance) / (1 - chance))
    assert found.summary.startswith("validated on 100 of 100 labels by people: accuracy 80.0%")
    same = dict.fromkeys(people, 2)
    always = settle(
        judge(ScriptedModel(lambda q: "Verdict: 2", "yes"), Rubric.load(), items, cache)
    )
    assert agreement(always, same).kappa is None


@pytest.mark.parametrize(
    ("table", "kappa"),
    [
        # Rows: one rater's verdicts, columns: the other's. The first is 20 yes-yes, 15 no-no of 50.
        ([[20, 0, 5], [0, 0, 0], [10, 0, 15]], 0.4),
        ([[10, 0, 0], [0, 7, 0], [0, 0, 3]], 1.0),
        ([[0, 4, 0], [4, 0, 0], [0, 0, 0]], -1.0),
        ([[11, 3, 2], [1, 9, 4], [5, 0, 15]], None),
    ],
)
def test_kappa_is_that_of_a_table(table, kappa):
    pairs = [(i, j) for i in range(3) for j in range(3) for _ in range(table[i][j])]
    one, other = zip(*pairs, strict=True)
    assert _kappa(np.array(table)) == pytest.approx(cohen_kappa_score(one, other, labels=[0, 1, 2]))
    assert kappa is None or _kappa(np.array(table)) == pytest.approx(kappa)


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        '{"task": "t", "system": "s", "example": "e"}',
        '{"task": "t", "system": "s", "example": "e", "verdict": null}',
        '{"task": "t", "system": "s", "example": "e", "verdict": 3}',
        '{"task": "t", "system": "s", "example": "e", "verdict": true}',
        "[1]",
    ],
)
def test_lines_that_are_no_labels(tmp_path, line):
    path = tmp_path / "labels.jsonl"
    good = '{"task": "t", "system": "s", "example": "e", "verdict": 1, "note": "seen"}'
    path.write_text(f"{good}\n\n{line}\n")
    with pytest.raises(DataError, match=r"(?s)line 3: this is no label.*--to-label"):
        read_labels(path)
    path.write_text(f"{good}\n{good}\n")
    assert read_labels(path) == {("t", "s", "e"): 1}
    path.write_text(good + "\n" + good.replace(": 1", ": 2"))
    with pytest.raises(DataError, match="two labels"):
        read_labels(path)


def test_no_such_rubric():
    with pytest.raises(SpecError, match="correctness-1"):
        Rubric.load("correctness-9")


# ---- the verb ------------------------------------------------------------

STUDY = {
    "name": "small",
    "tasks": ["toy-table", "toy-sentiment"],
    "ingredients": {"toy-maths": {"rows": 40}},
    "design": ["singles"],
    "budget": {"steps": 1, "examples_per_step": 4},
    "train": {"rank": 2, "alpha": 4},
    "baselines": ["base"],
    "evaluate": {"validation_items": 20, "test_items": 4, "max_new_tokens": 6, "forms": ["strict"]},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A finished study with a task of free answers."""
    folder = tmp_path_factory.mktemp("judge")
    finished_study(folder, STUDY)
    speak(Store(folder / "runs/small"))
    return folder


def speak(store):
    """A random model never ends its turn: put answers in its mouth, all but two of each system."""
    for row in store.plan():
        if row.task == "toy-table":
            name = f"{row.folder}/answers/{row.id}/predictions.parquet"
            said = [
                Prediction(**raw | {"output": str(n), "finish": "length" if n < 2 else "stop"})
                for n, raw in enumerate(store.read_rows(name))
            ]
            store.write_rows(name, Prediction, said)


@pytest.fixture
def mixtune(place, monkeypatch, mixtune):
    monkeypatch.chdir(place)
    monkeypatch.setenv("MIXTUNE_CACHE", str(place / "cache"))
    return mixtune


@pytest.fixture
def scripted(monkeypatch):
    """A judge that finds every answer partly right, and counts what it is asked."""
    model = ScriptedModel(lambda query: "Verdict: 1", system="scripted-judge")
    monkeypatch.setattr("mixtune.execution.extra_systems.local_judge", lambda name: model)
    return model


def test_judgements_are_facts_beside_the_predictions(mixtune, place, scripted):
    code, out, err = mixtune("judge", "study.yaml", "--by", "anyone", "--again", "3", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["validation"] == "not validated (0 labels by people, 100 needed)"
    assert found["self_agreement"] == "agrees with itself on 12 of 12 questions put twice"
    for row in found["rows"]:
        assert (row["task"], row["answers"], row["partly"], row["left_out"]) == (
            "toy-table",
            18,
            18,
            2,
        )
        assert row["low"] < row["value"] == 0.5 < row["high"]
    assert {row["cocktail"] for row in found["rows"]} == {"base", "toy-maths"}
    store = Store(place / "runs/small")
    kept = [
        Judgement(**row)
        for path in sorted(store.folder.glob("cells/*/answers/*/judgements-*.parquet"))
        for row in store.read_rows(str(path.relative_to(store.folder)))
    ]
    assert len(kept) == 2 * (18 * 2 + 3 * 2)
    assert {(row.judge, row.verdict) for row in kept} == {("scripted-judge", 1)}
    asked = scripted.calls
    code, out, _ = mixtune("judge", "study.yaml", "--by", "anyone", "--again", "3")
    assert code == 0
    assert scripted.calls == asked
    assert "not validated" in out
    assert "0 / 18 / 0" in out


def test_what_was_judged_is_on_the_page_and_beside_it(mixtune, place, scripted):
    assert mixtune("judge", "study.yaml", "--by", "anyone", "--again", "0")[0] == 0
    assert mixtune("judge", "study.yaml", "--by", "anyone", "--again", "3")[0] == 0
    code, out, err = mixtune("report", "study.yaml")
    assert code == 0, err
    page = (place / out.strip()).read_text(encoding="utf-8")
    assert page.count("scripted-judge, rubric correctness-1") == 1  # the second time's
    assert "not validated (0 labels by people, 100 needed)" in page
    assert "agrees with itself on 12 of 12" in page
    assert page.count("0 / 18 / 0") == 2
    beside = place / "runs/small/report/validation/judged.csv"
    assert len(beside.read_text(encoding="utf-8").splitlines()) == 3
    code, out, _ = mixtune("report", "study.yaml", "--format", "md")
    assert code == 0 and "## Judged by a model" in out and "0 / 18 / 0" in out
    code, out, _ = mixtune("report", "study.yaml", "--format", "json")
    assert [row["partly"] for row in json.loads(out)["judged"]] == [18, 18]
    code, out, _ = mixtune("report", "study.yaml", "--split", "test", "--format", "md")
    assert code == 0 and "Judged by a model" not in out


def test_answers_that_were_made_again_are_not_shown_as_judged(mixtune, place, scripted):
    assert mixtune("judge", "study.yaml", "--by", "anyone", "--again", "0")[0] == 0
    store = Store(place / "runs/small")
    rows = store.read_rows("judged.parquet")
    old = [Judged(**row | {"answer": f"gone-{n}"}) for n, row in enumerate(rows)]
    store.write_rows("judged.parquet", Judged, old)
    code, out, _ = mixtune("report", "study.yaml", "--format", "json")
    assert code == 0 and json.loads(out)["judged"] == []


def test_people_label_what_is_written_for_them(mixtune, place, scripted):
    code, _, err = mixtune("judge", "study.yaml", "--to-label", place / "labels.jsonl")
    assert code == 0, err
    assert scripted.calls == 0
    lines = (place / "labels.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 36
    assert all(json.loads(line)["reference"] for line in lines)
    filled = [json.dumps(json.loads(line) | {"verdict": 1}) for line in lines]
    (place / "labels.jsonl").write_text("\n".join(filled))
    labelled = ("--labels", place / "labels.jsonl")
    code, out, err = mixtune("judge", "study.yaml", "--by", "anyone", *labelled, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["validation"] == "not validated (36 labels by people, 100 needed)"
    assert found["agreement"]["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no judge is named"),
        (("--by", "anyone", "--task", "toy-sentiment"), "no free answers"),
        (("--by", "anyone", "--rubric", "other"), "no such rubric"),
        (("--by", "anyone", "--labels", "nowhere"), "cannot be read"),
        (("--by", "anyone", "--split", "train"), "no such split"),
    ],
)
def test_mistakes(mixtune, scripted, arguments, message):
    code, _, err = mixtune("judge", "study.yaml", *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_a_model_on_this_machine_can_be_the_judge(mixtune, place, monkeypatch):
    """It is a random one, and has no verdict to give."""
    monkeypatch.setattr("mixtune.evaluation.judge.LONGEST_VERDICT", 4)
    wide = shutil.copytree(
        place / "base", place / "wide"
    )  # a letter is a token: the rubric is long
    config = json.loads((wide / "config.json").read_text()) | {"max_position_embeddings": 4096}
    (wide / "config.json").write_text(json.dumps(config))
    code, out, err = mixtune("judge", "study.yaml", "--by", wide, "--again", "0", "--json")
    assert code == 0, err
    assert {(row["unparsable"], row["value"]) for row in json.loads(out)["rows"]} == {(18, None)}
