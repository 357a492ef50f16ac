"""Tasks: the YAML form, rendering, local files, registry."""

import gzip
import json

import pytest
import yaml
from own_kit import examples_of

from mixtune.datasets import rows as files
from mixtune.datasets import text_files
from mixtune.datasets.registry import Registry
from mixtune.errors import DataError, SpecError
from mixtune.identity import unit_interval
from mixtune.records import Message
from mixtune.tasks.examples import fingerprint, query_of
from mixtune.tasks.record import loose_text
from mixtune.tasks.task import parse_task

REAL = ("fpb", "twitter-sentiment", "headline", "alpaca", "gsm8k")

TONE = """
name: tone
title: Tone
about: A task for tests.
version: 1
kind: label
labels: [bad, good]
label_values: {1: good, BAD: bad}
prompt: |-
  Is this bad or good?

  {{ text }}
fields: {label: label}
parser: label
metrics: [accuracy, macro-f1]
source: {local: {folder: tone}}
licence: none
"""

NINE = """
name: nine
title: Questions
about: A task with two questions.
version: 1
kind: label
labels: ["Yes", "No"]
prompt: "{{ question }} Yes or No?\\n{{ text }}"
group_by: "{{ text }}"
questions: {Up: "Is it up?", Down: "Is it down?"}
parser: label
metrics: [accuracy]
source: {local: {folder: nine}}
licence: none
"""

OPEN = """
name: chat
title: Chat
about: An open task.
version: 1
kind: open
scored: false
system: Be short.
prompt: "{{ ask }}{% if more %}\\n{{ more }}{% endif %}"
target: "{{ reply | regex_replace('<<.*?>>') }}"
may_be_empty: [more]
skip_if_empty: [reply]
parser: text
metrics: []
source: {local: {folder: chat}}
licence: none
"""


def changed(text, **keys):
    """A task file with some keys changed; None removes one."""
    raw = yaml.safe_load(text) | keys
    return yaml.safe_dump(
        {key: value for key, value in raw.items() if value is not None}, sort_keys=False
    )


def task(text=TONE, **keys):
    return parse_task(changed(text, **keys), "t.yaml")


def record(number, text=None, label="good"):
    return {"id": f"r{number}", "text": text or f"text number {number}", "label": label}


def write(folder, split, rows, name=None):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (name or f"{split}.jsonl")
    body = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(body) if path.suffix == ".gz" else body)
    return path


@pytest.fixture
def registry(tmp_path):
    """A function that makes a registry with one task file and a data directory beside it."""

    def make(text=TONE, with_data=True):
        file = tmp_path / "t.yaml"
        file.write_text(text, encoding="utf-8")
        data = tmp_path / "data"
        data.mkdir(exist_ok=True)
        return Registry.builtin(data if with_data else None).with_files([file])

    return make


class TestTaskFile:
    """What a task file may say, and what its errors say."""

    @pytest.mark.parametrize(
        ("keys", "words"),
        [
            ({"promt": "x"}, ["t.yaml", "promt: no such key", "did you mean 'prompt'"]),
            ({"source": {"local": {"foldr": "x"}}}, ["source.local.foldr", "'folder'"]),
            ({"prompt": None}, ["prompt: missing"]),
            ({"prompt": "bad or good {{ text"}, ["prompt: not a template, line 1"]),
            ({"prompt": "Bad or good? {{ text }}"}, ["'bad' letter for letter"]),
            ({"prompt": "badly or good? {{ text }}"}, ["'bad' letter for letter"]),
            ({"prompt": "bad or good? {{ label }} {{ text }}"}, ["shows the answer (label)"]),
            ({"prompt": "bad or good?"}, ["reads no field"]),
            ({"labels": [True, "good"]}, ["labels.0", "put quotes around the word"]),
            ({"labels": ["good"], "label_values": {}}, ["at least two"]),
            ({"labels": ["good", "Good"], "label_values": {}}, ["the same but for case"]),
            ({"label_values": {"x": "fine"}}, ["'fine', which is no label"]),
            ({"target": "It is {{ label }}"}, ["target: a label task"]),
            ({"fields": {}}, ["fields.label"]),
            ({"parser": "lable"}, ["parser: no such parser", "'label'"]),
            ({"parser": "text"}, ["parser: label tasks use 'label'"]),
            ({"metrics": []}, ["metrics: a scored task needs at least one"]),
            ({"metrics": ["acuracy"]}, ["no such metric", "acuracy", "'accuracy'"]),
            ({"source": {}}, ["source: a task needs a source"]),
            (
                {"source": {"toy": {}, "local": {"folder": "x"}}},
                ["toy cannot be combined, only local and hub"],
            ),
            ({"source": {"local": {"folder": "../x"}}}, ["source.local.folder"]),
            ({"name": "Two Words"}, ["name: lower case", "such as two-words", "found:  Two Words"]),
            ({"kind": "open"}, ["open task has no labels"]),
            ({"metrics": ["span-f1"]}, ["parser 'label' allows no F1 of a list"]),
            ({"types": ["PER"]}, ["types: only items of a list have types"]),
        ],
    )
    def test_a_fault_is_named(self, keys, words):
        with pytest.raises(DataError) as caught:
            task(**keys)
        for word in words:
            assert word in str(caught.value)
        assert "remedy" in str(caught.value)

    @pytest.mark.parametrize(
        ("keys", "words"),
        [
            ({"metrics": ["macro-f1"]}, "accuracy or the F1 of a list"),
            ({"metrics": ["span-f1"], "parser": "triplets"}, "parser 'triplets' allows triplet-f1"),
            ({"types": ["PER", "ORG"], "parser": "spans"}, "'PER' letter for letter"),
        ],
    )
    def test_a_fault_of_an_open_task_is_named(self, keys, words):
        with pytest.raises(DataError, match=words):
            task(OPEN, **keys)

    def test_types_are_part_of_what_scores_depend_on(self):
        keys = {"parser": "spans", "metrics": ["span-f1"], "scored": True}
        without = task(OPEN, **keys)
        typed = task(OPEN, **keys, types=["PER"], prompt="Any PER? {{ text }}")
        assert without.parser_version != typed.parser_version

    @pytest.mark.parametrize("text", ["- a\n- b", "a: [", ""])
    def test_what_is_no_mapping_is_refused(self, text):
        with pytest.raises(DataError, match=r"t\.yaml"):
            parse_task(text, "t.yaml")

    def test_questions_need_their_place_in_the_prompt(self):
        with pytest.raises(DataError, match=r"needs \{\{ question"):
            task(NINE, prompt="Yes or No? {{ text }}")
        with pytest.raises(DataError, match=r"shows the answer \(Up\)"):
            task(NINE, prompt="{{ question }} Yes or No? {{ text }} {{ Up }}")

    def test_a_target_without_a_label_field_is_refused(self):
        with pytest.raises(DataError, match=r"needs fields\.label"):
            task(OPEN, target="{{ label }}")

    def test_labels_may_be_listed_by_the_template(self):
        made = task(prompt="One of {{ labels | join(' or ') }}: {{ text }}")
        example = examples_of(made, record(1), "train")[0]
        assert example.messages[0].content == "One of bad or good: text number 1"

    def test_a_task_is_frozen(self):
        with pytest.raises(ValueError, match="frozen"):
            task().title = "another"

    def test_a_template_cannot_reach_into_python(self):
        made = task(prompt="bad or good? {{ text.__class__.__mro__ }}")
        with pytest.raises(DataError, match="the template fails"):
            examples_of(made, record(1), "train")


class TestRendering:
    """One record to examples."""

    def test_a_label_record(self):
        (example,) = examples_of(task(), record(7, "  Up  it goes! ", "BAD"), "test")
        assert example.messages == (Message("user", "Is this bad or good?\n\n  Up  it goes!"),)
        assert (example.id, example.split, example.stratum) == ("r7", "test", "")
        assert (example.target, example.choices) == ("bad", ("bad", "good"))
        assert example.group == "up it goes"

    def test_the_hubs_number_and_our_word_are_one_label(self):
        targets = [examples_of(task(), record(1, label=x), "train")[0].target for x in (1, "good")]
        assert targets == ["good", "good"]

    def test_template_signs_in_a_record_are_text(self):
        (example,) = examples_of(task(), record(1, "{{ label }} {% if %}"), "train")
        assert example.messages[0].content.endswith("{{ label }} {% if %}")

    def test_questions_share_a_group_and_differ_in_stratum(self):
        row = {"id": "h1", "text": "Gold, up!", "Up": "Yes", "Down": "No"}
        up, down = examples_of(task(NINE), row, "train")
        assert (up.id, up.stratum, up.target) == ("h1/Up", "Up", "Yes")
        assert (down.id, down.stratum, down.target) == ("h1/Down", "Down", "No")
        assert up.group == down.group == "gold up"
        assert up.messages[0].content == "Is it up? Yes or No?\nGold, up!"

    def test_an_open_record(self):
        row = {"id": "c", "ask": "Add.", "more": "", "reply": "2 <<1+1=2>>is it"}
        (example,) = examples_of(task(OPEN), row, "train")
        assert [m.role for m in example.messages] == ["system", "user"]
        assert example.messages[1].content == "Add."
        assert (example.target, example.choices) == ("2 is it", ())

    def test_records_without_an_id_are_numbered(self):
        made = task(fields={"label": "label", "id": None})
        (example,) = examples_of(made, {"text": "a", "label": "good"}, "train", number=4)
        assert example.id == "train-4"

    def test_a_group_field_is_taken_as_it_stands(self):
        made = task(fields={"label": "label", "group": "page"})
        assert examples_of(made, record(1) | {"page": "P 3/b"}, "train")[0].group == "P 3/b"

    @pytest.mark.parametrize(
        ("row", "words"),
        [
            ({"id": "a", "label": "good"}, ["no field 'text'", "wanted: text"]),
            ({"id": "a", "txt": "x", "label": "good"}, ["did you mean 'txt'"]),
            ({"id": "a", "text": "x"}, ["no field 'label'"]),
            ({"text": "x", "label": "good"}, ["no field 'id'"]),
            ({"id": "a", "text": " \n", "label": "good"}, ["field 'text'", "is empty"]),
            ({"id": "a", "text": None, "label": "good"}, ["field 'text'", "is empty"]),
            ({"id": "a", "text": "x", "label": "fine"}, ["field 'label'", "'fine'", "one of"]),
            ({"id": "a", "text": "x", "label": 2}, ["found:  2", "wanted: one of"]),
            ({"id": "a", "text": "x", "label": True}, ["found:  True"]),
            ({"id": "a", "text": "x", "label": None}, ["found:  None"]),
        ],
    )
    def test_a_bad_record_is_refused_with_place_and_remedy(self, row, words):
        with pytest.raises(DataError) as caught:
            examples_of(task(), row, "train", where="f.jsonl:3")
        text = str(caught.value).replace("found:  fine", "found:  'fine'")
        for word in ["f.jsonl:3", "remedy", *words]:
            assert word in text

    def test_versions_follow_what_they_are_made_of(self, monkeypatch):
        made = task()
        assert made.prompt_version == task(title="Other").prompt_version
        assert made.prompt_version != task(prompt="bad or good! {{ text }}").prompt_version
        assert made.prompt_version != task(system="Be short.").prompt_version
        assert made.prompt_version != task(labels=["good", "bad"]).prompt_version
        before = made.parser_version
        assert before == task(prompt="bad or good! {{ text }}").parser_version
        assert before != task(metrics=["accuracy"]).parser_version
        monkeypatch.setattr("mixtune.tasks.task.METRICS_VERSION", 99)
        assert made.parser_version != before

    def test_a_query_holds_no_answer(self):
        (example,) = examples_of(task(), record(1), "train")
        query = query_of(example)
        assert query.messages == example.messages and query.choices == example.choices
        assert not hasattr(query, "target")

    def test_fingerprint_sees_every_field_and_the_order(self):
        a, b = (examples_of(task(), record(n), "train")[0] for n in (1, 2))
        others = [
            examples_of(task(), record(1, "another text"), "train")[0],
            examples_of(task(), record(1, label="bad"), "train")[0],
            examples_of(task(labels=["good", "bad"]), record(1), "train")[0],
            examples_of(task(prompt="bad or good! {{ text }}"), record(1), "train")[0],
        ]
        prints = [fingerprint([a, b]), fingerprint([b, a]), fingerprint([a])]
        prints += [fingerprint([other, b]) for other in others]
        assert len(set(prints)) == len(prints)
        assert fingerprint([a, b]) == fingerprint(iter([a, b]))

    def test_loose_text(self):
        assert loose_text("$UP, It-goes!  https://t.co/x?y www.a.b") == "up it goes"
        assert loose_text("!!!") != loose_text("???")
        assert loose_text("ＧＯＬＤ Straße") == "gold strasse"

    def test_long_groups_are_cut_and_stay_apart(self):
        groups = {examples_of(task(), record(1, "w " * 500 + x), "train")[0].group for x in "ab"}
        assert len(groups) == 2
        assert max(map(len, groups)) < 200


class TestLocalSource:
    """JSON-lines files: what is read, and what is refused with file and line."""

    def test_plain_and_gzipped_files_give_the_same_examples(self, registry, tmp_path):
        rows = [record(n) for n in range(5)]
        folder = tmp_path / "data" / "tone"
        write(folder, "train", rows)
        write(folder, "test", rows, "test.jsonl.gz")
        made = registry()
        train, test = (
            made.dataset("tone", 1e-9).examples("train"),
            made.dataset("tone", 0.1).examples("test"),
        )
        assert [e.messages for e in train] == [e.messages for e in test]
        assert str(folder) in made.source_of("tone")

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            (b'{"id": "a"\n', ["train.jsonl:1", "not valid JSON", "wanted"]),
            (b'\n{"id": "a"}\n', ["train.jsonl:2", "no field 'text'"]),
            (b'["a"]\n', ["train.jsonl:1", "not a JSON object"]),
            (b'{"id": NaN}\n', ["NaN is not a JSON value"]),
            (b'{"id": 1, "id": 2}\n', ["'id' is there twice"]),
            (b'{"id": ' + b"[" * 100_000, ["train.jsonl:1", "not valid JSON"]),
            ('{"id": "ä"}\n'.encode("latin-1"), ["train.jsonl:1", "wrong encoding", "UTF-8"]),
            ('{"id": "a"}\n'.encode("utf-16"), ["train.jsonl:1", "wrong encoding"]),
            (b'{"id": "a", "text": "\\ud83d", "label": "good"}\n', ["field 'text'", "surrogate"]),
            (b"", ["no usable record"]),
            (b"x" * 200, ["train.jsonl:1", "line is too long"]),
        ],
    )
    def test_a_bad_file_is_refused(self, registry, tmp_path, monkeypatch, body, words):
        if words[-1] == "line is too long":
            monkeypatch.setattr(text_files, "LONGEST_LINE", 100)
        write(tmp_path / "data" / "tone", "train", []).write_bytes(body)
        with pytest.raises(DataError) as caught:
            registry().dataset("tone", 0.1).examples("train")
        for word in words:
            assert word in str(caught.value)

    def test_ten_megabytes_is_the_limit(self):
        assert text_files.LONGEST_LINE == 10_000_000

    def test_a_byte_order_mark_is_no_fault(self, tmp_path):
        path = tmp_path / "x.jsonl"
        path.write_bytes(b'\xef\xbb\xbf{"id": "a"}\n\n')
        assert [row.record for row in files.read_rows(path)] == [{"id": "a"}]

    @pytest.mark.parametrize("cut", [slice(0, -9), slice(3, None)])
    def test_a_broken_gzip_is_refused(self, tmp_path, cut):
        path = write(tmp_path, "train", [record(n) for n in range(50)], "train.jsonl.gz")
        path.write_bytes(path.read_bytes()[cut])
        with pytest.raises(DataError, match="cannot read the file"):
            list(files.read_rows(path))

    def test_repeated_ids_are_refused_with_both_lines(self, registry, tmp_path):
        write(tmp_path / "data" / "tone", "train", [record(1), record(2), record(1)])
        with pytest.raises(DataError, match=r"jsonl:3: the id is there twice(.|\n)*jsonl:1"):
            registry().dataset("tone", 0.1).examples("train")

    def test_a_split_that_is_there_twice_is_refused(self, registry, tmp_path):
        for name in ("train.jsonl", "train.jsonl.gz"):
            write(tmp_path / "data" / "tone", "train", [record(1)], name)
        with pytest.raises(DataError, match="twice, plain and compressed"):
            registry().dataset("tone", 0.1).examples("train")

    def test_files_can_have_names_of_their_own(self, registry, tmp_path):
        source = {"local": {"folder": "tone", "files": {"test": "eval.jsonl", "train": "no.jsonl"}}}
        write(tmp_path / "data" / "tone", "test", [record(1)], "eval.jsonl")
        made = registry(changed(TONE, source=source))
        assert len(made.dataset("tone", 0.1).examples("test")) == 1
        with pytest.raises(DataError, match=r"no\.jsonl"):
            made.dataset("tone", 0.1).examples("train")

    def test_a_missing_folder_is_named_and_the_hub_is_not_asked(self, registry):
        hub = {"path": "a/b", "splits": {"train": "train"}}
        text = changed(TONE, source={"local": {"folder": "tone"}, "hub": hub})
        with pytest.raises(DataError, match=r"no folder for this task(.|\n)*data/tone"):
            registry(text).dataset("tone", 0.1).examples("train")

    def test_without_a_data_directory_it_says_what_to_do(self, registry):
        with pytest.raises(DataError, match="--data-dir"):
            registry(with_data=False).dataset("tone", 0.1).examples("train")

    def test_a_missing_data_directory_is_refused(self, tmp_path):
        with pytest.raises(DataError, match="data directory is not there"):
            Registry.builtin(tmp_path / "nowhere")

    def test_rows_without_an_answer_are_dropped_and_counted(self, registry, tmp_path):
        rows = [{"id": f"{n}", "ask": f"q {n}", "more": "", "reply": "x" * n} for n in range(5)]
        write(tmp_path / "data" / "chat", "test", rows)
        report = registry(OPEN).dataset("chat", 0.1).split("test")
        assert (report.records, report.used, len(report.examples)) == (5, 4, 4)
        assert report.dropped == {"empty reply": 1}


class TestRegistry:
    """Names, splits, carving, memory."""

    def test_the_tasks_that_ship(self):
        names = Registry.builtin().names()
        assert set(REAL) <= set(names)
        assert names == sorted(names)

    @pytest.mark.parametrize(
        ("alias", "name"),
        [
            ("twitter_sentiment", "twitter-sentiment"),
            ("twitter_sa", "twitter-sentiment"),
            ("TFNS", "twitter-sentiment"),
            ("financial_phrasebank", "fpb"),
            ("fingpt-headline-cls", "headline"),
            ("GSM8K", "gsm8k"),
            ("fpb", "fpb"),
        ],
    )
    def test_aliases(self, alias, name):
        assert Registry.builtin().get(alias).name == name

    def test_an_unknown_name_gets_a_suggestion(self):
        with pytest.raises(SpecError, match="did you mean 'headline'"):
            Registry.builtin().get("headlin")

    @pytest.mark.parametrize("keys", [{"name": "fpb"}, {"aliases": ["TFNS"]}, {"name": "tfns"}])
    def test_a_taken_name_is_refused(self, registry, keys):
        with pytest.raises(DataError, match="already taken"):
            registry(changed(TONE, **keys))

    def test_a_task_file_that_is_not_there(self, tmp_path):
        with pytest.raises(DataError, match="cannot read the file"):
            Registry.builtin().with_files([tmp_path / "no.yaml"])

    def test_validation_is_carved_by_group(self, registry, tmp_path):
        # Every text stands there twice, but for signs and links: one group, never parted.
        rows = [
            record(n, f"text number {n // 2}" + "!!! https://x.y" * (n % 2)) for n in range(400)
        ]
        write(tmp_path / "data" / "tone", "train", rows)
        made = registry()
        train, held = (made.dataset("tone", 0.25).examples(s) for s in ("train", "validation"))
        assert len(train) + len(held) == 400
        assert 60 < len(held) < 140
        assert not {e.group for e in train} & {e.group for e in held}
        assert all(unit_interval("carve", e.group) < 0.25 for e in held)
        assert {e.split for e in held} == {"validation"}
        report = made.dataset("tone", 0.25).split("validation")
        assert (report.read_from, report.records, report.used) == ("train", 400, 400)
        assert len(report.examples) == len(held)

    def test_carving_ignores_what_else_is_in_the_file(self, registry, tmp_path):
        rows = [record(n) for n in range(200)]
        write(tmp_path / "data" / "tone", "train", rows)
        held = {e.id for e in registry().dataset("tone", 0.2).examples("validation")}
        write(tmp_path / "data" / "tone", "train", rows[:100][::-1])
        kept = {row["id"] for row in rows[:100]}
        assert {e.id for e in registry().dataset("tone", 0.2).examples("validation")} == held & kept

    def test_a_split_given_upstream_stays_whole(self, registry, tmp_path):
        for split, size in (("train", 50), ("validation", 3)):
            write(tmp_path / "data" / "tone", split, [record(n) for n in range(size)])
        made = registry()
        assert len(made.dataset("tone", 0.5).examples("train")) == 50
        assert len(made.dataset("tone", 0.5).examples("validation")) == 3
        with pytest.raises(DataError, match="no test split"):
            made.dataset("tone", 0.5).examples("test")

    def test_carving_that_leaves_nothing_is_refused(self, registry, tmp_path):
        write(tmp_path / "data" / "tone", "train", [record(1)])
        with pytest.raises(DataError, match="carving leaves no validation"):
            registry().dataset("tone", 1e-9).examples("validation")

    def test_a_split_is_read_once(self, registry, tmp_path):
        path = write(tmp_path / "data" / "tone", "train", [record(n) for n in range(40)])
        made = registry()
        before = made.dataset("tone", 0.2).examples("train")
        path.write_text("no JSON", encoding="utf-8")
        before.clear()  # the caller's own list
        assert made.dataset("tone", 0.2).examples("train")


class TestBuiltin:
    """Contracts of the tasks that ship, by their files alone."""

    @pytest.mark.parametrize("name", REAL)
    def test_it_says_what_it_is(self, name):
        made = Registry.builtin().get(name)
        assert made.licence and made.citation and made.url
        assert not made.synthetic and made.trainable
        assert made.source.hub.unverified
        assert made.source.hub.revision in (None, "refs/convert/parquet")

    def test_ingredients_are_not_scored(self):
        unscored = {name for name in REAL if not Registry.builtin().get(name).scored}
        assert unscored == {"alpaca"}

    @pytest.mark.parametrize("name", ["fpb", "twitter-sentiment", "headline"])
    def test_the_text_stands_last_and_the_labels_before(self, name):
        made = Registry.builtin().get(name)
        assert made.prompt.endswith("{{ text }}")
        assert all(label in made.prompt for label in made.labels)

    def test_toy_tasks_say_synthetic(self):
        registry = Registry.builtin()
        toys = [registry.get(name) for name in registry.names() if name.startswith("toy-")]
        assert toys and all(t.synthetic for t in toys)
        assert all("synthetic" in registry.source_of(t.name) for t in toys)
