r"""Parsers of numbers behind ####, of \boxed{…}, of entities and triplets: tables, properties."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtune.tasks.metrics import items
from mixtune.tasks.parsers.labels import PARSERS

TYPES = ("PER", "ORG", "LOC")
RELATIONS = ("owned_by", "chief_executive_officer", "director_/_manager")
REFUSALS = [
    ("I'm sorry, but I can't help with that.", None, None),
    ("As an AI language model, I do not give financial advice.", None, None),
    ("", None, None),
    (" \n\t ", None, None),
    ("\x00\x1b[31m\ufffd\u200b", None, None),
    ("我不知道", None, None),
    ("x" * 10_240, None, None),
]

# output, strict, lenient
FINAL = [
    ("She has 3.\n#### 72", "72", "72"),
    ("#### 1,234.50", "1234.50", "1234.50"),
    ("#### -5\n", "-5", "-5"),
    ("72", None, "72"),
    ("#### 72 clips", None, "72"),
    ("####72", None, "72"),
    ("#### $72", None, "72"),
    ("#### 72\nI hope that this helps 1 person!", None, "72"),
    ("**#### 72**", None, "72"),
    ("First #### 5, then\n#### 7", "7", "7"),
    ("#### 5 or 7", None, "7"),
    ("#### ?\nSo it is 8.", None, "8"),
    ("#### 1,23", None, None),
    ('{"answer": 18}', None, "18"),
    ("The answer is 18.", None, "18"),
    *REFUSALS,
]
BOXED = [
    ("Thus \\boxed{5}.", "5", "5"),
    ("$\\boxed{\\dfrac{1}{2}}$", "\\frac{1}{2}", "\\frac{1}{2}"),
    ("\\boxed{1} and \\boxed{2}", "2", "2"),
    ("\\boxed{\\boxed{3}}", "3", "3"),
    ("\\boxed{a_{1}^{2}}", "a_{1}^{2}", "a_{1}^{2}"),
    ("\\boxed{\\{1, 2\\}}", "\\{1,2\\}", "\\{1,2\\}"),
    ("\\boxed{}", None, None),
    ("\\boxed{5", None, "5"),
    ("\\boxed{\\frac{1}{2}", None, "\\frac{1}{2}"),
    ("\\boxed 5", None, "5"),
    ("\\fbox{5}", None, "5"),
    ("The answer is $\\frac{1}{2}$.", None, "\\frac{1}{2}"),
    ("The answer is 3.5. That is all.", None, "3.5"),
    ("**Final answer:** 12 cm", None, "12"),
    ("So x is 5", None, None),
    ("}{}}}\\boxed{5}", "5", "5"),
    *REFUSALS,
]
SPANS = [
    ("PER: John Smith\nORG: Acme  Inc.", "PER: John Smith\nORG: Acme Inc.", None),
    ("PER: John\nPER: John", "PER: John\nPER: John", None),
    ("none", "none", "none"),
    ("None.", None, "none"),
    ("There are no named entities in this sentence.", None, "none"),
    ("[]", None, "none"),
    ('{"PER": [], "ORG": []}', None, "none"),
    ("per: John", None, "PER: John"),
    ("PER:John", None, "PER: John"),
    ("- PER: John\n* **ORG**: Acme", None, "PER: John\nORG: Acme"),
    ('1. PER: "John"', None, "PER: John"),
    ("John (PER)\nAcme (ORG)", None, "PER: John\nORG: Acme"),
    ("PER - John", None, "PER: John"),
    ("Here are the entities:\nPER: John", None, "PER: John"),
    ("```\nPER: John\n```", None, "PER: John"),
    ('{"PER": ["John", "Ann"], "ORG": "Acme"}', None, "PER: John\nPER: Ann\nORG: Acme"),
    ('```json\n[{"type": "PER", "text": "John"}]\n```', None, "PER: John"),
    ('[["Acme", "ORG"], ["LOC", "Bonn"]]', None, "ORG: Acme\nLOC: Bonn"),
    ("PER: none\nORG: Acme", "PER: none\nORG: Acme", "PER: none\nORG: Acme"),
    ("ORG: No Limit Holdings", "ORG: No Limit Holdings", None),
    ("GPE: Bonn", None, None),
    ("PER:", None, None),
    ("John Smith", None, None),
    ("none\nPER: John", None, "PER: John"),
    ("[" * 10_240, None, None),
    ("PER: " + "[" * 5_000 + "x" + "]" * 5_000, ..., ...),
    ("ORG: 三菱", "ORG: 三菱", None),
    *REFUSALS,
]
TRIPLETS = [
    ("VH1 | owned_by | Viacom", "VH1 | owned_by | Viacom", None),
    ("A | owned_by | B\nA | owned_by | C", "A | owned_by | B\nA | owned_by | C", None),
    ("A | x | owned_by | B", "A | x | owned_by | B", None),
    ("A | director_/_manager | B", "A | director_/_manager | B", None),
    ("none", "none", "none"),
    ("No relations found.", None, "none"),
    ("A|owned_by|B", None, "A | owned_by | B"),
    ("- A | Owned by | B", None, "A | owned_by | B"),
    ("| head | relation | tail |\n|---|---|---|\n| A | owned_by | B |", None, "A | owned_by | B"),
    ("(A, owned_by, B)", None, "A | owned_by | B"),
    ('[{"head": "A", "relation": "owned_by", "tail": "B"}]', None, "A | owned_by | B"),
    ('[["A", "owned_by", "B"]]', None, "A | owned_by | B"),
    ("Sure:\nA | owned_by | B", None, "A | owned_by | B"),
    ("A | likes | B", None, None),
    ("A | owned_by |", None, None),
    ("A owned_by B", None, None),
    ("|" * 10_240, None, None),
    *REFUSALS,
]
TABLES = {
    "final-number": (FINAL, ()),
    "boxed": (BOXED, ()),
    "spans": (SPANS, TYPES),
    "triplets": (TRIPLETS, RELATIONS),
}
CASES = [(name, words, *row) for name, (rows, words) in TABLES.items() for row in rows]


@pytest.mark.parametrize(("name", "words", "output", "strict", "lenient"), CASES)
def test_outputs(name, words, output, strict, lenient):
    parser = PARSERS[name]
    found = parser.strict(output, words)
    assert strict is ... or found == strict
    if lenient is not ...:
        assert parser.lenient(output, words) == (lenient if lenient or not strict else strict)


# parsed from, gold, same
SAME = [
    ("final-number", "#### 72", "She has 3 pairs.\n#### 72", True),
    ("final-number", "#### 72.0", "#### 72", True),
    ("final-number", "#### 3", "She has 3 pairs.\n#### 72", False),
    ("boxed", "\\boxed{0.5}", "$\\boxed{\\frac{1}{2}}$", True),
    ("boxed", "\\boxed{1/2}", "\\frac12", True),
    ("boxed", "\\boxed{-\\frac{3}{4}}", "\\boxed{-0.75}", True),
    ("boxed", "\\boxed{\\frac{-3}{4}}", "\\boxed{-\\tfrac34}", True),
    ("boxed", "\\boxed{\\left(1,2\\right)}", "(1, 2)", True),
    ("boxed", "\\boxed{17{,}280}", "17,\\!280", True),
    ("boxed", "\\boxed{17,280}", "17,\\!280", True),
    ("boxed", "\\boxed{17280}", "17,\\!280", True),
    ("boxed", "\\boxed{144}", "144^\\circ", True),
    ("boxed", "\\boxed{5\\text{ cm}^2}", "5", True),
    ("boxed", "\\boxed{\\text{even}}", "even", True),
    ("boxed", "\\boxed{\\$12.50}", "12.50", True),
    ("boxed", "\\boxed{x=5}", "5", True),
    ("boxed", "\\boxed{2\\sqrt3}", "2\\sqrt{3}", True),
    ("boxed", "\\boxed{x^{2}}", "x^2", True),
    ("boxed", "\\boxed{x^{12}}", "x^12", False),
    ("boxed", "\\boxed{212_{7}}", "212_7", True),
    ("boxed", "\\boxed{212_8}", "212_7", False),
    ("boxed", "\\boxed{1\\frac{1}{4}}", "\\frac 54", True),
    ("boxed", "\\boxed{-2.5}", "-2\\dfrac12", True),
    ("boxed", "\\boxed{2\\frac{-1}{2}}", "1.5", False),
    (
        "boxed",
        "\\boxed{\\begin{pmatrix}1\\\\2\\end{pmatrix}}",
        "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}",
        True,
    ),
    (
        "boxed",
        "\\boxed{\\begin{pmatrix}1\\\\2\\end{pmatrix}}",
        "\\begin{pmatrix} 2 \\\\ 1 \\end{pmatrix}",
        False,
    ),
    ("boxed", "\\boxed{\\text{no}}", "on", False),
    ("boxed", "\\boxed{0.0000001}", "0.0000002", False),
    ("boxed", "\\boxed{0.333333}", "\\frac{1}{3}", False),
    ("boxed", "\\boxed{9^{9^{9^9}}}", "9^{9^{9^{9}}}", True),
    ("boxed", "\\boxed{50\\%}", "50", True),
    ("boxed", "\\boxed{5}", "1 \\boxed{4} 2 \\boxed{5}", True),
    ("boxed", "\\boxed{4}", "1 \\boxed{4} 2 \\boxed{5}", False),
    ("boxed", "\\boxed{x+1}", "1+x", False),
    ("boxed", "\\boxed{0.333}", "\\frac{1}{3}", False),
    ("boxed", "\\boxed{1/0}", "\\frac{1}{0}", False),
    ("boxed", "\\boxed{5x}", "5", False),
    ("boxed", "\\boxed{5m}", "5", False),
    ("spans", "ORG: Acme\nPER: John", "PER: John\nORG: Acme", True),
    ("spans", "none", "none", True),
    ("spans", "none", "PER: John", False),
    ("spans", "PER: John", "PER: John\nPER: John", False),
    ("spans", "ORG: John", "PER: John", False),
    ("spans", "PER: john", "PER: John", False),
    ("triplets", "A | owned_by | B", "A | owned_by | B", True),
    ("triplets", "B | owned_by | A", "A | owned_by | B", False),
]


@pytest.mark.parametrize(("name", "output", "gold", "same"), SAME)
def test_what_counts_as_the_same(name, output, gold, same):
    parser = PARSERS[name]
    parsed = parser.strict(output, TABLES[name][1])
    assert parsed is not None
    assert parser.same(parsed, gold, ()) is same


@pytest.mark.parametrize(
    ("name", "output", "read"),
    [
        ("final-number", "So\n#### 72 and", "72"),
        ("final-number", "So\n#### 72", None),  # may be the start of 720
        ("final-number", "3 and 4 are 7 so", None),
        ("boxed", "Thus \\boxed{5}. To check,", "5"),
        ("boxed", "Thus \\boxed{5", None),
    ],
)
def test_what_can_be_read_from_a_text_that_was_cut_off(name, output, read):
    assert PARSERS[name].cut(output, ()) == read


@pytest.mark.parametrize("name", ["number", "text", "spans", "triplets"])
def test_of_a_number_or_a_list_that_was_cut_off_nothing_is_sure(name):
    assert PARSERS[name].cut is None


# ---- golds -----------------------------------------------------------------------------------

words = st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=8)
texts = st.lists(words, min_size=1, max_size=4).map(" ".join)
spans = st.tuples(st.sampled_from(TYPES), texts).map(": ".join)
heads = texts.filter(lambda text: "|" not in text)  # a bar within: see the table
triplets = st.tuples(heads, st.sampled_from(RELATIONS), heads).map(" | ".join)
reasoning = st.text(st.characters(categories=("L", "N", "P", "Zs")), max_size=40)
numbers = st.integers().map(str) | st.decimals(-1000, 1000, places=2).map(lambda d: f"{d:f}")
latex = st.sampled_from(["\\frac{1}{2}", "x^2+1", "\\sqrt{3}", "(1, 2)", "-7", "\\text{no}"])
GOLDS = {
    "final-number": st.tuples(reasoning, numbers).map("\n#### ".join),
    "boxed": st.tuples(reasoning, numbers | latex).map(lambda p: f"{p[0]} \\boxed{{{p[1]}}}"),
    "spans": st.lists(spans, min_size=1, max_size=5).map("\n".join) | st.just("none"),
    "triplets": st.lists(triplets, min_size=1, max_size=5).map("\n".join) | st.just("none"),
}


@pytest.mark.parametrize("name", GOLDS)
@given(data=st.data())
def test_a_gold_answer_parses_to_itself_and_is_right(name, data):
    gold, parser, known = data.draw(GOLDS[name]), PARSERS[name], TABLES[name][1]
    parsed = parser.strict(gold, known)
    assert parsed is not None and parser.lenient(gold, known) == parsed
    assert parser.same(parsed, gold, ())
    if parser.list_metric:
        assert items(parsed) == items(gold)


# ---- any text, of any length -----------------------------------------------------------------

pieces = st.sampled_from(
    ["0", "1,234", ".", ",", "-", "%", "$", "(", ")", " ", "\n", "million", "2019", "yes", "no",
     "answer is", "####", "\\boxed{", "\\frac", "{", "}", "[", "]", '"', "PER", ": ", " | ", "to",
     "\xa0", "**", "`", "s&p", "May", "e5", "\\", "owned_by", "none", "\u2028", "é", "中"]
)  # fmt: skip


@pytest.mark.parametrize("name", PARSERS)
@given(output=st.lists(pieces, max_size=40).map("".join) | st.text(max_size=200))
def test_parsing_never_raises_and_is_read_as_kept(name, output):
    parser = PARSERS[name]
    known = {"spans": TYPES, "triplets": RELATIONS, "label": ("yes", "no")}.get(name, ())
    for read in (parser.strict, parser.lenient, *filter(None, [parser.cut])):
        parsed = read(output, known)
        if parsed is None:
            continue
        assert parsed.strip()
        if name == "amount":  # what is kept is read the same again
            assert parsed in ("yes", "no") or parser.strict(parsed.partition("e")[0], ())
        if parser.list_metric:
            assert parser.strict(parsed, known) == parsed


LONG = ["9", "9,", "1,234", "1 ", "1-", "1/", "(", "()", "$", "-", "%", "5% ", "|", " | ", ": ",
        "yes ", "no, ", "2019 ", "answer is ", "####", "#### 1\n", "\\boxed{", "\\boxed{1}", "{",
        "}", "[", "[]", "\\frac{1}{", "\\left", "\\text{", " ", "\n", "**", "not positive ",
        "PER: x\n", "a | owned_by | b\n", "Dec 1, ", "1.", "1:11", "\xa0001", "."]  # fmt: skip


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize("piece", LONG)
def test_time_grows_with_length_and_not_with_its_square(name, piece):
    """40 kB take at most a second: a hundred times what they need, a tenth of a quadratic parse."""
    parser = PARSERS[name]
    known = {"spans": TYPES, "triplets": RELATIONS}.get(name, ("positive", "negative"))
    output = piece * (40_000 // len(piece))
    for read in (parser.strict, parser.lenient, *filter(None, [parser.cut])):
        start = time.process_time()
        read(output, known)
        assert time.process_time() - start < 1
