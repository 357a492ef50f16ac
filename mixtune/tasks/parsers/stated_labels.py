"""The label that an output states: letter for letter, or by what it says.

Lenient reading takes, in this order: an output that is a label and nothing else; the last label
that is stated ("the answer is", "Answer:", "no, wait:"); the label that fills or opens a line; the
only label that is named. A label of one or two letters, a number and a common word ("A", "it",
"no", "other") occur in texts that do not mean them: for them, to be named is not enough.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from mixtune.tasks.characters import normal_form, unspaced, whole_word
from mixtune.tasks.parsers import whole_words
from mixtune.tasks.reasoning import split_reasoning

NEGATIONS = frozenset(
    """
    not no non never neither nor cannot without hardly nicht kein keine weder niemals ne pas jamais
    não nem nunca tampoco niet geen не ни нет nie
    """.split()  # noqa: SIM905 - a list of words
)
"""Words that negate a label within the five words after them, as every "…n't" does.

A word that is part of a label ("no" of yes and no) is no negation for that task.
"""
_COMMON = frozenset(
    """
    other others none not nor and the for but all any are can has had was were who how why when
    which this that these those with from they them then than there here some same such both each
    either neither one two out new now may more most only very just about into over under like she
    her him
    his its our your you will would should could also well much many what where while nothing
    something anything else text sentence label answer option choice class category question
    """.split()  # noqa: SIM905 - a list of words
)

_MARKS = r"[\s\"'“”„«»‘`*_~()\[\]{}<>「」『』【】《》〈〉|$\\]*"
_OPEN = re.compile(_MARKS)
_STOP = r"[.,;:!?。，、；：！？…]"
_TAIL = re.compile(f"{_MARKS[:-2]}{_STOP[1:]}*")
_AFTER_WEAK = re.compile(
    rf"(?:的|です|である|だ|입니다|이다)?{_MARKS}(?:\Z|(?<=\n)|{_STOP}(?!\d)|(?<=\s)[-–—(=]|(?<=[)\]])"
    r"|(?:because|since|due|given|which|but|not)\b|因为|因為)"
)
"""The characters after a stated label that is a common word: not the next word of a phrase."""

_NOUN = (
    r"(?:answer|label|class|category|classification|sentiment|topic|tone|choice|option|verdict|"
    r"prediction|rating|score|result|conclusion|response|type|intent|emotion|stance|language|genre|"
    r"polarity|decision|judge?ment|antwort|réponse|respuesta|risposta|resposta|ответ|odpowiedź)s?"
)
# In the form of `fold`, which parts a vowel of Thai.
_NOUN_UNSPACED = unicodedata.normalize(
    "NFKC",
    "(?:答案|选项|選項|标签|標籤|类别|類別|分类|分類|情感|结论|結論|答え|回答|ラベル|정답|답|คำตอบ)",
)
_IS = r"\b(?:is|was|would be|should be|must be|ist|est|es|é|è)\b(?!n't)"
_STATES = re.compile(
    rf"(?<![^\W\d_]){_NOUN}\b[^.\n!?:=]{{0,60}}?(?:{_IS}:?|[\"'*_`]*\s?[:=：])"
    rf"|{_NOUN_UNSPACED}[^。\n！？：:]{{0,12}}?(?:应该是|應該是|是|为|為|は|은|는|คือ|[:：])"
    r"|\bi(?:'d| would|'ll| will)? (?:say|choose|pick|select|guess|go with|opt for|vote for)\b:?"
    r"|(?:应选|應選|我选|我選|选择|選擇)"
    r"|\bclassif(?:y|ied)\b[^.\n]{0,60}?\bas\b|\blabel(?:l?ed)? (?:it|this|as)\b(?: as\b)?"
    r"|\\boxed\{(?:\\text\{)?|#{4}"
)
_CORRECTS = re.compile(
    r"\b(?:no\W{0,3})?(?P<word>wait|actually|correction|rather|i mean(?:t)?|scratch that|sorry|oops"
    r"|on second thoughts?|instead|make (?:that|it))\b[\s,:;.!—–-]*(?:no\b[\s,:;.!—–-]*)?"
    r"(?:(?:it|this|that|the answer)(?:'s| is| should be)\b)?"
    r"|\bno\b[,:;—–-]\s*(?:(?:it|this|that|the answer)(?:'s| is| should be)\b)?"
)
_AFTER_CUE = re.compile(r"[\s,:;.!—–-]*")
_FILLER = re.compile(
    r"(?:the|an?|is|option|choice|label|class|category|answer|correct|final|best|most|likely|clearly"
    r"|definitely|probably|therefore|indeed|simply|just)\b:?"
)
_LEAD = re.compile(
    rf"(?:[-*•>#]+\s|####)?{_MARKS}(?:(?:the |my )?(?:final |correct |best )?"
    rf"(?:answer|option|choice|label|class|category)\b(?: is\b)?:?)?{_MARKS}"
)
_LISTED = re.compile(
    rf"{_MARKS}(?:[,/|&;、，]|\b(?:or|and|oder|und|ou|et|o|y|или|и)\b|或|和|还是|還是)"
    rf"{_MARKS}(?:(?:or|and)\b)?"
)
_RIGHT = re.compile(
    rf"{_MARKS}(?:is|was|would be)\s(?:the\s)?"
    r"(?:correct|right|best|(?:final |most likely )?answer)\b"
)
_BEFORE_RIGHT = re.compile(
    r"(?:^|[\n.,;:!?])[^\w\n]*(?:(?:so|thus|hence|option|choice|answer|therefore)\W+){0,2}$"
)
_CLAUSE = re.compile(r"[\n.,;:!?()。，、；：！？（）]")
_NEGATED_UNSPACED = re.compile(r"(?:[不非没沒無无未别別]|ไม่|มิ|មិន|ບໍ່)[^\n。，、；：！？.,;:!?]{0,6}$")
_DENIED_AFTER = re.compile(
    r"(?:だと|的)?(?:では|じゃ|で|とは)?(?:ない|なく|ありません|言え)|\s?(?:이|가|은|는)?\s?아니"
    r"|\s(?:değil|नहीं)|\W{0,2}\s(?:is|was|would be|seems|looks)(?:n't| not| wrong| incorrect)\b"
)


def strict_label(text: str, labels: Sequence[str]) -> str | None:
    """The label that equals the output letter for letter, but for white space at both ends."""
    trimmed = text.strip()
    if trimmed in labels:
        return trimmed
    composed = normal_form(trimmed)
    return next((label for label in labels if normal_form(label) == composed), None)


def lenient_label(text: str, labels: Sequence[str]) -> str | None:
    """The label that the output states, fills a line with, or alone names, in any case.

    Longer labels are looked for first, so that "very good" is not read as "good". A negation ("not
    positive"), two labels of which neither is stated, and no label give None.
    """
    exact = strict_label(text, labels)
    if exact is not None:
        return exact
    answer, known = fold(split_reasoning(text).answer), _labels(tuple(map(fold, labels)))
    label = _whole(answer, 0, len(answer), known)
    if label is None:
        statements = list(_statements(answer, known))
        label = _stated(answer, statements, known) if statements else _unstated(answer, known)
    return None if label is None else next(name for name in labels if fold(name) == label)


def cut_label(text: str, labels: Sequence[str]) -> str | None:
    """The same of an output that was cut off: its last word may be the half of another."""
    label = lenient_label(text, labels)
    if label is None or text.strip() in labels or not weak(fold(label)):
        return label
    return lenient_label(whole_words(text), labels)


def fold(text: str) -> str:
    """The form that labels are compared in: no case, one kind of apostrophe, single spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    folded = unicodedata.normalize("NFC", folded)
    return "\n".join(" ".join(line.split()) for line in folded.splitlines()).strip()


@lru_cache(maxsize=4096)
def weak(label: str) -> bool:
    """True if a folded label also occurs in texts that do not mean it."""
    letters = re.sub(r"[\W_]", "", label)
    short = 1 if unspaced(label) else 2
    number = re.fullmatch(r"[\d.,+%-]*", label) is not None
    return len(letters) <= short or number or label in _COMMON


# ---- labels in a text ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Labels:
    """Folded labels, longest first; their words; a pattern that finds where one could begin."""

    labels: tuple[str, ...]
    words: frozenset[str]
    begins: re.Pattern[str]


class _Mention(NamedTuple):
    label: str
    start: int
    end: int


class _Statement(NamedTuple):
    """A label that is stated at a place: None where several are; `denied`: it is not the answer."""

    place: int
    label: str | None
    denied: bool
    corrects: bool


@lru_cache(maxsize=256)
def _labels(labels: tuple[str, ...]) -> _Labels:
    ordered = tuple(sorted(set(labels), key=lambda label: (-len(label), label)))
    words = frozenset(word for label in labels for word in label.split())
    return _Labels(ordered, words, re.compile(f"(?={'|'.join(map(re.escape, ordered))})"))


def _at(text: str, place: int, known: _Labels) -> _Mention | None:
    """The longest label that begins at a place, as a whole word."""
    for label in known.labels:
        if text.startswith(label, place):
            mention = _Mention(label, place, place + len(label))
            if _apart(text, mention):
                return mention
    return None


def _apart(text: str, mention: _Mention) -> bool:
    """True if a label is a word; "non-positive", "neutral-ish", "-1" and "1.5" are other words."""
    label, start, end = mention
    before, after = text[max(0, start - 2) : start], text[end : end + 2]
    if not whole_word(text, start, end) or re.match(r"[-'][^\W_]", after):
        return False
    if re.search(r"[^\W_][-']$", before) and not unspaced(before):
        return False
    if label[0].isdigit() and re.search(r"[-+−–.,/#$€£]$|\d:$", before):
        return False
    return not (label[-1].isdigit() and re.match(r"[.,:]\d|\s?[%/°]", after))


def _mentions(text: str, known: _Labels) -> Iterator[_Mention]:
    """Every label that is named, but for those inside a longer one."""
    end = 0
    for match in known.begins.finditer(text):
        mention = _at(text, match.start(), known)
        if mention is not None and mention.end > end:
            end = mention.end
            yield mention


def _denied(text: str, mention: _Mention, known: _Labels) -> bool:
    """True if a label is negated; punctuation ends a clause."""
    # 200 characters hold five words, and bound the time for outputs with many labels.
    before = text[max(0, mention.start - 200) : mention.start]
    return (
        _negates(before, known)
        or _NEGATED_UNSPACED.search(before) is not None
        or _DENIED_AFTER.match(text, mention.end) is not None
    )


def _negates(before: str, known: _Labels) -> bool:
    """True if one of the last five words of the last clause is a negation."""
    words = re.findall(r"[^\W_]+(?:'[^\W_]+)?", _CLAUSE.split(before)[-1])[-5:]
    return any(w not in known.words and (w in NEGATIONS or w.endswith("n't")) for w in words)


# ---- forms of an answer --------------------------------------------------------------------------


def _meant(text: str, mention: _Mention | None) -> bool:
    """True for a label that no following word makes a part of a phrase, as in "a dog"."""
    if mention is None:
        return False
    return not weak(mention.label) or _AFTER_WEAK.match(text, mention.end) is not None


def _whole(text: str, start: int, end: int, known: _Labels) -> str | None:
    """The label that a text, or a line of it, has and nothing else."""
    part = text[start:end]
    # Quotation marks and brackets may be part of a label.
    places = (0, _OPEN.match(part).end(), _LEAD.match(part).end())  # type: ignore[union-attr]
    for place in places:
        mention = _at(part, place, known)
        if mention is not None and _TAIL.fullmatch(part, mention.end):
            return None if _DENIED_AFTER.match(part, mention.end) else mention.label
    return None


def _statements(text: str, known: _Labels) -> Iterator[_Statement]:
    """Labels that are said to be the answer, in their order."""
    cues = [(cue, False) for cue in _STATES.finditer(text)]
    cues += [(cue, True) for cue in _CORRECTS.finditer(text) if _is_cue(cue, known)]
    statements = []
    for cue, corrects in cues:
        # "actually, no" ends in an answer of yes and no, and in a word for any others.
        word = _AFTER_CUE.match(text, cue.end("word")) if corrects and cue["word"] else None
        mention = word and _after(text, word.end(), known)
        mention = mention or _after(text, cue.end(), known)
        if mention is not None:
            before = text[max(0, cue.start() - 200) : cue.start()]
            # The "no" of "no, wait:" denies what was said before it.
            words = "" if corrects else cue.group().rstrip(" :=：")
            denied = _negates(before, known) or _negates(words, known)
            denied |= _DENIED_AFTER.match(text, mention.end) is not None
            statements.append(_statement(text, mention, denied, corrects, known))
    for mention in _mentions(text, known):
        letter = len(mention.label) == 1 or not weak(mention.label)
        before = text[max(0, mention.start - 60) : mention.start]
        if letter and _RIGHT.match(text, mention.end) and _BEFORE_RIGHT.search(before):
            statements.append(_Statement(mention.start, mention.label, False, False))
    yield from sorted(statements, key=lambda statement: statement.place)


def _is_cue(cue: re.Match[str], known: _Labels) -> bool:
    """True unless the word that corrects is a label itself, as "no" of yes and no."""
    return not known.words & set(re.findall(r"\w+", cue.group())[:1])


def _statement(
    text: str, mention: _Mention, denied: bool, corrects: bool, known: _Labels
) -> _Statement:
    listed = _LISTED.match(text, mention.end)
    second = _after(text, listed.end(), known) if listed else None
    several = second is not None and second.label != mention.label
    return _Statement(mention.start, None if several else mention.label, denied, corrects)


def _after(text: str, place: int, known: _Labels) -> _Mention | None:
    """The label that follows a place directly, or after words such as "the option"."""
    for _ in range(5):
        place = _OPEN.match(text, place).end()  # type: ignore[union-attr]
        mention = _at(text, place, known)
        if _meant(text, mention):
            return mention
        filler = _FILLER.match(text, place)
        if filler is None:
            return None
        place = filler.end()
    return None


def _stated(text: str, statements: Sequence[_Statement], known: _Labels) -> str | None:
    """The label that is stated last and not taken back."""
    label, place = None, 0
    for statement in statements:
        if not statement.denied:
            label, place = statement.label, statement.place
        elif statement.label == label:
            label = None
    if label is None or _taken_back(text, label, place, known):
        return None
    # A line that is another label contradicts, unless a correction follows; several are a list.
    lines = {mention for mention in _lines(text, known).filled if mention.label != label}
    contradicted = len({mention.label for mention in lines}) == 1 and not any(
        s.corrects and s.place > mention.start for s in statements for mention in lines
    )
    return None if contradicted else label


def _taken_back(text: str, label: str, place: int, known: _Labels) -> bool:
    """True if a label is negated behind a place."""
    return any(
        mention.label == label and _meant(text, mention) and _denied(text, mention, known)
        for mention in _mentions(text, known)
        if mention.start > place
    )


class _Lines(NamedTuple):
    """Labels that fill a line, and labels that open one, by line."""

    filled: list[_Mention]
    opened: list[_Mention]


def _lines(text: str, known: _Labels) -> _Lines:
    filled, opened, start = [], [], 0
    for line in text.split("\n"):
        end = start + len(line)
        if label := _whole(text, start, end, known):
            filled.append(_Mention(label, start, end))
        elif label := _opening(line, known):
            opened.append(_Mention(label, start, end))
        start = end + 1
    return _Lines(filled, opened)


def _opening(line: str, known: _Labels) -> str | None:
    """The label that a line begins with and then explains: "C. A cat", "Positive: it praises"."""
    place = _OPEN.match(line).end()  # type: ignore[union-attr]
    mention = _at(line, place, known)
    if mention is None or re.fullmatch(r"[\d.]+", mention.label):  # "1." numbers an item
        return None
    signs = r"[.:!。：！]"
    if len(mention.label) == 1:
        signs = r"[.:)\]。：]"
    elif weak(mention.label) and "yes" in known.labels:
        signs = r"[.,:!。，：！]"
    explains = rf"[\"'”’*_`\])]*(?:{signs}[\"'”’*_`\])]*(?:\s|\Z)|\s[-–—]\s|\s(?:because|since)\b)"
    if unspaced(mention.label):
        explains = rf"{explains}|[。：！]"
    return mention.label if re.match(explains, line[mention.end :]) else None


def _unstated(text: str, known: _Labels) -> str | None:
    """The label of a line of its own, or at the start or end; else the only one that is named."""
    filled, opened = _lines(text, known)
    own, listed = {m.label for m in filled}, {m.label for m in opened}
    if own or len(listed) > 1:
        # Options may be listed before the answer; two answers are none.
        label = own.pop() if len(own) == 1 and (len(listed) != 1 or own == listed) else None
    elif listed and text[: opened[0].start].strip() and text[opened[-1].end :].strip():
        label = None
    else:
        label = listed.pop() if listed else _only_named(text, known)
    return None if label is None or _taken_back(text, label, -1, known) else label


def _only_named(text: str, known: _Labels) -> str | None:
    named = set()
    for mention in _mentions(text, known):
        if _denied(text, mention, known):
            return None
        named.add(mention.label)
    return named.pop() if len(named) == 1 and not weak(min(named)) else None
