"""Files as other programs write them: the same rows, or an error; the form is said, or set."""

import csv
import gzip
import io
import json

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from own_kit import changed, csv_text, examples, many, registry

from mixtune.datasets.drafts import draft_task
from mixtune.datasets.rows import guess_reading, read_rows
from mixtune.datasets.text_files import guess_encodings
from mixtune.errors import DataError
from mixtune.tasks.source_spec import AS_SHOWN, Reading
from mixtune.tasks.task import parse_task

HEADER = "text\ttopic"
plenty = settings(max_examples=60, deadline=None)


def texts(path, lines):
    path.write_text("\n".join([HEADER, *lines, ""]), encoding="utf-8")
    return [row.record["text"] for row in read_rows(path)]


def read(path, reading=AS_SHOWN):
    """The records, and the form that they were read in."""
    forms = []
    records = [dict(row.record) for row in read_rows(path, reading=reading, note=forms.append)]
    return records, forms[0].text if forms else ""


def written(path, body):
    path.write_bytes(body if isinstance(body, bytes) else body.encode())
    return path


class TestQuoting:
    @pytest.mark.parametrize(
        "lines",
        [
            ['"Open it\tbox', "fine\tbag", 'shut it"\tbag', 'so it is"\tbox'],
            ['"now" she said\tbox', "fine\tbag"],
            ['"never\tbox', "fine\tbag"],
        ],
        ids=["joins lines", "quote closes inside", "never closed"],
    )
    def test_quotes_are_text_where_lines_have_every_cell(self, tmp_path, lines):
        assert texts(tmp_path / "a.tsv", lines) == [line.split("\t")[0] for line in lines]
        assert "quotes are text" in read(tmp_path / "a.tsv")[1]

    @plenty
    @given(st.lists(st.text("ab\"' \n\t", min_size=1).filter(str.strip), min_size=1, max_size=6))
    def test_a_quoted_file_comes_back_as_written(self, tmp_path_factory, cells):
        path = tmp_path_factory.mktemp("tsv") / "a.tsv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, "excel-tab", quoting=csv.QUOTE_ALL)
            writer.writerows([("text", "topic"), *((cell, "bag") for cell in cells)])
        assert [row.record["text"] for row in read_rows(path)] == cells

    def test_a_csv_that_two_quotings_fit_is_refused_until_one_is_set(self, tmp_path):
        body = 'text,topic\n"Open it,box\nfine,bag\nshut it",bag\nred,box\n'
        path = written(tmp_path / "a.csv", body)
        with pytest.raises(DataError, match=r"a\.csv:2: quotes can be read in two ways"):
            read(path)
        as_text, _ = read(path, Reading(quoting="none"))
        assert [row["text"] for row in as_text] == ['"Open it', "fine", 'shut it"', "red"]
        quoted, form = read(path, Reading(quoting="double"))
        assert [row["topic"] for row in quoted] == ["bag", "box"]
        assert "1 rows span lines" in form

    def test_a_ragged_row_does_not_make_quotes_join_lines(self, tmp_path):
        opened = {4: '"thing', 13: '"thing', 22: '"thing'}
        closed = {8: 'thing"', 17: 'thing"', 26: 'thing"'}
        lines = [f"{(opened | closed).get(n, 'thing')}\tbox" for n in range(40)]
        lines.insert(24, "a\tb\tc")
        path = written(tmp_path / "a.tsv", "\n".join([HEADER, *lines]))
        faults = []
        assert len(list(read_rows(path, faults.append))) == 40
        assert [fault.problem for fault in faults] == [
            "the row has another number of cells than the first line"
        ]

    def test_one_cell_with_a_comma_shows_that_lines_are_joined_by_quotes(self, tmp_path):
        body = 'text,topic\n"Open it,box\nfine",bag\n"red, green",box\n'
        records, _ = read(written(tmp_path / "a.csv", body))
        assert [row["text"] for row in records] == ["Open it,box\nfine", "red, green"]

    def test_backslashes_are_seen(self, tmp_path):
        body = 'text,topic\n"a \\"red\\", round box",bag\nfine,box\n'
        records, form = read(written(tmp_path / "a.csv", body))
        assert records[0]["text"] == 'a "red", round box'
        assert r"\" in quoted cells" in form

    def test_a_space_before_quotes_is_refused(self, tmp_path):
        path = written(tmp_path / "a.csv", 'topic, text\nbag, "red"\nbox, "a, b"\n')
        with pytest.raises(DataError, match=r"a\.csv:2: a space stands before the quotes"):
            read(path)
        path = written(tmp_path / "b.csv", 'topic,text\nbag,"He said, ""yes"""\n')
        assert read(path)[0][0]["text"] == 'He said, "yes"'

    def test_a_column_of_text_without_quoting(self, tmp_path):
        path = written(tmp_path / "a.csv", 'text\n"now\nred\n"blue" she said\n')
        with pytest.raises(DataError, match="quoting: none"):
            read(path)
        assert len(read(path, Reading(quoting="none"))[0]) == 3

    def test_doubled_quotes_show_that_lines_are_joined_by_quotes(self, tmp_path):
        rows = [(f'a "red" {n}, or\nso, it is', "bag") for n in range(5)]
        assert read(written(tmp_path / "a.csv", csv_text(rows)))[0][0]["text"] == rows[0][0]

    def test_single_quotes_are_seen(self, tmp_path):
        body = "text,topic\n'red, it''s green',bag\n'red',box\n"
        records, form = read(written(tmp_path / "a.csv", body))
        assert records[0] == {"text": "red, it's green", "topic": "bag"}
        assert "cells in 'quotes'" in form

    def test_single_quotes_are_set(self, tmp_path):
        path = written(tmp_path / "a.csv", "text,topic\n'red, green',bag\n")
        assert read(path, Reading(quoting="single"))[0] == [{"text": "red, green", "topic": "bag"}]

    def test_the_remedy_for_damaged_quotes_works(self, tmp_path):
        path = written(tmp_path / "a.csv", 'text,topic\n"now" she said,bag\n')
        with pytest.raises(DataError, match="quoting: none"):
            read(path)
        assert read(path, Reading(quoting="none"))[0][0]["text"] == '"now" she said'


class TestSeparator:
    @pytest.mark.parametrize("sign", [";", "\t", "|", ","])
    @pytest.mark.parametrize("ending", [".csv", ".tsv"])
    def test_the_sign_that_makes_a_table_of_all_rows(self, tmp_path, sign, ending):
        rows = [("text", "topic"), ("red, green", "bag"), ("one; two", "box"), ("three", "box")]
        out = io.StringIO()
        csv.writer(out, delimiter=sign).writerows(rows)
        records, form = read(written(tmp_path / f"a{ending}", out.getvalue()))
        assert [tuple(row.values()) for row in records] == rows[1:]
        names = {";": "semicolon", "\t": "tab", "|": "pipe", ",": "comma"}
        assert f"separator {names[sign]}" in form

    def test_lines_in_quotes_as_a_whole(self, tmp_path):
        path = written(tmp_path / "a.csv", '"text,topic"\n"red,bag"\n')
        with pytest.raises(DataError, match="each line is in quotes as a whole"):
            read(path)

    def test_two_signs_that_fit_are_refused_until_one_is_set(self, tmp_path):
        path = written(tmp_path / "a.csv", "last, first;topic\nDoe, Jo;bag\nRoe, Al;box\n")
        with pytest.raises(DataError, match="comma gives 2 columns, semicolon gives 2") as caught:
            read(path)
        assert "separator: semicolon" in str(caught.value)
        records, _ = read(path, Reading(separator=";"))
        assert records[0] == {"last, first": "Doe, Jo", "topic": "bag"}

    def test_the_line_of_excel(self, tmp_path):
        path = written(tmp_path / "a.csv", "sep=;\r\ntext;topic\r\nred;bag\r\n")
        with pytest.raises(DataError, match=r"a\.csv:1: Excel's line"):
            read(path)

    @pytest.mark.parametrize("value", ["", "::", '"', "\\", 3])
    def test_separators_that_cannot_be(self, value):
        raw = changed(source={"train": "a.csv", "separator": value})
        with pytest.raises(DataError, match=r"source\.separator"):
            parse_task(raw, "t")

    def test_keys_of_tables_are_refused_for_other_files(self):
        for key, value in (("quoting", "none"), ("separator", "tab"), ("header", False)):
            with pytest.raises(DataError, match=rf"{key}: for \.csv, \.tsv files"):
                parse_task(changed(source={"train": "a.jsonl", key: value}), "t")
        with pytest.raises(DataError, match="encoding: for"):
            parse_task(changed(source={"train": "a.parquet", "encoding": "cp1252"}), "t")
        with pytest.raises(DataError, match="list of names, each once"):
            parse_task(changed(source={"train": "a.csv", "header": ["a", "a"]}), "t")
        with pytest.raises(DataError, match="no encoding of text"):
            parse_task(changed(source={"train": "a.csv", "encoding": "hex"}), "t")


class TestHeader:
    BODY = "".join(f"thing {n} came,{('bag', 'box')[n % 2]}\n" for n in range(60))

    def test_a_first_line_of_data_is_refused_until_header_is_set(self, place, mixtune):
        path = written(place / "tickets.csv", self.BODY)
        with pytest.raises(
            DataError, match=r"first line looks like data(.|\n)*'bag', which 29 of 59"
        ):
            read(path)
        assert read(path, Reading(header=False))[0][0] == {"column_1": "thing 0 came",
                                                           "column_2": "bag"}  # fmt: skip
        named, form = read(path, Reading(header=("text", "topic")))
        assert named[0] == {"text": "thing 0 came", "topic": "bag"} and len(named) == 60
        assert "no line of names" in form
        assert len(read(path, Reading(header=True))[0]) == 59
        source = {"train": "tickets.csv", "header": ["text", "topic"]}
        keys = {"labels": ["bag", "box"], "prompt": "bag or box? {{ text }}", "source": source}
        written(place / "task.yaml", changed(**keys))
        code, out, _ = mixtune("data", "check", place / "task.yaml")
        assert code == 0 and "no line of names" in out

    def test_the_starter_writes_the_keys_and_says_so(self, place, mixtune):
        path = written(place / "rows.csv", self.BODY)
        code, out, _ = mixtune("data", "check", path, "--write", place / "new.yaml")
        assert code == 0
        assert "looks like data" in out and "column_1, column_2" in out
        assert 'source: {train: "rows.csv", header: false}' in (place / "new.yaml").read_text()
        assert mixtune("data", "check", place / "new.yaml")[0] == 0

    def test_a_column_without_a_name_and_values(self, tmp_path):
        path = written(tmp_path / "a.csv", "text,topic,\n" + "red,bag,\n" * 9)
        with pytest.raises(DataError, match="column 3 has no name"):
            read(path)
        assert read(path, guess_reading(path)[0])[0][0] == {
            "text": "red", "topic": "bag", "column_3": "",
        }  # fmt: skip

    @pytest.mark.parametrize("header", [",text,topic", "0,1,2"])
    def test_the_header_of_a_table_of_pandas(self, tmp_path, header):
        rows = "".join(f"{n},thing {n},{('bag', 'box')[n % 2]}\n" for n in range(60))
        path = written(tmp_path / "a.csv", f"{header}\n{rows}")
        with pytest.raises(DataError, match=r"column 1 has (.|\n)*header: true"):
            read(path)
        reading, (doubt,) = guess_reading(path)
        assert doubt.startswith("column 1 has ") and reading.header is True
        assert len(read(path, reading)[0]) == 60

    def test_names_again_in_the_middle(self, tmp_path):
        path = written(tmp_path / "a.csv", "text,topic\nred,bag\ntext,topic\ngreen,box\n")
        with pytest.raises(DataError, match=r"a\.csv:3: the line of names is there again"):
            read(path)
        with pytest.raises(DataError, match=r"a\.csv:1: the line of names is there again"):
            read(path, Reading(header=("text", "topic")))

    @pytest.mark.parametrize("name", ["2024-01-31", "-3", "1,250.5", "12 %", "$3"])
    def test_numbers_and_dates_are_no_names(self, tmp_path, name):
        path = written(tmp_path / "a.csv", csv_text([("a", "b")], ("text", name)))
        with pytest.raises(DataError, match="does not look like column names"):
            read(path)
        assert read(path, Reading(header=True))[0] == [{"text": "a", name: "b"}]


TEXTS = [f"The naïve café № {n} – it’s “fine”, costs €{n}" for n in range(30)]
PLAIN = [f"The naïve café no. {n} cost £{n}" for n in range(30)]
RUSSIAN = [f"Посылка номер {n} пришла поздно" for n in range(30)]


class TestEncodings:
    @pytest.mark.parametrize(
        ("lines", "encoding"),
        [
            (PLAIN, "latin-1"),
            ([t.replace("№", "no.") for t in TEXTS], "cp1252"),
            (TEXTS, "utf-16"),
            (TEXTS, "utf-16-le"),
            (TEXTS, "utf-16-be"),
            (TEXTS, "utf-32"),
            (RUSSIAN, "cp1251"),
            (RUSSIAN, "koi8-r"),
            ([f"荷物の {n} 番は遅れて届きました" for n in range(30)], "shift_jis"),
            ([f"第 {n} 号包裹到得很晚，而且坏了。" for n in range(30)], "gb18030"),
        ],
    )
    @pytest.mark.parametrize("ending", [".csv", ".jsonl", ".json"])
    def test_the_remedy_is_an_encoding_that_gives_the_text(self, tmp_path, lines, encoding, ending):
        rows = [{"text": text, "topic": "bag"} for text in lines]
        body = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        body = csv_text([(text, "bag") for text in lines]) if ending == ".csv" else body
        path = written(tmp_path / f"a{ending}", body.encode(encoding))
        with pytest.raises(DataError, match=r"wrong encoding(.|\n)*set encoding: "):
            read(path)
        reading, (doubt,) = guess_reading(path)
        # Two encodings of Asian scripts can both make letters of a text: the error shows both.
        guesses = [read(path, Reading(encoding=guess.encoding)) for guess in guess_encodings(path)]
        assert rows in ([guesses[0][0]] if encoding != "shift_jis" else [g[0] for g in guesses])
        assert "is a guess" in doubt and reading.encoding in read(path, reading)[1]

    def test_a_mark_of_utf8_is_no_text(self, tmp_path):
        path = written(tmp_path / "b.json", "\ufeff[{}]".encode("utf-16-le"))
        assert read(path, Reading(encoding="utf-16-le"))[0] == [{}]
        for ending in (".csv", ".jsonl", ".json"):
            body = "text,topic\na,b\n" if ending == ".csv" else '{"text": "a", "topic": "b"}\n' * 2
            path = written(tmp_path / f"a{ending}", body.encode("utf-8-sig"))
            assert read(path)[0][0] == {"text": "a", "topic": "b"}

    def test_a_wrong_encoding_is_refused(self, tmp_path):
        path = written(tmp_path / "a.csv", csv_text([("it’s fine", "bag")]).encode("cp1252"))
        with pytest.raises(DataError, match=r"control characters(.|\n)*encoding: cp1252"):
            read(path, Reading(encoding="latin-1"))
        path = written(tmp_path / "b.csv", csv_text([("it’s fine", "bag")]))
        with pytest.raises(DataError, match=r"the file is UTF-8, not cp1252(.|\n)*remove encoding"):
            read(path, Reading(encoding="cp1252"))
        with pytest.raises(DataError, match="not ascii"):
            read(path, Reading(encoding="ascii"))

    def test_a_nul_does_not_make_utf_16(self, tmp_path):
        path = written(tmp_path / "a.csv", "text,topic\nre\0d,bag\nblue,box\n")
        with pytest.raises(DataError, match=r"a\.csv:2: wrong encoding: NUL(.|\n)*fix or remove"):
            read(path)
        with pytest.raises(DataError, match="NUL"):
            draft_task(path)

    def test_one_damaged_line_is_no_reason_for_another_encoding(self, tmp_path):
        lines = csv_text([(text, "bag") for text in TEXTS]).encode().splitlines(keepends=True)
        lines[7] = "it’s,bag\r\n".encode("cp1252")
        path = written(tmp_path / "a.csv", b"".join(lines))
        with pytest.raises(DataError, match=r"a\.csv:8(.|\n)*fix or remove the line"):
            read(path)

    @pytest.mark.parametrize(
        ("body", "kind"),
        [
            (gzip.compress(b"text,topic\n", mtime=0), "end in .gz"),
            (b"PK\x03\x04" + b"x" * 40, "Excel"),
            (b"PAR1" + b"x" * 40, "parquet"),
            (bytes(range(1, 32)) * 9, "x01"),
        ],
    )
    @pytest.mark.parametrize("ending", [".csv", ".jsonl", ".json"])
    def test_other_kinds_of_files_are_named(self, tmp_path, body, kind, ending):
        with pytest.raises(DataError, match=rf"the file is no text(.|\n)*{kind}"):
            read(written(tmp_path / f"a{ending}", body))

    def test_line_ends_of_old_macs(self, tmp_path):
        path = written(tmp_path / "a.csv", "text,topic\rred,bag\rgreen,box")
        assert [row["text"] for row in read(path)[0]] == ["red", "green"]


ROWS = [{"text": f"text {n}", "topic": ("bag", "box")[n % 2]} for n in range(6)]
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}


class TestJson:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("a.jsonl", ROWS),
            ("a.ndjson", ROWS),
            ("a.json", COLUMNS),
            ("a.json", {"data": ROWS}),
            ("a.json", {"version": "1.0", "rows": ROWS}),
            ("a.json", {"data": ROWS, "topics": ["bag", "box"]}),
            ("a.json", json.loads(pd.DataFrame(ROWS).to_json())),
            *(
                ("a.json", json.loads(pd.DataFrame(ROWS).to_json(orient=orient)))
                for orient in ("records", "split", "index", "columns")
            ),
        ],
    )
    @pytest.mark.parametrize("indent", [None, 1])
    def test_forms_of_other_programs(self, place, mixtune, name, value, indent):
        path = written(place / name, json.dumps(value, indent=indent))
        records, form = read(path)
        assert records == ROWS
        assert "not read: version" in form or "version" not in value
        assert mixtune("data", "check", path)[1].startswith("found: text in text, one of 2 labels")

    @pytest.mark.parametrize(
        ("value", "words"),
        [
            ({"train": ROWS, "test": ROWS}, "several lists of rows(.|\n)*train, test"),
            ({"a": [1, 2], "b": [1]}, "columns of different lengths(.|\n)*a: 2, b: 1"),
            ({"messages": [{"role": "user", "content": "a"}]}, "not a JSON list"),
            ({"a": {"b": {"c": 1}}, "d": {"e": 1}}, "not a JSON list"),
            ({"columns": ["a", "b"], "data": [[1, 2], [3]]}, "row 2: the row has another number"),
            (3, "not a JSON list"),
        ],
    )
    def test_forms_that_are_refused(self, tmp_path, value, words):
        with pytest.raises(DataError, match=words):
            read(written(tmp_path / "a.json", json.dumps(value, indent=1)))

    def test_the_first_fault_is_shown_where_no_row_can_be_read(self, tmp_path):
        path = written(tmp_path / "a.jsonl", '{"text": "a", "score": NaN}\n' * 3)
        with pytest.raises(DataError, match=r"a\.jsonl:1: (.|\n)*NaN(.|\n)*write null"):
            draft_task(path)


FEATURES = datasets.Features(
    {
        "text": datasets.Value("string"),
        "topic": datasets.ClassLabel(names=["bag", "box"]),
        "tags": datasets.List(datasets.ClassLabel(names=["red", "green"])),
    }
)
DATA = {"text": ["a", "b", "c"], "topic": [1, 0, -1], "tags": [[0, 1], [], [1]]}
NAMED = [
    {"text": "a", "topic": "box", "tags": ["red", "green"]},
    {"text": "b", "topic": "bag", "tags": []},
    {"text": "c", "topic": None, "tags": ["green"]},
]


class TestSavedDatasets:
    def test_labels_come_as_names(self, tmp_path):
        saved = datasets.Dataset.from_dict(DATA, FEATURES)
        saved.to_parquet(tmp_path / "a.parquet")
        saved.save_to_disk(tmp_path / "folder")
        saved.save_to_disk(tmp_path / "shards", num_shards=2)
        for name in ("a.parquet", "folder", "shards"):
            assert read(tmp_path / name)[0] == NAMED

    def test_bytes_are_text_for_the_starter(self, tmp_path):
        rows = [{"text": f"thing {n}".encode(), "topic": ("bag", "box")[n % 2]} for n in range(9)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
        assert draft_task(tmp_path / "a.parquet").form.startswith("text in text")

    def test_numbers_name_the_labels_as_well(self, place):
        features = datasets.Features(
            {"text": datasets.Value("string"), "topic": datasets.ClassLabel(names=["bag", "box"])}
        )
        rows = {"text": [f"text {n}" for n in range(20)], "topic": [n % 2 for n in range(20)]}
        datasets.Dataset.from_dict(rows, features).to_parquet(place / "a.parquet")
        keys = {"labels": ["billing", "returns"], "prompt": "billing or returns? {{ text }}"}
        for zero in (0, "bag"):
            values = {zero: "billing", 1: "returns"}
            text = changed(**keys, label_values=values, source="a.parquet", keep={"topic": [0]})
            assert {e.target for e in examples(place, text)} == {"billing"}

    def test_a_folder_of_splits(self, place, mixtune):
        rows = {"text": [f"{t} {n}" for t, n in many()], "topic": [topic for _, topic in many()]}
        one = datasets.Dataset.from_dict(rows)
        datasets.DatasetDict({"train": one, "test": one.select(range(9))}).save_to_disk(
            place / "saved"
        )
        loaded = registry(place, changed(source="saved")).dataset("ticket-topic", 0.1)
        assert loaded.splits == ("train", "validation", "test")
        assert len(loaded.examples("test")) == 9
        _, out, _ = mixtune("data", "check", place / "saved", "--write", place / "new.yaml")
        assert "one of 3 labels in topic" in out and 'source: "saved/"' in out
        datasets.DatasetDict({"train": one, "extra": one}).save_to_disk(place / "other")
        with pytest.raises(DataError, match=r"cannot be used as they are(.|\n)*other/train"):
            registry(place, changed(source="other")).dataset("ticket-topic", 0.1)
        assert len(examples(place, changed(source="other/train", scored=False, metrics=None))) == 60

    def test_damaged_folders(self, tmp_path):
        datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "a")
        state = tmp_path / "a" / "state.json"
        for body in ("{", "[]", '{"_data_files": [{"filename": "../x.arrow"}]}', "{}"):
            state.write_text(body, encoding="utf-8")
            with pytest.raises(DataError, match="save_to_disk"):
                read(tmp_path / "a")


# ---- whatever is written -------------------------------------------------------------------------

SIGNS = st.text("ab \"'\\,;|\t\n\ré", max_size=8)
NAMES = st.lists(
    st.text("abc,;| .", min_size=1, max_size=6).map(str.strip).filter(bool),
    min_size=1, max_size=4, unique=True,
).filter(lambda names: len(names) > 1 or not {*",;|"} & {*names[0]})  # fmt: skip
"""One name with a sign in it is taken for several names where all rows have the sign, too."""


@st.composite
def tables(draw, cells=SIGNS):
    names = draw(NAMES)
    row = st.tuples(*[cells] * len(names)).filter(lambda row: any(map(str.strip, row)))
    return [dict(zip(names, r, strict=True)) for r in draw(st.lists(row, min_size=1, max_size=6))]


def same_or_refused(path, rows, reading=AS_SHOWN):
    try:
        records, form = read(path, reading)
    except DataError:
        return
    assert records == rows, form


class TestWhateverIsWritten:
    @plenty
    @given(tables(), st.sampled_from(["excel", "excel-tab", "unix", "semicolon"]))
    def test_csv(self, tmp_path_factory, rows, name):
        keys = {"delimiter": ";"} if name == "semicolon" else {"dialect": name}
        path = tmp_path_factory.mktemp("csv") / ("a.tsv" if name == "excel-tab" else "a.csv")
        cells = [cell for row in rows for cell in row.values()]
        # A tab and a line end in a cell of a TSV file make it look like one without quoting.
        assume(name != "excel-tab" or not any("\n" in c and "\t" in c for c in cells))
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0], **keys)
            writer.writeheader()
            writer.writerows(rows)
        same_or_refused(path, rows)
        if len(rows[0]) > 1:
            set_ = Reading(quoting="double", separator=writer.writer.dialect.delimiter, header=True)
            assert read(path, set_)[0] == rows

    @plenty
    @given(tables(), st.sampled_from([",", ";", "\t", "|"]), st.booleans())
    def test_pandas(self, tmp_path_factory, rows, separator, escaped):
        path = tmp_path_factory.mktemp("pandas") / "a.csv"
        keys = {"doublequote": False, "escapechar": "\\"} if escaped else {}
        # pandas leaves a carriage return without quotes: at a row's end it is one of its line end.
        rows = [{name: cell.replace("\r", "x") for name, cell in row.items()} for row in rows]
        assume(not escaped or not any("\\" in cell for row in rows for cell in row.values()))
        table = pd.DataFrame(rows)
        table.to_csv(path, index=False, sep=separator, **keys)
        same_or_refused(path, rows)
        table.to_csv(f"{path}.gz", index=False, sep=separator)
        same_or_refused(path.with_suffix(".csv.gz"), rows)
        for orient in ("records", "columns", "index", "split"):
            table.to_json(path.with_suffix(".json"), orient=orient)
            same_or_refused(path.with_suffix(".json"), rows)
        table.to_json(path.with_suffix(".jsonl"), orient="records", lines=True)
        assert read(path.with_suffix(".jsonl"))[0] == rows

    @plenty
    @given(tables(), st.sampled_from(["list", "lines", "columns", "data"]), st.booleans())
    def test_json(self, tmp_path_factory, rows, form, indented):
        folder = tmp_path_factory.mktemp("json")
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        value = {"list": rows, "lines": rows, "columns": columns, "data": {"data": rows}}[form]
        text = json.dumps(value, indent=2 if indented else None, ensure_ascii=indented)
        if form == "lines":
            text = "".join(json.dumps(row) + "\n" for row in rows)
        for ending in ("json", "json.gz", "jsonl", "ndjson.gz"):
            if form in ("list", "lines") or ending.startswith("json."):
                body = gzip.compress(text.encode()) if ending.endswith("gz") else text
                path = written(folder / f"a.{ending}", body)
                if form == "lines" and len(rows) == 1 and ending.startswith("json"):
                    continue
                assert read(path)[0] == rows

    @plenty
    @given(
        st.lists(
            st.fixed_dictionaries(
                {"text": st.text(max_size=5), "n": st.integers(-5, 5) | st.none(),
                 "x": st.floats(allow_nan=False), "list": st.lists(st.booleans(), max_size=2)}
            ),
            min_size=1, max_size=5,
        ),
        st.sampled_from(["parquet", "pandas"]),
    )  # fmt: skip
    def test_parquet(self, tmp_path_factory, rows, program):
        path = tmp_path_factory.mktemp("parquet") / "a.parquet"
        schema = pa.schema(
            {"text": pa.string(), "n": pa.int64(), "x": pa.float64(), "list": pa.list_(pa.bool_())}
        )
        table = pa.Table.from_pylist(rows, schema)
        if program == "pandas":
            table.to_pandas(types_mapper=pd.ArrowDtype).to_parquet(path)
        else:
            pq.write_table(table, path, compression="zstd")
        assert read(path)[0] == rows

    @settings(max_examples=15, deadline=None)
    @given(tables(st.text('ab,"\n\té', min_size=1, max_size=6)))
    def test_datasets(self, tmp_path_factory, rows):
        folder = tmp_path_factory.mktemp("datasets")
        saved = datasets.Dataset.from_list(rows)
        saved.to_parquet(folder / "a.parquet")
        saved.save_to_disk(folder / "saved")
        saved.to_json(folder / "a.jsonl")
        for name in ("a.parquet", "saved", "a.jsonl"):
            assert read(folder / name)[0] == rows
        saved.to_csv(folder / "a.csv")
        same_or_refused(folder / "a.csv", rows)

    @plenty
    @given(
        st.dictionaries(
            st.text("abcdei_", min_size=1, max_size=9)
            | st.sampled_from(["image", "tools", "weight", "chosen", "label", "system", "kto_tag"]),
            st.text(max_size=3) | st.booleans() | st.integers(0, 2) | st.none(),
            max_size=4,
        ),
        st.booleans(),
    )
    def test_no_column_vanishes_unsaid(self, tmp_path_factory, extra, ignored):
        folder = tmp_path_factory.mktemp("columns")
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        record = extra | {"messages": turns}
        written(folder / "a.jsonl", json.dumps(record) + "\n")
        names = [name for name in extra if name not in ("system", "messages")]
        raw = {"name": "a", "format": "messages", "source": "a.jsonl"}
        raw |= {"ignore_columns": names} if ignored else {}
        try:
            made = registry(folder, json.dumps(raw))
            loaded = made.dataset("a", 0.1).split("train")
        except DataError as error:
            assert not ignored or "system" in extra
            assert any(name in str(error) for name in extra)
            return
        filled = {k for k, v in extra.items() if v is not None and str(v).strip()}
        read_names = {"system", "messages", "weight", "train"}
        assert ignored or filled - read_names <= {*loaded.unused}


TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


class TestBadRows:
    def task(self, place, **keys):
        good = [{"messages": [{"role": "user", "content": f"a {n}"}, TURNS[1]]}
                for n in range(5)]  # fmt: skip
        bad = [{"messages": TURNS[:1]}, {"messages": []}]
        lines = [json.dumps(row) for row in (*good[:2], *bad, *good[2:])]
        written(place / "a.jsonl", "\n".join([*lines, "{broken", '{"messages": [NaN]}']) + "\n")
        raw = {"name": "talks", "format": "messages", "source": "a.jsonl", **keys}
        return written(place / "talks.yaml", json.dumps(raw))

    def test_they_are_errors_unless_they_are_dropped_and_counted(self, place, mixtune):
        code, out, _ = mixtune("data", "check", self.task(place))
        assert code == 2 and "4 problems" in out
        code, out, _ = mixtune("data", "check", self.task(place, on_bad_rows="drop"), "--json")
        (split,) = json.loads(out)["tasks"][0]["splits"]
        assert code == 0
        assert (split["records"], split["kept"], split["examples"]) == (9, 5, 5)
        assert sum(split["dropped"].values()) == 4
        assert split["dropped"]["bad row: not valid JSON"] == 2

    def test_other_rows_keep_their_ids(self, place):
        made = registry(place, self.task(place, on_bad_rows="drop").read_text())
        ids = [e.id for e in made.dataset("talks", 0.1).examples("train")]
        assert [i.split("/")[0] for i in ids] == [f"train-{n}" for n in (0, 1, 4, 5, 6)]

    def test_nothing_is_left_of_bad_rows_alone(self, place):
        written(place / "bad.jsonl", "{\n[]\n")
        raw = {"name": "a", "format": "messages", "source": "bad.jsonl", "on_bad_rows": "drop"}
        with pytest.raises(DataError, match=r"no usable record(.|\n)*2 records"):
            registry(place, json.dumps(raw)).dataset("a", 0.1).examples("train")

    def test_columns_are_ignored_by_name(self, place):
        rows = [{"messages": [TURNS[0], TURNS[1] | {"reasoning_content": "hm"}],
                 "image": "a.png"}]  # fmt: skip
        written(place / "b.jsonl", json.dumps(rows[0]) + "\n")
        raw = {"name": "a", "format": "messages", "source": "b.jsonl"}
        with pytest.raises(DataError, match=r"ignore_columns: \[image\]"):
            registry(place, json.dumps(raw)).dataset("a", 0.1).examples("train")
        raw["ignore_columns"] = ["image", "reasoning_content"]
        loaded = registry(place, json.dumps(raw)).dataset("a", 0.1).split("train")
        assert len(loaded.examples) == 1 and loaded.unused == ()
        raw["ignore_columns"] = ["messages"]
        with pytest.raises(DataError, match="the task reads messages"):
            parse_task(json.dumps(raw), "t")
