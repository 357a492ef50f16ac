"""`mixtune data check`, `mixtune data show`, `mixtune tasks`."""

import json
import shlex
from textwrap import dedent

import pytest
from engine_oracle import write_base
from own_kit import MESSAGES, changed, csv_text, many

from mixtune.datasets.drafts import draft_task
from mixtune.datasets.registry import Registry
from mixtune.datasets.user_tasks import read_task_file


class TestVerbs:
    """`mixtune data check`, `data show`, `tasks`."""

    def test_a_good_file(self, place, mixtune):
        code, out, _ = mixtune("data", "check", place / "task.yaml")
        assert code == 0
        assert out.count("── train") == 5
        assert "→ delivery" in out
        next_one = f"mixtune init study.yaml --task-file {place}/task.yaml --task ticket-topic"
        assert f"{next_one} --ingredient ticket-topic\n" in out
        assert "--model" in out

    def test_tokens_are_counted_with_a_models_own_tokenizer(self, place, mixtune):
        base = write_base(place / "base", "llama")
        check = ("data", "check", place / "task.yaml", "--json", "--model")
        code, out, _ = mixtune(*check, base)
        (found,) = json.loads(out)["tasks"]
        train = found["splits"][0]
        assert code == 0
        assert train["tokens"]["maximum"] >= train["tokens"]["median"] > 60
        assert train["supervised_tokens"] > train["examples"] * 7
        assert train["over_long"] == 0
        assert mixtune(*check, "no-such-model")[0] == 2

    def test_repeats_leaks_and_missing_labels_are_noted(self, place, mixtune):
        rows = [*many(), *many(6)]
        (place / "tickets.csv").write_text(csv_text(rows), encoding="utf-8", newline="")
        (place / "test.csv").write_text(csv_text(many(3)), encoding="utf-8", newline="")
        source = {"train": "tickets.csv", "test": "test.csv"}
        labels = ["billing", "delivery", "returns", "gifts"]
        text = changed(source=source, labels=labels, prompt="{{ labels | join(', ') }}: {{ text }}")
        (place / "task.yaml").write_text(text, encoding="utf-8")
        code, out, _ = mixtune("data", "check", place / "task.yaml", "--json")
        facts = {row["split"]: row for row in json.loads(out)["tasks"][0]["splits"]}
        notes = "\n".join(json.loads(out)["tasks"][0]["notes"])
        assert code == 0
        assert facts["train"]["leaked"] + facts["validation"]["leaked"] == 6
        assert facts["train"]["repeated"] + facts["validation"]["repeated"] == 6
        assert "no row has the label gifts" in notes and "also stand in a later split" in notes

    @pytest.mark.parametrize(
        ("name", "body", "found"),
        [
            ("a.csv", csv_text(many()), "one of 3 labels in topic"),
            ("a.csv", csv_text(many(), ("the text", "Topic")), "text in the text"),
            ("a.csv", csv_text(many(), ("text", "labels")), "one of 3 labels in labels"),
            ("a.csv", csv_text(many(), ("label", "labels")), "text in label"),
            ("a.csv", csv_text(many(), ("labels", "class")), "text in labels"),
            ("a.csv", csv_text(many(), ("question", "label")), "text in question"),
            ("a.csv", csv_text(many(), ("not", "text")), "text in not, one of 3 labels in text"),
            ("a.csv", csv_text([(f"t {n}", ["Yes", "yes", "NO", "No"][n % 4]) for n in range(80)]),
             "one of 2 labels"),
            ("a.csv", csv_text([(f"t{n}", ["TRUE", "true", "True", "b"][n % 4]) for n in range(8)]),
             "one of 2 labels"),
            ("a.csv", csv_text([(f"t {n}", f"a{'b' * (n % 2)}") for n in range(60)]), "2 labels"),
            ("a.jsonl", json.dumps({"instruction": "a", "output": "b"}) + "\n", "alpaca"),
            ("a.jsonl", json.dumps({"prompt": "a", "completion": "b"}) + "\n", "completion"),
            ("a.jsonl", json.dumps(MESSAGES) + "\n", "(messages)"),
            ("a.json", json.dumps([{"question": f"q{n}", "answer": f"a{n}"} for n in range(60)]),
             "question and answer"),
        ],
    )  # fmt: skip
    def test_a_file_of_rows_gets_a_task_file_that_works(self, tmp_path, mixtune, name, body, found):
        body = body if name == "a.csv" else body * (60 if name == "a.jsonl" else 1)
        (tmp_path / name).write_text(body, encoding="utf-8", newline="")
        made = draft_task(tmp_path / name)
        assert found in made.form
        (tmp_path / "task.yaml").write_text(made.text, encoding="utf-8")
        (task,) = read_task_file(tmp_path / "task.yaml")
        assert Registry([task]).dataset(task.task.name, 1e-9).examples("train")
        assert mixtune("data", "check", tmp_path / name)[0] == 0

    def test_a_json_file_with_an_object_a_line_is_one_of_rows(self, tmp_path, mixtune):
        rows = [json.dumps({"text": t, "topic": topic}) for t, topic in many()]
        (tmp_path / "a.json").write_text("\ufeff" + "\n\n".join(rows), encoding="utf-8")
        code, out, _ = mixtune("data", "check", tmp_path / "a.json", "--json")
        assert code == 0
        assert sum(row["examples"] for row in json.loads(out)["tasks"][0]["splits"]) == 60

    def test_the_task_file_is_written_once(self, place, mixtune, monkeypatch):
        (place / "own").mkdir()
        made = place / "own" / "it's mine.yaml"
        check = ("data", "check", place / "tickets.csv", "--write")
        code, out, _ = mixtune(*check, made)
        assert code == 0
        assert f"\nwrote {made}\n" in out
        command = shlex.split(out.partition("good. next: ")[2])
        assert command == ["mixtune", "init", "study.yaml", "--task-file", str(made),
                           "--task", "tickets", "--ingredient", "tickets"]  # fmt: skip
        monkeypatch.chdir(place)
        assert mixtune(*command[1:])[0] == 0
        before = made.read_bytes()
        code, _, err = mixtune(*check, made)
        assert (code, made.read_bytes()) == (2, before)
        assert "there is a file already" in err and "remedy" in err
        assert mixtune(*check, place / "own.txt")[0] == 2
        code, _, err = mixtune("data", "check", made, "--write", place / "b.yaml")
        assert code == 2
        assert "for a file of rows" in err

    def test_a_file_named_like_a_built_in_task_gets_another_name(self, tmp_path, mixtune):
        (tmp_path / "FPB.csv").write_text(csv_text(many()), encoding="utf-8", newline="")
        assert (
            mixtune("data", "check", tmp_path / "FPB.csv", "--write", tmp_path / "t.yaml")[0] == 0
        )
        assert "own-fpb" in Registry.open([str(tmp_path / "t.yaml")]).names()

    def test_an_ingredient_is_not_measured_as_a_task(self, place, mixtune):
        (place / "test.csv").write_text(csv_text(many(6)), encoding="utf-8", newline="")
        source = {"train": "tickets.csv", "test": "test.csv"}
        labels = ["billing", "delivery", "returns", "gifts"]
        prompt = "{{ labels | join(', ') }}: {{ text }}"
        text = changed(source=source, labels=labels, prompt=prompt, scored=False)
        (place / "task.yaml").write_text(text, encoding="utf-8")
        code, out, _ = mixtune("data", "check", place / "task.yaml", "--json")
        assert code == 0
        assert json.loads(out)["tasks"][0]["notes"] == []

    def test_a_split_that_leaks_as_a_whole_is_a_problem(self, place, mixtune):
        source = {"train": "tickets.csv", "validation": "tickets.csv", "test": "tickets.csv"}
        (place / "task.yaml").write_text(changed(source=source), encoding="utf-8")
        code, out, _ = mixtune("data", "check", place / "task.yaml")
        assert code == 2
        for split in ("train", "validation"):
            assert f"problem: ticket-topic: every example of {split} also stands" in out
        assert "60 of 60, read from tickets.csv" in out and "2 problems; fix" in out

    def test_an_open_prompt_that_shows_its_answer_is_noted(self, place, mixtune):
        text = "name: a\nprompt: '{{ ask }}'\ntarget: '{{ text }}'\nsource: tickets.csv\n"
        (place / "task.yaml").write_text(text + "columns: {ask: topic}\n", encoding="utf-8")
        check = ("data", "check", place / "task.yaml")
        assert "the prompt shows" not in mixtune(*check)[1]
        text = text.replace("ask }}", "text }} {{ topic }}")
        (place / "task.yaml").write_text(text, encoding="utf-8")
        code, out, _ = mixtune(*check)
        assert code == 0
        assert "the prompt shows what the answer is made of: text\n" in out

    def test_columns_that_fit_nothing(self, tmp_path, mixtune):
        (tmp_path / "a.csv").write_text("a,b\n1,2\n3,4\n", encoding="utf-8")
        code, _, err = mixtune("data", "check", tmp_path / "a.csv")
        assert code == 2
        assert "found:  a, b" in err and "remedy" in err

    def test_show_and_tasks(self, place, mixtune):
        show = ("data", "show", "ticket-topic", "--task-file", place / "task.yaml")
        code, out, _ = mixtune(*show, "--rows", "2", "--split", "test", "--json")
        assert code == 0
        assert [row["split"] for row in json.loads(out)] == ["test", "test"]
        assert "── train" in mixtune(*show)[1]
        assert mixtune(*show, "--split", "tset")[0] == 2
        assert mixtune("data", "show", "ticket-topc", *show[3:])[0] == 2
        code, out, _ = mixtune("tasks", "--task-file", place / "task.yaml", "--json")
        assert {"name": "ticket-topic", "from": "task.yaml"}.items() <= json.loads(out)[
            -3
        ].items() or ("ticket-topic" in out)

    def test_roles_are_shown(self, mixtune):
        rows = {row["name"]: row for row in json.loads(mixtune("tasks", "--json")[1])}
        found = {name: rows[name]["role"] for name in ("fpb", "gsm8k", "alpaca", "financebench")}
        assert found == {
            "fpb": "task", "gsm8k": "probe", "alpaca": "ingredient", "financebench": "judged",
        }  # fmt: skip

    def test_what_was_left_out_is_shown(self, tmp_path, mixtune):
        text = """
            name: who
            labels: [person, place]
            make: {spans: {types: {PER: person, LOC: place}, each: entity}}
            prompt: "person or place? {{ text }}"
            fields: {label: type}
            scored: false
            source: rows.jsonl
        """
        (tmp_path / "task.yaml").write_text(dedent(text), encoding="utf-8")
        rows = [
            {"tokens": ["Ada", "of", "Olm", "Inc"], "ner_tags": ["B-PER", "O", "B-ORG", "I-ORG"]},
            {"tokens": ["Nobody"], "ner_tags": ["O"]},
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "rows.jsonl").write_text(lines, encoding="utf-8")
        code, out, _ = mixtune("data", "show", "who", "--task-file", tmp_path / "task.yaml")
        assert code == 0 and "[[Ada]] of Olm Inc\n→ person" in out
        counts = (
            "1 examples of 1 of 2 records; 1 dropped: no entity; 1 × entity of type ORG left out"
        )
        assert counts in out
        out = mixtune("data", "check", tmp_path / "task.yaml")[1]
        assert "train: entity of type ORG left out: 1" in out

    @pytest.mark.parametrize(
        ("parser", "answers", "code", "said"),
        [
            ("spans", ("PER: Ann\nPER: Lee", "PER: Bob"), 0, ""),
            ("spans", ("PER: Ann", "per: Bob"), 2, "the parser 'spans' cannot read an answer"),
            ("number", ("7", "8"), 0, ""),
            ("number", ("7", "8 apples"), 0, "1 answers are not in the form that parser 'number'"),
            ("number", ("7", "apples"), 2, "the parser 'number' cannot read an answer"),
        ],
    )
    def test_answers_of_the_data_are_read_by_the_parser(
        self, place, mixtune, parser, answers, code, said
    ):
        rows = [(f"text {n}", answers[n == 0]) for n in range(60)]
        (place / "people.csv").write_text(csv_text(rows, ("text", "people")), encoding="utf-8")
        keys = {"parser": parser, "metrics": ["accuracy"]}
        keys |= {"types": ["PER"]} if parser == "spans" else {}
        text = changed(
            labels=None, fields=None, source="people.csv", target="{{ people }}",
            prompt="List people as PER, a line each.\n\n{{ text }}", **keys,
        )  # fmt: skip
        (place / "task.yaml").write_text(text, encoding="utf-8")
        found, out, _ = mixtune("data", "check", place / "task.yaml", "--json")
        (task,) = json.loads(out)["tasks"]
        told = "\n".join([*task["notes"], *task["problems"]])
        assert found == code
        assert said in told and ("parser" in told) is bool(said)
