"""Task files drafted from files of rows: everything is used, named as unused, or asked about."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixtune.datasets.columns import Columns, Doubt
from mixtune.datasets.drafts import draft_task
from mixtune.datasets.registry import Registry
from mixtune.datasets.user_tasks import read_task_file
from mixtune.errors import DataError, UserError

ROWS = 40
PLANTS = ("fern", "rose", "palm", "moss")


def words(topic):
    return [f"the {topic} by the {PLANTS[n % 4]} was seen {n} times" for n in range(ROWS)]


def few(*values):
    return [values[n % len(values)] for n in range(ROWS)]


OPTIONS = [[f"{plant} {n}" for plant in PLANTS] for n in range(ROWS)]


def write(folder, columns):
    names = list(columns)
    rows = [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def drafted(folder, columns):
    """The draft and the task that it is, whose rows were all rendered."""
    path = write(folder, columns)
    draft = draft_task(path)
    (folder / "task.yaml").write_text(draft.text, encoding="utf-8")
    (registered,) = read_task_file(folder / "task.yaml")
    rows = Registry([registered]).dataset(registered.task.name, 1e-9).examples("train")
    return draft, registered.task, rows


USED = {
    "one text": ({"review": words("leaf"), "label": few("dry", "wet")}, "review", "label"),
    "question and passage": (
        {"question": words("leaf"), "passage": words("root"), "answer": few(True, False)},
        "passage and question", "answer",
    ),
    "premise and hypothesis": (
        {"premise": words("leaf"), "hypothesis": words("root"), "label": few(0, 1, 2)},
        "premise and hypothesis", "label",
    ),
    "two sentences": (
        {"idx": list(range(ROWS)), "sentence1": words("a"), "sentence2": words("b"),
         "label": few(0, 1)},
        "sentence1 and sentence2", "label",
    ),
    "text and aspect": (
        {"text": words("leaf"), "aspect": few(*PLANTS), "sentiment": few("good", "bad")},
        "text and aspect", "sentiment",
    ),
    "question and context": (
        {"context": words("leaf"), "question": words("root"), "label": few("yes", "no")},
        "context and question", "label",
    ),
    "title and body": (
        {"body": words("leaf"), "title": words("root"), "category": few("dry", "wet")},
        "title and body", "category",
    ),
    "a list of sentences": (
        {"evidence": [[text, text] for text in words("leaf")], "claim": words("root"),
         "label": few("true", "false")},
        "evidence and claim", "label",
    ),
    "numbers and words of the same labels": (
        {"text": words("leaf"), "label": few(0, 1), "label_text": few("dry", "wet")},
        "text", "label_text",
    ),
    "whole numbers as floats": ({"text": words("leaf"), "label": few(0.0, 1.0)}, "text", "label"),
    "a missing label": (
        {"text": words("leaf"), "label": [None, *few("dry", "wet")[1:]],
         "annotator": few("a", "b")},
        "text", "label",
    ),
    "a label of 77 values": (
        {"text": words("leaf"), "intent": few(*(f"i{n}" for n in range(20)))}, "text", "intent",
    ),
    "few values without a usual name": (
        {"text": words("leaf"), "moist": few("yes", "no"), "date": few("2026-01-02", "2026-01-03"),
         "user_id": few(1, 2), "licence": few("a", "a")},
        "text", "moist",
    ),
    "names in other forms": (
        {"Sentence": words("leaf"), "Aspect Term": few(*PLANTS), "polarity": few("good", "bad")},
        "Sentence and Aspect Term", "polarity",
    ),
    "a text of few values": (
        {"text": few("red fern", "blue rose"), "label": few("dry", "wet")}, "text", "label",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", USED)
def test_every_text_is_used(tmp_path, kind):
    columns, texts, label = USED[kind]
    path = write(tmp_path, columns)
    draft = draft_task(path)
    assert draft.form.startswith(f"text in {texts}, one of")
    assert draft.form.endswith(f"labels in {label}")
    # What is not used is named in the task file.
    unused = set(columns) - {label, *texts.replace(" and ", ", ").split(", ")}
    comment = draft.text.partition("# columns that are not used: ")[2]
    assert all(f"{name} (" in comment for name in unused) and bool(comment) == bool(unused)
    full = {n: [v if v is not None else "dry" for v in vs] for n, vs in columns.items()}
    _, task, rows = drafted(tmp_path, full)
    assert rows and {row.target for row in rows} <= set(task.labels)
    prompt = rows[0].messages[-1].content
    number = int(rows[0].id.removeprefix("train-"))
    for name in texts.replace(" and ", ", ").split(", "):
        value = columns[name][number]
        assert (" ".join(value) if isinstance(value, list) else value) in prompt


def test_a_missing_label_is_named_with_its_line_and_the_remedy_works(tmp_path, mixtune):
    path = write(tmp_path, USED["a missing label"][0])
    code, out, _ = mixtune("data", "check", path, "--write", tmp_path / "t.yaml")
    assert code == 2
    assert "note: label is empty in 1 of 40 rows, first at" in out and "rows.jsonl:1" in out
    assert "the label is empty" in out and "skip_if_empty: [label]" in out
    with (tmp_path / "t.yaml").open("a") as file:
        file.write("skip_if_empty: [label]\n")
    assert mixtune("data", "check", tmp_path / "t.yaml")[0] == 0


@pytest.mark.parametrize(
    ("columns", "doubt"),
    [({"moist": few("yes", "no")}, "moist is read as the label because its values are few"),
     ({"label": few("a", "b"), "topic": few("c", "d", "e")}, "topic could be the label as well")],
)  # fmt: skip
def test_a_label_that_is_not_certain_is_said(tmp_path, columns, doubt):
    path = write(tmp_path, {"text": words("leaf"), **columns})
    assert draft_task(path).notes[0].startswith(doubt)
    assert not draft_task(path, chosen=Columns(label=next(iter(columns)))).notes


DOUBTS = {
    "two labels": (
        {"text": words("leaf"), "topic": few("a", "b"), "sentiment": few("good", "bad", "odd")},
        ["--label topic", "--label sentiment"],
    ),
    "few values twice, without a usual name": (
        {"text": words("leaf"), "moist": few("a", "b"), "shade": few("c", "d", "e")},
        ["--label moist", "--label shade"],
    ),
    "an open answer and a category": (
        {"instruction": words("leaf"), "context": words("moss"), "response": words("root"),
         "category": few("a", "b")},
        ["--text instruction --text context --text response --label category",
         "--answer response"],
    ),
    "a text and one of another name": (
        {"text": words("leaf"), "surroundings": words("root"), "label": few("dry", "wet")},
        ["--text text --text surroundings --label label", "--text surroundings --label label"],
    ),
    "two texts of other names": (
        {"leaves": words("leaf"), "roots": words("root"), "label": few("dry", "wet")},
        ["--text leaves --text roots --label label", "--text roots --label label"],
    ),
    "alpaca rows and a text that they have no place for": (
        {"instruction": words("leaf"), "output": words("root"), "context": words("moss")},
        ["--text instruction --text context --answer output",
         "--text instruction --answer output"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DOUBTS)
def test_doubt_names_arguments_that_work(tmp_path, mixtune, kind):
    columns, ways = DOUBTS[kind]
    path = write(tmp_path, columns)
    code, _, err = mixtune("data", "check", path)
    assert (code == 2 and "could be" in err) or "have texts" in err
    assert all(f"add {way}" in err or f" {way}" in err for way in ways), err
    for way in ways:
        assert mixtune("data", "check", path, *way.split())[0] == 0, way


def test_doubt_is_asked_about_on_a_terminal(tmp_path, mixtune, monkeypatch):
    columns, _ = DOUBTS["two labels"]
    answers = iter([9, 2])
    monkeypatch.setattr("mixtune.cli.data.on_terminal", lambda: True)
    monkeypatch.setattr("typer.prompt", lambda *args, **keys: next(answers))
    code, out, _ = mixtune("data", "check", write(tmp_path, columns))
    assert code == 0 and "one of 3 labels in sentiment" in out and "2: --label sentiment" in out


FLAWS = {
    "one value": (few("dry"), "one label"),
    "lists": (few(["a", "b"], ["c"]), "lists of labels"),
    "fractions": (few(0.1, 0.25), "neither texts nor whole numbers"),
    "a value a row": ([f"v{n}" for n in range(ROWS)], "40 labels in 40 rows"),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_no_other_column_takes_the_place_of_a_flawed_label(tmp_path, flaw):
    values, reason = FLAWS[flaw]
    path = write(tmp_path, {"text": words("leaf"), "label": values, "moist": few("yes", "no")})
    with pytest.raises(DataError, match=reason) as caught:
        draft_task(path)
    assert "add --label moist" in str(caught.value)
    assert draft_task(path, chosen=Columns(label="moist"))


def test_the_first_of_listed_answers_is_the_target_and_no_title_is_the_label(tmp_path):
    answers = [{"text": [f"{n} times", "often"], "answer_start": [1, 2]} for n in range(ROWS)]
    columns = {"title": few(*PLANTS), "context": words("leaf"), "question": words("root"),
               "answers": answers}  # fmt: skip
    draft, _, rows = drafted(tmp_path, columns)
    assert draft.form == "open answers: title, context and question and answers"
    assert rows[0].target == f"{rows[0].id.removeprefix('train-')} times"


class TestOptions:
    """A question with options, and the place, letter or name of the right one."""

    @pytest.mark.parametrize(
        ("answers", "labels", "right"),
        [(few(0, 1, 2, 3), "ABCD", {0: "A", 3: "D"}), (few(1, 2, 3, 4), "ABCD", {1: "A", 4: "D"}),
         (few("A", "b", "C", "D"), "ABCD", {"b": "B"})],
    )  # fmt: skip
    def test_in_a_list(self, tmp_path, answers, labels, right):
        columns = {"question": words("leaf"), "choices": OPTIONS, "answer": answers}
        draft, task, rows = drafted(tmp_path, columns)
        assert draft.form == "options in question and choices, the right one in answer"
        assert task.labels == tuple(labels)
        row = rows[0]
        number = int(row.id.removeprefix("train-"))
        assert f"A. fern {number}\nB. rose {number}\nC. palm {number}" in row.messages[-1].content
        assert row.target == right.get(answers[number], row.target)

    def test_with_names_of_their_own(self, tmp_path):
        choices = [{"text": texts, "label": ["1", "2", "3", "4"]} for texts in OPTIONS]
        columns = {"question": words("leaf"), "choices": choices, "answerKey": few("2", "4")}
        _, task, rows = drafted(tmp_path, columns)
        assert task.labels == ("1", "2", "3", "4")
        assert "2. rose" in rows[0].messages[-1].content

    def test_in_columns(self, tmp_path):
        columns = {f"option {'abcd'[n]}": [row[n] for row in OPTIONS] for n in range(4)}
        columns = {"question": words("leaf"), **columns, "correct": few("a", "c", "d")}
        _, task, rows = drafted(tmp_path, columns)
        assert task.labels == tuple("ABCD") and rows[0].target in "ACD"
        assert "C. palm" in rows[0].messages[-1].content

    def test_answers_that_are_an_options_text_are_open(self, tmp_path):
        columns = {"question": words("leaf"), "options": OPTIONS,
                   "answer": [row[n % 4] for n, row in enumerate(OPTIONS)]}  # fmt: skip
        draft, _, rows = drafted(tmp_path, columns)
        assert draft.form == "open answers: question and options and answer"
        assert rows[0].target in rows[0].messages[-1].content

    def test_places_that_may_count_from_0_or_1_are_not_guessed(self, tmp_path):
        path = write(tmp_path, {"question": words("leaf"), "choices": OPTIONS, "answer": few(1, 2)})
        with pytest.raises(DataError, match="may count from 0 or from 1"):
            draft_task(path)


class TestLabels:
    """Labels that look alike."""

    def test_are_one_label_and_said(self, tmp_path):
        values = few("dry", "dry", "Dry", "wet", "wet", "we\u00adt", "w\u200bet", "  wet")
        draft, task, rows = drafted(tmp_path, {"text": words("leaf"), "label": values})
        assert task.labels == ("dry", "wet") and {row.target for row in rows} == {"dry", "wet"}
        (note,) = draft.notes
        assert r"'we\xadt' is 'wet'" in note and "'Dry' is 'dry'" in note

    @pytest.mark.parametrize(
        ("value", "problem"),
        [("we\u200bt", "U+200B ZERO WIDTH SPACE"), ("\ufeffwet", "U+FEFF ZERO WIDTH NO-BREAK"),
         ("we\u00adt", "U+00AD SOFT HYPHEN"), ("\u200ewet", "U+200E LEFT-TO-RIGHT MARK"),
         ("all\u00a0wet", "U+00A0 NO-BREAK SPACE"), ("Wet", "case or spacing")],
    )  # fmt: skip
    def test_the_error_names_the_difference_and_a_remedy_that_works(
        self, tmp_path, mixtune, value, problem
    ):
        rows = {"text": words("leaf"), "label": [value, *few("dry", "wet", "all wet")[1:]]}
        write(tmp_path, rows)
        text = (
            "name: leaves\nlabels: [dry, wet, all wet]\n"
            "prompt: \"dry, wet or all wet? {{ text }}\"\nfields: {label: label}\n"
            "source: rows.jsonl\n"
        )  # fmt: skip
        (tmp_path / "t.yaml").write_text(text)
        code, out, _ = mixtune("data", "check", tmp_path / "t.yaml")
        assert code == 2 and problem in out and "rows.jsonl:1" in out
        remedy = out.partition("or add ")[2].partition(" to the task file")[0]
        (tmp_path / "t.yaml").write_text(f"{text}{remedy}\n")
        assert mixtune("data", "check", tmp_path / "t.yaml")[0] == 0

    def test_are_compared_in_one_normal_form(self, tmp_path):
        rows = {"text": words("leaf"), "label": few("se\u0301che", "humide")}
        path = write(tmp_path, rows)
        text = (
            "name: leaves\nlabels: [s\u00e9che, humide]\n"
            "prompt: \"s\u00e9che ou humide? {{ text }}\""
            f"\nfields: {{label: label}}\nsource: {path.name}\n"
        )  # fmt: skip
        (tmp_path / "t.yaml").write_text(text, encoding="utf-8")
        (registered,) = read_task_file(tmp_path / "t.yaml")
        rows = Registry([registered]).dataset("leaves", 0.1).examples("train")
        assert {row.target for row in rows} == {"s\u00e9che", "humide"}

    @pytest.mark.parametrize("label", ["we\u200bt", "\u200fwet", "all\u00a0wet"])
    def test_with_invisible_characters_are_refused_in_a_task_file(self, tmp_path, label):
        text = f'name: a\nlabels: [dry, "{label}"]\nprompt: "{{{{ labels }}}} {{{{ text }}}}"\n'
        (tmp_path / "t.yaml").write_text(f"{text}fields: {{label: l}}\nsource: a.csv\n", "utf-8")
        with pytest.raises(DataError, match="has invisible characters, U\\+"):
            read_task_file(tmp_path / "t.yaml")

    @pytest.mark.parametrize("label", ["می‌خواهم", "क्‍ष", "❤️", "👩‍👧"])
    def test_joined_letters_and_emoji_are_visible(self, tmp_path, label):
        text = f'name: a\nlabels: [dry, "{label}"]\nprompt: "{{{{ labels }}}} {{{{ text }}}}"\n'
        (tmp_path / "t.yaml").write_text(f"{text}fields: {{label: l}}\nsource: a.csv\n", "utf-8")
        assert read_task_file(tmp_path / "t.yaml")


class TestAnyColumns:
    """No column vanishes unsaid."""

    NAMES = (
        "text", "label", "question", "passage", "answer", "id", "annotator", "a b", "not", "topic",
        "options", "Label", "sentence1", "notes", "{{", "output", "title",
    )  # fmt: skip
    CELLS = st.sampled_from([
        words("leaf"), words("root"), few("dry", "wet"), few(True, False), few(0, 1, 2), few("x"),
        list(range(ROWS)), [None] * ROWS, few(None, "dry", "wet"), few(0.5, 1.5), OPTIONS,
        few("2026-01-02", "2026-02-03T10:00"), [f"w{n}" for n in range(ROWS)], few({"a": 1}),
    ])  # fmt: skip

    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.dictionaries(st.sampled_from(NAMES), CELLS, min_size=1, max_size=5))
    def test_are_used_or_named(self, tmp_path, columns):
        try:
            draft = draft_task(write(tmp_path, columns))
        except Doubt as doubt:
            assert doubt.options and all(str(option.arguments()) for option in doubt.options)
            return
        except UserError as error:
            assert "remedy" in str(error)
            return
        (tmp_path / "task.yaml").write_text(draft.text, encoding="utf-8")
        (registered,) = read_task_file(tmp_path / "task.yaml")
        task = registered.task
        shown = {task.column(name) for name in task.content_fields} | {task.fields.label}
        shown |= {task.column(name) for name in task.required_fields}
        comment = draft.text.partition("# columns that are not used: ")[2]
        assert all(name in shown or f"{name} (" in comment for name in columns), draft.text
