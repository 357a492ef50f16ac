"""The columns of a file of rows: which are texts, which is the label or the answer, which are not.

Names count before values. A column with the name of a label is the label, or in doubt: no other
takes its place because some of its values are missing or odd.
"""

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from typing import Any

from mixtune.datasets.rows import Row
from mixtune.errors import DataError, did_you_mean, shorten
from mixtune.tasks.characters import visible
from mixtune.tasks.parsers.stated_labels import fold
from mixtune.tasks.record import blank, plain_value, spellings

MOST_LABELS = 50
MOST_NAMED_LABELS = 300
"""Labels of a column whose name says that it holds labels."""
SUBSTANTIAL = 3
"""Words of a text that is more than a name."""

_LABELS = (
    "label", "labels", "gold_label", "label_text", "text_label", "label_name", "class", "classes",
    "category", "categories", "topic", "intent", "sentiment", "emotion", "stance", "polarity",
    "tag",
)  # fmt: skip
_ANSWERS = (
    "answer", "answers", "output", "response", "completion", "target", "summary", "translation",
    "solution", "reply", "gold", "answerkey", "answer_key", "correct", "correct_answer", "y",
)  # fmt: skip
_PARTS = (
    "title", "headline", "subject", "instruction", "context", "passage", "paragraph", "article",
    "document", "story", "dialogue", "background", "evidence", "abstract", "tweet", "post", "body",
    "review", "description", "message", "content", "text", "sentence", "premise", "text_a", "text1",
    "sentence1", "question1", "word", "aspect", "aspect_term", "aspect_category", "entity", "term",
    "hypothesis", "claim", "text_b", "text2", "sentence2", "question2", "query", "prompt", "input",
    "question",
)  # fmt: skip
"""Names of texts in the order in which a prompt shows them."""
_OPTIONS = ("options", "choices", "endings", "alternatives", "candidates")
_OPTION = re.compile(r"(?i)(?:option|choice|answer|ending|op|sol)?[ _]?([a-h]|[0-9])")
_EXPLAINS = re.compile(r"(?i).*(?:explanation|rationale|reasoning|justification|comment|notes?).*")
_METADATA = re.compile(
    r"(?i)(?:.*_)?(?:id|ids|idx|index|uuid|guid|key|hash|row|number|no|nr|fold|split|seed|url|link"
    r"|file|filename|path|page|line|offset|license|licence|author|user|username|annotators?|worker"
    r"|rater|version|date|time|timestamp|datetime|year|month|day|created|updated|at)\d*|unnamed.*"
)


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns that somebody chose: texts to show, and the label or the open answer."""

    texts: tuple[str, ...] = ()
    label: str | None = None
    answer: str | None = None

    @property
    def none(self) -> bool:
        """True if nothing is chosen."""
        return self == Columns()

    def arguments(self) -> str:
        """The arguments of `mixtune data check` that choose them."""
        words = [word for name in self.texts for word in ("--text", name)]
        words += ["--label", self.label] if self.label is not None else []
        words += ["--answer", self.answer] if self.answer is not None else []
        return shlex.join(words)


class Doubt(DataError):
    """Several readings of the columns fit; each of `options` chooses one."""

    def __init__(
        self, problem: str, where: str, columns: Sequence["Column"], options: Sequence[Columns]
    ) -> None:
        self.problem, self.options = problem, tuple(options)
        super().__init__(
            problem,
            where=where,
            found="; ".join(column.described() for column in columns),
            wanted="columns that you name",
            remedy=" or ".join(f"add {option.arguments()}" for option in options),
        )


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its values but for empty ones, and the places of those.

    `labels`: spellings and counts of the values, where each could be a label.
    """

    name: str
    values: list[Any]
    missing: tuple[str, ...]
    labels: Counter[str]

    @property
    def key(self) -> str:
        """The name in lower case, its words joined by underscores."""
        words = re.sub(r"(?<=[a-z])(?=[A-Z])|[\s.-]+", "_", self.name.strip())
        return words.lower()

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return len(self.values) + len(self.missing)

    @property
    def few(self) -> bool:
        """True if few values repeat, as those of labels do."""
        return 2 <= len(self.labels) <= min(MOST_LABELS, self.rows // 2)

    @property
    def is_text(self) -> bool:
        """True for texts, and for lists of them."""
        return bool(self.values) and all(map(_is_text, self.values))

    @property
    def is_list(self) -> bool:
        """True if some values are lists."""
        return any(isinstance(value, list) for value in self.values)

    @property
    def substantial(self) -> bool:
        """True for texts of several words that hardly repeat."""
        if not self.is_text or self.few or self.useless:
            return False
        texts = [str(value) for value in self.values]
        # A script without spaces has about two characters a word.
        words = sorted(max(len(text.split()), len(re.findall("[\u0e00-\u9fff]", text)) // 2)
                       for text in texts)  # fmt: skip
        return len(set(texts)) > len(texts) // 2 and words[len(words) // 2] >= SUBSTANTIAL

    @property
    def useless(self) -> str:
        """The reason why a column says nothing about the answer, "" without one."""
        shown = self.values[:500]
        if not shown:
            return "empty"
        if len(self.values) > 1 and all(value == shown[0] for value in self.values):
            return "the same in every row"
        if _METADATA.fullmatch(self.name) or all(map(_is_moment, shown)):
            return "an id, a date or an origin"
        address = re.compile(r"(?:https?://|www\.)\S+|(?=.*\d)[0-9a-fA-F-]{16,}")
        if all(isinstance(value, str) and address.fullmatch(value) for value in shown):
            return "addresses or ids"
        return "explains the answer" if _EXPLAINS.fullmatch(self.name) else ""

    @property
    def kind(self) -> str:
        """The reason why a column is left out, or the kind of its values."""
        kind = "few values" if self.few else "texts" if self.is_text else "numbers or objects"
        return self.useless or kind

    def described(self) -> str:
        """Name and values, for a message."""
        if not self.few:
            shown = str(self.values[0]) if self.values else "empty"
            return f"{shorten(self.name)} ({shown[:30]}{'…' * (len(shown) > 30)})"
        values = [value[:30] for value in list(self.labels)[:4]]
        return f"{shorten(self.name)} ({', '.join(values)}{', …' * (len(self.labels) > 4)})"


def _is_text(value: object) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, str) for item in value)
    return isinstance(value, str)


def _is_moment(value: object) -> bool:
    """True for a date or time, also as ISO text."""
    if isinstance(value, date | datetime | time):
        return True
    if not isinstance(value, str) or not re.match(r"\d{4}-\d\d-\d\d", value):
        return False
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


def read_table(rows: Sequence[Row]) -> list[Column]:
    """The columns of rows, in the order in which rows have them."""
    records: list[Mapping[str, Any]] = [plain_value(row.record) for row in rows]
    columns = []
    for name in dict.fromkeys(name for record in records for name in record):
        cells = [record.get(name) for record in records]
        missing = tuple(row.where for row, cell in zip(rows, cells, strict=True) if blank(cell))
        values = [cell for cell in cells if not blank(cell)]
        columns.append(Column(name, values, missing, _spelled(values)))
    return columns


def _spelled(values: Sequence[Any]) -> Counter[str]:
    """Spellings of values that can be labels; none where one cannot."""
    usable = all(
        isinstance(v, str | int) or (isinstance(v, float) and v.is_integer()) for v in values
    )
    return Counter(map(spelling, values)) if usable else Counter()


def spelling(value: object) -> str:
    """The label of a stored value, as a task file spells it."""
    return str(value).lower() if isinstance(value, bool) else spellings(value)[-1]


def column_of(table: Sequence[Column], name: str, where: str) -> Column:
    """The column of a name.

    Raises:
        DataError: there is none.
    """
    for column in table:
        if column.name == name:
            return column
    remedy = did_you_mean(name, [column.name for column in table])
    raise DataError(f"no column is called {shorten(name)!r}", where=where, remedy=remedy)


# ---- the label -----------------------------------------------------------------------------------


def label_column(table: Sequence[Column], chosen: Columns, where: str) -> Column | None:
    """The column of labels; None where answers are open or there are none.

    Raises:
        DataError: the column cannot hold labels. Doubt: several columns could be it.
    """
    if chosen.label is not None:
        return _with_labels(column_of(table, chosen.label, where), [], where)
    if chosen.answer is not None:
        return None
    table = [column for column in table if column.name not in chosen.texts]
    labels = _in_words([c for c in table if c.key in _LABELS and not c.substantial])
    answers = [c for c in table if c.key in _ANSWERS and c.values and not c.few]
    exact = [column for column in labels if column.key == "label"]
    if exact or (len(labels) == 1 and not answers):
        return _with_labels((exact or labels)[0], table, where)
    if len(labels) > 1 or (labels and answers):
        # With a label, a text that could be the answer is one more to show.
        texts = tuple(c.name for c in _texts(table)) if answers else ()
        options = [Columns(chosen.texts or texts, column.name) for column in labels]
        options += [Columns(chosen.texts, answer=column.name) for column in answers]
        raise Doubt("several columns could be the answer", where, [*labels, *answers], options)
    return None if answers else _few_values(table, chosen, where)


def _few_values(table: Sequence[Column], chosen: Columns, where: str) -> Column | None:
    """The one column with few values, where none has the name of a label."""
    few = [column for column in table if column.few and not column.useless]
    answers = [column for column in few if column.key in _ANSWERS]
    texts = [column for column in few if column.key in _PARTS]
    unnamed = [column for column in few if column not in answers and column not in texts]
    candidates = answers or unnamed or texts
    if len(candidates) > 1:
        options = [Columns(chosen.texts, column.name) for column in candidates]
        raise Doubt("several columns could be the label", where, candidates, options)
    return _with_labels(candidates[0], table, where) if candidates else None


def label_doubts(table: Sequence[Column], label: Column, chosen: Columns) -> list[str]:
    """Sentences on a label column that nobody chose and that another could be instead of."""
    if chosen.label is not None:
        return []
    doubts = []
    if label.key not in (*_LABELS, *_ANSWERS):
        doubts.append(
            f"{shorten(label.name)} is read as the label because its values are few; no column has "
            "the name of one"
        )
    rivals = [c for c in table if c.few and c.name != label.name and c.key in _LABELS]
    rivals = [c for c in rivals if not _renamed(c, label)]
    return doubts + [
        f"{shorten(c.name)} could be the label as well: {Columns(label=c.name).arguments()}"
        for c in rivals
    ]


def _in_words(labels: list[Column]) -> list[Column]:
    """Columns of labels without those that number the values of another one."""
    words = [column for column in labels if not all(map(_is_number, column.labels))]
    return [c for c in labels if c in words or not any(_renamed(c, named) for named in words)]


def _is_number(label: str) -> bool:
    return re.fullmatch(r"-?\d+", label) is not None


def _renamed(first: Column, second: Column) -> bool:
    """True if two columns have the same labels under different names."""
    if first.missing or second.missing or len(first.labels) != len(second.labels):
        return False
    pairs = set(zip(map(str, first.values), map(str, second.values), strict=True))
    return len(pairs) == len(first.labels)


def _with_labels(column: Column, table: Sequence[Column], where: str) -> Column:
    """The column, if it can hold the labels of a task."""
    labels = {fold(visible(label)) for label in column.labels}
    count = len(labels)
    if "" not in labels and 2 <= count <= MOST_NAMED_LABELS and count < max(column.rows, 3):
        return column
    if column.is_list:
        reason = "lists of labels"
    elif not column.labels:
        reason = "values that are neither texts nor whole numbers"
    elif "" in labels:
        reason = "a label of invisible characters"
    else:
        reason = "one label" if count == 1 else f"{count:,} labels in {column.rows:,} rows"
    possible = [c.name for c in table if c.few and not c.useless and c.name != column.name]
    ways = [Columns(label=name).arguments() for name in possible]
    ways += [Columns(answer=column.name).arguments()] if count > 1 and not column.is_list else []
    raise DataError(
        f"the column {shorten(column.name)!r} cannot be the label: it has {reason}",
        where=where,
        found=column.described(),
        wanted=f"2 to {MOST_NAMED_LABELS} labels that repeat, one a row",
        remedy=" or ".join(f"add {way}" for way in ways)
        or "give each row one label; or write a task file (docs/your-own-task.md)",
    )


# ---- texts, options and open answers -------------------------------------------------------------


def answer_column(table: Sequence[Column], chosen: Columns, where: str) -> Column | None:
    """The column of open answers, by its usual names; None without one."""
    if chosen.answer is not None:
        return column_of(table, chosen.answer, where)
    usual = [c for c in table if c.key in _ANSWERS and c.values and c.name not in chosen.texts]
    if len(usual) > 1:
        options = [Columns(chosen.texts, answer=column.name) for column in usual]
        raise Doubt("several columns could be the answer", where, usual, options)
    return usual[0] if usual else None


def text_columns(
    table: Sequence[Column], decided: Columns, where: str, *, every: bool = False
) -> list[Column]:
    """The columns that a prompt shows, in its order; none where no column has texts.

    `decided`: the label or the answer, and the texts that somebody chose. `every`: usual names are
    asked about as well.

    Raises:
        Doubt: columns have texts without the usual names.
    """
    if decided.texts:
        return [column_of(table, name, where) for name in decided.texts]
    answers = (decided.label, decided.answer)
    table = [c for c in table if c.name not in answers and c.is_text and not c.useless]
    usual = [column for column in table if column.key in _PARTS]
    texts = [column for column in table if column not in usual and column.substantial]
    candidates = usual or texts or [column for column in table if not column.few]
    if (usual and (texts or every)) or (not usual and len(candidates) > 1):
        shown = sorted(usual + texts if usual else candidates, key=_place)
        several = [shown, *([usual] if usual and texts else []), *([c] for c in shown)]
        several = [columns for i, columns in enumerate(several) if columns not in several[:i]]
        options = [
            Columns(tuple(column.name for column in columns), decided.label, decided.answer)
            for columns in several
        ]
        raise Doubt("several columns have texts", where, shown, options)
    return sorted(candidates, key=_place)


def _texts(table: Sequence[Column]) -> list[Column]:
    """Columns with texts, as a prompt shows them: of the usual names, or of several words."""
    texts = [column for column in table if column.is_text and not column.useless]
    usual = [c for c in texts if c.key in _PARTS or c.substantial]
    return sorted(usual, key=_place)


def _place(column: Column) -> int:
    name = column.key
    return _PARTS.index(name) if name in _PARTS else len(_PARTS)


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a question: one column of lists, or a column for each."""

    columns: tuple[Column, ...]

    @property
    def listed(self) -> bool:
        """True for one column of lists."""
        return len(self.columns) == 1

    @property
    def most(self) -> int:
        """The largest number of options that a row has."""
        if not self.listed:
            return len(self.columns)
        return max(len(_texts_of(value)) for value in self.columns[0].values)

    @property
    def labelled(self) -> bool:
        """True where each row names its options: {"text": […], "label": […]}."""
        return self.listed and all(isinstance(v, Mapping) for v in self.columns[0].values)


def _texts_of(value: Any) -> list[Any]:  # noqa: ANN401 - any field
    texts = value.get("text", []) if isinstance(value, Mapping) else value
    return list(texts) if isinstance(texts, list) else []


def option_columns(table: Sequence[Column], answer: Column) -> Options | None:
    """The columns of a question's options, None without any."""
    for column in table:
        lists = [_texts_of(value) for value in column.values]
        if column.key in _OPTIONS and lists and all(len(texts) > 1 for texts in lists):
            return Options((column,))
    ends: dict[str, Column] = {}
    for column in table:
        match = _OPTION.fullmatch(column.name)
        if match and column.name != answer.name and column.values:
            ends.setdefault(match[1].lower(), column)
    series = "".join(sorted(ends))
    rows = ("abcdefgh", "0123456789", "123456789")
    if len(series) > 1 and any(row.startswith(series) for row in rows):
        return Options(tuple(ends[end] for end in series))
    return None
