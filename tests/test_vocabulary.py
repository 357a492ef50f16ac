"""Tokenizers that adapters bring: the same tokens with the same ids, or the difference by name."""

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from mixtune.errors import ModelError
from mixtune.tokens.vocabulary import vocabulary


def saved(folder, words=("a", "b", "the", "cat"), added=("<end>",), change=None):
    ids = {word: number for number, word in enumerate(("[UNK]", *words))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(token) for token in added])
    if change:
        change(tokenizer)
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return vocabulary(folder / "tokenizer.json")


def lowered(tokenizer):
    tokenizer.normalizer = normalizers.Lowercase()


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        ({"added": ("<end>", "<tool>")}, "<tool>"),
        ({"added": ("<stop>",)}, "<stop>"),
        ({"words": ("b", "a", "the", "cat")}, "a"),
        ({"words": ("a", "b", "the", "cat", "dog")}, "<end>"),
        ({"change": lowered}, "The cat"),
    ],
)
def test_another_tokenizer_differs_by_name(tmp_path, settings, first):
    base, other = saved(tmp_path / "base"), saved(tmp_path / "other", **settings)
    assert other.differences(base)[0].startswith(first)


@pytest.mark.parametrize(
    "change", [None, lambda t: t.enable_truncation(2), lambda t: t.enable_padding()]
)
def test_what_changes_no_token_is_no_difference(tmp_path, change):
    assert saved(tmp_path / "a", change=change).differences(saved(tmp_path / "base")) == []


def test_no_file_says_nothing_and_a_broken_one_is_refused(tmp_path):
    assert vocabulary(tmp_path / "tokenizer.json") is None
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="the tokenizer cannot be read"):
        vocabulary(tmp_path / "tokenizer.json")
