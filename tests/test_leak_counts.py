"""The counts that the data folder's README gives, measured again, where the folder is at hand.

The tables are read from the README itself. Its loose form is not quite the one here: it keeps the
gaps between words, takes a to z and 0 to 9 for letters and digits, drops all signs and links, and
has no shortest length. That form is built here too, gives the README's numbers, and every record on
which the two forms disagree is shown to be a case of one of the four.

Datasets are read through task files, in a process of its own that is measured. Those that the
package has no task for have a small one here: a task of the package takes its place when its name
moves to `REAL`.
"""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from itertools import permutations
from pathlib import Path

import pytest

from mixtune.datasets.leakage import SHORTEST_LOOSE, Overlaps, Part, loose, own_texts, words
from mixtune.datasets.registry import Registry
from mixtune.tasks.task import parse_task

PAGE = "{{ pre_text }} {{ post_text }}"
REAL = {
    "alpaca": "alpaca",
    "fpb": "fpb",
    "gsm8k": "gsm8k",
    "headline": "headline",
    "twitter_sentiment": "twitter-sentiment",
}
"""Folder → task of the package."""
SMALL = {
    "convfinqa": (PAGE + " {{ conv_questions | tojson }}", "{{ conv_answers | tojson }}"),
    "fin_ner": ("{{ tokens | join(' ') }}", "{{ ner_tags | join(' ') }}"),
    "financial_math": ("{{ question }}", "{{ answer }}"),
    "finer_ord": ("{{ tokens | join(' ') }}", "{{ ner_tags | join(' ') }}"),
    "finqa": (PAGE + " {{ question }}", "{{ exe_ans | tojson }}"),
    "finred": ("{{ text }}", "{{ triplets | tojson }}"),
    "fiqa_sa": ("{{ text }}", "{{ label }}"),
    "lima": ("{{ instruction }} {{ input }}", "{{ output }}"),
    "math": ("{{ problem }}", "{{ answer | tojson }}"),
    "mmlu": ("{{ question }} {{ choices | tojson }}", "{{ answer }}"),
    "numclaim": ("{{ text }}", "{{ label }}"),
    "p3_t0": ("{{ prompt }}", "{{ completion }}"),
    "twitter_topic": ("{{ text }}", "{{ label }}"),
    "xbrl_term": ("{{ term }}", "{{ definition }}"),
}
"""Folder → prompt and answer of its small task."""
FILES = {"mmlu": {"train": "dev.jsonl", "validation": "validation.jsonl", "test": "test.jsonl.gz"}}

TWITTER = [f"twitter_topic/{split}" for split in ("train", "validation", "test")]
RUNS = [
    ("finred/test", ["finred/train", "finred/validation"], 97),
    ("finred/test", ["finer_ord/train", "finer_ord/validation", "finer_ord/test"], 6),
    ("fpb/test", ["fpb/train", "fpb/validation"], 28),
    ("numclaim/test", ["numclaim/train"], 42),
    ("twitter_topic/test", ["twitter_topic/train", "twitter_topic/validation"], 570),
    ("math/test", ["math/train"], 589),
    ("mmlu/test", ["math/train"], 55),
    ("twitter_sentiment/test", ["fpb/train", "fiqa_sa/train", "headline/train"], 0),
    ("headline/test", ["fpb/train", "fiqa_sa/train", "twitter_sentiment/train", *TWITTER], 0),
    ("fpb/test", ["fiqa_sa/train", "headline/train", "twitter_sentiment/train", *TWITTER], 0),
]
"""Records that share a run of 13 words with any of the splits, as the README says in its text."""


# ---- measuring, in a process of its own ---------------------------------------------------------


def small(folder):
    prompt, answer = SMALL[folder]
    source = {"folder": folder, "files": FILES.get(folder, {})}
    raw = {"name": f"small-{folder.replace('_', '-')}", "prompt": prompt, "target": answer}
    raw |= {"source": {"local": source}, "may_be_empty": ["exe_ans", "answer", "input", "prompt"]}
    if answer == "{{ label }}":
        raw["fields"] = {"label": "label"}
    if PAGE in prompt:
        raw["group_by"] = PAGE
    return parse_task(json.dumps(raw), f"{folder}.yaml")


def parts(data):
    """Every split of every dataset, by its folder's name."""
    registry = Registry([*(small(folder) for folder in SMALL)], data)
    builtin = Registry.builtin(data)
    for folder in sorted([*REAL, *SMALL]):
        made = builtin if folder in REAL else registry
        name = REAL.get(folder) or f"small-{folder}"
        dataset = made.dataset(name, 0.1)
        for split in dataset.splits:
            yield Part(folder, split, own_texts(dataset.examples(split)))


def published(text):
    """The README's loose form."""
    return " ".join(re.findall("[a-z0-9]+", re.sub(r"https?://\S+", " ", text.lower())))


def reason(text, ours, twins):
    """Why a record matches by one loose form only; `ours`: by the one here.

    `twins`: the texts that have its form in the README's sense.
    """
    if ours:
        return "unknown" if "www." in text.lower() else "gaps"
    if len(loose(text)) < SHORTEST_LOOSE:
        return "short"
    others = [twin for twin in twins if twin != text]
    if any("".join(words(twin)) == "".join(words(text)) for twin in others):
        return "signs"  # in numbers, between and before them; in links
    plain = all(published(twin) == " ".join(words(twin)) for twin in [text, *twins])
    return "unknown" if plain else "letters"


def repeated(texts, others, form, shortest):
    """Places of texts whose form others have."""
    held = {form(text) for text in others}
    return {n for n, text in enumerate(texts) if len(form(text)) >= shortest and form(text) in held}


def repeats(texts, form, shortest):
    """Places of texts whose form one before them has."""
    seen, found = set(), set()
    for n, text in enumerate(texts):
        key = form(text)
        if len(key) >= shortest and key in seen:
            found.add(n)
        seen.add(key)
    return found


def disagreement(texts, others, ours, theirs):
    """The README's count, and what parts ours from it, by reason."""
    twins = {}
    for text in others:
        twins.setdefault(published(text), []).append(text)
    apart = [(texts[n], n in ours) for n in ours ^ theirs]
    reasons = Counter(reason(text, own, twins.get(published(text), ())) for text, own in apart)
    return {"ours": len(ours), "published": len(theirs), "reasons": reasons}


def peak_kilobytes():
    """Peak of resident memory of this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0])


def measure(data):
    """All counts, and what it took to get them."""
    # A child begins with its parent's peak: set it back (Linux).
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    found = Overlaps(parts(data))
    pairs = [found.between(*pair) for pair in permutations(found.parts, 2)]
    took = {
        "megabytes": peak_kilobytes() / 1024,
        "records": sum(len(part.records) for part in found.parts.values()),
    }
    texts = {name: [r.text for r in part.records] for name, part in found.parts.items()}
    between = {
        f"{p.split} {p.against}": disagreement(
            texts[p.split], texts[p.against],
            *(repeated(texts[p.split], texts[p.against], form, least)
              for form, least in ((loose, SHORTEST_LOOSE), (published, 1))),
        )
        for p in pairs
        if p.exact or p.loose
    }  # fmt: skip
    within = {
        name: disagreement(
            held, held, repeats(held, loose, SHORTEST_LOOSE), repeats(held, published, 0)
        )
        for name, held in texts.items()
    }
    runs = [
        len({hit for other in others for hit in found.matches("words", split, other)})
        for split, others, _ in RUNS
    ]
    fields = ("records", "exact", "loose", "group", "relabelled")
    return {
        "took": took,
        "between": {f"{p.split} {p.against}": {f: getattr(p, f) for f in fields} for p in pairs},
        "within": {
            name: {f: getattr(found.within(name), f) for f in ("records", "exact", "loose",
                                                               "ambiguous")}
            for name in found.parts
        },
        "disagreement": between | within,
        "runs": runs,
    }  # fmt: skip


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(Path(sys.argv[1]))))
    sys.exit()


# ---- the README ---------------------------------------------------------------------------------


def table(folder, title):
    """Cells of a table's lines below a heading; numbers without what stands in brackets."""
    text = (folder / "README.md").read_text(encoding="utf-8").split(f"### {title}")[1]
    lines = text.split("\n#")[0].splitlines()
    cells = [[c.strip().strip("`") for c in line.strip("|").split("|")]
             for line in lines if line.startswith("| `")]  # fmt: skip
    return [[int(c.split("(")[0].replace(",", "")) if c[0].isdigit() else c for c in row]
            for row in cells]  # fmt: skip


def part_of(name):
    """The name that a split has here."""
    return name.strip().strip("`").replace("mmlu/dev", "mmlu/train")


@pytest.fixture(scope="module")
def folder():
    default = Path(__file__).parents[2] / "shared" / "data"
    found = Path(os.environ.get("MIXTUNE_DATA_DIR") or default)
    if not (found / "README.md").is_file():
        pytest.skip(f"real datasets are not at {found}; set MIXTUNE_DATA_DIR to their folder")
    return found


@pytest.fixture(scope="module")
def found(folder):
    """What a process of its own measured."""
    root = str(Path(__file__).parents[1])
    run = subprocess.run(
        [sys.executable, __file__, str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.data
class TestReadme:
    def test_inside_one_set(self, folder, found):
        rows = table(folder, "Inside one set")
        assert len(rows) == 25
        for name, split, other, records, exact, _, relabelled in rows:
            pair = f"{part_of(f'{name}/{split}')} {part_of(f'{name}/{other}')}"
            got = found["between"][pair]
            assert [got["records"], got["exact"], got["relabelled"]] == [records, exact, relabelled]
        shown = {pair: found["between"][pair]["exact"] for pair in
                 ("headline/test headline/train", "fiqa_sa/test fiqa_sa/train",
                  "fin_ner/test fin_ner/train")}  # fmt: skip
        assert list(shown.values()) == [180, 13, 11]

    def test_no_other_pair_inside_a_set_has_a_match(self, folder, found):
        listed = {f"{part_of(f'{n}/{s}')} {part_of(f'{n}/{o}')}"
                  for n, s, o, *_ in table(folder, "Inside one set")}  # fmt: skip
        for pair, got in found["between"].items():
            split, other = pair.split()
            later = ["train", "validation", "test"].index
            own = split.split("/")[0] == other.split("/")[0]
            if own and later(split.split("/")[1]) > later(other.split("/")[1]):
                # by the form here only: one tweet with another hyphen
                most = 1 if pair == "twitter_topic/validation twitter_topic/train" else 0
                assert pair in listed or (got["exact"], got["loose"]) <= (0, most)

    def test_repeats_inside_one_split(self, folder, found):
        rows = table(folder, "Repeats inside one split")
        assert len(rows) == 25
        for name, records, exact, _, ambiguous in rows:
            got = found["within"][part_of(name)]
            assert [got[f] for f in ("records", "exact", "ambiguous")] == [
                records, exact, ambiguous,
            ]  # fmt: skip

    def test_across_sets(self, folder, found):
        rows = table(folder, "Across sets, whole text")
        assert len(rows) == 13
        for split, other, records, exact, _ in rows:
            got = found["between"][f"{split} {part_of(other)}"]
            assert [got["records"], got["exact"]] == [records, exact]

    def test_loose_counts_and_why_they_differ(self, folder, found):
        inside, repeats, across = map(
            lambda title: table(folder, title),
            ("Inside one set", "Repeats inside one split", "Across sets, whole text"),
        )
        wanted = {f"{part_of(f'{n}/{s}')} {part_of(f'{n}/{o}')}": row[2]
                  for n, s, o, *row in inside}  # fmt: skip
        wanted |= {part_of(name): row[2] for name, *row in repeats}
        wanted |= {f"{split} {part_of(other)}": row[2] for split, other, *row in across}
        reasons = Counter()
        for pair, count in wanted.items():
            got = found["disagreement"][pair]
            why = Counter(got["reasons"])
            if pair == "finer_ord/test fin_ner/train":
                # the README's table across sets has no text of so few letters either
                got["published"] -= why.pop("short")
            assert got["published"] == count, pair
            fewer = why["short"] + why["letters"] + why["signs"]
            assert got["ours"] == count + why["gaps"] - fewer, pair
            kept = found["between" if " " in pair else "within"][pair]["loose"]
            assert kept == got["ours"], pair
            reasons += why
        assert set(reasons) == {"gaps", "short", "letters", "signs"}
        topic = found["between"]["twitter_topic/test twitter_topic/train"]
        assert topic["loose"] == 504

    def test_pages_of_finqa_and_convfinqa(self, folder, found):
        rows = table(folder, "FinQA and ConvFinQA: the same report pages")
        assert len(rows) == 16
        for split, other, records, pages, *_ in rows:
            got = found["between"][f"{split} {part_of(other)}"]
            assert [got["records"], got["group"]] == [records, pages]
        assert found["between"]["convfinqa/test finqa/validation"]["group"] == 336

    def test_runs_of_13_words(self, found):
        assert found["runs"] == [count for *_, count in RUNS]

    def test_it_takes_less_than_two_gigabytes(self, found):
        """Reading and rendering included; `python -m bench.leaks` takes the time."""
        took = found["took"]
        assert took["records"] > 124_000
        assert took["megabytes"] < 2048
