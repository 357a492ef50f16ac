"""A finished study made by hand for tests: a label task, open answers, lists; no model trained.

Knows: a store's files. Does not know: the engine, packs.
"""

import json
import random
from dataclasses import asdict

import pyarrow.parquet as pq
import yaml
from study_kit import TASK, write_data, write_rows

from mixtune.datasets.registry import Registry
from mixtune.planning.plan import Planner
from mixtune.planning.summary import facts_of
from mixtune.records import MixRow, Prediction, TrainStep
from mixtune.results.study_results import read_facts, score_study
from mixtune.store.folder import Store
from mixtune.study.reading import dump_study, load_study
from mixtune.tasks.examples import query_of

OPEN = """
name: {name}
kind: open
prompt: "{{{{ text }}}}"
target: "{{{{ answer }}}}"
group_by: "{{{{ text }}}}"
parser: {parser}
metrics: [{metric}]
source: {{local: {{folder: {name}}}}}
licence: CC BY 4.0
{more}
"""
NAMES = ("PER: Zyxa Quartz", "ORG: Zyxbank", "PER: Zyxel Moss", "none")
SECRETS = ("zyx", "station", "clouds")
"""What stands in texts and free answers and nowhere else."""
STUDY = {
    "name": "mixed",
    "model": "base",
    "tasks": ["north", "sums", "people"],
    "task_files": ["own.yaml"],
    "ingredients": {"north": {"rows": 20}, "sums": {"rows": 20}},
    "design": ["singles", "all"],
    "budget": {"steps": 2, "examples_per_step": 4},
    "seeds": [1, 2],
    "train": {"rank": 2, "alpha": 4},
    "evaluate": {"validation_items": 30, "test_items": 30, "max_new_tokens": 6},
}


def _open_rows(folder, name, answer):
    for split, count in (("train", 60), ("validation", 40), ("test", 40)):
        rows = [
            {"id": f"{split}-{i}", "text": f"Zyx {name} {split} {i} of it", "answer": answer(i)}
            for i in range(count)
        ]
        write_rows(folder, name, split, rows)


def write_study(folder, changes=None):
    """The study's files and data below a folder, with keys replaced; returns the study file."""
    data = write_data(folder / "data")
    _open_rows(data, "sums", str)
    _open_rows(data, "people", lambda i: "\n".join(sorted({NAMES[i % 3], NAMES[i % 2]})))
    documents = [
        TASK.format(name="north"),
        OPEN.format(name="sums", parser="number", metric="accuracy", more=""),
        OPEN.format(
            name="people", parser="spans", metric="span-f1", more="types: [PER, ORG]"
        ).replace('{{ text }}"\ntarget', 'PER or ORG? {{ text }}"\ntarget'),
    ]
    (folder / "own.yaml").write_text("---\n".join(documents), encoding="utf-8")
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY | (changes or {})), encoding="utf-8")
    return folder / "study.yaml"


def finish(folder, files, failing=("north", 2), changes=None, said=None, skipped=()):
    """Plan the study and write what its runs would have; one run fails. Returns what follows.

    `said`: every answer, instead of a right one in seven of ten. `skipped`: tasks and splits that
    nobody has answered.
    """
    study = load_study(write_study(folder, changes))
    return fill(folder, study, files, failing, said, skipped)


def fill(folder, study, files, failing=None, said=None, skipped=()):
    """Plan a study and write what its runs would have; see `finish`. Data is in `data`, if any."""
    data = folder / "data"
    registry = Registry.of(study, data if data.is_dir() else None)
    planner = Planner(study, registry, files)
    store = Store(folder / "runs" / study.name)
    plan = planner.plan()
    store.save_plan(plan.rows(), dump_study(planner.study), facts_of(planner))
    for run in plan.runs:
        if (run.name, run.seed) == failing:
            store.begin(run.system)
            store.fail(run.system, f"RunFailed: no memory in {folder}/x\n  found: Zyx 1", 1.5)
            continue
        if run.kind == "trained":
            _train(store, run)
        for answer in run.answers:
            if answer.task not in skipped and answer.split not in skipped:
                _answer(store, planner, run, answer, said)
    facts = read_facts(store, registry)
    score_study(facts)
    return facts


def _train(store, run):
    """What a trained run leaves."""
    store.begin(run.system)
    facts = {
        "train_id": run.system,
        "model": {"name": "base", "source": "local folder base", "note": ""},
        "mix": [asdict(MixRow("north", 20, 60, 8, 8, 1.0, 10, 90, 0, 0, "rows", None, None, ""))],
    }
    path = store.write_text(f"{run.folder}/run.json", json.dumps(facts))
    weights = store.write_text(f"{run.folder}/adapter/adapter_model.safetensors", run.system)
    steps = [TrainStep(i, 2.0 / (i + 1), 1e-3, 1.0, 4, 8, 90, 0.1) for i in range(2)]
    kept = store.write_rows(f"{run.folder}/train.parquet", TrainStep, steps)
    store.finish(run.system, [path, weights, kept], 2.5)


def _answer(store, planner, run, answer, words=None):
    """What answering leaves; `words`: every answer, or what gives one for a run and an item."""
    chance = random.Random(answer.id)
    rows = []
    for item in planner.items(answer):
        said = item.target if chance.random() < 0.7 else chance.choice([*NAMES, "7", "dry", "wet"])
        said = said if words is None else words(run, item) if callable(words) else words
        logprobs = tuple(-1.0 if c == said else -2.0 for c in item.choices)
        ranked = logprobs if answer.form == "constrained" else ()
        prompt = planner.tokens.prompt_hash(query_of(item).messages)
        rows.append(
            Prediction(
                run.system, answer.task, answer.split, item.id, answer.form,
                prompt, said, item.choices, ranked, "stop", 0.1,
            )
        )  # fmt: skip
    store.begin(answer.id)
    name = f"{run.folder}/answers/{answer.id}/predictions.parquet"
    store.finish(answer.id, [store.write_rows(name, Prediction, rows)], 0.5)


def words_in(path):
    """Everything that a file says, lower case; rows of parquet as text."""
    if path.suffix == ".parquet":
        return json.dumps(pq.read_table(path).to_pylist()).lower()
    return path.read_bytes().decode("utf-8", "ignore").lower()
