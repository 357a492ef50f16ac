"""The pack's words: what is in it, the command of each table and figure, how numbers were made.

Knows: a study's settings, commands. Does not know: files' contents.
"""

from collections.abc import Sequence

from mixtune import __version__
from mixtune.results.study_results import StudyFacts, run_rows

_README = """# {name}: the reviewer's pack

A study of mixtune {version}, without weights and without the texts of its datasets. Everything that
is said of it can be computed again from here, on a machine without torch, models or data:

```
pip install mixtune=={version}
mixtune results {name}/study.yaml
```

Commands take this folder's `study.yaml`, or the zip itself in its place.

| what | command | file |
|---|---|---|
{commands}

## What is here

| file | what it holds |
|---|---|
| `methods.md` | how the numbers were made |
| `study.yaml` | what was asked, every default written out |
| `runs.csv`, `units.csv` | every run and unit of work with its state, failed ones too |
| `cells/*/run.json`, `train.parquet` | settings of a run, rows asked and got; loss of each step |
| `cells/*/scores/*.parquet` | every item's score by every system |
| `items.parquet` | every item: id, group, gold, hash of its prompt |
| `datasets.csv`, `data.json`, `content.json` | datasets: licence, revision, fingerprints; drops |
| `prompts/*.yaml` | prompt templates, labels, parsers, metrics |
| `flagged.json` | items whose text stands in a training row, as a whole or in part |
| `env.json` | versions of what the study ran with |
| `selection*.json` | what was chosen on validation before it was confirmed on test, if it was |
| `changes.jsonl`, `state.sqlite` | how the study grew; states, looks at test scores |
| `left-out.csv` | adapters and answers that are not here: size and SHA-256 |
| `pack.json` | the SHA-256 of each file here |

Answers of label tasks are labels. Other answers are hashes: of a list, each item is one, so that
its F1 is counted as before. A hash says nothing beside another item's. A group (a document, a
headline) is its place among the sorted groups of its task. Of an error stands the first line.

{states}
"""

_METHODS = """# Methods of {name}

- Base model: {model}. Design: {families}; {cells} systems. Seeds: {seeds}.
- Budget: {budget}. Training: {method}, learning rate {lr}, {compute}{unusual}.
- Tasks: {tasks}. Trained on: {ingredients}.
- Every system answered the same items, {items} a task and split.
- Train rows that stand in validation or test are {leaked} (counts: `datasets.csv`).
- Each run is scored as `strict` (the exact form asked for), `lenient` (the answer found in the same
  text) and, where there are labels, `constrained` (the likeliest label). Unread answers count as
  wrong and are counted.
- What is chosen is chosen on validation. Test scores were looked at {reads} times.
- Differences are paired: same items, same clusters, over the seeds that both sides have. Intervals
  are 95 %: items of one source are resampled together; with several seeds a t-interval adds the
  variance between seeds, up to four pooled over cocktails; with one an interval is given this run.
  Where items are too few there is none.
- `method` and `seed` stand in each row that `mixtune analyze --json` prints.
"""

_COMMANDS = (
    ("results and floors", "results {study} --split {split}", ""),
    ("means, differences, every other estimate", "analyze {study} --split {split}",
     "`estimates-{split}.parquet`"),
    ("every figure and its numbers", "report {study} --split {split}",
     "`report/{page}`, `report/{split}/*.svg`, `report/{split}/*.csv`"),
)  # fmt: skip


def readme(facts: StudyFacts, splits: Sequence[str]) -> str:
    """README.md of a pack."""
    name = facts.study.name
    rows = []
    for split in splits:
        page = "index.html" if split == "validation" else f"{split}.html"
        for title, command, file in _COMMANDS:
            words = {"study": f"{name}/study.yaml", "split": split, "page": page}
            shown_command = f"`mixtune {command.format(**words)}`"
            rows.append(f"| {title}, {split} | {shown_command} | {file.format(**words)} |")
    if (facts.store.folder / "selection.json").is_file():
        rows.append(f"| what was confirmed | `mixtune claims {name}/study.yaml` | |")
    return _README.format(
        name=name, version=__version__, commands="\n".join(rows), states=_states(facts)
    )


def methods(facts: StudyFacts) -> str:
    """methods.md of a pack: the study's settings and how its numbers were made."""
    study = facts.study
    evaluate = study.evaluate
    unusual = facts.training_note
    return _METHODS.format(
        name=study.name,
        model=facts.model_note,
        families=", ".join(study.design.families) or "listed cocktails",
        cells=len({row.cocktail for row in facts.plan}),
        seeds=", ".join(map(str, study.seeds)),
        budget=f"{study.budget.kind}, {study.budget.examples_per_step} examples a step",
        method=study.train.method,
        lr=study.train.lr,
        compute=study.train.compute,
        unusual=f"; unusual: {unusual}" if unusual else "",
        tasks=", ".join(study.tasks),
        ingredients=", ".join(study.ingredients),
        items=f"at most {evaluate.validation_items or 'all'} (validation) and "
        f"{evaluate.test_items or 'all'} (test)",
        leaked="dropped"
        if evaluate.leaked == "drop"
        else f"handled as evaluate.leaked {evaluate.leaked}",
        reads=facts.store.test_reads(),
    )


def _states(facts: StudyFacts) -> str:
    states: dict[str, int] = {}
    for run in run_rows(facts):
        states[run.state] = states.get(run.state, 0) + 1
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    return f"Runs: {counts}. Only finished runs are in tables and means."
