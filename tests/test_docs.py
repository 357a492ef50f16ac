"""What the documentation says is so: references current, links alive, commands and studies real."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import yaml
from engine_oracle import write_base

from mixtune.datasets.registry import Registry
from mixtune.study.reading import parse_study
from mixtune.study.spec import Study

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md"))
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
MINIMAL = {
    "name": "a",
    "model": "m",
    "tasks": ["fpb"],
    "ingredients": {"fpb": {}, "headline": {}, "alpaca": {}},
}


@pytest.fixture(scope="module")
def references():
    with pytest.MonkeyPatch.context() as patch:  # the script imports what lies beside it
        patch.syspath_prepend(str(ROOT / "docs"))
        yield load_references()


def load_references():
    spec = importlib.util.spec_from_file_location("references", ROOT / "docs/make_references.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def verbs(references):
    """Path of a verb → its options and how many arguments it takes at most (None: any)."""
    found = {}
    for path, command in references.commands():
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        many = any(p.nargs == -1 for p in arguments)
        options = {opt for p in command.params for opt in (*p.opts, *p.secondary_opts)}
        found[path] = (options | {"--help", "-h"}, None if many else len(arguments))
    return found


# ---- generated pages ----------------------------------------------------------------------------


def test_the_study_reference_is_what_the_code_says(references):
    page = (ROOT / "docs/study-file.md").read_text(encoding="utf-8")
    assert page == references.study_file(), "run make docs"


def test_the_command_reference_is_what_the_code_says(references):
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    assert page == references.command_line(), "run make docs"


def test_the_page_of_tasks_is_what_the_task_files_say(references):
    page = (ROOT / "docs/tasks.md").read_text(encoding="utf-8")
    assert page == f"{references.NOTE}\n{references.tasks_page()}", "run make docs"
    registry = Registry.builtin()
    for task in map(registry.get, registry.names()):
        assert task.synthetic == (f"\n## {task.name}\n" not in page), task.name


def test_the_study_reference_has_every_key_and_its_description(references):
    page = references.study_file()
    for key, text in every_key(Study):
        assert re.search(rf"^\| `{key}` \|.*{re.escape(text)} \|$", page, re.MULTILINE), key


def every_key(model):
    for key, field in model.model_fields.items():
        yield key, " ".join(field.description.split()).replace("|", "\\|")
        if hasattr(field.annotation, "model_fields"):
            yield from every_key(field.annotation)


def test_every_verbs_help_ends_with_the_next_command(references, verbs):
    for path, command in references.commands():
        last = re.search(r"Next: mixtune ([a-z]+)( [a-z]+)?\b[^.]*(\.yaml)?\.$", command.help)
        assert last, f"{' '.join(path)}: {command.help}"
        named = tuple(word.strip() for word in last.groups()[:2] if word)
        assert named in verbs or named[:1] in verbs, f"{' '.join(path)} names no verb: {named}"
        assert named != path


def test_every_option_says_what_it_does(references):
    for path, command in references.commands():
        for parameter in command.params:
            assert parameter.help, f"{' '.join(path)} {parameter.name}"


# ---- links --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_no_link_is_dead(name):
    page = ROOT / name
    text = without_code(page.read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"", text)
    for target in (a or b for a, b in targets):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{name} links to {target}"
        if anchor:
            assert anchor in anchors(there), f"{name} links to {target}: no such heading"


def without_code(text):
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def anchors(page):
    """Headings as they are linked to: lower case, punctuation gone, spaces as hyphens."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# ---- commands -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_one_that_there_is(name, verbs):
    for line in commands((ROOT / name).read_text(encoding="utf-8")):
        check(line, name, verbs)


@pytest.mark.parametrize(
    "line",
    ["mixtune plna study.yaml", "mixtune plan study.yaml --lmit 3", "mixtune schema a b"],
)
def test_a_wrong_command_would_be_seen(line, verbs):
    with pytest.raises(AssertionError):
        check(line, "page", verbs)


def commands(text):
    """Commands in fenced blocks and in code within a line."""
    blocks = re.findall(r"^```(?:sh|bash|console)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for block in blocks:
        lines = block.replace("\\\n", " ").splitlines()
        yield from (line.removeprefix("$ ") for line in lines if line.strip("$ ")[:8] == "mixtune ")
    yield from re.findall(r"`(mixtune [a-z-][^`]*)`", without_blocks(text))


def without_blocks(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def check(line, name, verbs):
    words = shlex.split(re.split(r" (?:&&|\||>) ", line)[0], comments=True)[1:]
    words = [word for word in words if word not in ("…", "[OPTIONS]")]
    if words[0].startswith("--"):
        assert words[0] in ("--help", "--version", "--install-completion"), f"{name}: {line}"
        return
    path = tuple(words[:2]) if tuple(words[:2]) in verbs else tuple(words[:1])
    assert path in verbs, f"{name}: no such verb: {line}"
    options, most = verbs[path]
    given = [word.partition("=")[0] for word in words if word.startswith("-")]
    assert set(given) <= options, f"{name}: no such option: {line}"
    plain = [word for word in words[len(path) :] if not word.startswith("-")]
    assert most is None or len(plain) <= most + len(given), f"{name}: too many words: {line}"


# ---- studies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_study_in_a_page_loads(name):
    for block in blocks((ROOT / name).read_text(encoding="utf-8"), "yaml"):
        for raw in yaml.safe_load_all(block):
            if isinstance(raw, dict) and raw.keys() <= set(Study.model_fields):
                parse_study(MINIMAL | raw, name)


def test_pages_hold_whole_studies():
    """Otherwise the test above could pass for want of any."""
    whole = [
        yaml.safe_load(block).keys() >= {"name", "model", "tasks", "ingredients"}
        for page in ("README.md", "docs/study-file.md")
        for block in blocks((ROOT / page).read_text(encoding="utf-8"), "yaml")
    ]
    assert sum(whole) >= 2


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


# ---- code ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's own
def test_an_adapter_loads_as_the_faq_says(tmp_path):
    from transformers import AutoModelForCausalLM

    from mixtune.engine.model import LocalModel
    from mixtune.study.spec import EvalSpec, TrainSpec
    from mixtune.tokens import Tokens

    base = write_base(tmp_path / "base", "llama")
    tokens = Tokens.load(base)
    model = LocalModel.load(base, tokens, TrainSpec(rank=2, alpha=4), EvalSpec())
    model.reset(1)
    model.bank.weights += 0.1
    adapter = tmp_path / "runs" / "a" / "cells" / "id-toy-mood-s1" / "adapter"
    model.save_adapter(adapter, "base")
    faq = (ROOT / "docs/faq.md").read_text(encoding="utf-8")
    (code,) = blocks(faq, "python")
    named = {"BASE": str(base), "ADAPTER": str(adapter)}
    for name, value in named.items():
        code, count = re.subn(rf"^{name} = .*$", f"{name} = {value!r}", code, flags=re.MULTILINE)
        assert count == 1
    found: dict[str, object] = {}
    exec(compile(code, "faq.md", "exec"), found)
    merged = dict(found["merged"].named_parameters())
    plain = dict(AutoModelForCausalLM.from_pretrained(base).named_parameters())
    assert merged.keys() == plain.keys()
    changed = {name for name in plain if not plain[name].equal(merged[name])}
    assert len(changed) == len(model.bank.layers)
    assert found["tokenizer"]("a").input_ids
