"""Draft a task file for a file of rows: which columns the prompt shows, which one is the answer.

A draft says which columns it leaves out. Where several readings fit, none is taken: `Doubt` has the
arguments that choose one.
"""

import json
import os
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from mixtune.datasets.arrow_rows import saved_splits
from mixtune.datasets.columns import (
    Column,
    Columns,
    Doubt,
    Options,
    answer_column,
    label_column,
    label_doubts,
    option_columns,
    read_table,
    text_columns,
)
from mixtune.datasets.rows import Row, guess_reading, read_rows
from mixtune.errors import DataError, shorten
from mixtune.tasks.characters import visible
from mixtune.tasks.parsers.stated_labels import fold
from mixtune.tasks.record import preferences
from mixtune.tasks.source_spec import ending

SAMPLE_ROWS = 20_000
"""Rows that a draft is based on."""

_FORMATS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "alpaca": (
        "alpaca rows (instruction, input, output)",
        ("instruction", "input", "output", "system", "history", "text"),
        "output",
    ),
    "prompt-completion": (
        "prompt and completion", ("prompt", "completion", "system"), "completion",
    ),
}  # fmt: skip
"""Formats of trainers: in words, their columns, and that of the answer."""
LETTERS = "ABCDEFGHIJ"
"""Names of a question's options."""
_RESERVED = frozenset(
    """
    and or not in is if else elif for true false none loop self label labels question context
    """.split()  # noqa: SIM905 - a list of words
)
"""Names that mean something else in a template, in lower case; question and context at times."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A sentence on the form of the rows, the text of a task YAML for them, and doubts."""

    form: str
    text: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Form:
    """The form of rows in words, lines of a task file, the columns that they use, and doubts."""

    words: str
    lines: list[str]
    used: tuple[str, ...]
    notes: tuple[str, ...] = ()


def draft_task(
    path: Path,
    names: Container[str] = (),
    folder: Path | None = None,
    chosen: Columns = Columns(),  # noqa: B008 - immutable
) -> Draft:
    """Draft a task file for a file of rows.

    `names` are in use; `folder` is that of the task file, if it is not that of the rows.

    Raises:
        DataError: the file cannot be read, has no rows, or its columns fit no form.
        Doubt: several readings of its columns fit.
    """
    splits = saved_splits(path)
    sample = path / "train" if splits and "train" in splits else path
    reading, doubts = guess_reading(sample)
    faults: list[DataError] = []
    # Bad rows are skipped: the check of the draft reports them.
    rows = list(islice(read_rows(sample, faults.append, reading), SAMPLE_ROWS))
    if not rows:
        no_rows = DataError("the file has no rows to look at", where=shorten(str(path), 300))
        raise faults[0] if faults else no_rows
    if compared := preferences(rows[0].record):
        raise DataError(
            "preferences are not trained on here",
            where=rows[0].where,
            found=", ".join(compared),
            wanted="one answer a row",
            remedy="to train on the chosen answers alone, write a task file with "
            "format: prompt-completion and columns: {completion: chosen}",
        )
    stem = path.name.removesuffix(ending(path.name) or "").lower()
    name = re.sub(r"[^a-z0-9]+", "-", stem)[:60].strip("-") or "task"
    name = f"own-{name}" if name in names else name
    source = os.path.relpath(path, folder or path.parent) + "/" * path.is_dir()
    last = f"source: {_quoted(source)}"
    if settings := reading.model_dump(exclude_none=True, mode="json"):
        keys = "".join(f", {key}: {json.dumps(value)}" for key, value in settings.items())
        last = f"source: {{train: {_quoted(source)}{keys}}}"
    table = read_table(rows)
    try:
        form = _form(rows, table, path, chosen)
    except Doubt:
        raise
    except DataError as error:
        raise (faults or [error])[0] from None
    unused = [column for column in table if column.name not in form.used]
    comment = ", ".join(f"{shorten(column.name)} ({column.kind})" for column in unused)
    lines = [f"name: {_quoted(name)}", *form.lines, last]
    lines += [f"# columns that are not used: {shorten(comment, 600)}"] if unused else []
    objects = [c.name for c in unused if any(isinstance(v, Mapping) for v in c.values)]
    notes = form.notes + tuple(
        f"{shorten(name)} has objects; a prompt shows a part of them as {{{{ NAME.PART }}}}"
        for name in objects
    )
    return Draft("; ".join([form.words, *doubts]), "\n".join(lines) + "\n", notes)


def _form(rows: Sequence[Row], table: list[Column], path: Path, chosen: Columns) -> _Form:
    where, first = shorten(str(path), 300), rows[0].record
    if chosen.none:
        for field in ("messages", "conversations"):
            if isinstance(first.get(field), list):
                return _conversation(field, first[field])
        if form := _trainer_form(table, where):
            return form
    label = label_column(table, chosen, where)
    answer = label or answer_column(table, chosen, where)
    if answer is not None:
        is_label = label is not None
        options = option_columns([c for c in table if c.name not in chosen.texts], answer)
        parts = [column for column in table if options is None or column not in options.columns]
        names = (answer.name, None) if is_label else (None, answer.name)
        texts = text_columns(parts, Columns(chosen.texts, *names), where)
        if texts:
            prompt = _Prompt(texts, options, answer)
            if not is_label:
                return _open(prompt)
            form = _labelled(prompt, where)
            return replace(form, notes=(*label_doubts(table, answer, chosen), *form.notes))
    raise DataError(
        "the columns fit no form that is known",
        where=where,
        found=", ".join(column.name for column in table),
        wanted="a text and a label with few values; instruction and output; prompt and completion; "
        "messages; conversations",
        remedy="name the columns with --text and --label or --answer, or write a task YAML with a "
        "prompt that names them (docs/your-own-task.md)",
    )


def _conversation(field: str, turns: list[Any]) -> _Form:
    first = turns[0] if turns and isinstance(turns[0], Mapping) else {}
    form, default = ("sharegpt", "conversations") if "from" in first else ("messages", "messages")
    columns = [] if field == default else [f"columns: {{messages: {field}}}"]
    lines = [f"format: {form}", *columns]
    return _Form(f"conversations in {field} ({form})", lines, (field, "system"))


def _trainer_form(table: Sequence[Column], where: str) -> _Form | None:
    """The format of a trainer whose columns these are; other columns with texts are asked about."""
    names = {column.name for column in table}
    for form, (words, fields, answer) in _FORMATS.items():
        if {fields[0], answer} <= names:
            if any(column.name not in fields and column.substantial for column in table):
                text_columns(table, Columns(answer=answer), where, every=True)
            return _Form(words, [f"format: {form}"], fields)
    return None


# ---- prompts -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Prompt:
    """The columns of a prompt, and that of its answer."""

    texts: Sequence[Column]
    options: Options | None
    answer: Column

    @property
    def used(self) -> tuple[str, ...]:
        """Names of the columns in use."""
        options = self.options.columns if self.options else ()
        return tuple(column.name for column in (*self.texts, *options, self.answer))

    @property
    def shown(self) -> str:
        """The columns that the prompt shows, in words."""
        options = self.options.columns if self.options else ()
        names = [shorten(column.name) for column in (*self.texts, *options)]
        return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))

    def fields(self) -> dict[str, str]:
        """The names of the columns in the template."""
        columns = [*self.texts, *(self.options.columns if self.options else ())]
        if len(columns) == 1:
            name, label = columns[0].name, self.answer.name
            usual = re.fullmatch(r"text|sentence|content|message|body|review|title|question|input",
                                 name)  # fmt: skip
            return {name: name if usual else "content" if label == "text" else "text"}
        stored = {column.name for column in columns} | {self.answer.name}
        fields: dict[str, str] = {}
        for number, column in enumerate(columns, start=1):
            name = column.name
            plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) and (
                name.lower() not in _RESERVED or name in ("question", "context")
            )
            free = next(n for n in (f"text_{number}", f"field_{number}") if n not in stored)
            fields[name] = name if plain else free
        return fields

    def lines(self, task: str) -> list[str]:
        """The prompt's lines in the task file, after a sentence on the task."""
        fields = self.fields()
        if len(fields) == 1:
            blocks = [f"{{{{ {self._value(self.texts[0], fields)} }}}}"]
        else:
            blocks = [
                f"{_heading(column.name)}: {{{{ {self._value(column, fields)} }}}}"
                for column in self.texts
            ]
            blocks += [self._option_lines(fields)] if self.options else []
        parts = [task, *blocks] if task else blocks
        lines = "\n\n".join(parts).split("\n")
        return ["prompt: |-", *(f"  {line}" if line else "" for line in lines)]

    def columns_line(self) -> list[str]:
        """The line that maps names of the template to those of the file."""
        pairs = [f"{f}: {_quoted(n)}" for n, f in self.fields().items() if f != n]
        return [f"columns: {{{', '.join(pairs)}}}"] if pairs else []

    def _value(self, column: Column, fields: Mapping[str, str]) -> str:
        field = fields[column.name]
        return f"{field} | join(' ')" if column.is_list else field

    def _option_lines(self, fields: Mapping[str, str]) -> str:
        assert self.options is not None
        if not self.options.listed:
            pairs = zip(LETTERS, self.options.columns, strict=False)
            return "\n".join(f"{name}. {{{{ {fields[c.name]} }}}}" for name, c in pairs)
        field = fields[self.options.columns[0].name]
        texts, name = field, f"'{LETTERS}'[loop.index0]"
        if self.options.labelled:
            texts, name = f"{field}.text", f"{field}.label[loop.index0]"
        return (
            f"{{% for option in {texts} %}}{{{{ {name} }}}}. {{{{ option }}}}"
            "{% if not loop.last %}\n{% endif %}{% endfor %}"
        )


def _heading(name: str) -> str:
    """The name of a column as a heading; it must not be read as part of the template."""
    words = re.sub(r"[^\w ]|_", " ", name)
    return " ".join(words.split()).capitalize() or "Text"


def _labelled(prompt: _Prompt, where: str) -> _Form:
    label = prompt.answer
    letters = _letters(prompt, where)
    if letters is not None:
        names = LETTERS[: prompt.options.most] if prompt.options else ""
        lines = _label_lines(prompt, list(names), letters, "Which option is right?")
        words = f"options in {prompt.shown}, the right one in {shorten(label.name)}"
        return _Form(words, lines, prompt.used, _notes(prompt))
    counts = label.labels.copy()
    if prompt.options and prompt.options.labelled:
        counts.update(str(n) for value in prompt.options.columns[0].values for n in value["label"])
    # The commonest spelling is the label; others differ from it by case or spacing alone.
    commonest: dict[str, str] = {}
    for value, _ in counts.most_common():
        commonest.setdefault(fold(visible(value)), visible(value))
    labels = sorted(commonest.values())
    variants = {value: commonest[fold(visible(value))] for value in counts}
    mapped = {value: label for value, label in variants.items() if value != label}
    several = prompt.options or len(prompt.texts) > 1
    lines = _label_lines(
        prompt,
        labels,
        mapped,
        "Which of these fits?" if several else "Which of these fits the text?",
    )
    count = len(labels)
    words = f"text in {prompt.shown}, one of {count} labels in {shorten(label.name)}"
    notes = list(_notes(prompt))
    if mapped:
        pairs = ", ".join(f"'{shorten(v, 40)}' is '{shorten(name, 40)}'"
                          for v, name in sorted(mapped.items()))  # fmt: skip
        notes.append(f"labels that differ in case, space or invisible characters: {pairs}")
    return _Form(words, lines, prompt.used, tuple(notes))


def _label_lines(
    prompt: _Prompt, labels: Sequence[str], mapped: Mapping[str, str], task: str
) -> list[str]:
    """The lines of a task with labels, `mapped` from the values of the file."""
    folded = sorted(map(fold, labels))
    prefixes = any(long.startswith(short) for short, long in pairwise(folded))
    pairs = [f"{_quoted(v)}: {_quoted(label)}" for v, label in sorted(mapped.items()) if v != label]
    return [
        f"labels: [{', '.join(map(_quoted, labels))}]",
        *(["allow_prefix_labels: true  # one label begins like another"] if prefixes else []),
        *prompt.lines(f"{task} Answer with one of: {{{{ labels | join(', ') }}}}."),
        f"fields: {{label: {_quoted(prompt.answer.name)}}}",
        *([f"label_values: {{{', '.join(pairs)}}}"] if pairs else []),
        *prompt.columns_line(),
    ]


def _letters(prompt: _Prompt, where: str) -> dict[str, str] | None:
    """The letter of each stored answer; None where answers do not name options by place.

    Raises:
        DataError: places that may count from 0 or from 1.
    """
    options, answers = prompt.options, prompt.answer.labels
    if options is None or options.labelled or not answers:
        return None
    letters = LETTERS[: options.most]
    if all(len(answer) == 1 and answer.upper() in letters for answer in answers):
        return {answer: answer.upper() for answer in answers}
    if not all(re.fullmatch(r"[0-9]", answer) for answer in answers):
        return None
    first = 0 if "0" in answers else 1
    if max(map(int, answers)) - first >= options.most:
        return None
    if first == 1 and str(options.most) not in answers:
        raise DataError(
            "the places of the right options may count from 0 or from 1",
            where=where,
            found=prompt.answer.described(),
            wanted=f"a row with 0, or with {options.most}",
            remedy="write a task file with label_values: {1: A, 2: B} or {0: A, 1: B}",
        )
    return {answer: letters[int(answer) - first] for answer in answers}


def _open(prompt: _Prompt) -> _Form:
    answer = prompt.answer.name
    fields = prompt.fields()
    stored = {*fields, *fields.values()}
    plain = re.fullmatch(r"[A-Za-z]\w*", answer, re.ASCII) and answer.lower() not in _RESERVED
    field = answer if plain else next(n for n in ("answer", "reply", "target") if n not in stored)
    pairs = [f"{f}: {_quoted(n)}" for n, f in [*fields.items(), (answer, field)] if f != n]
    lines = [
        *prompt.lines(""),
        f"target: {_quoted(f'{{{{ {_first_text(prompt.answer, field)} }}}}')}",
        *([f"columns: {{{', '.join(pairs)}}}"] if pairs else []),
    ]
    words = f"open answers: {prompt.shown} and {shorten(answer)}"
    return _Form(words, lines, prompt.used, _notes(prompt))


def _first_text(answer: Column, field: str) -> str:
    """The expression for the first of the answers, where a row has a list of them."""
    if answer.is_list:
        return f"{field} | first"
    # {"text": […], "answer_start": […]}
    listed = all(isinstance(v, Mapping) and isinstance(v.get("text"), list) for v in answer.values)
    return f"{field}.text | first" if listed else field


def _notes(prompt: _Prompt) -> tuple[str, ...]:
    """Cells of the columns in use that are empty."""
    options = prompt.options.columns if prompt.options else ()
    return tuple(
        f"{shorten(column.name)} is empty in {len(column.missing)} of {column.rows} rows, first at "
        f"{column.missing[0]}"
        for column in (*prompt.texts, *options, prompt.answer)
        if column.missing
    )


def _quoted(text: str) -> str:
    """A YAML string: JSON's, with everything invisible escaped."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in quoted)
