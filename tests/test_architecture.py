"""The map in docs/architecture.md, enforced: who may import whom, and how heavy a room may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mixtune"

# room -> rooms it may import; a room may only name rooms above it, so there are no cycles.
MAY_IMPORT = {
    "errors": "",
    "identity": "",
    "signals": "",
    "records": "",
    "study": "errors",
    "store": "errors signals records study",
    "tokens": "errors identity records store",
    "tasks": "errors identity records study",
    "models": "errors identity records study store tokens tasks",
    "datasets": "errors identity records study tasks",
    "api": "errors identity signals records study store tasks models",
    "planning": "errors identity records study store tokens tasks models datasets api",
    "engine": "errors records study store tokens models",
    "evaluation": "errors identity records tasks models api",
    "execution": "errors identity signals records study store tokens models datasets api planning "
    "engine evaluation",
    "analysis": "errors identity records study tasks",
    "results": "errors identity records study store tasks models datasets api planning evaluation "
    "analysis",
    "report": "errors records study store tasks analysis results",
    "pack": "errors identity study store tasks results",
}
# room -> lines that it may have: what it has, up to the next ten. A verb that is added says which
# lines it costs and which it removes; docs/decisions/031-twenty-rooms.md has the goals.
LONGEST_FILE = 520
MOST_LINES = {
    "errors": 90,
    "identity": 100,
    "signals": 50,
    "records": 480,
    "study": 1490,
    "store": 1790,
    "tokens": 760,
    "tasks": 4400,
    "models": 1320,
    "datasets": 4600,
    "api": 1300,
    "planning": 2800,
    "engine": 4100,
    "evaluation": 540,
    "execution": 2190,
    "analysis": 3160,
    "results": 1620,
    "report": 1870,
    "pack": 560,
    "cli": 3430,
}
LIGHT = set(MAY_IMPORT) - {"engine", "execution"}
HEAVY = {"torch", "transformers", "peft", "accelerate", "vllm", "ray"}


def imports(room: str) -> set[tuple[str, str]]:
    """(file:line, dotted name) of every import in a room, wherever in the file it stands."""
    path = PACKAGE / room
    files = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    found = set()
    for file in files:
        package = ["mixtune", *file.relative_to(PACKAGE).parts[:-1]]
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                base += [node.module] if node.module else []
                names = [".".join([*base, alias.name]) for alias in node.names]
            else:
                continue
            found |= {(f"{file.name}:{node.lineno}", name) for name in names}
    return found


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_room_imports_only_what_the_map_allows(room):
    allowed = {room, *MAY_IMPORT[room].split()}
    for where, name in imports(room):
        parts = name.split(".")
        if parts[0] == "mixtune" and len(parts) > 1 and parts[1] in MAY_IMPORT:
            assert parts[1] in allowed, (
                f"{room}/{where} imports {name}; the map allows {sorted(allowed)}"
            )
        if room in LIGHT:
            assert parts[0] not in HEAVY, (
                f"{room}/{where} imports {name}; this room must run without a GPU stack"
            )


def test_the_map_reads_top_to_bottom():
    seen: set[str] = set()
    for room, allowed in MAY_IMPORT.items():
        assert set(allowed.split()) <= seen, (
            f"{room} may import a room below it, so a cycle is possible"
        )
        seen.add(room)


def test_every_room_is_on_the_map():
    rooms = {p.stem for p in PACKAGE.iterdir() if p.name[0] not in "_."}
    assert rooms - {"cli"} == set(MAY_IMPORT)


def modules(room: str) -> list[str]:
    """Dotted names of every module of a room."""
    path = PACKAGE / room
    files = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    names = [".".join(f.relative_to(PACKAGE.parent).with_suffix("").parts) for f in files]
    return [name.removesuffix(".__init__") for name in names]


@pytest.mark.parametrize("room", ["", *sorted(LIGHT)])
def test_light_rooms_load_nothing_heavy(room):
    """Catches what reading imports cannot: a heavy library pulled in through another room."""
    names = modules(room) if room else ["mixtune"]
    code = f"import sys, {', '.join(names)}; print(*({HEAVY!r} & set(sys.modules)))"
    run = [sys.executable, "-c", code]
    out = subprocess.run(run, capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert out.stdout.split() == [], f"importing {names} loads {out.stdout.split()}"


@pytest.mark.parametrize("room", MOST_LINES)
def test_a_room_keeps_to_its_lines(room):
    path = PACKAGE / room
    files = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    lines = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert sum(lines.values()) <= MOST_LINES[room], f"{room}: {sum(lines.values())} lines"
    long = [file for file, count in lines.items() if count > LONGEST_FILE]
    assert not long, f"longer than {LONGEST_FILE} lines: {long}"
