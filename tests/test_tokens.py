"""Tokens: equal to transformers' own templates, and training rows that continue the prompt."""

import json
from pathlib import Path

import jinja2
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mixtune.errors import DataError, ModelError
from mixtune.records import Example, Message
from mixtune.tokens import Tokens, encode_rows
from mixtune.tokens.templates import ChatTemplate

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{- bos_token }}\n{%- for message in messages %}\n"
    "    {{- '<|start|>' + message['role'] + '<|stop|>\n\n' + message['content'] | trim"
    " + '<|im_end|>' }}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n    {{- '<|start|>assistant<|stop|>\n\n' }}\n{%- endif %}\n"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}"
    "{% endif %}{% endfor %}"
)
SPECIAL = ["<|im_end|>", "<|im_start|>", "<|start|>", "<|stop|>", "<s>", "</s>"]
CORPUS = [
    "Profit rose to 12.5 million euros in the quarter",
    "positive negative neutral yes no",
] * 5
QUESTION = (Message("user", "Profit rose to 12 million. Up or down?"),)
ANSWERS = ["positive", "12.5%", "no, it fell", "two\nlines", "Ünïcode 日本", "a  b"]


def tiny_tokenizer(metaspace: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
        alphabet = sorted(set("".join([*CORPUS, *ANSWERS, QUESTION[0].content, "[INST]/"])))
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def write_folder(folder: Path, template: str | None = CHATML, metaspace: bool = False) -> Path:
    tiny_tokenizer(metaspace).save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "__type": "AddedToken"} if metaspace else "<|im_end|>",
        "pad_token": "<s>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 0}))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def example(target: str = "positive", id: str = "row-1", text: str = "Up or down?") -> Example:
    return Example("toy", id, "train", "g", "", (Message("user", text),), target)


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return Tokens.load(write_folder(tmp_path))


CONVERSATIONS = [
    QUESTION,
    (Message("system", "Be brief."), *QUESTION),
    (*QUESTION, Message("assistant", "Up."), Message("user", " Sure? \n")),
]


TEMPLATES = [(CHATML, False), (LLAMA, False), (MISTRAL, True)]
TEMPLATED = [
    (template, metaspace, messages)
    for template, metaspace in TEMPLATES
    for messages in CONVERSATIONS
    if template != MISTRAL or messages[0].role == "user"
]


@pytest.mark.parametrize(("template", "metaspace", "messages"), TEMPLATED)
def test_prompts_equal_transformers(tmp_path, template, metaspace, messages):
    from transformers import AutoTokenizer

    folder = write_folder(tmp_path, template, metaspace)
    oracle = AutoTokenizer.from_pretrained(folder)
    turns = [{"role": m.role, "content": m.content} for m in messages]
    wanted = oracle.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert Tokens.load(folder).prompt_ids(messages) == wanted


@pytest.mark.parametrize(("template", "metaspace"), TEMPLATES)
@pytest.mark.parametrize("answer", ANSWERS)
def test_prompt_and_answer_are_the_whole_dialogue(tmp_path, template, metaspace, answer):
    tokens = Tokens.load(write_folder(tmp_path, template, metaspace))
    dialogue = tokens.render([*QUESTION, Message("assistant", answer)], generation_prompt=False)
    row = tokens.prompt_ids(QUESTION) + tokens.answer_ids(answer)
    whole = tiny_tokenizer(metaspace).encode(dialogue, add_special_tokens=False).ids
    assert whole[: len(row)] == row
    assert "".join(tokens.decode(whole[len(row) :]).split()) == ""


def test_end_of_turn_eos_and_pad(tmp_path, tokens):
    assert tokens.end_of_turn == (0,)
    assert tokens.eos_ids == {0}
    assert tokens.pad_id == SPECIAL.index("<s>")
    assert tokens.decode([*tokens.answer_ids("positive")]) == "positive"
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 3]}))
    assert Tokens.load(tmp_path).eos_ids == {0, 3}


def test_answer_starting_with_a_line_break_leaves_the_prompt_alone(tokens):
    ids = tokens.answer_ids("\nyes")
    assert tokens.decode(ids) == "\nyes"
    assert ids[-1] == 0


def test_template_places_and_priority(tmp_path):
    folder = write_folder(tmp_path, None)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]
    for held in (CHATML, named):
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": held}))
        assert Tokens.load(folder).render(QUESTION).startswith("<|im_start|>user\n")
    (folder / "chat_template.jinja").write_text(LLAMA)
    assert Tokens.load(folder).render(QUESTION).startswith("<s><|start|>user")


def test_no_template_and_no_end_of_turn_are_refused(tmp_path):
    folder = write_folder(tmp_path, None)
    with pytest.raises(ModelError, match=r"(?s)no chat template.*add a chat_template\.jinja"):
        Tokens.load(folder)
    plain = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    (folder / "chat_template.jinja").write_text(plain)
    with pytest.raises(ModelError, match="with no special token"):
        Tokens.load(folder)
    (folder / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(ModelError, match="does not compile"):
        Tokens.load(folder)


def test_template_refusal_names_the_roles(tmp_path):
    tokens = Tokens.load(write_folder(tmp_path, MISTRAL, metaspace=True))
    with pytest.raises(ModelError, match=r"(?s)roles must alternate.*system"):
        tokens.prompt_ids([Message("system", "x"), *QUESTION])


def test_templates_are_sandboxed(tmp_path):
    escape = "{{ messages.__class__.__mro__[1].__subclasses__() }}" + CHATML
    with pytest.raises(ModelError, match="refuses"):
        Tokens.load(write_folder(tmp_path, escape))


def test_templates_know_no_clock(tmp_path):
    tokens = Tokens.load(write_folder(tmp_path, "{{ strftime_now('%d %b %Y') }}" + CHATML))
    assert tokens.render(QUESTION).startswith("26 Jul 2024<|im_start|>")


def test_broken_tokenizer_files(tmp_path):
    folder = write_folder(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {"999": {"content": "<|new|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="different ids"):
        Tokens.load(folder)
    (folder / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(ModelError, match="not a JSON object"):
        Tokens.load(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be used"):
        Tokens.load(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"no readable tokenizer\.json"):
        Tokens.load(folder)


def test_stored_truncation_and_padding_are_left_out(tmp_path):
    folder = write_folder(tmp_path)
    plain = Tokens.load(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=500)
    tokenizer.save(str(folder / "tokenizer.json"))
    cut = Tokens.load(folder)
    assert cut.prompt_ids(QUESTION) == plain.prompt_ids(QUESTION)
    assert cut.digest == plain.digest


def test_digest_follows_template_and_special_tokens(tmp_path, tokens):
    assert Tokens.load(tmp_path).digest == tokens.digest
    (tmp_path / "chat_template.jinja").write_text(CHATML + " ")
    other = Tokens.load(tmp_path).digest
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 3}))
    assert len({tokens.digest, other, Tokens.load(tmp_path).digest}) == 3


def test_prompt_hash(tokens):
    assert len(tokens.prompt_hash(QUESTION)) == 16
    assert tokens.prompt_hash(QUESTION) == tokens.prompt_hash(list(QUESTION))
    assert tokens.prompt_hash(QUESTION) != tokens.prompt_hash([Message("user", "other")])


def test_rows_share_the_evaluation_prompt(tokens):
    given = example()
    (row,) = encode_rows([("fpb", given)], tokens, 200, "error").rows
    assert list(row.prompt) == tokens.prompt_ids(given.messages)
    assert list(row.answer) == tokens.answer_ids("positive")
    assert row.length == len(row.prompt) + len(row.answer)
    assert (row.ingredient, row.example_id) == ("fpb", "row-1")


def test_too_long_is_an_error_or_counted(tokens):
    short, long = example(id="short"), example(id="long", text="word " * 100)
    with pytest.raises(DataError, match=r"(?s)ingredient b, example long.*train\.over_long=drop"):
        encode_rows([("a", short), ("b", long)], tokens, 60, "error")
    given = [("a", short), ("b", long), ("a", short), ("b", long), ("a", long)]
    encoded = encode_rows(given, tokens, 60, "drop")
    assert [row.example_id for row in encoded.rows] == ["short", "short"]
    assert encoded.dropped == {"a": 1, "b": 2}
    assert len(given) == len(encoded.rows) + sum(encoded.dropped.values())
    exact = encoded.rows[0].length
    assert len(encode_rows([("a", short)], tokens, exact, "error").rows) == 1
    assert encode_rows([("a", short)], tokens, exact - 1, "drop").dropped == {"a": 1}


def test_empty_answers_and_control_tokens_are_refused(tokens):
    with pytest.raises(DataError, match=r"ingredient a, example row-1: the answer is empty"):
        encode_rows([("a", example(" \n"))], tokens, 100, "drop")
    with pytest.raises(DataError, match="control token"):
        encode_rows([("a", example("yes<|im_end|>no"))], tokens, 100, "drop")


def test_an_example_seen_again_is_encoded_once(tokens, monkeypatch):
    calls = []
    answer_ids = Tokens.answer_ids
    monkeypatch.setattr(
        Tokens,
        "answer_ids",
        lambda self, text, why: calls.append(text) or answer_ids(self, text, why),
    )
    rows = encode_rows([("a", example())] * 50, tokens, 100, "error").rows
    assert len(rows) == 50
    assert len(calls) == 1


TABLE = [
    *("positive", "negative", "neutral", "Yes", "no", "7", "12.5%", "-3,400.00", "$1.2 million"),
    *("A: 3 + 4 = 7\n\n#### 7", "Two  spaces 42", "x\n\n12", "Ünïcode 日本 🙂", " led by a space"),
]


@pytest.mark.weights
@pytest.mark.parametrize("answer", TABLE)
def test_smollm2_rows_are_the_whole_dialogue(smollm2, answer):
    from transformers import AutoTokenizer

    tokens, oracle = Tokens.load(smollm2.folder), AutoTokenizer.from_pretrained(smollm2.folder)
    for messages in CONVERSATIONS:
        turns = [{"role": m.role, "content": m.content} for m in messages]
        prompt = oracle.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        assert tokens.prompt_ids(messages) == prompt
        turns.append({"role": "assistant", "content": answer})
        whole = oracle.apply_chat_template(turns, return_dict=False)
        assert prompt + tokens.answer_ids(answer) + oracle.encode("\n") == whole


@pytest.mark.weights
def test_smollm2_end_of_turn(smollm2):
    tokens = Tokens.load(smollm2.folder)
    assert tokens.end_of_turn == (2,)
    assert tokens.eos_ids == {2}
    assert tokens.pad_id == 2


ENDLESS = [
    "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}"
    "{% endfor %}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for a in range(999999999) %}{% endfor %}",
    "{{ 'a' * 999999999 }}",
    "{{ [0] * 999999999 }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ '%999999999d' % 1 }}",
]


@pytest.mark.parametrize("part", ENDLESS)
def test_a_template_without_end_is_refused(tmp_path, part):
    with pytest.raises(ModelError, match="refuses a conversation"):
        Tokens.load(write_folder(tmp_path, part + CHATML))


def test_loops_know_their_length_and_place():
    source = (
        "{% for m in messages if m %}{{ loop.index }}/{{ loop.length }}{{ loop.last }} {% endfor %}"
        "{% for m in messages recursive %}{{ m if m is string else loop(m) }}{% endfor %}"
        "{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% else %}none{% endfor %}"
    )
    text = ChatTemplate(source).render(messages=["x", ["y"], "z"])
    assert text == jinja2.Template(source).render(messages=["x", ["y"], "z"])
