"""The tasks and ingredients that ship, on invented rows in the shape of the data folder's."""

import json
import re

import pytest

from mixtune.datasets.leakage import find_leaked
from mixtune.datasets.registry import Registry
from mixtune.tasks.parsers.labels import PARSERS

PAGE = {
    "pre_text": "net sales of the invented firm rose . costs fell .",
    "table": [["", "2019", "2018"], ["net sales", "$ 12", "$ 10"], ["costs", "4", "5"]],
    "post_text": "see note 3 .",
}
ROWS = {
    "twitter_topic": {"text": "$ABC pays more", "label": "Treasuries | Corporate Debt"},
    "fiqa_sa": {"text": "ABC up", "label": "positive", "target": None},
    "numclaim": {"text": "we expect sales of 5.", "label": "inclaim"},
    "mmlu": {
        "subject": "econometrics",
        "group": "finance_business",
        "question": "Which one?",
        "choices": ["this", "that", "both", "none"],
        "answer": "C",
    },
    "fin_ner": {
        "doc": 0,
        "tokens": ["Olm", "Bank", "of", "Ada", "lends", "."],
        "ner_tags": ["I-ORG", "I-ORG", "O", "I-LOC", "O", "O"],
    },
    "finer_ord": {
        "doc_idx": 4,
        "sent_idx": 0,
        "tokens": ["Ada", "of", "Olm", "Bank"],
        "ner_tags": ["PER_B", "O", "ORG_I", "ORG_I"],
    },
    "finred": {
        "text": "| Olm makes bikes.",
        "triplets": [
            {"head": "| Olm", "relation": "manufacturer", "tail": "bikes"},
            {"head": "| Olm", "relation": "director_/_manager", "tail": "bikes"},
        ],
    },
    "finqa": {
        **PAGE,
        "question": "what was the percentage change in net sales?",
        "answer": "20%",
        "exe_ans": "0.2",
        "program": None,
    },
    "convfinqa": {
        **PAGE,
        "conv_questions": ["what were net sales in 2019?", "and how did they change in percent?"],
        "conv_answers": ["12", "20.0%"],
        "executed_answers": [12.0, 0.2],
        "turn_program": ["12", "divide(2, 10)"],
        "qa_split": [0, 0],
    },
    "financial_math": {
        "formula_name": "Margin",
        "formula": "M = P / S",
        "explanation": "P: profit, S: sales",
        "question": "Profit is 3 and sales are 9. What is M?",
        "answer": "0.33",
    },
    "gsm8k": {"question": "1 + 1?", "answer": "It is <<1+1=2>>2.\n#### 2"},
    "math": {
        "problem": "What is $1/2+1$?",
        "solution": "It is $\\boxed{\\frac{3}{2}}$.",
        "answer": "\\frac{3}{2}",
        "level": "Level 1",
        "type": "Algebra",
    },
    "lima": {
        "instruction": "And why?",
        "input": "",
        "output": "Because.",
        "history": [["What is it?", "A bike."]],
    },
    "p3_t0": {"template": "t", "prompt": "Say yes.", "completion": "yes"},
}
SPLITS = {"mmlu": ("validation", "test"), "lima": ("train",), "p3_t0": ("train",)}
TARGETS = {
    "twitter-topic": ["Treasuries | Corporate Debt"],
    "fiqa-sa": ["positive"],
    "numclaim": ["inclaim"],
    "mmlu-finance": ["C"],
    "fin-ner-cls": ["organization", "location"],
    "fin-ner": ["ORG: Olm Bank\nLOC: Ada"],
    "finer-ord-cls": ["person", "organization"],
    "finer-ord": ["PER: Ada\nORG: Olm Bank"],
    "finred": ["| Olm | manufacturer | bikes\n| Olm | director_/_manager | bikes"],
    "finqa": ["20%"],
    "convfinqa": ["12", "20%"],
    "financial-math": ["0.33"],
    "gsm8k": ["It is 2.\n#### 2"],
    "math": ["It is $\\boxed{\\frac{3}{2}}$."],
    "lima": ["A bike.", "Because."],
    "p3": ["yes"],
}
HUB_ONLY = {"open-orca", "orca-math", "financebench"}
SEEN_BEFORE = {"fpb", "headline", "twitter-sentiment", "alpaca"}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """The registry over a data folder of invented rows, a row a split."""
    folder = tmp_path_factory.mktemp("data")
    for name, row in ROWS.items():
        (folder / name).mkdir()
        for split in SPLITS.get(name, ("train", "validation", "test")):
            text = json.dumps({"id": f"{name}-{split}-0", **row}) + "\n"
            (folder / name / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return Registry.builtin(folder)


def first(registry, name):
    split = "train" if registry.get(name).trainable else "test"
    return registry.dataset(name, 0.1).examples(split)


class TestShipped:
    """Contracts of every task that ships."""

    def test_there_is_an_invented_row_for_each(self, shipped):
        real = {name for name in shipped.names() if not shipped.get(name).synthetic}
        assert real == {*TARGETS, *HUB_ONLY, *SEEN_BEFORE, "mmlu-general"}

    @pytest.mark.parametrize("name", TARGETS)
    def test_answers(self, shipped, name):
        assert [e.target for e in first(shipped, name)] == TARGETS[name]

    @pytest.mark.parametrize("name", TARGETS)
    def test_the_gold_answer_is_read_as_itself_and_is_right(self, shipped, name):
        task, parser = shipped.get(name), PARSERS[shipped.get(name).parser]
        for e in first(shipped, name):
            parsed = parser.strict(e.target, task.labels or task.types)
            asked = [m.content for m in e.messages if m.role == "user"]
            assert parsed is not None
            assert parser.same(parsed, e.target, asked)

    @pytest.mark.parametrize("name", sorted({*TARGETS, *HUB_ONLY, *SEEN_BEFORE, "mmlu-general"}))
    def test_it_says_what_it_is(self, shipped, name):
        task = shipped.get(name)
        assert task.licence and task.citation and task.url and task.about
        assert task.source.local or name in HUB_ONLY
        assert task.source.hub is None or task.source.hub.unverified
        assert name in task.aliases or re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)

    @pytest.mark.parametrize(
        ("role", "names"),
        [
            ("probe", {"mmlu-finance", "mmlu-general", "gsm8k", "math"}),
            ("ingredient", {"alpaca", "lima", "p3", "open-orca", "orca-math"}),
            ("judged", {"financebench"}),
        ],
    )
    def test_roles(self, shipped, role, names):
        tasks = map(shipped.get, shipped.names())
        assert {t.name for t in tasks if t.role == role and not t.synthetic} == names

    def test_what_cannot_be_trained_on(self, shipped):
        fixed = {name for name in shipped.names() if not shipped.get(name).trainable}
        assert fixed == {"mmlu-finance", "mmlu-general", "financebench"}

    @pytest.mark.parametrize(
        ("alias", "name"),
        [
            ("fin_ner_cls", "fin-ner-cls"),
            ("fin_ner", "fin-ner"),
            ("twitter_topics", "twitter-topic"),
            ("twitter_topic", "twitter-topic"),
            ("twitter_sa", "twitter-sentiment"),
            ("open_orca", "open-orca"),
            ("OpenOrca", "open-orca"),
            ("orca_math", "orca-math"),
            ("p3_t0", "p3"),
            ("fiqa_sa", "fiqa-sa"),
            ("finer_ord", "finer-ord"),
            ("financial_math", "financial-math"),
            ("ConvFinQA", "convfinqa"),
            ("FinanceBench", "financebench"),
        ],
    )
    def test_names_of_the_data_folder_and_of_the_study(self, shipped, alias, name):
        assert shipped.get(alias).name == name

    @pytest.mark.parametrize("name", TARGETS)
    def test_the_prompt_is_one_for_all_splits_and_holds_no_answer_field(self, shipped, name):
        prompts = {
            split: [
                [m.content for m in e.messages] for e in shipped.dataset(name, 0.1).examples(split)
            ]
            for split in shipped.dataset(name, 0.1).splits
        }
        assert len({json.dumps(shown) for shown in prompts.values()}) == 1
        shown = json.dumps(prompts)
        assert "exe_ans" not in shown and "ner_tags" not in shown and "I-ORG" not in shown


class TestPages:
    """FinQA and ConvFinQA: one page, one group."""

    def test_both_share_the_group(self, shipped):
        groups = {e.group for name in ("finqa", "convfinqa") for e in first(shipped, name)}
        assert len(groups) == 1

    def test_a_page_that_a_test_split_has_leaks(self, shipped):
        train = shipped.dataset("convfinqa", 0.1).examples("train")
        test = shipped.dataset("finqa", 0.1).examples("test")
        assert {by.kind for by in find_leaked(train, test).values()} == {"group"}

    def test_the_page_comes_first_and_the_table_row_by_row(self, shipped):
        (example,) = first(shipped, "finqa")
        text = example.messages[0].content
        assert (
            "rose . costs fell .\n\n | 2019 | 2018\nnet sales | $ 12 | $ 10\ncosts | 4 | 5\n"
            in text
        )
        assert text.endswith("\n\nQuestion: what was the percentage change in net sales?")

    def test_the_dialogue_so_far(self, shipped):
        one, two = first(shipped, "convfinqa")
        assert [m.role for m in two.messages] == ["user", "assistant", "user"]
        assert two.messages[0] == one.messages[0] and two.messages[1].content == "12"
        assert two.messages[2].content == "Question: and how did they change in percent?"
        assert (one.id, two.id) == ("convfinqa-train-0/1", "convfinqa-train-0/2")

    def test_without_a_result_the_annotators_are_believed_and_that_is_counted(self, tmp_path):
        rows = [
            {"id": "a", **ROWS["finqa"], "exe_ans": None},
            {"id": "b", **ROWS["finqa"], "exe_ans": None, "answer": ""},
            {"id": "c", **ROWS["finqa"], "exe_ans": "yes", "answer": ""},
        ]
        (tmp_path / "finqa").mkdir()
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "finqa" / "test.jsonl").write_text(text, encoding="utf-8")
        registry = Registry.builtin(tmp_path)
        report = registry.dataset("finqa", 0.1).split("test")
        assert [e.target for e in registry.dataset("finqa", 0.1).examples("test")] == ["20%", "yes"]
        assert report.dropped == {"no answer": 1}
        assert report.notes == {"exe_ans is empty, so answer is the truth": 1}


class TestEntityTypes:
    """The type of a marked entity."""

    def test_the_entity_is_marked_where_it_stands(self, shipped):
        texts = [e.messages[0].content.rpartition("\n")[2] for e in first(shipped, "fin-ner-cls")]
        assert texts == ["[[Olm Bank]] of Ada lends.", "Olm Bank of [[Ada]] lends."]

    def test_the_unit_of_independence(self, shipped):
        assert {e.group for e in first(shipped, "fin-ner-cls")} == {"olm bank of ada lends"}
        for name in ("finer-ord", "finer-ord-cls"):
            assert {e.group for e in first(shipped, name)} == {"finer ord train document 4"}

    def test_the_floor_looks_the_entity_up(self, shipped):
        assert [e.cue for e in first(shipped, "finer-ord-cls")] == ["ada", "olm bank"]


def test_mmlu_is_parted_by_subject(tmp_path):
    (tmp_path / "mmlu").mkdir()
    subjects = ("econometrics", "astronomy", "marketing", "virology", "anatomy")
    rows = [{"id": s, **ROWS["mmlu"], "subject": s} for s in subjects]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "mmlu" / "test.jsonl").write_text(text, encoding="utf-8")
    registry = Registry.builtin(tmp_path)
    kept = {n: registry.dataset(n, 0.1).split("test") for n in ("mmlu-finance", "mmlu-general")}
    assert [(r.used, r.dropped) for r in kept.values()] == [
        (2, {"another subject": 3}), (3, {"another subject": 2}),
    ]  # fmt: skip
    (example, _) = registry.dataset("mmlu-finance", 0.1).examples("test")
    assert "about econometrics." in example.messages[0].content
    assert example.messages[0].content.endswith("Which one?\nA. this\nB. that\nC. both\nD. none")
