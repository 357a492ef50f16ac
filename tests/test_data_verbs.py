"""`mixtune data check`, `mixtune data show`, `mixtune tasks`."""

import json

import pytest
from engine_oracle import write_base
from own_kit import MESSAGES, changed, csv_text, many

from mixtune.tasks.own import read_own
from mixtune.tasks.registry import Registry
from mixtune.tasks.starter import starter


class TestVerbs:
    """`mixtune data check`, `data show`, `tasks`."""

    def test_a_good_file(self, place, mixtune):
        code, out, _ = mixtune("data", "check", place / "task.yaml")
        assert code == 0
        assert out.count("── train") == 5
        assert "→ delivery" in out and "mixtune plan STUDY.yaml" in out
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
        made = starter(tmp_path / name)
        assert found in made.found
        (tmp_path / "task.yaml").write_text(made.text, encoding="utf-8")
        (task,) = read_own(tmp_path / "task.yaml")
        assert Registry([task]).examples(task.task.name, "train", 1e-9)
        assert mixtune("data", "check", tmp_path / name)[0] == (2 if name == "a.jsonl" else 0)

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
