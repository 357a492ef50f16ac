"""YAML without surprises: what is read, and what is refused in time."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mixtune.errors import DataError, SpecError
from mixtune.study.yaml import MAX_BYTES, read_documents, read_file, read_yaml, write_yaml


def read(text):
    return read_yaml(text, "f.yaml", DataError)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", None),
        ("~", None),
        ("a:", {"a": None}),
        ("[1e-4, 1E3, .5, 5., 1.5e+3]", [1e-4, 1000.0, 0.5, 5.0, 1500.0]),
        ("[1_000, 010, -5, +5]", [1000, 10, -5, 5]),
        ("[yes, no, on, off, True, false]", ["yes", "no", "on", "off", True, False]),
        ("[2024-13-45, 12:30:00, 0x10, 0o7]", ["2024-13-45", "12:30:00", "0x10", "0o7"]),
        ("['5', \"true\"]", ["5", "true"]),
        ("{1: a, true: b, ~: c}", {"1": "a", "true": "b", "~": "c"}),
        ("a: &x {b: 1}\nc: *x", {"a": {"b": 1}, "c": {"b": 1}}),
        ("{<<: 1}", {"<<": 1}),
        ("\ufeffa: 1", {"a": 1}),
    ],
)
def test_values(text, wanted):
    found = read(text).value
    assert found == wanted
    assert repr(found) == repr(wanted)


def test_infinities_are_numbers():
    assert read("[.inf, -.inf]").value == [float("inf"), -float("inf")]
    assert repr(read(".nan").value) == "nan"


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join(['*' + old] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2", r"(?s)line 4: the key 'c' is given twice.*first in line 3"),
        ("a: 1\n'a': 2", "line 2: the key 'a' is given twice"),
        (BOMB, "too many values"),
        ("a: &a [*a]", "an anchor that holds itself"),
        ("[" * 5000, "nested too deeply"),
        ("[" * 45 + "]" * 45, "40 levels"),
        ("a: !!python/name:os.system", "YAML tags are not used"),
        ("a: !custom x", "YAML tags are not used"),
        ("a: !!float x", "not a usable float"),
        ("a: !!bool maybe", "not a usable bool"),
        ("a: 1__2", "not a usable int"),
        ("a: " + "9" * 5000, "too many digits"),
        ("? [a]\n: 1", "a key is a list or a mapping"),
        ("a: 1\n---\nb: 1", "more than one YAML document"),
        ("a:\n\tb: 1", "(?s)line 2, column 1.*indent with spaces"),
        ("a: b: c", "(?s)line 1, column 5.*in quotes"),
        ("a: *none", "undefined alias"),
        ("a: [1", "line 1"),
        ("\x1b[2J: 1", r"character 0x001b"),
        ("a: '", "line 1"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(DataError, match=message) as caught:
        read(text)
    assert str(caught.value).startswith("f.yaml")


def test_values_know_their_lines():
    origin = read("a: 1\nb:\n  - x\n  - c: 2\n").origin
    assert origin.at("a") == "f.yaml, line 1"
    assert origin.line(("b", 1, "c")) == 4
    assert origin.line(("b", 1, "none")) == 4
    assert origin.at("none") == "f.yaml"


def test_several_documents():
    found = read_documents("a: 1\n---\nb: 2\n", "f.yaml", DataError)
    assert [document.value for document in found] == [{"a": 1}, {"b": 2}]
    assert found[1].origin.at("b") == "f.yaml, line 3"


def test_files(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: \xc3\xa9\n")
    assert read_file(path, SpecError) == "a: é\n"
    path.write_bytes(b"a: 1\nb: caf\xe9\n")
    with pytest.raises(SpecError, match=r"(?s)line 2: not UTF-8.*0xe9"):
        read_file(path, SpecError)
    path.write_bytes(b"a" * (MAX_BYTES + 1))
    with pytest.raises(SpecError, match="too large"):
        read_file(path, SpecError)


# Line ends that pyyaml's own writer loses are left out.
words = st.text(st.characters(exclude_characters="\x85\u2028\u2029"), max_size=6)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False)
    | words
    | st.text("019e.-+_:xon", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


@given(plain)
def test_what_is_written_is_read_back_here_and_by_pyyaml(value):
    text = write_yaml(value)
    assert repr(read(text).value) == repr(value)
    assert repr(yaml.safe_load(text)) == repr(value)


@given(st.text("ab01:-?[]{},&*!|>'\"%@` \n\t#.e+_~", max_size=40))
def test_any_text_is_read_or_refused(text):
    try:
        read(text)
    except DataError as error:
        assert "f.yaml" in str(error)
