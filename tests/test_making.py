"""Records that are not examples yet: tagged tokens, dialogues, amounts, long pages."""

import json
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from own_kit import examples_of

from mixtune.datasets.registry import Registry
from mixtune.errors import DataError, SpecError
from mixtune.models.base import MajorityModel
from mixtune.planning.plan import Planner
from mixtune.records import Message
from mixtune.tasks.context import Context
from mixtune.tasks.examples import fingerprint, query_of
from mixtune.tasks.makers import Span, detokenise, read_spans
from mixtune.tasks.parsers.labels import PARSERS
from mixtune.tasks.rendering import render_record
from mixtune.tasks.task import parse_task

FIND = """
name: find
make:
  spans: {tokens: words, tags: tags, types: {PER: PERSON, LOC: PLACE}}
prompt: |-
  List "PERSON: ..." and "PLACE: ..." a line, or answer none.

  {{ text }}
target: |-
  {% for span in spans -%}
  {{ span.type }}: {{ span.text }}
  {% endfor %}
  {%- if not spans %}none{% endif %}
parser: spans
types: [PERSON, PLACE]
metrics: [span-f1]
source: rows.jsonl
"""
KIND = """
name: kind
labels: [person, place]
make:
  spans: {tokens: words, tags: tags, types: {PER: person, LOC: place}, each: entity}
prompt: "person or place? {{ text }}"
fields: {label: type, id: id}
group_by: "{{ sentence }}"
floor_by: "{{ entity }}"
source: rows.jsonl
"""
TALK = """
name: talk
make:
  turns:
    fields: {question: questions, result: results, told: answers}
    follow_up: "And: {{ question }}"
  amount: {value: result, told: told, question: question}
context: {text: "{{ page }}", question: "{{ question }}"}
prompt: "{{ context }}\\n\\nSay: {{ question }}"
target: "{{ amount }}"
fields: {id: id, group: page}
parser: amount
metrics: [accuracy]
source: rows.jsonl
"""
SENTENCE = {
    "id": "s1",
    "words": [
        "Mr",
        "Olm",
        "'s",
        "firm",
        "left",
        "Upper",
        "Town",
        ",",
        "he",
        "said",
        "(",
        "Ada",
        ")",
    ],
    "tags": ["O", "I-PER", "O", "O", "O", "I-LOC", "I-LOC", "O", "O", "O", "O", "PER_B", "O"],
}
DIALOGUE = {
    "id": "d",
    "page": "Sales were 8 and costs 4.",
    "questions": ["sales?", "costs as a percentage of sales?", "is that much?"],
    "results": ["8.0", 0.5, "yes"],
    "answers": ["8", "50%", ""],
}


def task(text, **keys):
    raw = yaml.safe_load(text)
    return parse_task(yaml.safe_dump(raw | keys, sort_keys=False), "t.yaml")


def changed(text, path, **keys):
    """A task with keys of a section changed; `path` leads there."""
    raw = yaml.safe_load(text)
    here = raw
    for part in path.split("."):
        here = here[part]
    here.update(keys)
    return parse_task(yaml.safe_dump(raw, sort_keys=False), "t.yaml")


def load(folder, text, rows, split="train"):
    (folder / "t.yaml").write_text(text, encoding="utf-8")
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    return Registry.open([str(folder / "t.yaml")])


class TestDetokenise:
    """Tokens back to text."""

    @pytest.mark.parametrize(
        ("tokens", "text"),
        [
            ("Issuer ' s approval , ( if any ) ; or", "Issuer's approval, (if any); or"),
            ("the lenders ' rights", "the lenders' rights"),
            ("they do n't say it ’s so", "they don't say it’s so"),
            ("Section 12 . 1 . 3 at 10 : 30", "Section 12.1.3 at 10:30"),
            ("$ 5,000 or 1 , 000 ; 3.8 % of it .", "$5,000 or 1,000; 3.8% of it."),
            ("in 2007 , 25 of them", "in 2007, 25 of them"),
            ('" Lenders " means " all "', '"Lenders" means "all"'),
            ("“ No , ” he said . …", "“No,” he said.…"),
            ("short - term loans and / or bonds -- all", "short - term loans and/or bonds -- all"),
            ("( a ), ( b ); ( c ).", "(a), (b); (c)."),
            ("R & D", "R & D"),
            ("", ""),
        ],
    )
    def test_rules(self, tokens, text):
        assert detokenise(tokens.split()) == text

    @given(st.lists(st.text(max_size=4), max_size=12))
    def test_only_white_space_is_chosen(self, tokens):
        made = detokenise(tokens)
        assert made.replace(" ", "") == "".join(tokens).replace(" ", "")


class TestSpans:
    """Tags to entities."""

    @pytest.mark.parametrize(
        ("tags", "spans"),
        [
            ("O O", []),
            ("I-PER I-PER O I-PER", [("PER", 0, 1), ("PER", 3, 3)]),
            ("I-PER B-PER I-PER", [("PER", 0, 0), ("PER", 1, 2)]),  # IOB1: B parts neighbours
            ("B-PER I-ORG I-ORG", [("PER", 0, 0), ("ORG", 1, 2)]),
            ("PER_B PER_I ORG_I O ORG_I", [("PER", 0, 1), ("ORG", 2, 2), ("ORG", 4, 4)]),
            ("B-GPE_X I-GPE_X", [("GPE_X", 0, 1)]),
        ],
    )
    def test_styles(self, tags, spans):
        assert read_spans(tags.split(), "row") == [Span(*span) for span in spans]

    @pytest.mark.parametrize("tag", ["PER", "X-PER", "", "o", "B-"])
    def test_a_tag_that_is_none_is_refused(self, tag):
        with pytest.raises(DataError, match="row: unknown tag"):
            read_spans(["O", tag], "row")


class TestEntities:
    """Tasks on tagged tokens, by YAML alone."""

    def test_find_them(self):
        (found,) = examples_of(task(FIND, fields={"id": "id"}), SENTENCE, "test")
        assert found.messages[0].content.endswith(
            "\n\nMr Olm's firm left Upper Town, he said (Ada)"
        )
        assert found.target == "PERSON: Olm\nPLACE: Upper Town\nPERSON: Ada"
        parser = PARSERS["spans"]
        parsed = parser.strict(found.target, ("PERSON", "PLACE"))
        assert parsed and parser.same(parsed, found.target, ())

    def test_a_sentence_without_any(self):
        row = SENTENCE | {"tags": ["O"] * 13}
        assert examples_of(task(FIND), row, "train")[0].target == "none"
        assert render_record(task(KIND), row, "train").dropped == "no entity"

    def test_an_example_an_entity(self):
        made = examples_of(task(KIND), SENTENCE, "train")
        assert [(e.id, e.target, e.cue) for e in made] == [
            ("s1/1", "person", "olm"), ("s1/2", "place", "upper town"), ("s1/3", "person", "ada"),
        ]  # fmt: skip
        assert made[1].messages[0].content == (
            "person or place? Mr Olm's firm left [[Upper Town]], he said (Ada)"
        )
        assert {e.group for e in made} == {"mr olm s firm left upper town he said ada"}

    def test_types_that_are_not_named_are_left_out_and_counted(self, tmp_path):
        only_places = changed(KIND, "make.spans", types={"LOC": "place"})
        assert [e.id for e in examples_of(only_places, SENTENCE, "train")] == ["s1/2"]
        rows = [
            SENTENCE | {"id": f"s{n}", "words": [*SENTENCE["words"][:-1], f"{n}"]} for n in range(8)
        ]
        rows[7]["tags"] = ["O"] * 12 + ["I-PER"]
        text = KIND.replace("PER: person, ", "") + "scored: false\n"
        report = load(tmp_path, text, rows).dataset("kind", 0.1).split("train")
        assert (report.records, report.used, len(report.examples)) == (8, 7, 7)
        assert report.dropped == {"no entity but of type PER": 1}
        assert report.notes == {"entity of type PER left out": 14}

    def test_numbered_tags(self):
        numbered = changed(KIND, "make.spans", tag_names=["O", "I-PER"])
        row = SENTENCE | {"words": ["Ada", "left"], "tags": [1, 0]}
        assert [e.target for e in examples_of(numbered, row, "train")] == ["person"]
        with pytest.raises(DataError, match=r"a numbered tag has no name(.|\n)*found:  2"):
            examples_of(numbered, row | {"tags": [2, 0]}, "train")

    @pytest.mark.parametrize(
        ("row", "words"),
        [
            ({"tags": ["O"]}, "differ in length(.|\n)*words: 13, tags: 1"),
            ({"words": "Ada"}, r"field 'words': not a list"),
            ({"tags": None}, r"field 'tags': not a list"),
        ],
    )
    def test_bad_rows(self, row, words):
        with pytest.raises(DataError, match=words):
            examples_of(task(KIND), SENTENCE | row, "train")

    def test_the_floor_looks_the_surface_up_in_train(self):
        def row(key, name, tag):
            return {"id": key, "words": [name, "rose"], "tags": [tag, "O"]}

        known = [("Rome", "I-LOC")] * 2 + [("Rome", "I-PER")] + [("Ada", "I-PER")] * 4
        made = task(KIND)
        train = [
            e
            for n, (name, tag) in enumerate(known)
            for e in examples_of(made, row(f"t{n}", name, tag), "train")
        ]
        asked = [
            e
            for name in ("ROME", "Ada", "Oslo")
            for e in examples_of(made, row(name, name, "I-LOC"), "test")
        ]
        floor = MajorityModel(train)
        queries = [query_of(e) for e in asked]
        assert [a.output for a in floor.generate(queries, 4)] == ["place", "person", "person"]
        assert [a.output for a in floor.rank(queries)] == ["place", "person", "person"]

    def test_the_floors_id_holds_a_cue_only_where_there_is_one(self):
        def known(made):
            rows = {"kind": examples_of(made, SENTENCE, "train")}
            return Planner._known(SimpleNamespace(corpus=SimpleNamespace(known=rows)), "kind")

        assert known(task(KIND))[0] == ["", "person", "olm"]
        assert known(task(KIND, floor_by=None))[0] == ["", "person"]

    def test_a_cue_is_in_the_digest_only_where_there_is_one(self):
        with_cue, without = task(KIND), task(KIND, floor_by=None)
        pairs = [examples_of(t, SENTENCE, "train") for t in (with_cue, without)]
        assert {e.cue for e in pairs[1]} == {""}
        assert fingerprint(pairs[0]) != fingerprint(pairs[1])
        assert with_cue.prompt_version == without.prompt_version


class TestDialogue:
    """Lists that run side by side, turn by turn."""

    def test_each_turn_with_those_before_it(self):
        first, second, third = examples_of(task(TALK), DIALOGUE, "test")
        assert [e.id for e in (first, second, third)] == ["d/1", "d/2", "d/3"]
        assert [e.target for e in (first, second, third)] == ["8", "50%", "yes"]
        assert {e.group for e in (first, second, third)} == {DIALOGUE["page"]}
        assert first.messages == (Message("user", f"{DIALOGUE['page']}\n\nSay: sales?"),)
        assert third.messages == (
            *first.messages,
            Message("assistant", "8"),
            Message("user", "And: costs as a percentage of sales?"),
            Message("assistant", "50%"),
            Message("user", "And: is that much?"),
        )
        assert second.messages == third.messages[:3]

    def test_a_dialogue_ends_before_a_turn_without_an_answer(self):
        row = DIALOGUE | {"results": ["8.0", None, "yes"], "answers": ["8", "", ""]}
        made = task(TALK)
        assert [e.target for e in examples_of(made, row, "test")] == ["8"]
        assert (
            render_record(made, row, "train").notes == ("turn without an answer, or after one",) * 2
        )
        assert (
            render_record(made, row | {"results": [None] * 3}, "train").dropped is None
        )  # "8" is told
        assert (
            render_record(made, row | {"results": [None] * 3}, "train").notes[0]
            == "result is empty, so told is the truth"
        )
        assert (
            render_record(made, row | {"results": [None] * 3, "answers": [""] * 3}, "train").dropped
            == "no answer"
        )
        empty = {"questions": [], "results": [], "answers": []}
        assert render_record(made, row | empty, "train").dropped == "no turn"

    def test_lists_of_unequal_length_are_refused(self):
        with pytest.raises(DataError, match=r"differ in length(.|\n)*questions: 3, results: 1"):
            examples_of(task(TALK), DIALOGUE | {"results": [1]}, "test")

    def test_a_page_is_cut_by_all_that_was_asked_so_far(self):
        page = "Rent is high. Sales rose to 8. Costs fell to 4."
        cut = task(TALK).with_context("evidence-first", 4)
        first, second, _ = examples_of(cut, DIALOGUE | {"page": page}, "test")
        assert first.messages[0].content == "Sales rose to 8.\n\nSay: sales?"
        assert second.messages[0].content.startswith("Sales rose to 8.\n")
        other = examples_of(
            cut, DIALOGUE | {"page": page, "questions": ["costs?", "b?", "c?"]}, "test"
        )
        assert other[0].messages[0].content.startswith("Costs fell to 4.\n")


class TestContext:
    """Policies for long pages."""

    PAGE = "one two three. four five six.\nname | 2019\ncash | 7\ndebt | 9\nseven eight nine."

    def fit(self, policy, words, asked="", page=PAGE):
        context = Context(text="x", question="y", policy=policy, words=words)
        return context.fit(page, asked, "row 1")

    @pytest.mark.parametrize("policy", ["error", "drop", "evidence-first", "truncate-middle"])
    def test_a_page_that_is_short_enough_stays(self, policy):
        assert self.fit(policy, 18) == self.PAGE
        assert Context(text="x").fit(self.PAGE, "", "row") == self.PAGE

    def test_error(self):
        with pytest.raises(
            DataError, match=r"row 1(.|\n)*18 words(.|\n)*at most 17(.|\n)*truncate"
        ):
            self.fit("error", 17)

    def test_truncate_middle(self):
        assert self.fit("truncate-middle", 5) == "one two three.\n…\neight nine."
        assert self.fit("truncate-middle", 1) == "one\n…"

    @pytest.mark.parametrize(
        ("asked", "words", "kept"),
        [
            ("what was the debt?", 6, "name | 2019\ndebt | 9"),
            ("the FIVE, of 7", 10, "four five six.\nname | 2019\ncash | 7"),
            ("nothing of it", 7, "one two three.\nfour five six."),
            ("nothing of it", 2, "one two"),
        ],
    )
    def test_evidence_first(self, asked, words, kept):
        assert self.fit("evidence-first", words, asked) == kept

    def test_the_rarer_word_weighs_more(self):
        page = "the cash of the firm.\nthe debt of the firm.\nthe goodwill."
        assert self.fit("evidence-first", 2, "the goodwill of", page) == "the goodwill."

    @given(st.text("ab1 .|\n", max_size=60), st.text("ab1 ", max_size=9), st.integers(1, 12))
    def test_no_policy_lets_more_through(self, page, asked, words):
        for policy in ("evidence-first", "truncate-middle"):
            kept = self.fit(policy, words, asked, page)
            assert len(kept.replace("…", "").split()) <= max(words, 0)
            assert set(kept.split()) <= {*page.split(), "…"}

    def test_what_was_cut_and_dropped_is_counted(self, tmp_path):
        rows = [DIALOGUE | {"id": f"d{n}", "page": f"{n} " + "word " * n} for n in range(9)]
        registry = load(tmp_path, TALK + "role: ingredient\n", rows)
        cut = (
            registry.with_context("talk", "truncate-middle", 6).dataset("talk", 0.1).split("train")
        )
        assert (cut.used, cut.dropped) == (9, {})
        assert cut.notes == {"context cut to 6 words: truncate-middle": 3}
        left = registry.with_context("talk", "drop", 6).dataset("talk", 0.1).split("train")
        assert (left.used, left.dropped, left.notes) == (6, {"context over 6 words": 3}, {})
        with pytest.raises(DataError, match="context is too long"):
            registry.with_context("talk", "error", 6).dataset("talk", 0.1).examples("train")
        assert len(registry.dataset("talk", 0.1).examples("train")) == 27

    def test_the_version_of_the_prompt_follows_the_policy(self):
        made = task(TALK)
        versions = {
            made.prompt_version,
            made.with_context("error", 6).prompt_version,
            made.with_context("drop", 6).prompt_version,
            made.with_context("drop", 7).prompt_version,
        }
        assert len(versions) == 4

    def test_a_policy_that_cannot_be_used_is_refused(self):
        with pytest.raises(SpecError, match="find: the task has no long context"):
            task(FIND).with_context("drop", 5)
        for policy, words in (("drop", None), ("drop", 0), ("cut", 5)):
            with pytest.raises(SpecError, match=r"talk: the policy(.|\n)*found:(.|\n)*wanted"):
                task(TALK).with_context(policy, words)


class TestTaskFile:
    """What a task file may not say."""

    @pytest.mark.parametrize(
        ("text", "keys", "words"),
        [
            (
                FIND,
                {"prompt": "PERSON PLACE {{ text }} {{ spans }}"},
                r"shows the answer \(spans\)",
            ),
            (FIND, {"prompt": "PERSON PLACE {{ tags }}"}, r"shows the answer \(tags\)"),
            (KIND, {"prompt": "person place {{ text }} {{ type }}"}, r"shows the answer \(type\)"),
            (KIND, {"floor_by": "{{ type }}"}, r"floor_by: reads the answer \(type\)"),
            (FIND, {"floor_by": "{{ text }}"}, "floor_by: only a label task"),
            (TALK, {"prompt": "{{ question }}"}, r"needs \{\{ context \}\}"),
            (TALK, {"prompt": "{{ context }} {{ amount }}"}, r"shows the answer \(amount\)"),
            (TALK, {"prompt": "{{ context }} {{ told }}"}, r"shows the answer \(told\)"),
            (TALK, {"make": {}}, "nothing is made"),
            (TALK, {"context": {"text": "{{ page"}}, "not a template"),
            (TALK, {"context": {"text": "{{ page }}", "policy": "drop"}}, "drop needs words"),
            (TALK, {"context": {"text": "x", "policy": "evidence-first", "words": 3}}, "question"),
            (KIND, {"role": "ingredient", "scored": True}, "role: ingredient, but it is scored"),
            (KIND, {"role": "probe", "scored": False}, "role: probe, but it is not scored"),
            (KIND, {"role": "exam"}, "role"),
        ],
    )
    def test_a_fault_is_named(self, text, keys, words):
        with pytest.raises(DataError, match=words):
            task(text, **keys)

    def test_spans_stand_alone(self):
        with pytest.raises(DataError, match="spans cannot be combined"):
            changed(FIND, "make", amount={"value": "text"})

    def test_keys_keep_the_names_that_files_use(self):
        with pytest.raises(DataError, match=r"make\.amount\.tolt(.|\n)*'told'"):
            changed(TALK, "make.amount", tolt="answer")
        dumped = task(TALK).model_dump(mode="json", exclude_unset=True)["make"]["amount"]
        assert dumped == {"value": "result", "told": "told", "question": "question"}

    def test_versions_from_before_there_were_makers_stay(self):
        plain = (
            "name: a\nlabels: [x, y]\nprompt: 'x y {{ t }}'\nfields: {label: l}\nsource: a.csv\n"
        )
        before = parse_task(plain, "t").prompt_version
        for more in ("floor_by: '{{ t }}'", "keep: {t: [b]}", "role: probe"):
            assert parse_task(f"{plain}{more}\n", "t").prompt_version == before


class TestRoles:
    """What a dataset is there for, and which of its rows are its own."""

    LABELS = "labels: [x, y]\nprompt: 'x or y? {{ t }}'\nfields: {label: l}\nsource: rows.jsonl\n"

    @pytest.mark.parametrize(
        ("more", "role", "scored"),
        [
            ("", "task", True),
            ("scored: false\n", "ingredient", False),
            ("role: probe\n", "probe", True),
            ("role: ingredient\n", "ingredient", False),
            ("role: judged\n", "judged", False),
        ],
    )
    def test_roles(self, more, role, scored):
        made = parse_task(f"name: a\n{self.LABELS}{more}", "t")
        assert (made.role, made.scored) == (role, scored)

    def test_a_probe_loses_no_train_rows_to_a_validation_split(self, tmp_path):
        rows = [{"t": f"text {n}", "l": "xy"[n % 2]} for n in range(300)]
        registry = load(tmp_path, f"name: a\n{self.LABELS}role: probe\n", rows)
        assert registry.dataset("a", 0.3).splits == ("train", "test")
        sizes = [len(registry.dataset("a", 0.3).examples(split)) for split in ("train", "test")]
        assert sum(sizes) == 300

    def test_rows_are_picked_by_a_column(self, tmp_path):
        rows = [{"t": f"text {n}", "l": "xy"[n % 2], "s": n % 3} for n in range(30)]
        kept = f"name: a\n{self.LABELS}scored: false\n"
        report = (
            load(tmp_path, kept + "keep: {s: ['0', '2']}\n", rows).dataset("a", 0.1).split("train")
        )
        assert (report.used, report.dropped) == (20, {"another s": 10})
        report = (
            load(tmp_path, kept + "leave_out: {s: ['0']}\n", rows).dataset("a", 0.1).split("train")
        )
        assert (report.used, report.dropped) == (20, {"another s": 10})
        with pytest.raises(DataError, match="no field 'u'"):
            load(tmp_path, kept + "keep: {u: [a]}\n", rows).dataset("a", 0.1).examples("train")
