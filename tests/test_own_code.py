"""Tasks from Python files, packages and the files of other trainers."""

import json
import sys
from types import SimpleNamespace

import pytest

from mixtune.datasets import user_tasks as own
from mixtune.datasets.registry import Registry
from mixtune.datasets.user_tasks import PythonTask, read_task_file
from mixtune.errors import DataError

PYTHON = """
from mixtune.datasets.user_tasks import PythonTask

def records(split):
    if split != "train":
        return None
    return ({"text": f"ticket {n}", "topic": "billing" if n % 2 else "returns"} for n in range(60))

TASKS = [PythonTask({
    "name": "from-code", "labels": ["billing", "returns"],
    "prompt": "billing or returns? {{ text }}", "fields": {"label": "topic"},
}, records)]
"""


class TestPython:
    """A Python file, and packages that offer tasks."""

    def write(self, folder, text):
        (folder / "tasks.py").write_text(text, encoding="utf-8")
        return folder / "tasks.py"

    def test_it_is_a_task_like_any_other(self, tmp_path):
        made = Registry.open([str(self.write(tmp_path, PYTHON))])
        splits = {
            s: made.dataset("from-code", 0.1).examples(s) for s in ("train", "validation", "test")
        }
        assert sum(map(len, splits.values())) == 60
        assert splits["train"][0].id == "train-0" or splits["train"]
        assert "tasks.py" in made.source_of("from-code")

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("x = 1\n", ["defines no TASKS", "PythonTask"]),
            ("x = (\n", ["tasks.py:1", "SyntaxError"]),
            ("\n\n1/0\n", ["tasks.py:3", "ZeroDivisionError"]),
            ("import sys\nsys.exit(3)\n", ["tasks.py:2", "SystemExit"]),
            ("import no_such_module\n", ["tasks.py:1", "no_such_module"]),
            ("TASKS = 3\n", ["not a list of PythonTask", "int"]),
            ("TASKS = [3]\n", ["not a list of PythonTask"]),
            ("TASKS = []\n", ["not a list of PythonTask", "found:  []"]),
            (PYTHON.replace("records)]", "3)]"), ["task 1", "a mapping and a function"]),
            (PYTHON.replace('"prompt"', '"promt"'), ["task 1", "promt: no such key", "'prompt'"]),
            (PYTHON.replace('"name"', '"source": 1, "name"'), ["remove source"]),
        ],
    )
    def test_a_file_that_cannot_be_used(self, tmp_path, mixtune, text, words):
        code, out, err = mixtune("data", "check", self.write(tmp_path, text))
        assert code == 2
        for word in words:
            assert word in err
        assert "Traceback" not in out + err

    def test_it_is_run_once_by_a_check(self, tmp_path, mixtune):
        run = f"with open({str(tmp_path / 'runs')!r}, 'a') as log:\n    log.write('x')\n"
        assert mixtune("data", "check", self.write(tmp_path, run + PYTHON))[0] == 0
        assert (tmp_path / "runs").read_text() == "x"

    def test_it_may_import_what_lies_beside_it(self, tmp_path, monkeypatch):
        for name in ("desk_words", "desk_later"):
            (tmp_path / f"{name}.py").write_text("TOPIC = 'billing'\n", encoding="utf-8")
            monkeypatch.delitem(sys.modules, name, raising=False)
        text = PYTHON.replace("    if split", "    import desk_later\n    if split")
        path = self.write(tmp_path, f"import desk_words\n{text}")
        before = list(sys.path)
        assert Registry.open([str(path)]).dataset("from-code", 0.1).examples("train")
        assert sys.path == before

    @pytest.mark.parametrize("given", ["iter(rows)", "(row for row in rows)"])
    def test_a_generator_that_yields_nothing_is_no_split(self, tmp_path, given):
        text = PYTHON.replace("return None", "return iter(())").replace(
            "    return ({", "    rows = ({"
        ).replace("\nTASKS", f"    return {given}\n\nTASKS", 1)  # fmt: skip
        made = Registry.open([str(self.write(tmp_path, text))])
        splits = [
            made.dataset("from-code", 0.1).examples(s)
            for s in made.dataset("from-code", 0.1).splits
        ]
        assert len(splits) == 3
        assert {e.messages[0].content for rows in splits for e in rows} == {
            f"billing or returns? ticket {n}" for n in range(60)
        }

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            ("return 3", ["gives no records", "int"]),
            ("raise KeyError('x')", ["tasks.py:5", "KeyError"]),
            ("return [{'text': 'a', 'topic': 'billing'}, 3]", ["record 2", "not a record", "int"]),
            ("return [None]", ["record 1", "not a record"]),
            ("return [{1: 2}]", ["record 1", "a mapping of names"]),
            ("return (1/0 for _ in 'ab')", ["tasks.py:5", "ZeroDivisionError"]),
            ("return [{'text': 'a', 'topic': 'x'}]", ["record 1", "label outside"]),
            ("return []", ["no usable record"]),
        ],
    )
    def test_records_that_cannot_be_used(self, tmp_path, mixtune, body, words):
        head, _, tail = PYTHON.partition("    if split")
        text = f"{head}    {body}\n\nTASKS{tail.partition('TASKS')[2]}"
        code, out, err = mixtune("data", "check", self.write(tmp_path, text))
        assert code == 2
        for word in words:
            assert word in out
        assert "Traceback" not in out + err

    def install(self, monkeypatch, value):
        def load():
            if isinstance(value, Exception):
                raise value
            return value

        point = SimpleNamespace(name="desk", dist=SimpleNamespace(name="desk-tasks"), load=load)
        monkeypatch.setattr(own, "entry_points", lambda group: [point])

    def test_packages_offer_tasks(self, place, monkeypatch):
        made = PythonTask(
            {"name": "offered", "labels": ["a", "b"], "prompt": "a or b? {{ x }}",
             "fields": {"label": "y"}},
            lambda split: [{"x": str(n), "y": "ab"[n % 2]} for n in range(9)],
        )  # fmt: skip
        for value in (made, [made]):
            self.install(monkeypatch, value)
            assert len(Registry.open([]).dataset("offered", 0.1).examples("test")) == 9
            assert "desk-tasks" in Registry.open([]).origin_of("offered")
        self.install(monkeypatch, str(place / "task.yaml"))
        assert Registry.open([]).get("ticket-topic").labels

    @pytest.mark.parametrize("value", [ImportError("gone"), 3, ["x"], "/nowhere/x.yaml"])
    def test_a_broken_package_is_named(self, monkeypatch, value):
        self.install(monkeypatch, value)
        with pytest.raises(DataError, match=r"desk-tasks|nowhere"):
            Registry.open([])

    @pytest.mark.parametrize("name", ["tasks.txt", "folder", "tasks.yml"])
    def test_what_is_no_task_file(self, tmp_path, name):
        (tmp_path / "folder").mkdir()
        (tmp_path / "tasks.txt").write_text("x", encoding="utf-8")
        with pytest.raises(DataError):
            read_task_file(tmp_path / name)


FACTORY = {
    "my_alpaca": {"file_name": "alpaca.jsonl"},
    "Chat Set": {
        "file_name": "chat.json", "formatting": "sharegpt", "columns": {"messages": "chat"},
        "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "me", "assistant_tag": "it"},
    },
    "hub": {"hf_hub_url": "some/set", "split": "half", "ms_hub_url": "x", "script_url": "y"},
    "named": {"file_name": "alpaca.jsonl", "columns": {"prompt": "instruction",
        "response": "output"}},
    "no-answer": {"file_name": "alpaca.jsonl", "columns": {"prompt": "instruction"}},
    "no-question": {"file_name": "alpaca.jsonl", "columns": {"response": "output"}},
    "no-turns": {"file_name": "chat.json", "formatting": "sharegpt", "columns": {"system": "s"}},
    "no-roles": {"file_name": "chat.json", "formatting": "sharegpt", "tags": {"user_tag": "me"}},
    "pairs": {"file_name": "alpaca.jsonl", "ranking": True},
    "script": {"script_url": "x"},
    "media": {"file_name": "chat.json", "columns": {"images": "images"}},
    "samples": {"file_name": "alpaca.jsonl", "num_samples": 3},
    "odd": {"file_name": "alpaca.jsonl", "formating": "alpaca"},
    "nothing": {},
    "text": {"file_name": "alpaca.txt"},
}  # fmt: skip

AXOLOTL = """
base_model: some/model
datasets:
  - {path: own.jsonl, type: alpaca}
  - path: chat.json
    type: chat_template
    field_messages: chat
    message_property_mappings: {role: who, content: what}
    roles: {user: [me], assistant: [it]}
  - path: json
    data_files: own.jsonl
    ds_type: json
    type: {field_instruction: input, field_output: output, field_input: ""}
  - {path: some/set, type: alpaca, split: half}
  - {path: plain.jsonl, type: completion}
  - {path: other.jsonl, type: input_output}
  - {path: own.jsonl, type: alpaca, shards: 3}
"""


class TestImports:
    """What other trainers' files describe."""

    @pytest.fixture
    def folder(self, tmp_path):
        rows = [{"instruction": f"q {n}", "input": "x", "output": "y",
                 "system": "S", "history": [["a", "b"]]} for n in range(30)]  # fmt: skip
        text = "".join(json.dumps(row) + "\n" for row in rows)
        for name in ("alpaca.jsonl", "own.jsonl"):
            (tmp_path / name).write_text(text, encoding="utf-8")
        chat = [{"who": "me", "what": "a"}, {"who": "it", "what": "b"}]
        chats = [{"chat": [chat[0] | {"what": f"a {n}"}, chat[1]]} for n in range(30)]
        (tmp_path / "chat.json").write_text(json.dumps(chats), encoding="utf-8")
        (tmp_path / "dataset_info.json").write_text(json.dumps(FACTORY), encoding="utf-8")
        (tmp_path / "axolotl.yaml").write_text(AXOLOTL, encoding="utf-8")
        return tmp_path

    def test_llama_factory(self, folder):
        made = Registry.open([str(folder / "dataset_info.json")])
        first = made.dataset("my_alpaca", 0.1).examples("train")[0]
        assert first.messages[0].content.endswith("\nx")
        assert made.dataset("chat-set", 0.1).examples("train")[0].target == "b"
        assert not made.get("my-alpaca").scored
        assert made.get("hub").source.hub.splits == {"train": "half"}
        assert made.get("hub").source.hub.path == "some/set"

    def test_a_column_that_llama_factory_does_not_read_is_not_read(self, folder):
        made = Registry.open([str(folder / "dataset_info.json")])
        first = made.dataset("named", 0.1).examples("train")[0]
        assert [m.content for m in first.messages] == ["q 0"]
        assert [
            m.content for m in made.dataset("my-alpaca", 0.1).examples("train")[0].messages
        ] == ["q 0\nx"]

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("pairs", "preferences"), ("script", "scripts are not run"), ("media", "pictures"),
            ("no-answer", "'response'"), ("no-question", "'prompt'"), ("no-turns", "'messages'"),
            ("no-roles", "'role_tag'"), ("samples", "rows: N"),
            ("odd", "did you mean 'formatting'"),
            ("nothing", "no file_name"), ("text", "a file of rows ends in"),
        ],
    )  # fmt: skip
    def test_a_strange_entry_is_refused_when_it_is_used(self, folder, name, reason):
        made = Registry.open([str(folder / "dataset_info.json")])
        assert reason in made.source_of(name)
        with pytest.raises(DataError, match=rf"dataset_info\.json: {name}(.|\n)*remedy"):
            made.dataset(name, 0.1).examples("train")

    def test_a_check_reads_what_is_here_and_says_what_is_not(self, folder, mixtune):
        code, out, _ = mixtune("data", "check", folder / "dataset_info.json")
        assert code == 0
        for words in ("note: hub: hub: some/set", "not fetched", "note: pairs: cannot be used"):
            assert words in out

    def test_axolotl_trains_on_inputs_only_elsewhere(self, folder):
        text = f"train_on_inputs: true\n{AXOLOTL}"
        (folder / "inputs.yaml").write_text(text, encoding="utf-8")
        made = Registry.open([str(folder / "inputs.yaml")])
        for name in ("chat", "some-set"):
            assert "'train_on_inputs': the answers are what is learnt" in made.source_of(name)

    def test_axolotl(self, folder):
        made = Registry.open([str(folder / "axolotl.yaml")])
        first = made.dataset("own", 0.1).examples("train")[0]
        assert [m.role for m in first.messages] == ["user"]
        second = made.dataset("own-2", 0.1).examples("train")[0]
        assert [m.content for m in second.messages] == ["S", "x"]
        assert made.dataset("chat", 0.1).examples("train")[0].target == "b"
        assert made.get("some-set").source.hub.path == "some/set"
        for name, reason in [("plain", "no question"), ("other", "input_output"),
                             ("own-3", "rows: N")]:  # fmt: skip
            with pytest.raises(DataError, match=reason):
                made.dataset(name, 0.1).examples("train")

    @pytest.mark.parametrize("text", ["[]", "{", '{"a": 3}', "[" * 90_000, '{"a": {}, "A": {}}'])
    def test_what_is_no_dataset_info(self, tmp_path, text):
        (tmp_path / "dataset_info.json").write_text(text, encoding="utf-8")
        with pytest.raises(DataError):
            read_task_file(tmp_path / "dataset_info.json")

    @pytest.mark.parametrize("text", ["datasets: 3", "datasets: [3]", "datasets: [{type: alpaca}]"])
    def test_what_are_no_axolotl_datasets(self, tmp_path, text):
        (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match="datasets"):
            read_task_file(tmp_path / "a.yaml")
