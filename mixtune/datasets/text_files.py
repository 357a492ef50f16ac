"""A row of a file, and files of text: compression, encoding, lines of bounded length.

Bytes that are not UTF-8 are refused with the encodings that fit them; none is chosen silently.
"""

import codecs
import gzip
import io
import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import charset_normalizer

from mixtune.errors import DataError, shorten

Fault = Callable[[DataError], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One record, where it is (for messages) and its number from 0.

    `question`: the one question that a row is about, for sources that have a row per question.
    """

    where: str
    number: int
    record: Mapping[str, Any]
    question: str | None = None


class Form(NamedTuple):
    """The form in which a file was read, in words; `plain`: the usual one of such files."""

    text: str
    plain: bool


def refuse(fault: DataError) -> None:
    """Raise it: no row may be bad."""
    raise fault


LONGEST_LINE = 10_000_000
"""Bytes that one line of a file may have, characters that one record of a JSON list may have."""
LARGEST_WHOLE = 500_000_000
"""Bytes of a file that is read whole: a JSON list, or text that is not UTF-8."""

_MARKS = {
    BOM_UTF32_LE: "utf-32", BOM_UTF32_BE: "utf-32", BOM_UTF16_LE: "utf-16", BOM_UTF16_BE: "utf-16",
}  # fmt: skip
_BINARY = {
    b"\x1f\x8b": "gzip; its name should end in .gz",
    b"\x28\xb5\x2f\xfd": "zstandard; its name should end in .zst",
    b"PK\x03\x04": "a zip file or an Excel table; unpack it, or save it as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel table; save it as CSV",
    b"PAR1": "parquet; its name should end in .parquet",
    b"ARROW1": "an Arrow file; write it as parquet",
    b"SQLite format 3": "an SQLite database; write its table as CSV",
    b"%PDF": "a PDF",
}
_ENCODINGS = [
    "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "koi8_r", "cp932",
    "euc_jp", "gb18030", "big5", "cp949", "cp850", "iso8859_2",
]  # fmt: skip
_CONTROL = re.compile(r"[\x00\x80-\x9f\ufffe\uffff]")
"""Characters that no text has: an encoding that gives one is a wrong one."""
_SAMPLE = 60_000
"""Bytes that an encoding is guessed from."""
_DISORDER = 0.1
"""Disorder of a text from which on old Macs' encoding is tried, too; it makes letters of quotes."""
_CLOSE = 0.02
"""Difference in disorder (charset-normalizer's `chaos`) that tells two encodings from another."""


def name_of(path: Path) -> str:
    """A path as messages show it."""
    return shorten(str(path), 300)


def open_bytes(path: Path) -> io.BufferedIOBase:
    """The bytes of a file, decompressed as its ending says."""
    name = path.name.lower()
    if name.endswith(".gz"):
        return gzip.GzipFile(path)
    if name.endswith(".zst"):
        import pyarrow as pa  # on use: the other files do without it

        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def read_whole(path: Path) -> bytes:
    """All bytes of a file, decompressed.

    Raises:
        DataError: more than LARGEST_WHOLE.
    """
    with open_bytes(path) as file:
        body = file.read(LARGEST_WHOLE + 1)
    if len(body) > LARGEST_WHOLE:
        raise DataError(
            "the file is too large to be read whole",
            where=name_of(path),
            found=f"over {LARGEST_WHOLE} bytes",
            wanted="a JSON list, or text that is not UTF-8, of at most that size",
            remedy="convert it to JSON lines in UTF-8, for example with jq -c '.[]' or iconv",
        )
    return body


def lines(path: Path, encoding: str | None) -> Iterator[tuple[str, str]]:
    """`file:line` and each line with its end; UTF-8 unless an encoding is named.

    Raises:
        DataError: another encoding, a line that is too long, no text.
    """
    for where, body in byte_lines(path, encoding):
        yield where, decode(body, where, path)


def first_lines(path: Path, encoding: str | None) -> list[str]:
    """The first two lines that are not blank, decoded loosely; empty where there are none."""
    _refuse_binary(path)
    with _open_utf8(path, encoding) as file:
        texts = (body.decode("utf-8", "replace").lstrip("\ufeff") for body in _split(file))
        full = (text for text in texts if text.strip())
        return [next(full, "").lstrip(), next(full, "")]


def decode(body: bytes, where: str, path: Path) -> str:
    """UTF-8 text; raises DataError with the encodings that would fit the whole file."""
    try:
        if b"\0" not in body:
            return body.decode("utf-8")  # no mark of UTF-16 or UTF-32 is valid UTF-8
        reason, near = "NUL bytes: UTF-16, or no text at all", body[:40]
    except UnicodeDecodeError as error:
        near = body[max(0, error.start - 20) : error.start + 20]
        reason = f"{error.reason} at byte {error.start} of the line"
    raise DataError(
        f"wrong encoding: {reason}",
        where=where,
        found=repr(near),
        wanted="UTF-8, or an encoding that the task file names",
        remedy=_remedy(path),
    )


def whole_text(path: Path, encoding: str | None) -> str:
    """All of a file's text; raises as `lines`."""
    _refuse_binary(path)
    if _is_utf8(encoding):
        body = read_whole(path).removeprefix(BOM_UTF8)
        try:
            body.decode("utf-8")
        except UnicodeDecodeError as error:
            line = body.count(b"\n", 0, error.start)
            decode(body.split(b"\n")[line], f"{name_of(path)}:{line + 1}", path)
        return decode(body, name_of(path), path)
    return _decoded(path, str(encoding))


def _is_utf8(encoding: str | None) -> bool:
    return encoding is None or codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")


def byte_lines(path: Path, encoding: str | None) -> Iterator[tuple[str, bytes]]:
    """As `lines`, but what should be UTF-8 is yet to be decoded, so that a line can be skipped."""
    _refuse_binary(path)
    name = name_of(path)
    with _open_utf8(path, encoding) as file:
        for number, body in enumerate(_split(file), start=1):
            where = f"{name}:{number}"
            if len(body) > LONGEST_LINE:
                raise DataError(
                    "the line is too long",
                    where=where,
                    found=f"over {LONGEST_LINE} bytes",
                    wanted="a record a line, UTF-8",
                    remedy="check the file's format; one large JSON list ends in .json",
                )
            yield where, body.removeprefix(BOM_UTF8) if number == 1 else body


def _open_utf8(path: Path, encoding: str | None) -> io.BufferedIOBase:
    """The bytes of a file; those of another named encoding as UTF-8."""
    if _is_utf8(encoding):
        return open_bytes(path)
    return io.BytesIO(_decoded(path, str(encoding)).encode())


def _split(file: io.BufferedIOBase) -> Iterator[bytes]:
    """Lines with their ends; carriage returns alone are ends in a file without line feeds."""
    first = file.readline(LONGEST_LINE + 1)
    if b"\r" in first.rstrip(b"\r\n") and not first.endswith(b"\n"):
        yield from re.findall(rb"[^\r]*\r|[^\r]+", first)
        return
    while first:
        yield first
        first = file.readline(LONGEST_LINE + 1)


def _refuse_binary(path: Path) -> None:
    """Refuse files of known binary formats, and text that is mostly control characters."""
    with open_bytes(path) as file:
        # One read of the compressed file: a file that breaks off is read as far as it goes.
        start = file.read1(4096)
    kind = next((kind for magic, kind in _BINARY.items() if start.startswith(magic)), None)
    control = sum(byte < 32 and byte not in b"\t\n\v\f\r\x1b" for byte in start)
    if kind is None and (b"\0" in start or control <= len(start) / 10):
        return
    raise DataError(
        "the file is no text",
        where=name_of(path),
        found=kind or repr(start[:40]),
        wanted="text; the ending of the name tells the format",
        remedy="name the right file, or rename this one",
    )


# ---- other encodings than UTF-8 -----------------------------------------------------------------


def is_utf8(path: Path) -> bool:
    """True if all of a file's bytes are UTF-8 without NULs."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open_bytes(path) as file:
        try:
            for part in iter(lambda: file.read(1_000_000), b""):
                if b"\0" in part:
                    return False
                decoder.decode(part)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True


def _decoded(path: Path, encoding: str) -> str:
    """A file's text in an encoding that the task file names.

    Raises:
        DataError: bytes that the encoding lacks, control characters, a file that is UTF-8.
    """
    body = read_whole(path)
    where, expected = name_of(path), f"text in {encoding}, as the task file says"
    try:
        text = body.decode(encoding).removeprefix("\ufeff")
    except UnicodeError as error:
        start = getattr(error, "start", 0)
        line = body.count(b"\n", 0, start) + 1
        raise DataError(
            f"wrong encoding: not {encoding}: {getattr(error, 'reason', error)}",
            where=f"{where}:{line}",
            found=repr(body[max(0, start - 20) : start + 20]),
            wanted=expected,
            remedy=_remedy(path),
        ) from error
    if match := _CONTROL.search(text):
        near = text[max(0, match.start() - 20) : match.start() + 20]
        line = text.count("\n", 0, match.start()) + 1
        raise DataError(
            f"wrong encoding: read as {encoding}, the text has control characters",
            where=f"{where}:{line}",
            found=repr(near),
            wanted=expected,
            remedy=_remedy(path),
        )
    if not body.isascii() and is_utf8(path):
        raise DataError(
            f"wrong encoding: the file is UTF-8, not {encoding}",
            where=where,
            found=repr(next(line for line in text.splitlines() if not line.isascii())[:80]),
            wanted=expected,
            remedy="remove encoding from the task file",
        )
    return text


class Guess(NamedTuple):
    """An encoding that all of a file's bytes fit, and a piece of the text that it gives."""

    encoding: str
    sample: str


def guess_encodings(path: Path) -> list[Guess]:
    """Encodings that fit a file that is not UTF-8, the likeliest first; at most three."""
    stat = path.stat()
    return list(_guesses(path, stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=4)
def _guesses(path: Path, changed: int, size: int) -> tuple[Guess, ...]:
    """As `guess_encodings`, once for each state of a file."""
    body = read_whole(path)
    fitting = []
    for encoding in _candidates(body):
        try:
            text = body.decode(encoding)
        except UnicodeError:
            continue
        if text and not _CONTROL.search(text):
            match = re.search(r"[^\x00-\x7f\ufeff]", text)
            foreign = match.start() if match else 0
            start = max(text.rfind("\n", 0, foreign) + 1, foreign - 20)
            sample = text[start : foreign + 30].strip("\ufeff").split()
            fitting.append(Guess(encoding, " ".join(sample)))
    return tuple(fitting[:3])


def _candidates(body: bytes) -> list[str]:
    for mark, encoding in _MARKS.items():
        if body.startswith(mark):
            return [encoding]
    if b"\0" in body:
        # Letters of most texts are below U+0100, so every second byte is NUL; line ends always are.
        nul_first = body[:_SAMPLE:2].count(0) > body[1:_SAMPLE:2].count(0)
        encoding, line_end = ("utf-16-be", b"\0\n") if nul_first else ("utf-16-le", b"\n\0")
        wide = body.count(line_end) * 2 > body.count(b"\n") or body.count(0) * 5 > len(body)
        return [encoding] if wide else []
    rows = body.splitlines(keepends=True)
    if sum(_fits(row) for row in rows) * 2 > sum(not row.isascii() for row in rows):
        return []  # most lines are UTF-8: the others are damaged
    foreign = b"".join(row for row in rows if not row.isascii())[:_SAMPLE]
    ranked = _ranked(foreign, _ENCODINGS)
    if not ranked or ranked[0].chaos > _DISORDER:
        ranked = _ranked(foreign, [*_ENCODINGS, "mac_roman"])
    close = [m for m in ranked if m.chaos <= ranked[0].chaos + _CLOSE]
    western = [m for m in close if str(m) == foreign.decode("cp1252", "replace")]
    return list(dict.fromkeys(["cp1252"] * bool(western) + [m.encoding for m in ranked]))


def _ranked(body: bytes, encodings: list[str]) -> list[charset_normalizer.CharsetMatch]:
    matches = charset_normalizer.from_bytes(body, cp_isolation=encodings)
    return sorted(matches, key=lambda match: match.chaos)


def _fits(row: bytes) -> bool:
    """True for a line of UTF-8 that is not ASCII."""
    try:
        row.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return not row.isascii()


def _remedy(path: Path) -> str:
    guesses = guess_encodings(path)
    if not guesses:
        return "fix or remove the line; most others are UTF-8, or no encoding fits the file"
    shown = "; or ".join(f"encoding: {g.encoding} (reads {g.sample!r})" for g in guesses)
    # iconv's names.
    first = guesses[0].encoding.replace("_", "-").replace("utf-16-", "utf-16").upper()
    first = first.replace("MAC-ROMAN", "MACINTOSH")
    return (
        f"under source in the task file, set {shown}. To convert the file: "
        f"iconv -f {first} -t UTF-8"
    )
