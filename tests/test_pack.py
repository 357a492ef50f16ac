"""The reviewer's pack: the same numbers from the zip alone, and no text of a dataset in it."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from pack_kit import SECRETS, finish, words_in
from scripted import ScriptedModel

from mixtune.api.ledger import Cache
from mixtune.datasets.registry import Registry
from mixtune.errors import StoreError
from mixtune.evaluation.judge import Rubric
from mixtune.pack.archive import opened, study_in, write_pack, zipped
from mixtune.pack.pack import Blind, Contents, group_codes, pathless
from mixtune.records import Score, schema_of
from mixtune.results.judgements import free_answers, write_judged
from mixtune.results.study_results import read_facts
from mixtune.store.folder import Store

VERBS = (
    ("results", "--json"),
    ("results", "--json", "--clean"),
    ("results", "--json", "--split", "test"),
    ("analyze", "--json", "--form", "all"),
    ("analyze", "--json", "--split", "test", "--form", "all"),
    ("compare", "north+sums", "sums", "--json"),
)
WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "peft", "accelerate"):
            raise ImportError(f"{name} is not on this machine")
sys.meta_path.insert(0, Refuse())
from mixtune.cli import main
main()
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory, files):
    """What follows from a finished study with one failed run, some of its answers judged."""
    facts = finish(tmp_path_factory.mktemp("study"), files)
    answers = free_answers(facts, "validation", ["sums"])
    cache = Cache(tmp_path_factory.mktemp("cache") / "judge")
    judge = ScriptedModel(lambda query: "Verdict: 2")
    made = answers.judge(judge, Rubric.load(), cache, again=0)
    write_judged(facts, made.rows, "not validated", "no question was put twice")
    return facts


@pytest.fixture(scope="module")
def packed(study, tmp_path_factory):
    """Its pack, in a folder with nothing else."""
    path = tmp_path_factory.mktemp("away") / "mixed-pack.zip"
    write_pack(path, "mixed", zipped("mixed", Contents(study).files(), "0.1.0"))
    return path


@pytest.fixture(scope="module")
def folder(packed):
    """The pack's study, opened."""
    return opened(packed)


def without_torch(place, *arguments):
    """A verb in a process of its own in which importing torch fails, with no data or cache."""
    gone = ("MIXTUNE_DATA_DIR", "MIXTUNE_RUNS_DIR")
    environment = {k: v for k, v in os.environ.items() if k not in gone}
    environment["MIXTUNE_CACHE"] = str(place / "no-cache")
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def from_study(mixtune, study, verb):
    place = study.store.folder.parent
    arguments = [verb[0], str(place.parent / "study.yaml"), *verb[1:], "--runs-dir", str(place)]
    code, out, error = mixtune(*arguments)
    assert code == 0, error
    return json.loads(out)


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_the_zip_alone_gives_the_same_numbers_without_torch(mixtune, study, packed, verb):
    wanted = from_study(mixtune, study, verb)
    found = json.loads(without_torch(packed.parent, verb[0], packed.name, *verb[1:]))
    assert found == wanted
    assert len(wanted) > 5


def test_the_report_is_drawn_from_the_pack(mixtune, study, packed, folder):
    place = study.store.folder.parent
    verb = ["report", str(place.parent / "study.yaml"), "--runs-dir", str(place)]
    assert mixtune(*verb)[0] == 0
    without_torch(packed.parent, "report", packed.name)
    there, here = (f / "report" / "validation" for f in (study.store.folder, folder))
    tables = sorted(path.name for path in there.glob("*.csv"))
    assert "results.csv" in tables
    assert "not validated" in (there / "judged.csv").read_text()
    for name in tables:
        if name != "runs.csv":  # holds the errors, which are cut
            assert (here / name).read_text() == (there / name).read_text()


def test_runs_dir_may_be_the_zip_or_what_it_was_unpacked_to(mixtune, packed, folder):
    study_file = folder / "study.yaml"
    plain = mixtune("results", study_file, "--json")
    assert plain[0] == 0
    for runs in (packed, folder.parent):
        assert mixtune("results", study_file, "--json", "--runs-dir", runs) == plain


def test_nothing_says_a_word_of_the_datasets(study, folder):
    with pytest.raises(AssertionError):  # the study's own scores do
        _say_nothing(study.store.folder / "cells", SECRETS[:1])
    _say_nothing(folder, (*SECRETS, str(study.store.folder.parent.parent).lower()))


def _say_nothing(folder, secrets):
    for path in filter(Path.is_file, sorted(folder.rglob("*"))):
        if "report" not in path.parts:
            said = words_in(path)
            assert not [secret for secret in secrets if secret in said], path


def test_the_same_study_gives_the_same_bytes(study):
    """Looks at test scores are in a pack: a study that was looked at is no longer the same."""
    kept = read_facts(study.store, study.registry)
    made = {zipped("mixed", Contents(each).files(), "0.1.0") for each in (study, kept)}
    assert len(made) == 1


def test_failed_runs_licences_and_hashes_are_in_it(study, folder):
    runs = (folder / "runs.csv").read_text()
    assert "failed" in runs
    assert "RunFailed: no memory in x" in runs
    datasets = (folder / "datasets.csv").read_text()
    assert "CC BY 4.0" in datasets
    content = study.store.read_value("content.json")
    assert all(mark in datasets for mark in content["rows"].values())
    items = Store(folder).read_rows("items.parquet")
    assert len(items) == len({(r["task"], r["split"], r["example"]) for r in items})
    assert {row["task"] for row in items} == {"north", "sums", "people"}
    assert all(len(row["prompt_hash"]) == 16 for row in items)
    assert "mixtune report mixed/study.yaml --split test" in (folder / "README.md").read_text()
    assert "adapter_model.safetensors" in (folder / "left-out.csv").read_text()
    prompt = (folder / "prompts" / "people.yaml").read_text()
    assert "PER or ORG? {{ text }}" in prompt


def test_a_pack_is_read_and_never_run(folder):
    with pytest.raises(StoreError, match="this is a pack"), Store(folder).lock():
        pass


def test_the_verb_says_what_it_wrote(mixtune, study, packed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = study.store.folder.parent
    verb = ("pack", place.parent / "study.yaml", "--runs-dir", place, "--json")
    before = json.loads(mixtune(*verb, "--dry-run")[1])
    assert not before["written"]
    assert not Path("mixed-pack.zip").exists()
    facts = json.loads(mixtune(*verb)[1])
    assert facts["sha256"] == before["sha256"]
    assert Path("mixed-pack.zip").stat().st_size == facts["bytes"]
    Path("notes.zip").write_text("mine", encoding="utf-8")
    code, _, error = mixtune(*verb, "--out", "notes.zip")
    assert code == 2
    assert "another file stands" in error
    assert Path("notes.zip").read_text(encoding="utf-8") == "mine"


class TestOpening:
    @pytest.fixture
    def copy(self, packed, tmp_path):
        return Path(shutil.copy(packed, tmp_path / "copy.zip"))

    def test_it_is_opened_once(self, copy):
        mark = opened(copy) / "mark"
        mark.touch()
        assert opened(copy) == mark.parent
        assert mark.exists()

    def test_another_folder_in_its_place_is_left_alone(self, copy):
        mine = copy.with_suffix("") / "mine"
        mine.parent.mkdir()
        mine.touch()
        with pytest.raises(StoreError, match="its folder is taken"):
            opened(copy)
        assert mine.exists()

    @pytest.mark.parametrize("bad", ["text", "zip"])
    def test_another_file_is_refused(self, tmp_path, bad):
        path = tmp_path / "other.zip"
        if bad == "text":
            path.write_text("hello", encoding="utf-8")
        else:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("a.txt", "hello")
        with pytest.raises(StoreError, match="mixtune pack has written"):
            opened(path)

    @pytest.mark.parametrize("change", ["changed", "outside"])
    def test_a_changed_file_is_refused_and_nothing_is_written(self, packed, tmp_path, change):
        path = tmp_path / "bad.zip"
        with zipfile.ZipFile(packed) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                content = old.read(name)
                if change == "changed" and name.endswith("runs.csv"):
                    content += b"x"
                if change == "outside" and name.endswith("pack.json"):
                    about = json.loads(content)
                    about["sha256"]["../../evil"] = "0"
                    content = json.dumps(about).encode()
                new.writestr(name, content)
        with pytest.raises(StoreError, match="missing, changed or in no place"):
            opened(path)
        assert [p.name for p in tmp_path.iterdir()] == ["bad.zip"]

    def test_no_code_of_a_stranger_is_run(self, copy):
        study_file = study_in(copy)
        text = study_file.read_text(encoding="utf-8")
        assert "- tasks.yaml" in text
        study_file.write_text(text.replace("- tasks.yaml", "- evil.py"), encoding="utf-8")
        with pytest.raises(StoreError, match="task files that no pack has"):
            study_in(study_file)


class TestBlind:
    def test_places_of_groups_sort_as_the_groups_do(self):
        names = [f"group {i}" for i in range(120)]
        codes = group_codes({"t": [*names, "b", "a", "b"]})["t"]
        assert sorted(codes, key=codes.get) == sorted({*names, "b", "a"})
        assert len(set(codes.values())) == 122

    def test_labels_stay_and_lists_keep_what_they_share(self):
        people = Blind(Registry.builtin().get("fin-ner"), {"a text": "1"})
        gold, said = (people.answer("x", t) for t in ("PER: A\nORG:  B", "ORG: B\nORG: B"))
        assert set(gold.splitlines()) & set(said.splitlines()) == set(said.splitlines())
        assert len(said.splitlines()) == 2
        assert people.answer("x", "none") == "none"
        assert people.answer("x", None) is None
        assert people.answer("x", "PER: A") != people.answer("y", "PER: A")
        labels = Blind(Registry.builtin().get("fpb"), {"a text": "1"})
        assert labels.answer("x", "positive") == "positive"
        row = Score("s", "fin-ner", "test", "x", "strict", "a text", "", "none", "none", 1.0, "ok")
        raw = {name: [getattr(row, name)] for name in schema_of(Score).names}
        (kept,) = people.scores(pa.table(raw, schema=schema_of(Score))).to_pylist()
        assert (kept["group"], kept["gold"], kept["value"]) == ("1", "none", 1.0)

    def test_paths_are_cut_and_addresses_are_not(self):
        said = "cannot read /home/me/runs/a.txt, see https://example.org/a/b/c and 1/2/3"
        assert pathless(said) == "cannot read a.txt, see https://example.org/a/b/c and 1/2/3"
