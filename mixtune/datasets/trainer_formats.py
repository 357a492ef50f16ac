"""Import dataset entries of other trainers' files as ingredients: LLaMA-Factory and Axolotl.

An entry that has no equivalent here is listed, and refused with its reason when it is used, so that
one strange entry does not make the others unusable.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from mixtune.datasets.arrow_rows import is_saved
from mixtune.datasets.rows import Fault, Row, refuse
from mixtune.datasets.sources import Reader, RegisteredTask
from mixtune.errors import DataError, did_you_mean, shorten
from mixtune.records import Split
from mixtune.study.fields import slug
from mixtune.study.yaml import read_file
from mixtune.tasks.record import COLUMNS
from mixtune.tasks.source_spec import ending
from mixtune.tasks.task import make_task

Raw = dict[str, Any]

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class _Unsupported(Exception):
    """Reason why an entry cannot be used here."""


class _RefusingReader(Reader):
    """Reader of an unsupported entry: raises the reason on every use."""

    def __init__(self, where: str, reason: str) -> None:
        self._where = where
        self.about = self.unavailable = f"cannot be used: {reason}"

    def has(self, split: Split) -> bool:
        self._refuse()

    def rows(self, split: Split, fault: Fault = refuse) -> Iterator[Row]:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise DataError(
            f"this entry {self.about}",
            where=self._where,
            remedy="leave it out of the study, or write a task file for it (docs/your-own-task.md)",
        )


def factory_tasks(path: Path) -> list[RegisteredTask]:
    """The datasets of LLaMA-Factory's dataset_info.json; file names start from its folder.

    Raises:
        DataError: not a JSON object of objects, names that become the same.
    """
    where = shorten(str(path), 300)
    try:
        raw = json.loads(read_file(path, DataError))
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON: {shorten(str(error), 200)}", where=where) from error
    entries = list(raw.values()) if isinstance(raw, dict) else [raw]
    objects = all(isinstance(entry, dict) for entry in entries)
    # Other objects of objects would be datasets that cannot be used, and no problem.
    if not objects or (entries and not any(entry.keys() & _PLACES for entry in entries)):
        raise DataError(
            "not a dataset_info.json of LLaMA-Factory",
            where=where,
            found=raw,
            wanted='{"name": {"file_name": …, "formatting": …}, …}',
            remedy="for a file of rows, put the objects in a list, or one on each line",
        )
    return _import(raw, _factory, path, where)


def axolotl_tasks(config: Raw, path: Path) -> list[RegisteredTask]:
    """The datasets of an Axolotl configuration; local paths start from its folder.

    Raises:
        DataError: not a list of mappings with a path.
    """
    where = shorten(str(path), 300)
    entries = config["datasets"]
    if not isinstance(entries, list) or not all(
        isinstance(e, dict) and isinstance(e.get("path"), str) for e in entries
    ):
        raise DataError(
            "datasets: not a list of entries with a path", where=where, found=entries,
            wanted="datasets: [{path: …, type: …}, …]",
        )  # fmt: skip
    by_name: dict[str, Raw] = {}
    for entry in entries:
        files = entry.get("data_files")
        name = files if isinstance(files, str) else entry["path"]
        if ending(name):
            name = Path(name).name.removesuffix(ending(name) or "")
        while name in by_name:
            stem, _, count = name.rpartition("-")
            name = f"{stem}-{int(count) + 1}" if stem and count.isdigit() else f"{name}-2"
        by_name[name] = {"train_on_inputs": config.get("train_on_inputs"), **entry}
    return _import(by_name, lambda entry: _axolotl(entry, path.parent), path, where)


def _import(
    entries: Mapping[str, Raw], convert: Callable[[Raw], Raw], path: Path, where: str
) -> list[RegisteredTask]:
    """A task per entry; `convert` gives the keys of a task file, or raises _Unsupported."""
    tasks: list[RegisteredTask] = []
    names: dict[str, str] = {}
    for name, entry in entries.items():
        own_name = slug(name) or "dataset"
        if own_name in names:
            raise DataError(
                "two entries get the same name here", where=where,
                found=f"{names[own_name]} and {name}", wanted=own_name, remedy="rename one of them",
            )  # fmt: skip
        names[own_name] = name
        base: Raw = {"name": own_name, "title": shorten(name, 80) or own_name, "scored": False}
        place, reader = f"{where}: {shorten(name)}", None
        try:
            task = make_task({**base, **convert(entry)}, place, folder=path.parent)
        except (_Unsupported, DataError) as error:
            stub = {**base, "format": "messages", "source": {"given": {"what": where}}}
            task = make_task(stub, place)
            reader = _RefusingReader(place, str(error).splitlines()[0])
        tasks.append(RegisteredTask(task, where, reader))
    return tasks


def _refuse_unknown(entry: Raw, known: Mapping[str, str | None], kind: str) -> None:
    """Refuse keys that are not in `known`, and those that have a reason there."""
    for key, value in entry.items():
        if value is None or value is False or value == [] or value == {}:
            continue
        if key not in known:
            raise _Unsupported(f"{kind} {shorten(key)!r} is unknown; {did_you_mean(key, known)}")
        if known[key] is not None:
            raise _Unsupported(f"{kind} {key!r}: {known[key]}")


# ---- LLaMA-Factory ------------------------------------------------------------------------------

_PAIRS = "preferences are not trained on here"
_MEDIA = "pictures, film and sound are not supported"
_FACTORY_KEYS: dict[str, str | None] = dict.fromkeys(
    ("file_name", "hf_hub_url", "formatting", "columns", "tags", "subset", "split")
) | {
    "ranking": _PAIRS,
    "script_url": "loading scripts are not run",
    "cloud_file_name": "files in the cloud are not read; copy the file here",
    "ms_hub_url": "ModelScope is not read; give hf_hub_url or file_name",
    "om_hub_url": "Modelers is not read; give hf_hub_url or file_name",
    "folder": "a folder of the repository cannot be chosen",
    "num_samples": "say how many in the study: ingredients: {NAME: {rows: N}}",
}
_FACTORY_COLUMNS: dict[str, str | None] = dict.fromkeys(
    ("prompt", "query", "response", "history", "messages", "system")
) | {
    "tools": "calls of tools are not supported", "images": _MEDIA, "videos": _MEDIA,
    "audios": _MEDIA, "chosen": _PAIRS, "rejected": _PAIRS, "kto_tag": _PAIRS,
}  # fmt: skip
_FACTORY_TAGS = dict.fromkeys(
    ("role_tag", "content_tag", "user_tag", "assistant_tag", "system_tag", "observation_tag",
     "function_tag")
)  # fmt: skip
_FACTORY_NAMES = {
    "alpaca": {
        "prompt": "instruction", "query": "input", "response": "output", "history": "history",
        "system": "system",
    },
    "sharegpt": {"messages": "messages", "system": "system"},
}  # fmt: skip
_DEFAULT_COLUMNS = {
    "prompt": "instruction", "query": "input", "response": "output", "messages": "conversations",
}  # fmt: skip
_DEFAULT_TAGS = {
    "role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt",
    "system_tag": "system",
}  # fmt: skip
_PLACES = {
    "file_name", "hf_hub_url", "script_url", "cloud_file_name", "ms_hub_url", "om_hub_url",
}  # fmt: skip
_OTHER_PLACES = ("file_name", "script_url", "cloud_file_name", "ms_hub_url", "om_hub_url")


def _factory(entry: Raw) -> Raw:
    """Keys of a task file for an entry of dataset_info.json."""
    if entry.get("hf_hub_url"):
        entry = {key: value for key, value in entry.items() if key not in _OTHER_PLACES}
    _refuse_unknown(entry, _FACTORY_KEYS, "key")
    form = entry.get("formatting", "alpaca")
    if form not in ("alpaca", "sharegpt"):
        raise _Unsupported(f"formatting {shorten(form)!r}; alpaca and sharegpt can be")
    # LLaMA-Factory's defaults apply only where `columns`, or `tags`, is left out altogether.
    columns = _names(entry.get("columns", _DEFAULT_COLUMNS), "column", _FACTORY_COLUMNS)
    tags = _names(entry.get("tags", _DEFAULT_TAGS), "tag", _FACTORY_TAGS)
    names = {own: columns.get(name) for name, own in _FACTORY_NAMES[form].items()}
    raw: Raw = {"format": form, "columns": names, "source": _factory_source(entry)}
    if form == "alpaca":
        _need(columns, "columns", "prompt", "response")
        return raw
    _need(columns, "columns", "messages")
    _need(tags, "tags", "role_tag", "content_tag", "user_tag", "assistant_tag")
    names |= {"role": tags["role_tag"], "content": tags["content_tag"]}
    roles = [role for role in ("user", "assistant", "system") if f"{role}_tag" in tags]
    return {**raw, "roles": {tags[f"{role}_tag"]: role for role in roles}}


def _names(names: Any, kind: str, known: Mapping[str, str | None]) -> Raw:  # noqa: ANN401
    if not isinstance(names, dict) or not all(isinstance(v, str) for v in names.values()):
        raise _Unsupported(f"{kind}s is not an object of names")
    _refuse_unknown(names, known, kind)
    return names


def _need(names: Raw, part: str, *keys: str) -> None:
    for key in keys:
        if not names.get(key):
            raise _Unsupported(f"{part} has no {key!r}, which LLaMA-Factory cannot do without")


def _factory_source(entry: Raw) -> Raw | str:
    subset, split = entry.get("subset"), entry.get("split", "train")
    if hub := entry.get("hf_hub_url"):
        return {"hub": _hub(hub, subset, split)}
    name = entry.get("file_name")
    if not isinstance(name, str):
        raise _Unsupported("it names no file_name and no hf_hub_url")
    if subset or split != "train":
        raise _Unsupported("subset and split are for datasets on the hub")
    return name


def _hub(path: object, config: object, split: object, revision: object = None) -> Raw:
    if not isinstance(path, str) or not _HUB.fullmatch(path):
        raise _Unsupported(f"{shorten(path)} is no dataset on the hub (organisation/name)")
    splits = {"train": split}
    return {
        "path": path, "config": config, "splits": splits, "revision": revision, "unverified": True,
    }  # fmt: skip


# ---- Axolotl ------------------------------------------------------------------------------------

_AXOLOTL_KEYS: dict[str, str | None] = dict.fromkeys(
    ("path", "type", "name", "data_files", "ds_type", "split", "revision", "field_messages",
     "message_property_mappings", "message_field_role", "message_field_content", "roles",
     "roles_to_train", "field_system", "conversation")
) | {
    "shards": "say how many rows in the study: ingredients: {NAME: {rows: N}}",
    "train_on_inputs": "the answers are what is learnt, not the prompts",
    "trust_remote_code": "loading scripts are not run",
    "chat_template": "the base model's own chat template is used; leave this out",
    "train_on_eos": "the end of turn is always learnt; leave this out",
    "message_field_training": "single turns cannot be masked here",
    "message_field_training_detail": "single turns cannot be masked here",
}  # fmt: skip
_AXOLOTL_TYPES = {"alpaca": "alpaca", "chat_template": "messages", "sharegpt": "sharegpt"}
_USER_FIELDS = {
    "field_instruction": "instruction", "field_input": "input", "field_output": "output",
    "field_system": "system",
}  # fmt: skip
_BUILDERS = ("json", "csv", "parquet")


def _axolotl(entry: Raw, folder: Path) -> Raw:
    """Keys of a task file for an entry of Axolotl's `datasets:`."""
    _refuse_unknown(entry, _AXOLOTL_KEYS, "key")
    source = _axolotl_source(entry, folder)
    kind = entry.get("type")
    if kind == "completion":
        raise _Unsupported("plain text has no question: training on it is not supported")
    if isinstance(kind, dict):  # a prompt that the user composed field by field
        for key in kind.keys() - set(_USER_FIELDS):
            problem = "prompts put together by hand are not imported"
            raise _Unsupported(f"type.{shorten(key)}: {problem}")
        columns = {"history": None, **{_USER_FIELDS[key]: value for key, value in kind.items()}}
        return {"format": "alpaca", "columns": columns, "source": source}
    if not isinstance(kind, str) or kind not in _AXOLOTL_TYPES:
        raise _Unsupported(f"type {shorten(kind)}; {', '.join(_AXOLOTL_TYPES)} can be")
    form = _AXOLOTL_TYPES[kind]
    if form == "alpaca":
        return {"format": form, "columns": {"system": None, "history": None}, "source": source}
    raw: Raw = {"format": form, "source": source, "columns": _message_columns(entry, form)}
    return {**raw, "roles": _roles(entry)}


def _message_columns(entry: Raw, form: str) -> Raw:
    """`columns` of a task file; Axolotl's newer `message_property_mappings` goes first."""
    mapped = entry.get("message_property_mappings") or {}
    if not isinstance(mapped, dict) or mapped.keys() - {"role", "content"}:
        raise _Unsupported(f"message_property_mappings {shorten(mapped)}; role and content can be")
    default = COLUMNS[form]
    role = mapped.get("role") or entry.get("message_field_role") or default["role"]
    content = mapped.get("content") or entry.get("message_field_content") or default["content"]
    messages = entry.get("field_messages") or default["messages"]
    system = entry.get("field_system") or "system"
    return {"messages": messages, "role": role, "content": content, "system": system}


def _roles(entry: Raw) -> Raw:
    if entry.get("roles_to_train") not in (None, ["assistant"], ["gpt"], ["assistant", "gpt"]):
        raise _Unsupported("roles_to_train: the assistant's turns are what is learnt")
    roles = entry.get("roles") or {}
    if not isinstance(roles, dict) or not all(isinstance(v, list) for v in roles.values()):
        raise _Unsupported("roles is not a mapping of lists")
    return {str(name): role for role, names in roles.items() for name in names}


def _axolotl_source(entry: Raw, folder: Path) -> Raw | str:
    path, files, split = entry["path"], entry.get("data_files"), entry.get("split", "train")
    if isinstance(files, list) and len(files) == 1:
        files = files[0]
    if files is not None and not isinstance(files, str):
        raise _Unsupported("several data_files; give each an entry of its own")
    if files is not None and path not in _BUILDERS:
        raise _Unsupported("data_files of a dataset on the hub cannot be chosen")
    local = files or path
    if files is not None or ending(local) or (folder / local).exists():
        if split != "train":
            raise _Unsupported("split is for datasets on the hub")
        if not ending(local) and not is_saved(folder / local):
            raise _Unsupported(f"{shorten(local)} is no file that rows are read from")
        return local
    return {"hub": _hub(path, entry.get("name"), split, entry.get("revision"))}
