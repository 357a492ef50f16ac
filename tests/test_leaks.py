"""The leakage gate in a study: what is dropped, counted, said and left out of clean results."""

import json

import pytest
from own_kit import examples_of
from study_kit import TASK, record, registry, study, write_data, write_rows
from test_execution import run

from mixtune.datasets.leakage import own_texts
from mixtune.datasets.registry import Registry
from mixtune.errors import DataError, StoreError
from mixtune.planning.corpus import changed_by_tasks, leak_lines, load_corpus
from mixtune.planning.plan import Planner
from mixtune.planning.summary import facts_of
from mixtune.records import DataRow
from mixtune.results.study_results import measure_split, read_facts, score_study
from mixtune.store.folder import Store
from mixtune.study.reading import dump_study
from mixtune.tasks.task import parse_task

TAIL = "clouds over the far hills and a little rain on the roads near the coast by noon"


def text_of(data, name, number):
    """The text of a train row that is left to train on."""
    example = load_corpus(study(), registry(data)).pools[name][number]
    return example.own_text


@pytest.fixture
def leaky(data):
    """Test rows of south: one exact, one loose, one that shares a run of words with north's train.

    The last shares it with a row of its own train split.
    """
    rows = [record("south", "test", i) for i in range(20)]
    train = [record("north", "train", i) for i in range(60)]
    own = [record("south", "train", i) for i in range(60)]
    rows[0]["text"] = text_of(data, "north", 0).upper()
    rows[1]["text"] = text_of(data, "north", 1).replace(" ", " - ")
    rows[2]["text"] = f"In the south there are {TAIL}"
    rows[3]["text"] = f"As a test {TAIL} again"
    train[text_number(data, "north", 2)]["text"] = f"So the north has {TAIL}!"
    own[text_number(data, "south", 0)]["text"] = f"We have trained on {TAIL}"
    write_rows(data, "south", "test", rows)
    write_rows(data, "north", "train", train)
    write_rows(data, "south", "train", own)
    return data


def text_number(data, name, number):
    return int(load_corpus(study(), registry(data)).pools[name][number].id.split("-")[-1])


def matched(planner):
    return {
        (r["dataset"], r["split"]): (r["leaked"], r["matched"]) for r in planner.leaks.data_rows()
    }


def evaluate(**changes):
    return {**study().evaluate.model_dump(mode="json"), **changes}


class TestGate:
    def test_drop_takes_exact_and_loose_out_and_counts_runs(self, leaky):
        planner = Planner(study(), registry(leaky), None)
        rows = matched(planner)
        assert rows["north", "train"] == (2, {"exact": 1, "loose": 1, "group": 0, "words": 1})
        assert rows["south", "train"] == (0, {"exact": 0, "loose": 0, "group": 0, "words": 1})
        assert rows["south", "test"] == (0, {})
        (north, south) = leak_lines(planner.leaks.data_rows())
        assert north == (
            "north/train in a later split: 1 exact, 1 loose, 0 group (2 dropped); 1 more share "
            "13 words"
        )
        assert "(none dropped)" in south

    def test_report_counts_the_same_and_drops_nothing(self, leaky):
        kept = Planner(study(evaluate=evaluate(leaked="report")), registry(leaky), None)
        dropped = Planner(study(), registry(leaky), None)
        assert matched(kept)["north", "train"] == (0, matched(dropped)["north", "train"][1])
        pools = [len(planner.corpus.pools["north"]) for planner in (kept, dropped)]
        assert pools[0] - pools[1] == 2

    def test_error_counts_by_kind(self, leaky):
        with pytest.raises(DataError, match=r"2 of \d+ rows .*'exact': 1.*'loose': 1"):
            load_corpus(study(evaluate=evaluate(leaked="error")), registry(leaky))

    def test_a_run_alone_changes_no_row_and_no_id(self, data, files):
        before = Planner(study(), registry(data), files).plan()
        rows = [record("south", "test", i) for i in range(20)]
        shared = load_corpus(study(), registry(data)).pools["north"][0].own_text
        rows[19]["text"] = f"{shared} {TAIL}"  # an item that no system answers
        write_rows(data, "south", "test", rows)
        after = Planner(study(), registry(data), files)
        assert [r.system for r in before.runs] == [r.system for r in after.plan().runs]

    def test_validation_rows_that_share_a_run_with_test_are_counted(self, leaky):
        rows = [record("north", "validation", i) for i in range(20)]
        rows[4]["text"] = f"Before noon {TAIL}"
        write_rows(leaky, "north", "validation", rows)
        found = matched(Planner(study(), registry(leaky), None))
        assert found["north", "validation"][1]["words"] == 1

    def test_what_is_kept_fits_the_page(self, leaky, files):
        facts = facts_of(Planner(study(), registry(leaky), files))
        assert [DataRow(**row).matched for row in json.loads(json.dumps(facts["data"]))]
        assert set(facts["flagged"]) == {f"{t}/{s}" for t in ("north", "south")
                                         for s in ("validation", "test")}  # fmt: skip


class TestOwnText:
    """What a record says without the task's words."""

    def made(self, row, **keys):
        raw = {"name": "t", "kind": "open", "fields": {"id": None}, "target": "{{ a }}"}
        raw |= {"parser": "text", "metrics": [], "source": "rows.csv"} | keys
        return examples_of(parse_task(json.dumps(raw), "t.yaml"), row, "train")[0].own_text

    def test_by_default_the_fields_that_the_prompt_reads(self):
        row = {"a": "yes", "q": "How much?", "page": ["Sales", ["1.5", None, 2]], "x": "no part"}
        prompt = "{{ labels | join }}Answer: {{ q }} {{ page | join }}"
        assert self.made(row, prompt=prompt) == "Sales 1.5 2\nHow much?"

    def test_or_what_the_task_file_says(self):
        row = {"a": "yes", "q": "How much?", "page": "Sales 1.5"}
        given = {"prompt": "{{ page }} {{ q }}", "own_text": "{{ page }}"}
        assert self.made(row, **given) == "Sales 1.5"
        with pytest.raises(DataError, match="no field 'other'"):
            self.made(row, **given | {"own_text": "{{ other }}"})

    def test_of_a_conversation_all_that_the_user_says(self):
        turns = [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c")]
        turns.append(("assistant", "d"))
        row = {"messages": [{"role": role, "content": text} for role, text in turns]}
        raw = "name: t\nformat: messages\nsource: rows.jsonl\n"
        made = examples_of(parse_task(raw, "t.yaml"), row, "train")
        assert {(e.own_text, e.record) for e in made} == {("a\nc", "train-0")}

    def test_questions_about_one_record_are_one_text(self, tmp_path):
        raw = TASK.format(name="north").replace("fields: {label: label}", "")
        raw = raw.replace("{{ text }}\nfields", "{{ question }} {{ text }}\nfields")
        raw = raw.replace("Is it dry or wet?", "{{ question }} dry or wet?")
        raw += "questions: {am: Morning, pm: Evening}\n"
        rows = [{"id": str(i), "text": f"text {i}", "am": "dry", "pm": "wet"} for i in range(3)]
        write_rows(tmp_path, "north", "train", rows)
        made = Registry([parse_task(raw, "north.yaml")], tmp_path)
        found = own_texts(made.dataset("north", 1e-9).examples("train"))
        assert [(t.record, t.text, t.answers) for t in found[:1]] == [
            ("0", "text 0", ("dry", "wet"))
        ]
        assert len(found) == 3
        assert {t.group for t in found} == {""}

    def test_no_id_changes_with_it(self, data):
        """The fingerprint of rows, which ids are made of, does not hold it."""
        plain = registry(data).dataset("north", 0.1).examples("train")
        named = TASK.format(name="north") + 'own_text: "{{ text | lower }}"\n'
        other = Registry([parse_task(named, "north.yaml")], data)
        from mixtune.tasks.examples import fingerprint

        assert fingerprint(plain) == fingerprint(other.dataset("north", 0.1).examples("train"))
        assert registry(data).get("north").prompt_version == other.get("north").prompt_version


class TestClean:
    """Results on the items that no training row repeats."""

    def test_flagged_are_the_items_that_a_pool_repeats(self, leaky):
        whole = evaluate(test_items=None, validation_items=None)
        found = Planner(study(evaluate=whole), registry(leaky), None).leaks.flagged
        assert found["south/test"] == ["south-test-2", "south-test-3"]
        assert found["north/test"] == found["north/validation"] == []
        kept = study(evaluate=whole | {"leaked": "report"})
        found = Planner(kept, registry(leaky), None).leaks.flagged
        assert found["south/test"] == [f"south-test-{n}" for n in range(4)]

    def test_they_are_left_out_of_clean_results(self, leaky, files, tmp_path):
        store = Store(tmp_path / "runs" / "weather")
        whole = {"evaluate": evaluate(test_items=None), "design": ["singles"]}
        run(leaky, files, store, **whole)
        facts = read_facts(store, registry(leaky))
        score_study(facts)
        flagged = Planner(study(**whole), registry(leaky), files).leaks.flagged
        test, validation = (measure_split(facts, split) for split in ("test", "validation"))
        both = test.results, test.without_items(flagged)
        counts = [{(r.task, r.n) for r in rows} for rows in both]
        assert counts == [{("north", 20), ("south", 20)}, {("north", 20), ("south", 18)}]
        assert validation.without_items(flagged) == validation.results
        every = {"south/test": [f"south-test-{n}" for n in range(20)]}
        assert {r.task for r in test.without_items(every)} == {"north"}


class TestAddedTasks:
    """A task that takes rows from what others train on."""

    def kept(self, data, files, store, **changes):
        planner = Planner(study(**changes), registry(data), files)
        rows = planner.plan().rows(), dump_study(planner.study)
        why = changed_by_tasks(store, planner.study, planner.leaks.data_rows())
        store.save_plan(*rows, facts_of(planner), why)
        return why

    def test_it_is_said_why_results_would_get_another_id(self, leaky, files, tmp_path):
        store = Store(tmp_path / "runs" / "weather")
        assert self.kept(leaky, files, store, tasks=["north"]) == []
        with pytest.raises(StoreError, match="would get another id") as refused:
            self.kept(leaky, files, store)
        cause = (
            "the leakage gate drops 2 examples of north/train, before 0: they stand in a split of "
            "the added task south"
        )
        assert cause in str(refused.value)
        assert "content.json kept" in str(refused.value)

    def test_a_task_that_takes_nothing_is_not_blamed(self, tmp_path, files):
        data, store = write_data(tmp_path / "data"), Store(tmp_path / "runs" / "weather")
        assert self.kept(data, files, store, tasks=["north"]) == []
        assert self.kept(data, files, store) == []
        assert self.kept(data, files, store) == []

    def test_other_data_is_not_blamed_on_the_task(self, leaky, files, tmp_path):
        store = Store(tmp_path / "runs" / "weather")
        self.kept(leaky, files, store, tasks=["north"])
        write_rows(leaky, "north", "train", [record("north", "train", i) for i in range(61)])
        with pytest.raises(StoreError) as refused:
            self.kept(leaky, files, store)
        assert "the leakage gate drops" not in str(refused.value)


class TestVerb:
    """`mixtune data leaks`."""

    @pytest.fixture
    def asked(self, leaky, tmp_path):
        """Task files and a study over the two tasks."""
        texts = [TASK.format(name=name) for name in ("north", "south")]
        (tmp_path / "tasks.yaml").write_text("---\n".join(texts), encoding="utf-8")
        made = study(task_files=["tasks.yaml"], model="smollm2-135m")
        (tmp_path / "study.yaml").write_text(dump_study(made), encoding="utf-8")
        files = ("--task-file", tmp_path / "tasks.yaml", "--data-dir", leaky)
        return ("data", "leaks", "--task", "north", "--task", "south", *files)

    def test_counts_and_ids(self, asked, mixtune):
        code, out, _ = mixtune(*asked, "--json", "--examples", 1)
        found = json.loads(out)
        assert code == 0
        pairs = {(p["split"], p["against"]): p for p in found["overlaps"]}
        pair = pairs["south/test", "north/train"]
        assert [pair[notion] for notion in ("records", "exact", "loose", "words", "group")] == [
            20, 1, 2, 2, 0,
        ]  # fmt: skip
        assert pair["repeated_by"] == 2
        assert pair["examples"]["exact"][0][0] == "south-test-0"
        assert found["words_of_a_run"] == 13
        assert found["left_out"] == {}
        assert sum(found["records"].values()) == 160

    def test_a_table_for_people_without_a_row_of_text(self, asked, mixtune):
        code, out, err = mixtune(*asked, "--examples", 2, "--words", 12)
        assert code == 0
        assert "south/test" in out and "12 words" in out and "south-test-0" in out
        assert "clouds" not in out and err == ""

    def test_a_study_compares_what_it_uses(self, asked, mixtune, tmp_path, leaky):
        code, out, _ = mixtune(
            "data", "leaks", tmp_path / "study.yaml", "--data-dir", leaky, "--json"
        )
        assert code == 0
        assert set(json.loads(out)["records"]) == {
            f"{name}/{split}" for name in ("north", "south") for split in
            ("train", "validation", "test")
        }  # fmt: skip

    @pytest.mark.parametrize("notion", ["exact", "loose", "words"])
    def test_fail_on(self, asked, mixtune, notion):
        assert mixtune(*asked, "--fail-on", notion)[0] == 3

    def test_a_stricter_match_than_there_is_does_not_fail(self, tmp_path, mixtune):
        rows = [record("north", "test", i) for i in range(20)]
        data = write_data(tmp_path / "data")
        rows[0]["text"] = record("north", "train", 0)["text"].replace(" ", " - ")
        write_rows(data, "north", "test", rows)
        (tmp_path / "north.yaml").write_text(TASK.format(name="north"), encoding="utf-8")
        asked = ("data", "leaks", "--task", "north", "--data-dir", data)
        asked += ("--task-file", tmp_path / "north.yaml", "--fail-on")
        assert [mixtune(*asked, notion)[0] for notion in ("exact", "loose", "words")] == [0, 3, 3]

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            (("--fail-on", "page"), "exact, loose, words"),
            (("--task", "nort"), "north"),
            (("study.yaml",), "leave one of them out"),
        ],
    )
    def test_what_cannot_be_asked(self, asked, mixtune, more, said):
        code, _, err = mixtune(*asked, *more)
        assert code == 2
        assert said in err

    def test_all_that_is_at_hand(self, leaky, mixtune, tmp_path, monkeypatch):
        monkeypatch.delenv("MIXTUNE_DATA_DIR", raising=False)
        code, _, err = mixtune("data", "leaks")
        assert code == 2
        assert "no dataset is at hand" in err
        (tmp_path / "north.yaml").write_text(TASK.format(name="north"), encoding="utf-8")
        code, out, _ = mixtune(
            "data", "leaks", "--json", "--data-dir", leaky, "--task-file", tmp_path / "north.yaml"
        )
        found = json.loads(out)
        assert code == 0
        assert set(found["records"]) == {"north/train", "north/validation", "north/test"}
        assert "no folder for this task" in found["left_out"]["fpb"]
