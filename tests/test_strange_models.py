"""Models and adapters of strangers: bounded in time and memory, refused with the reason."""

import contextlib
import json
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_kit import write_model

from mixtune.engine.adapter_format import AdapterConfig
from mixtune.errors import ModelError
from mixtune.models.files import describe
from mixtune.models.gguf_header import check_header


@pytest.fixture(autouse=True)
def quick():
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 20


def gguf(tensors=0, keys=0, rest=b"", version=3, magic=b"GGUF"):
    return magic + struct.pack("<IQQ", version, tensors, keys) + rest


def text(value):
    return struct.pack("<Q", len(value)) + value


def many(kind, count):
    return text(b"k") + struct.pack("<IIQ", 9, kind, count)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "ends within"),
        (gguf(magic=b"GGML"), "does not begin"),
        (gguf(version=9), "version 9"),
        (gguf(tensors=2**60), "tensors"),
        (gguf(keys=2**60), "keys"),
        (gguf(tensors=10**6), "ends within"),
        (gguf(keys=1, rest=struct.pack("<Q", 2**60)), "a text of"),
        (gguf(keys=1, rest=many(4, 2**60)), "ends within"),
        (gguf(keys=1, rest=many(8, 2**60)), "a list of"),
        (gguf(keys=1, rest=many(9, 2**60)), "a list of"),
        (gguf(keys=1, rest=text(b"k") + struct.pack("<I", 77)), "unknown type 77"),
        (gguf(tensors=1, rest=text(b"t") + struct.pack("<I", 2**31)), "dimensions"),
    ],
)
def test_a_header_that_states_more_than_there_is(tmp_path, content, message):
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=f"header of this GGUF.*{message}"):
        check_header(path)


def test_a_whole_header_passes(tmp_path):
    path = tmp_path / "a.gguf"
    keys = many(8, 2) + text(b"a") + text(b"bc") + text(b"n") + struct.pack("<II", 4, 7)
    path.write_bytes(gguf(1, 2, keys + text(b"t") + struct.pack("<IQQIQ", 2, 3, 4, 0, 0)))
    check_header(path)


@given(st.binary(max_size=200))
def test_no_bytes_break_it(tmp_path_factory, rest):
    path = tmp_path_factory.mktemp("gguf") / "a.gguf"
    path.write_bytes(gguf(3, 3, rest))
    try:
        check_header(path)
    except ModelError as error:
        assert "header of this GGUF" in str(error)


@pytest.mark.parametrize(
    "pattern", [r"((\w+\.?)+)+[!?]", r"(\w|\w\w|.)*(?=!)x", r"(.*.*.*)*[^\w._]"]
)
def test_a_pattern_that_backtracks_ends(pattern):
    with contextlib.suppress(ModelError):
        assert not AdapterConfig(4, 8.0, pattern).wraps("model.layers.11.self_attn.q_proj" * 9)
    assert AdapterConfig(4, 8.0, r".*\.q_proj").wraps("model.layers.11.self_attn.q_proj")


@pytest.mark.parametrize("layers", [200_000, 10**12])
@pytest.mark.parametrize("nested", [False, True])
def test_layers_that_the_weights_do_not_have(tmp_path, layers, nested):
    folder = write_model(tmp_path / "a")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    describe(folder, "a", "a")
    change = {"num_hidden_layers": layers}
    path.write_text(json.dumps(config | ({"text_config": change} if nested else change)))
    with pytest.raises(ModelError, match="far more layers than the weights"):
        describe(folder, "a", "a")
