"""Tasks of the user's own: short task files, conversations, what the documentation shows."""

import csv
import gzip
import io
import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from engine_oracle import write_base
from own_kit import MESSAGES, TEN_LINES, changed, csv_text, examples, examples_of, many, registry

from mixtune.datasets import rows as files
from mixtune.datasets.leakage import find_leaked
from mixtune.datasets.registry import Registry
from mixtune.datasets.rows import read_rows
from mixtune.errors import DataError
from mixtune.records import Message
from mixtune.tasks.task import parse_task, parse_tasks

ROOT = Path(__file__).parents[1]
TICKETS = ROOT / "examples" / "tickets"


class TestShortTaskFile:
    """Ten lines are enough: what they leave out, and where rows come from."""

    def test_what_is_left_out(self):
        made = parse_task(TEN_LINES, "t.yaml")
        assert (made.kind, made.parser, made.title, made.version) == (
            "label", "label", "ticket-topic", 1,
        )  # fmt: skip
        assert made.metrics == ("accuracy", "macro-f1", "weighted-f1")
        assert made.scored and made.trainable and made.licence == "not stated"
        assert made.fields.id is None

    def test_an_open_task_is_not_scored_until_it_names_a_metric(self):
        text = "name: a\nprompt: '{{ ask }}'\ntarget: '{{ reply }}'\nsource: a.csv\n"
        assert not parse_task(text, "a").scored
        assert parse_task(text + "metrics: [accuracy]\n", "a").scored

    def test_test_and_validation_are_carved_and_said_so(self, place):
        made = registry(place)
        splits = {
            s: made.dataset("ticket-topic", 0.1).examples(s)
            for s in ("train", "validation", "test")
        }
        assert sum(map(len, splits.values())) == 60
        assert len(splits["test"]) > 4
        groups = [{e.group for e in rows} for rows in splits.values()]
        assert not groups[0] & groups[2] and not groups[0] & groups[1]
        assert (
            "carved from train, 20% of groups"
            in made.dataset("ticket-topic", 0.1).split("test").source
        )

    def test_the_share_can_be_named(self, place):
        text = changed(source={"train": "tickets.csv", "carve_test": 0.5})
        assert len(examples(place, text, split="test")) > 20

    def test_a_set_that_is_only_trained_on_keeps_its_rows(self, place):
        made = registry(place, changed(scored=False, metrics=None))
        assert made.dataset("ticket-topic", 0.1).splits == ("train",)
        assert len(made.dataset("ticket-topic", 0.5).examples("train")) == 60
        with pytest.raises(DataError, match="no validation split"):
            made.dataset("ticket-topic", 0.1).examples("validation")

    def test_files_per_split(self, place):
        (place / "eval.tsv").write_text("text\ttopic\nall new\tbilling\n", encoding="utf-8")
        text = changed(source={"train": "tickets.csv", "test": "eval.tsv"})
        assert [e.target for e in examples(place, text, split="test")] == ["billing"]

    @pytest.mark.parametrize("ending", files.ENDINGS)
    def test_every_ending_gives_the_same_rows(self, place, ending):
        rows = [{"text": f'a, "{t}"\nb', "topic": topic} for t, topic in many()]
        path = place / f"rows{ending}"
        text = "".join(json.dumps(row) + "\n" for row in rows)
        kind, compression = ending.removesuffix(".gz").removesuffix(".zst"), path.suffix
        match kind:
            case ".csv" | ".tsv":
                out = io.StringIO()
                writer = csv.DictWriter(out, rows[0], delimiter="," if kind == ".csv" else "\t")
                writer.writeheader()
                writer.writerows(rows)
                text = out.getvalue()
            case ".json":
                text = json.dumps(rows, indent=1)
        if kind == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif compression == ".gz":
            path.write_bytes(gzip.compress(text.encode()))
        elif compression == ".zst":
            path.write_bytes(pa.Codec("zstd").compress(text.encode(), asbytes=True))
        else:
            path.write_text(text, encoding="utf-8", newline="")
        assert [row.record for row in read_rows(path)] == rows

    def test_lines_are_those_of_the_editor_and_items_of_a_list_are_numbered(self, tmp_path):
        path = tmp_path / "a.csv"
        path.write_text('text,topic\n"two\nlines",a\n\nlast,b\n', encoding="utf-8")
        assert [row.where.rpartition(":")[2] for row in read_rows(path)] == ["2", "5"]
        path = tmp_path / "a.json"
        path.write_text('[\n{"a": 1},\n\n{"a":\n2}\n]', encoding="utf-8")
        assert [row.where.removeprefix(str(path)) for row in read_rows(path)] == [
            ", row 1",
            ", row 2",
        ]

    @pytest.mark.parametrize(
        ("cells", "values"),
        [
            (["0", "1"], {0: "billing", 1: "returns"}),
            (["true", "FALSE"], {True: "billing", False: "returns"}),
            (["1.0", "0.0"], {1.0: "billing", 0.0: "returns"}),
            (["true", "False"], {"True": "billing", "FALSE": "returns"}),
        ],
    )
    def test_label_values_of_csv(self, place, cells, values):
        rows = [(f"text {n}", cells[n % 2]) for n in range(60)]
        (place / "tickets.csv").write_text(csv_text(rows), encoding="utf-8", newline="")
        assert {e.target for e in examples(place, changed(label_values=values))} == {
            "billing", "returns",
        }  # fmt: skip

    @pytest.mark.parametrize("pair", [(1, 0), (True, False), (1.0, 0.0)])
    def test_label_values_of_parquet(self, place, pair):
        rows = [{"text": f"text {n}", "topic": pair[n % 2]} for n in range(60)]
        pq.write_table(pa.Table.from_pylist(rows), place / "rows.parquet")
        values = {pair[0]: "billing", pair[1]: "returns"}
        text = changed(label_values=values, source="rows.parquet")
        assert {e.target for e in examples(place, text)} == {"billing", "returns"}

    def test_true_and_false_in_json_whatever_their_case_in_the_task_file(self, place):
        rows = "".join(f'{{"text": "t {n}", "topic": {"true" if n % 2 else "false"}}}\n'
                       for n in range(60))  # fmt: skip
        (place / "rows.jsonl").write_text(rows, encoding="utf-8")
        text = changed(source="rows.jsonl") + "label_values: {True: billing, False: returns}\n"
        assert {e.target for e in examples(place, text)} == {"billing", "returns"}
        text = changed(labels=["True", "False"], prompt="{{ labels }} {{ text }}",
                       source="rows.jsonl")  # fmt: skip
        assert {e.target for e in examples(place, text)} == {"True", "False"}
        with pytest.raises(DataError, match=r"label_values(.|\n)*'true' appears twice"):
            parse_task(changed(label_values={"True": "billing", "true": "returns"}), "t")

    def test_columns_give_names_that_templates_can_use(self, place):
        text = csv_text(many(), ("Ticket text", "topic"))
        (place / "tickets.csv").write_text(text, encoding="utf-8", newline="")
        made = examples(place, changed(columns={"text": "Ticket text"}))
        assert made[0].messages[0].content.endswith("number 0")
        assert parse_task(TEN_LINES, "a").prompt_version != (
            parse_task(changed(columns={"text": "x"}), "a").prompt_version
        )

    def test_several_tasks_in_one_file(self, place):
        second = TEN_LINES.replace("ticket-topic", "second_one")
        made = registry(place, f"{TEN_LINES}---\n{second}")
        assert made.get("second_one").name == made.get("Second-One").name == "second_one"
        with pytest.raises(DataError, match=r"t\.yaml, task 2, line 11: lables: no such key"):
            parse_tasks(f"{TEN_LINES}---\n{second.replace('labels', 'lables')}", "t.yaml")

    def test_the_folder_is_part_of_no_version(self, place, tmp_path_factory):
        other = tmp_path_factory.mktemp("other")
        shutil.copy(place / "tickets.csv", other)
        first, second = (registry(folder).get("ticket-topic") for folder in (place, other))
        assert first.source != second.source
        assert first.prompt_version == second.prompt_version
        assert first.parser_version == second.parser_version

    def test_a_name_that_is_taken_says_by_whom(self, place):
        with pytest.raises(DataError, match=r"'fpb' is already taken(.|\n)*from the package"):
            registry(place, changed(name="fpb"))

    def test_an_alias_of_the_label_column_is_the_answer_too(self):
        prompt = "billing, delivery, returns: {{ text }} {{ hint }}"
        for columns in ({"hint": "topic"}, {"hint": "Topic", "topic": "Topic"}):
            with pytest.raises(DataError, match="prompt: shows the answer"):
                parse_task(changed(columns=columns, prompt=prompt), "t")
        prompt = "{{ labels }}: {{ text }}"
        for label in ("labels", "question"):
            assert parse_task(changed(fields={"label": label}, prompt=prompt), "t")

    def test_prefix_labels(self):
        labels = ["positive", "Positive  outlook", "bad"]
        prompt = "{{ labels | join(', ') }} {{ text }}"
        with pytest.raises(DataError, match="allow_prefix_labels"):
            parse_task(changed(labels=labels, prompt=prompt), "t")
        assert parse_task(changed(labels=labels, prompt=prompt, allow_prefix_labels=True), "t")


class TestConversations:
    """Rows that bring their own turns."""

    def made(self, form, row, **keys):
        raw = {"name": "talk", "format": form, "source": "rows.jsonl", **keys}
        return examples_of(parse_task(yaml.safe_dump(raw), "t.yaml"), row, "train", where="f:1")

    def test_alpaca(self):
        row = {"instruction": "Add.", "input": "1 2", "output": " 3 ", "system": "Be short."}
        (example,) = self.made("alpaca", row | {"history": [["Hi", "Ho"]]}, turns="last")
        roles = ["system", "user", "assistant", "user"]
        assert [m.role for m in example.messages] == roles
        assert example.messages[-1].content == "Add.\n1 2"
        assert (example.target, example.id, example.choices) == ("3", "train-0/2", ())
        (example,) = self.made("alpaca", {"instruction": "Add.", "output": "3"})
        assert example.messages == (Message("user", "Add."),)
        (example,) = self.made("alpaca", {"instruction": " ", "input": "Add.", "output": "3"})
        assert example.messages == (Message("user", "Add."),)

    def test_an_alpaca_row_is_compared_by_its_input(self):
        row = {"instruction": "Answer the customer.", "input": "Where is it?", "output": "Here."}
        assert self.made("alpaca", row)[0].group == "where is it"
        assert self.made("alpaca", row | {"input": ""})[0].group == "answer the customer"
        built_in = Registry.builtin().get("alpaca")
        (example,) = examples_of(built_in, row | {"id": 1}, "train")
        assert example.group == "where is it"
        (example,) = examples_of(built_in, row | {"id": 1, "input": ""}, "train")
        assert example.group == "answer the customer"

    def test_the_leakage_gate_sees_a_test_text_in_the_input(self, place):
        rows = [{"instruction": "Reply.", "input": t, "output": "Yes."} for t, _ in many()]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (place / "replies.jsonl").write_text(text, encoding="utf-8")
        reply = "name: replies\nformat: alpaca\nsource: replies.jsonl\n"
        made = registry(place, f"{TEN_LINES}---\n{reply}")
        test = made.dataset("ticket-topic", 0.1).examples("test")
        found = find_leaked(made.dataset("replies", 0.1).examples("train"), test)
        assert len(found) == len(test) > 4

    def test_sharegpt_gives_an_example_for_each_answer(self):
        turns = [("system", "S"), ("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d")]
        row = {"conversations": [{"from": role, "value": text} for role, text in turns]}
        first, second = self.made("sharegpt", row)
        assert [m.content for m in second.messages] == ["S", "a", "b", "c"]
        assert [first.target, second.target] == ["b", "d"]
        assert [first.id, second.id] == ["train-0/1", "train-0/2"]
        assert first.group == second.group == "a c"
        (last,) = self.made("sharegpt", row, turns="last")
        assert last == second

    def test_messages_and_a_system_of_the_tasks_own(self):
        (example,) = self.made("messages", MESSAGES, system="Be kind.")
        assert example.messages == (Message("system", "Be kind."), Message("user", "a"))

    def test_prompt_and_completion_as_texts_and_as_messages(self):
        (example,) = self.made("prompt-completion", {"prompt": "a ", "completion": " b"})
        assert (example.messages[0].content, example.target) == ("a", "b")
        said = [*MESSAGES["messages"], {"role": "user", "content": "c"}]
        told = [{"role": "assistant", "content": "d"}]
        (example,) = self.made("prompt-completion", {"prompt": said, "completion": told})
        assert [m.content for m in example.messages] == ["a", "b", "c"]
        assert example.target == "d"

    def test_names_of_the_files_own(self):
        row = {"chat": [{"who": "client", "what": "a"}, {"who": "agent", "what": "b"}]}
        columns = {"messages": "chat", "role": "who", "content": "what"}
        roles = {"client": "user", "agent": "assistant"}
        (example,) = self.made("messages", row, columns=columns, roles=roles)
        assert example.target == "b"

    def turn(self, role="user", content="a", **more):
        return {"role": role, "content": content, **more}

    @pytest.mark.parametrize(
        ("form", "row", "words"),
        [
            ("messages", {"messages": [{"role": "user", "content": "a"}]}, ["wrong order", "user"]),
            ("messages", {"messages": MESSAGES["messages"][::-1]}, ["assistant, user"]),
            ("messages", {"messages": MESSAGES["messages"][:1] * 2}, ["wrong order"]),
            ("messages", {"messages": []}, ["no turns"]),
            ("messages", {"messages": "a"}, ["field 'messages'", "not a list of turns"]),
            ("messages", {"messages": ["a"]}, ["field 'messages[0]'", "not a turn"]),
            ("messages", {"messages": [{"role": "user"}]}, ["messages[0]", "no 'content'"]),
            ("messages", {"messages": [{"role": "usr", "content": "a"}]}, ["messages[0].role",
                "unknown role", "did you mean 'user'"]),
            ("messages", {"messages": [{"role": "tool", "content": "a"}]}, ["tools"]),
            ("messages", {"messages": [{"role": 3, "content": "a"}]}, ["found:  3"]),
            ("messages", {"messages": [{"role": "user", "content": " "}]}, ["messages[0].content",
                "turn is empty"]),
            ("messages", {"messages": [{"role": "user", "content": None}]}, ["turn is empty"]),
            ("messages", {"messages": [{"role": "user", "content": [1]}]}, ["not a text"]),
            ("messages", MESSAGES | {"tools": "[…]"}, ["tools is not supported"]),
            ("messages", {"message": []}, ["no field 'messages'", "'message'"]),
            ("sharegpt", {"conversations": [{"from": "bot", "value": "a"}]}, ["unknown role"]),
            ("alpaca", {"instruction": "a"}, ["no field 'output'"]),
            ("alpaca", {"instruction": "a", "output": ""}, ["field 'output'", "empty"]),
            ("alpaca", {"instruction": "", "input": "", "output": "b"}, ["field 'instruction'"]),
            ("alpaca", {"input": "a", "output": "b"}, ["no field 'instruction'"]),
            ("alpaca", {"instruction": 3, "output": "b"}, ["field 'instruction'", "not a text"]),
            ("alpaca", {"instruction": "a", "output": "b", "history": ["x"]}, ["history"]),
            ("prompt-completion", {"prompt": "a", "completion": []}, ["another kind"]),
            ("prompt-completion", {"prompt": "a"}, ["no field 'completion'"]),
        ],
    )  # fmt: skip
    def test_what_cannot_be_read_is_refused(self, form, row, words):
        with pytest.raises(DataError) as caught:
            self.made(form, row)
        for word in ["f:1", "wanted", *words]:
            assert word in str(caught.value)

    @pytest.mark.parametrize(
        ("keys", "words"),
        [
            ({"prompt": "{{ a }}"}, "have their own turns; remove prompt"),
            ({"labels": ["a", "b"], "kind": "open"}, "remove labels"),
            ({"columns": {"instrction": "x"}}, "did you mean 'instruction'"),
            ({"columns": {"output": None}}, "columns.output: is required"),
            ({"roles": {"a": "robot"}}, "roles.a"),
            ({"turns": "first"}, "turns"),
            ({"format": "alpacca"}, "format"),
            ({"format": "fields", "turns": "last", "prompt": "{{ a }}"}, "are conversations"),
        ],
    )
    def test_keys_that_do_not_fit(self, keys, words):
        with pytest.raises(DataError, match=re.escape(words)):
            self.made(keys.pop("format", "alpaca"), {}, **keys)

    def test_empty_answers_can_be_left_out(self, place):
        rows = [{"instruction": f"q {n}", "output": "x" * (n % 2)} for n in range(40)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (place / "rows.jsonl").write_text(text, encoding="utf-8")
        task = "name: talk\nformat: alpaca\nskip_if_empty: [output]\nsource: rows.jsonl\n"
        assert registry(place, task).dataset("talk", 0.1).split("train").dropped == {
            "empty output": 20
        }

    def test_the_version_follows_format_turns_and_columns(self):
        def version(form, **keys):
            raw = {"name": "talk", "format": form, "source": "rows.jsonl", **keys}
            return parse_task(yaml.safe_dump(raw), "t.yaml").prompt_version

        named = {"columns": {"content": "text"}}
        versions = [version("messages"), version("sharegpt"), version("messages", turns="last")]
        versions += [version("messages", **named), version("messages", system="S")]
        versions += [version("messages", roles={"bot": "assistant"})]
        assert len(set(versions)) == 6


def doc_blocks(language):
    text = (ROOT / "docs" / "your-own-task.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


class TestDocumentation:
    """docs/your-own-task.md and examples/tickets do what they say."""

    def test_every_task_in_the_page_is_one(self):
        blocks = [b for b in doc_blocks("yaml") if "name:" in b and "tasks:" not in b]
        made = [t for b in blocks for t in parse_tasks(b, "docs/your-own-task.md")]
        assert len(made) == len({task.name for task in made}) == 11

    def test_the_python_file_in_the_page_works(self, tmp_path):
        (block,) = doc_blocks("python")
        (tmp_path / "tasks.py").write_text(block, encoding="utf-8")
        made = Registry.open([str(tmp_path / "tasks.py")])
        (name,) = set(made.names()) - set(Registry.builtin().names())
        assert made.dataset(name, 0.1).examples("train")

    def test_the_page_shows_the_files_of_the_example(self):
        page = (ROOT / "docs" / "your-own-task.md").read_text(encoding="utf-8")
        for name in ("tickets.yaml", "study.yaml"):
            assert (TICKETS / name).read_text(encoding="utf-8") in page

    def test_the_example_is_made_by_its_script(self, tmp_path):
        shutil.copy(TICKETS / "make_tickets.py", tmp_path)
        code = compile((tmp_path / "make_tickets.py").read_text(), "make_tickets.py", "exec")
        scope = {"__name__": "tickets", "__file__": str(tmp_path / "make_tickets.py")}
        exec(code, scope)
        scope["main"]()
        for name in ("tickets.csv", "replies.jsonl"):
            assert (tmp_path / name).read_bytes() == (TICKETS / name).read_bytes()

    def test_nothing_of_the_example_leaks(self):
        made = Registry.open([str(TICKETS / name) for name in ("tickets.yaml", "replies.yaml")])
        tickets = [
            e for s in ("validation", "test") for e in made.dataset("ticket-topic", 0.1).examples(s)
        ]
        replies = made.dataset("ticket-replies", 0.1).examples("train")
        assert len(replies) == 120
        assert find_leaked(replies, tickets) == {}

    def test_from_the_csv_to_a_report(self, tmp_path, mixtune, monkeypatch):
        for path in TICKETS.iterdir():
            shutil.copy(path, tmp_path)
        base = write_base(tmp_path / "base", "llama")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("MIXTUNE_CACHE", str(tmp_path / "cache"))
        small = [f"model={base}", "budget.steps=2", "train.rank=2", "evaluate.max_new_tokens=4"]
        small += ["evaluate.validation_items=6", "evaluate.test_items=6"]
        code, out, err = mixtune("plan", "study.yaml", *small)
        assert code == 0, err
        assert "ticket-replies" in out
        code, out, err = mixtune("run", "study.yaml", *small, "--workers", "1", "--limit", "4")
        assert code == 0, err
        page = Path(out.strip().splitlines()[-1].removeprefix("report: "))
        assert "ticket-topic" in page.read_text(encoding="utf-8")
