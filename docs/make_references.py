"""Write docs/study-file.md, docs/cli.md and docs/tasks.md from the code: `make docs`.

`python docs/make_references.py --check` exits with 1 when a file is not what the code says.

Knows: the study's JSON Schema, the commands' tree. Does not know: what any of it does, tasks
(make_tasks.py).
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
from make_tasks import tasks_page

from mixtune.cli.app import app
from mixtune.cli.init import SECTIONS, json_schema
from mixtune.study.aliases import ALIASES, FIXED, FORMS

DOCS = Path(__file__).parent
NOTE = "<!-- Written by `make docs`; changes made here by hand are lost. -->"
Schema = dict[str, Any]
Command = Parameter = Any  # click's; typer carries a click of its own or uses the installed one

# ---- the study file -----------------------------------------------------------------------------

STUDY = """# The study file

A study is one YAML file. Four keys are required, the others have defaults:

```yaml
name: mine
model: smollm2-135m
tasks: [fpb, headline]
ingredients: [fpb, headline]
```

`mixtune init` writes a file with every key, its default and its description. `mixtune schema`
prints the JSON Schema that this page is made from. `runs/<name>/study.yaml` has a study with all
defaults filled in. Any key can be set for one command:
`mixtune plan study.yaml train.lr=3e-4 'seeds=[1,2]'`.

Editors with a YAML language server can complete and check a study file: run
`mixtune schema > study.schema.json`, and make the study's first line
`# yaml-language-server: $schema=study.schema.json`.

The file is read as YAML 1.2: `1e-4` is a number, `no` and `yes` are strings. An unknown key is
refused, with suggestions; so are repeated keys and contradictory settings.
"""

EXAMPLES = {
    "Ingredient": """ingredients:
  fpb: {rows: 1600}                  # a pool of 1,600 rows
  headline: {repeat: 0.5}            # half a pass over all rows
  alpaca: {share: 0.2, unit: tokens} # a fifth of the tokens""",
    "Design": """design:
  families: [singles, all]
  explicit: [[fpb, alpaca], [headline, alpaca]]""",
    "Level": """design:
  levels:
    - {name: general, add: [alpaca], to: [fpb, headline], shares: [0, 0.01, 0.1, 0.5]}""",
    "Budget": """budget: {steps: 200, examples_per_step: 16}""",
    "TrainSpec": """train: {rank: 8, alpha: 16, lr: 5.0e-4, over_long: drop}""",
    "EvalSpec": """evaluate: {validation_items: 150, test_items: 300, forms: [constrained]}""",
    "LongContext": """tasks: [fpb, finqa]
contexts:
  finqa: {policy: evidence-first, words: 200}""",
    "Flaws": """flaws: {packing_leaks: true}""",
    "ApiEntry": """api_models:
  - gpt-4o
  - {name: mine, model: smollm2, base_url: "http://127.0.0.1:8000/v1", shots: 3}""",
    "ApiSpec": """api: {max_cost: 2.5, concurrency: 4}""",
    "Gate": """probes: [mmlu-finance, gsm8k]
general: alpaca
gate: {retention: -0.02, probes: [mmlu-finance]}""",
    "Claims": """claims: {margin: 0.01, fresh_seeds: 5, tune_lr: [5.0e-4], single_runs: 6}""",
}
INNER = {"Ingredient": ".<name>", "LongContext": ".<name>", "Level": "[]", "ApiEntry": "[]"}
"""Sections that are each of several → how that is written."""
SHORT = {
    "headline:10000": "a pool of 10,000 rows",
    "fpb": "all rows",
    "ner*3": "three passes over all rows",
    "ner:500*3": "three passes over a pool of 500 rows",
    "0.2*orca": "a fifth of the mix, in rows",
}
LIMITS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {}",
    "minProperties": "at least {}",
}


def study_file() -> str:
    """The page on the study file."""
    schema = json_schema("study")
    sections = schema["$defs"]
    lines = [NOTE, STUDY, "## Top level", "", *_keys(schema, schema)]
    titles = {"Ingredient": "ingredients", "Design": "design", "EvalSpec": "evaluate"}
    titles |= {"ApiEntry": "api_models", "ApiSpec": "api", "Gate": "gate", "Claims": "claims"}
    titles |= {"Level": "design.levels", "LongContext": "contexts", "Flaws": "flaws"}
    titles |= {name: key for key, name in SECTIONS.items()}
    for name in EXAMPLES:
        key = titles[name]
        heading = f"`{key}{INNER.get(name, '')}`"
        lines += ["", f"## {heading}", "", _one_line(sections[name]["description"]), ""]
        given = {} if name in INNER else schema["properties"][key].get("default", {})
        lines += _keys(_with_defaults(sections[name], given), schema)
        lines += ["", "```yaml", EXAMPLES[name], "```"]
        if name == "Ingredient":
            lines += ["", *_short_amounts()]
    return "\n".join([*lines, "", *_other_names()]) + "\n"


def _with_defaults(section: Schema, given: Schema) -> Schema:
    """A section whose keys have the defaults that a study gives them."""
    keys = {key: dict(spec) for key, spec in section["properties"].items()}
    for key in keys.keys() & given.keys():
        keys[key]["default"] = given[key]
    return {"properties": keys}


def _keys(section: Schema, root: Schema) -> Iterator[str]:
    yield "| key | type | default | limits | |"
    yield "|---|---|---|---|---|"
    for key, spec in section["properties"].items():
        alias = key in ALIASES and spec.get("description") == f"Read as {ALIASES[key]}."
        if alias or key in FIXED:
            continue
        default = f"`{json.dumps(spec['default'])}`" if "default" in spec else "required"
        default = "below" if default.startswith("`{") else default
        about = _one_line(spec.get("description", ""))
        kind, limits = _type(spec, root), ", ".join(dict.fromkeys(_limits(spec)))
        yield f"| `{key}` | {kind} | {default} | {limits} | {_cell(about)} |"


def _type(spec: Schema, root: Schema) -> str:
    if "anyOf" in spec:
        kinds = [_type(one, root) for one in spec["anyOf"]]
        return " or ".join(dict.fromkeys(kinds))
    if "$ref" in spec:
        return "section"
    if "const" in spec:
        return f"`{spec['const']}`"
    if "enum" in spec:
        return ", ".join(f"`{value}`" for value in spec["enum"])
    if spec.get("type") == "array":
        return f"list of {_type(spec['items'], root)}"
    names = {"string": "text", "integer": "whole number", "object": "mapping", "null": "null"}
    kind = spec.get("type", "any")
    return "name" if "pattern" in spec else str(names.get(kind, kind))


def _limits(spec: Schema) -> Iterator[str]:
    for key, words in LIMITS.items():
        if key in spec and (key, spec[key]) != ("minLength", 1):
            yield words.format(f"{spec[key]:,}" if spec[key] < 10**12 else f"{spec[key]:.3g}")
    for inner in [*spec.get("anyOf", ()), *([spec["items"]] if "items" in spec else ())]:
        yield from _limits(inner)


def _short_amounts() -> Iterator[str]:
    yield "Amounts have a short form, as one string or as a list:"
    yield "`ingredients: headline:10000, fpb, ner*3`. The forms are:"
    yield f"{FORMS}."
    yield ""
    yield "| short | means |"
    yield "|---|---|"
    yield from (f"| `{short}` | {means} |" for short, means in SHORT.items())


def _other_names() -> Iterator[str]:
    yield "## Keys of other tools"
    yield ""
    yield "Key names of other trainers are accepted, at the top level or in their section. Setting"
    yield "a key under two names to different values is refused."
    yield ""
    yield "| key | other names |"
    yield "|---|---|"
    for own in dict.fromkeys(ALIASES.values()):
        names = ", ".join(f"`{alias}`" for alias, key in ALIASES.items() if key == own)
        yield f"| `{own}` | {names} |"
    yield ""
    yield "Not supported:"
    yield ""
    yield "| key | accepted | why |"
    yield "|---|---|---|"
    for key, (allowed, why) in FIXED.items():
        accepted = "never" if allowed is None else f"`{json.dumps(allowed)}` only"
        yield f"| `{key}` | {accepted} | {_cell(why)} |"


# ---- the command line ---------------------------------------------------------------------------

CLI = """# The command line

`mixtune COMMAND STUDY.yaml [KEY.SUB=VALUE]...`. With `--json`, standard output contains only JSON;
notes and progress go to standard error. `mixtune --install-completion` installs shell completion of
commands, options, study files, tasks and models. `mixtune --version` prints the version. Set
`NO_COLOR` to disable colours.

| exit code | meaning |
|---|---|
| 0 | success |
| 1 | a run failed; finished results are kept, and the same command retries |
| 2 | error in usage, configuration, data or file access; the message names the remedy |
| 3 | the command succeeded, but a threshold was not met |
| 130 | stopped by Ctrl-C; finished results are kept (143: SIGTERM, 129: terminal closed) |
| 141 | the reader of the output, such as `head`, closed it |
"""


def command_line() -> str:
    """The page on the command line."""
    lines = [NOTE, CLI]
    for path, command in commands():
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
        usage = " ".join(["mixtune", *path, *map(_metavar, arguments), "[OPTIONS]" * bool(options)])
        lines += [f"## mixtune {' '.join(path)}", "", _help(command), "", "```", usage, "```"]
        rows = [_parameter(parameter) for parameter in (*arguments, *options)]
        lines += ["", "| | | default |", "|---|---|---|", *rows] if rows else []
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def commands() -> Iterator[tuple[tuple[str, ...], Command]]:
    """Every verb with its path, in the order of `mixtune --help`."""
    return _below((), typer.main.get_command(app))


def _below(path: tuple[str, ...], command: Command) -> Iterator[tuple[tuple[str, ...], Command]]:
    for name, inner in getattr(command, "commands", {}).items():
        yield from _below((*path, name), inner)
    if path and not hasattr(command, "commands"):
        yield path, command


def _help(command: Command) -> str:
    paragraphs = (command.help or "").split("\n\n")
    return "\n\n".join(_one_line(paragraph) for paragraph in paragraphs)


def _metavar(parameter: Parameter) -> str:
    """An argument or option as it is typed."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper())
    kind = parameter.type_descriptor.annotation
    words = {bool: "", int: " N", float: " X"}
    listed = get_args(kind)[0] if get_origin(kind) is list else kind
    value = "|".join(get_args(listed)) if get_origin(listed) is Literal else ""
    typed = " PATH" if listed is Path else " TEXT"
    return str(parameter.opts[0]) + (f" {value}" if value else words.get(listed, typed))


def _parameter(parameter: Parameter) -> str:
    about = _one_line(parameter.help or "")
    variable = f" Environment variable: `{parameter.envvar}`." if parameter.envvar else ""
    default = parameter.default
    shown = "" if default in (None, False, "", ()) else f"`{default}`"
    shown = "required" if parameter.required else shown
    about = _cell(about + variable).replace("<", "&lt;")
    return f"| `{_cell(_metavar(parameter))}` | {about} | {shown} |"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    """Write the pages, or check them."""
    stale = []
    tasks = f"{NOTE}\n{tasks_page()}"
    pages = {"study-file.md": study_file(), "cli.md": command_line(), "tasks.md": tasks}
    for name, text in pages.items():
        path = DOCS / name
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
    if stale:
        sys.stderr.write(f"not what the code says: {', '.join(stale)}; run make docs\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
