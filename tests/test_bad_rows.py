"""Rows and templates that cannot be used: what is said of them, and how soon."""

import gzip
import json
import re
import time

import pytest
import yaml
from own_kit import changed, csv_text, examples, many

from mixtune.errors import DataError, UserError
from mixtune.tasks.task import parse_task
from mixtune.tasks.templates import render

BAD_ROWS = [
    ("a.jsonl", b'{"text": "a", "topic": "billing"}\n{"text": ', ["a.jsonl:2", "not valid JSON"]),
    ("a.jsonl", b'{"topic": "billing"}\n', ["a.jsonl:1", "no field 'text'", "wanted: text"]),
    ("a.jsonl", b'{"text": "a", "topic": "gifts"}\n', ["a.jsonl:1", "label outside", "gifts"]),
    ("a.jsonl", b'{"text": " ", "topic": "billing"}\n', ["a.jsonl:1", "field 'text'", "empty"]),
    ("a.jsonl", '{"text": "é"}'.encode("latin-1"), ["a.jsonl:1", "wrong encoding", "UTF-8"]),
    ("a.jsonl", '{"text": "a"}'.encode("utf-16"), ["a.jsonl:1", "UTF-16"]),
    ("a.jsonl", b'{"a": "' + b"x" * 12_000_000, ["a.jsonl:1", "line is too long"]),
    ("a.csv", b'text,topic\n"' + b"x" * 12_000_000, ["a.csv:2", "line is too long"]),
    ("a.csv", b'text,topic\n"' + b"x\n" * 200_000, ["a.csv:2", "131,072", "not closed"]),
    ("a.json", b'[{"a": "' + b"x" * 12_000_000 + b'"}]', ["a.json, row 1", "record is too long"]),
    ("a.csv", b"text,topic\na,b,c\n", ["a.csv:2", "3 cells", "2 cells: text, topic"]),
    ("a.csv", b"text,topic\na\n", ["a.csv:2", "1 cells"]),
    ("a.csv", b"text;topic\na;b;c\n", ["a.csv:1", "separated by another sign"]),
    ("a.csv", b"text;topic\na;b\n", ["a.csv:2", "label outside", "found:  b"]),
    ("a.csv", b"text,text\na,b\n", ["a.csv:1", "same name", "text"]),
    ("a.csv", b"text,\na,b\n", ["a.csv:1", "column 2 has no name"]),
    ("a.csv", b"3,0.5\n4,1.5\n", ["a.csv:1", "does not look like column names"]),
    ("a.csv", b"Where is it?,delivery\nToo small,returns\n", ["a.csv:2", "no field 'text'"]),
    ("a.csv", b"te\0xt,topic\n", ["a.csv:1", "NUL"]),
    ("a.csv", b'text,topic\n"a"b,c\n', ["a.csv:2", "not valid CSV", '"quotes"']),
    ("a.csv", "text,topic\né,billing\n".encode("latin-1"), ["a.csv:2", "wrong encoding"]),
    ("a.csv", "text,topic\n".encode("utf-16"), ["a.csv:1", "UTF-16"]),
    ("a.csv", b"", ["a.csv", "file is empty"]),
    ("a.csv", b"text,topic\n", ["no usable record"]),
    ("a.csv", b"text,topic\nhello,\n", ["a.csv:2", "found:  ''"]),
    ("a.json", b"", ["not a JSON list", "empty file"]),
    ("a.json", b'{"text": "a"}', ["not a JSON list", "one on each line"]),
    ("a.json", b'{"text": "a",\n "topic": "billing"}\n', ["not a JSON list"]),
    ("a.json", b'{"text": "a", "topic": "billing"}\n{"text": }', ["a.json:2", "not valid JSON"]),
    ("a.json", b'{"text": "a", "topic": 1}\n{"text": "b"}', ["a.json:1", "label outside"]),
    ("a.json", b'[{"text": "a"}, 3]', ["a.json, row 1", "no field"]),
    ("a.json", b'[{"text": "a", "topic": "billing"}\n, 3]', ["a.json, row 2", "not a JSON object"]),
    ("a.json", b'[{"text": "a"}', ["a.json: not valid JSON", "line 1 column 15", "copy it again"]),
    (
        "a.json",
        b'[{"text": "a"},]',
        ["a.json: not valid JSON", "line 1 column 16", '[{"text": "a"},]'],
    ),
    ("a.json", b'[{"text": "a"} {"text": "b"}]', ["Expecting ',' delimiter: line 1 column 16"]),
    ("a.json", b"[" * 100_000, ["not valid JSON"]),
    ("a.parquet", b"", ["not a readable parquet file"]),
    ("a.parquet", b"PAR1 and no more", ["not a readable parquet file"]),
    ("a.jsonl.gz", b"no gzip", ["cannot read the file", "copy the file again"]),
    ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-9], ["no field 'topic'"]),
]


class TestBadRows:
    """Every fault names file, line and field, what was found, what was wanted, the remedy."""

    @pytest.mark.parametrize(("name", "body", "words"), BAD_ROWS)
    def test_it_is_refused(self, place, mixtune, name, body, words):
        (place / name).write_bytes(body)
        (place / "task.yaml").write_text(changed(source=name), encoding="utf-8")
        code, out, err = mixtune("data", "check", place / "task.yaml")
        assert code == 2
        for word in ["problem:", *words]:
            assert word in out.replace(str(place) + "/", "")
        assert "remedy" in out
        assert "Traceback" not in out + err

    def test_repeated_ids(self, place):
        body = "id,text,topic\n1,a,billing\n2,b,billing\n1,c,returns\n"
        (place / "tickets.csv").write_text(body, encoding="utf-8")
        with pytest.raises(DataError, match=r"csv:4: the id is there twice(.|\n)*csv:2"):
            examples(place, changed(fields={"label": "topic", "id": "id"}))

    @pytest.mark.parametrize(
        ("source", "words"),
        [
            ("nowhere.csv", "no such file"),
            ("tickets.cvs", "a file of rows ends in"),
            ("folder.csv", "this is a folder, not a file"),
            ({"trian": "a.csv"}, "source.trian: no such key; did you mean 'train'"),
            ({"train": "a.csv", "tset": "a.csv"}, "source.tset: no such key; did you mean 'test'"),
            ({"train": "a.csv", "carve_test": 2}, "source.carve_test"),
            ({"train": "a.csv", "test": "b.csv", "carve_test": 0.1}, "remove one of the two"),
            ({"test": "a.csv"}, "source.train: missing"),
            (3, "source"),
        ],
    )
    def test_sources_that_cannot_be(self, place, mixtune, source, words):
        (place / "folder.csv").mkdir()
        (place / "task.yaml").write_text(changed(source=source), encoding="utf-8")
        code, out, err = mixtune("data", "check", place / "task.yaml")
        assert code == 2
        assert words in out + err

    def test_all_problems_are_listed_up_to_twenty(self, place, mixtune):
        rows = [*many(), ("x", "gifts"), ("", "billing"), ("y", "toys")]
        (place / "tickets.csv").write_text(csv_text(rows), encoding="utf-8", newline="")
        code, out, _ = mixtune("data", "check", place / "task.yaml", "--json")
        problems = json.loads(out)["tasks"][0]["problems"]
        assert code == 2
        assert [re.search(r"csv:(\d+)", text)[1] for text in problems] == ["62", "63", "64"]
        lines = "".join('{"text": 1\n' for _ in range(50))
        (place / "a.jsonl").write_text(lines, encoding="utf-8")
        (place / "task.yaml").write_text(changed(source="a.jsonl"), encoding="utf-8")
        code, out, _ = mixtune("data", "check", place / "task.yaml", "--json")
        (found,) = json.loads(out)["tasks"]
        assert len(found["problems"]) == 20
        assert "ended after 20 problems" in found["notes"][0]
        assert "\n20 problems; fix" in mixtune("data", "check", place / "task.yaml")[1]

    def test_too_few_rows_to_carve_names_the_share_to_change(self, place, mixtune):
        (place / "tickets.csv").write_text(csv_text(many(3)), encoding="utf-8", newline="")
        for split, share in (
            ("test", "carve_test of its source"),
            ("validation", "evaluate.carve"),
        ):
            with pytest.raises(DataError, match=rf"no {split} examples(.|\n)*change {share}"):
                examples(place, changed(source={"train": "tickets.csv", "carve_test": 1e-9}),
                         split=split)  # fmt: skip

    def test_the_remedy_for_a_row_of_an_import_is_one_that_there_is(self, tmp_path, mixtune):
        (tmp_path / "a.jsonl").write_text('{"instruction": "a", "output": ""}\n', encoding="utf-8")
        info = tmp_path / "dataset_info.json"
        info.write_text('{"a": {"file_name": "a.jsonl"}}', encoding="utf-8")
        code, out, _ = mixtune("data", "check", info)
        assert code == 2
        assert "remedy: fix the row or leave it out" in out and "skip_if_empty" not in out

    def test_control_characters_never_reach_the_terminal(self, place, mixtune):
        rows = [(f"\x1b[31mred\x07 [bold]x {n}", "billing") for n in range(60)]
        (place / "tickets.csv").write_text(csv_text(rows), newline="")
        code, out, err = mixtune("data", "check", place / "task.yaml")
        assert code == 0
        assert "\\x1b[31mred\\x07 [bold]x" in out
        (place / "tickets.csv").write_text(csv_text([("a", "\x1b[2J")]), newline="")
        code, bad, more = mixtune("data", "check", place / "task.yaml")
        assert code == 2
        assert not {"\x1b", "\x07"} & set(out + err + bad + more)

    def test_a_data_folder_without_the_task(self, place, mixtune):
        code, _, err = mixtune("data", "show", "fpb", "--data-dir", place)
        assert code == 2
        assert "no folder for this task" in err

    def test_a_study_stops_at_a_bad_row(self, place, mixtune):
        rows = [*many(), ("x", "gifts")]
        (place / "tickets.csv").write_text(csv_text(rows), encoding="utf-8", newline="")
        study = {
            "name": "s", "model": "smollm2-135m", "task_files": ["task.yaml"],
            "tasks": ["ticket-topic"], "ingredients": ["ticket-topic"],
        }  # fmt: skip
        (place / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
        code, _, err = mixtune("plan", place / "study.yaml")
        assert code == 2
        assert "tickets.csv:62: field 'topic': label outside" in err

    @pytest.mark.parametrize("split", ["train", "validation"])
    def test_a_study_of_which_the_gate_leaves_nothing(self, place, mixtune, split):
        (place / "new.csv").write_text(csv_text([("all new", "billing")]), encoding="utf-8")
        source = dict.fromkeys(("train", "validation"), "new.csv")
        source |= {split: "tickets.csv", "test": "tickets.csv"}
        (place / "task.yaml").write_text(changed(source=source), encoding="utf-8")
        study = {
            "name": "s", "model": "smollm2-135m", "task_files": ["task.yaml"],
            "tasks": ["ticket-topic"], "ingredients": ["ticket-topic"],
        }  # fmt: skip
        (place / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
        code, _, err = mixtune("plan", place / "study.yaml")
        assert code == 2
        assert f"ticket-topic: every {split} row also stands in an evaluation split" in err
        assert "60 of 60 rows" in err and "remedy" in err


class TestTemplates:
    """A template from anywhere ends soon, or is refused."""

    @pytest.mark.parametrize(
        "source",
        [
            "{{ 'x' * 10**9 }}",
            "{{ text * 1000000000 }}",
            "{% for i in range(10**9) %}x{% endfor %}",
            "{% for a in text %}{% for b in text %}{% endfor %}{% endfor %}",
            "{% for a in text %}{{ text }}{{ text }}{% endfor %}",
            "{% set a = text %}" + "{% set a = a ~ a %}" * 40 + "{{ a }}",
            "{% set a = [text] %}" + "{% set a = [a, a] %}" * 40 + "{{ a }}",
            "{% set a = text %}" + "{% set a = a + a %}" * 40 + "{{ a }}",
            "{% set a = 9 %}" + "{% set a = a * a %}" * 40 + "{{ a }}",
            "{{ text | center(1000000000) }}",
            "{{ text.ljust(1000000000) }}",
            "{{ '%1000000000d' % 3 }}",
            "{{ '{:>1000000000}'.format(3) }}",
            "{{ 10 ** 10000000 }}",
            "{{ text | replace('', text) | replace('', text) }}",
            "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
            "{% for a in text recursive %}{{ loop(text) }}{% endfor %}",
            "{% include '/etc/passwd' %}",
            "{{ text.__class__.__mro__ }}",
            "{{ lipsum(1000000) }}",
            "{{ text | regex_replace('(a+)+$') }}",
            "{{ text | regex_replace('a*a*a*a*b') }}",
            "{{ text | regex_replace('a|aa') }}",
            "{{ (text ~ text ~ text) | regex_replace('a*b') }}",
            "{% with a = text %}" + "{% with a = a ~ a %}" * 40 + "{{ a }}" + "{% endwith %}" * 41,
            "{% set a = text %}"
            + "{% if 1 %}{% set a = a ~ a %}{% else %}{% set a = 0 %}{% endif %}" * 40
            + "{{ a }}",
            "{% if " + " ~ ".join(["text"] * 999) + " %}{% endif %}",
            "{% for a in text %}" * 30 + "{% endfor %}" * 30,
            "{{ " + "[" * 250 + "]" * 250 + " }}",
            "{" * 9 + "(" * 5000,
            "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
            "x" * 30_000,
        ],
    )
    def test_it_ends_soon_with_an_error(self, source):
        began = time.monotonic()
        with pytest.raises(UserError):
            made = parse_task(changed(prompt=source + " {{ labels }} {{ text }}"), "t")
            render(made.prompt, {"text": "<a" * 5000, "labels": made.labels}, "row")
        assert time.monotonic() - began < 5

    def test_what_templates_are_for(self):
        source = (
            "{% for o in options %}{{ loop.index }}. {{ o.name | trim }}"
            "{{ '' if loop.last else '; ' }}{% endfor %} "
            "{{ text[:4] | lower }} {{ none }} {{ text.split() | last }} "
            "{{ n + 1 }} {{ text | regex_replace('[aeiou]') | regex_replace('\\\\s+', '_') }}"
        )
        values = {"options": [{"name": " a "}, {"name": "b"}], "text": "ABCD two", "n": 2}
        assert render(source, values, "row") == "1. a; 2. b abcd  two 3 ABCD_tw"
