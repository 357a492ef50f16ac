"""Whatever the rows, bytes, task files or templates: a result, or an error to mend."""

import json

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from own_kit import TEN_LINES, changed, csv_text, examples_of

from mixtune.datasets import rows as files
from mixtune.datasets.drafts import draft_task
from mixtune.datasets.rows import read_rows
from mixtune.datasets.user_tasks import read_task_file
from mixtune.errors import UserError
from mixtune.tasks.record import read_dialogue
from mixtune.tasks.task import parse_task
from mixtune.tasks.templates import render

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
names = st.sampled_from(
    ["text", "topic", "id", "messages", "role", "content", "from", "value", "conversations",
     "instruction", "output", "history", "system", "prompt", "completion", "input", "tools"]
)  # fmt: skip
turns = st.lists(
    st.dictionaries(
        st.sampled_from(["role", "content", "from", "value"]),
        st.sampled_from(["user", "assistant", "system", "human", "gpt", "tool", "", "x"]) | values,
        max_size=3,
    ),
    max_size=4,
)
rows = st.dictionaries(names, values | turns, max_size=6)
keys = st.sampled_from(
    ["name", "labels", "prompt", "fields", "source", "format", "columns", "roles", "turns", "kind",
     "metrics", "parser", "system", "target", "questions", "label_values", "group_by", "aliases",
     "datasets", "scored", "may_be_empty", "make", "context", "role", "keep", "floor_by", "types"]
)  # fmt: skip
plenty = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class TestAnything:
    """Whatever the input: a result, or an error that the user can mend."""

    @plenty
    @given(rows, st.sampled_from(["prompt-completion", "alpaca", "sharegpt", "messages", "fields"]))
    def test_rows(self, row, form):
        text = TEN_LINES if form == "fields" else f"name: a\nformat: {form}\nsource: a.csv\n"
        try:
            for example in examples_of(parse_task(text, "t"), row, "train"):
                assert example.target and example.messages[-1].role == "user"
        except UserError as error:
            assert "\x1b" not in str(error)

    @plenty
    @given(rows)
    def test_dialogues_alternate(self, row):
        try:
            dialogue = read_dialogue(row, "w", "messages")
        except UserError:
            return
        spoken = [turn.role for turn in dialogue.turns if turn.role != "system"]
        assert spoken == ["user", "assistant"] * (len(spoken) // 2)

    @plenty
    @given(st.binary(max_size=200), st.sampled_from(files.ENDINGS))
    def test_bytes(self, tmp_path, body, ending):
        path = tmp_path / f"rows{ending}"
        path.write_bytes(body)
        try:
            for row in read_rows(path):
                assert isinstance(row.record, dict)
        except UserError:
            pass

    @plenty
    @given(st.text(alphabet='ab,"\n\r\t;\x00é ', max_size=60))
    def test_csv(self, tmp_path, body):
        path = tmp_path / "rows.csv"
        path.write_text(body, encoding="utf-8", newline="")
        try:
            found = list(read_rows(path))
        except UserError:
            return
        widths = {len(row.record) for row in found}
        assert len(widths) <= 1

    @plenty
    @given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=5))
    def test_csv_that_was_written_is_read(self, tmp_path, cells):
        def plain(text):
            return "".join(c for c in text if c.isprintable()).strip()

        wanted = [(plain(a) or "a", plain(b) or "b") for a, b in cells]
        path = tmp_path / "rows.csv"
        path.write_text(csv_text(wanted), encoding="utf-8", newline="")
        assert [tuple(row.record.values()) for row in read_rows(path)] == wanted

    @plenty
    @given(
        st.dictionaries(keys, values | st.sampled_from(["alpaca", "messages", "a.csv", "label"]))
    )
    def test_task_files(self, tmp_path, changes):
        raw = yaml.safe_load(TEN_LINES) | changes
        path = tmp_path / "task.yaml"
        path.write_text(yaml.safe_dump(raw, allow_unicode=True), encoding="utf-8")
        try:
            assert read_task_file(path)[0].task.name
        except UserError as error:
            assert str(error)

    @plenty
    @given(
        st.lists(st.text(min_size=1, max_size=6) | st.booleans() | st.integers(0, 12),
                 min_size=2, max_size=6).filter(lambda v: all(str(x).strip() for x in v)),
        st.permutations(["text", "label", "labels", "question", "not", "Topic", "a b", "{{"]),
    )  # fmt: skip
    def test_a_starter_fits_its_rows(self, tmp_path, labels, names):
        path = tmp_path / "rows.jsonl"
        rows = [{names[0]: f"a text {n}", names[1]: labels[n % len(labels)]} for n in range(40)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        try:
            made = draft_task(path)
        except UserError as error:
            assert "fit no form" in str(error) or "cannot be the label" in str(error)
            return
        if "labels in" in made.form:
            task = parse_task(made.text, "t")
            assert all(examples_of(task, row, "train")[0].target in task.labels for row in rows)

    @plenty
    @given(st.text(alphabet="{}%'\"|()[]ab~*+ .textfori\n0123", max_size=60))
    def test_templates(self, source):
        try:
            made = parse_task(changed(prompt="{{ labels }}{{ text }}" + source), "t")
            render(made.prompt, {"text": "abc", "labels": ["a"]}, "row")
        except UserError:
            pass

    @plenty
    @given(st.dictionaries(st.text(max_size=9), st.dictionaries(st.sampled_from(
        ["file_name", "hf_hub_url", "formatting", "columns", "tags", "subset", "split", "ranking"]
    ), values | st.sampled_from(["a.json", "some/set", "alpaca", "sharegpt"]))))  # fmt: skip
    def test_dataset_info(self, tmp_path, entries):
        path = tmp_path / "dataset_info.json"
        path.write_text(json.dumps(entries), encoding="utf-8")
        try:
            for made in read_task_file(path):
                assert made.task.name
        except UserError:
            pass
