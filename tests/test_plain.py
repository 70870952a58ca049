import json

import numpy as np
import pytest
import torch

from spes_hf.plain import from_plain, is_lost, to_plain

VALUES = [
    None,
    True,
    3,
    -2.5,
    "a text",
    "<|im_end|>",
    float("inf"),
    float("-inf"),
    [1, [2.0, "x"]],
    (1, (2, 3)),
    {"a": 1, "b": [None]},
    {(40,): -1.0, (50, 60): float("-inf")},
    {1: "one", "2": "two"},
    {"__kind__": "tensor"},
    {},
]
ARRAYS = [
    torch.tensor([1, 2]),
    torch.tensor(3.5, dtype=torch.bfloat16),
    torch.zeros(0, 2),
    torch.tensor([[True, False]]),
    torch.tensor([float("-inf"), 1.0], dtype=torch.float16),
    np.array([[1, 2]], dtype=np.int16),
    np.array([float("inf")], dtype=np.float32),
    np.zeros((2, 0)),
]
SCALARS = [np.int64(5), np.float32(0.1), np.bool_(True), np.float64("-inf")]


def through_json(value):
    return from_plain(json.loads(json.dumps(to_plain(value), allow_nan=False)))


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_come_back_equal_and_of_their_kind(value):
    back = through_json(value)
    assert back == value and repr(back) == repr(value)
    assert not is_lost(to_plain(value))


@pytest.mark.parametrize("value", ARRAYS, ids=repr)
def test_tensors_and_arrays_come_back_with_type_and_shape(value):
    back = through_json({"nested": [value]})["nested"][0]
    assert type(back) is type(value) and back.dtype == value.dtype and back.shape == value.shape
    assert back.tolist() == value.tolist()
    assert not is_lost(to_plain(value))


@pytest.mark.parametrize("value", SCALARS, ids=repr)
def test_numpy_scalars_come_back_as_numpy_scalars(value):
    back = through_json(value)
    assert type(back) is type(value) and back == value


def test_not_a_number_comes_back():
    assert np.isnan(through_json(float("nan")))


@pytest.mark.parametrize("value", [print, object(), [print], {"a": (object(),)}, {(1,): print}, {1, 2}, 1j])
def test_what_cannot_be_written_down_is_noted(value):
    plain = json.loads(json.dumps(to_plain(value), allow_nan=False))
    assert is_lost(plain)
    with pytest.raises(ValueError, match="note of a builtins"):
        from_plain(plain)


def test_notes_in_words_are_those_of_before():
    for words in ("tensor([1])", "<function f>", "array([1])", "{(1,): 2}"):
        assert is_lost(words, in_words=True) and not is_lost(words)
    assert not is_lost("a text", in_words=True)
