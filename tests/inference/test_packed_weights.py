"""Weights in few bits: what is packed comes back, as close as the bits allow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from imagen_pl.inference.packed_weights import BITS, GROUP, HALF, pack, pack_values, round_values, rounded

onnx = pytest.importorskip("onnx")


def unpack_values(packed: bytes, count: int, bits: int) -> np.ndarray:
    """A slow reference, one value at a time, after the description of the format."""
    if bits == HALF:
        return np.frombuffer(packed, np.float16).astype(np.float32)
    groups = -(-count // GROUP)
    largest, codes = np.frombuffer(packed[: 4 * groups], np.float32), packed[4 * groups :]
    whole, left = divmod(bits, 8)
    values = []
    for i in range(count):
        code = sum(codes[k * count + i] << 8 * k for k in range(whole))
        if left:
            each = 8 // left
            code += (codes[whole * count + i // each] >> left * (i % each)) % 2**left << 8 * whole
        values.append(largest[i // GROUP] * (code / (2 ** (bits - 1) - 1) - 1))
    return np.array(values, np.float32)


def some_values(count: int) -> np.ndarray:
    values = np.random.default_rng(0).standard_normal(count).astype(np.float32)
    values[:GROUP] = 0  # a group of zeros has no scale
    return values


@pytest.mark.parametrize("bits", BITS)
def test_packed_values_come_back(bits: int) -> None:
    values = some_values(3 * GROUP + 5)

    packed = pack_values(values, bits)
    expected = round_values(values, bits)

    np.testing.assert_allclose(unpack_values(packed, values.size, bits), expected, rtol=1e-6)
    largest = np.abs(values).max()
    step = 2**-10 if bits == HALF else 1 / (2 ** (bits - 1) - 1)
    assert np.abs(expected - values).max() <= largest * (step / 2 + 1e-7)  # and what float32 rounds


def test_more_bits_are_closer() -> None:
    values = some_values(4 * GROUP)

    errors = [np.abs(round_values(values, bits) - values).mean() for bits in BITS if bits != HALF]

    assert errors == sorted(errors, reverse=True)


def model_with(values: np.ndarray, few: np.ndarray) -> Any:
    tensors = [onnx.numpy_helper.from_array(x, name) for name, x in (("large", values), ("few", few))]
    return onnx.helper.make_model(onnx.helper.make_graph([], "graph", [], [], initializer=tensors))


def test_large_tensors_leave_the_graph_and_small_ones_stay() -> None:
    values, few = some_values(2048).reshape(32, 64), some_values(GROUP + 8)
    model = model_with(values, few)

    packed = pack(model, 12, "weights")

    assert packed.tensors == (2048,)
    assert packed.weights == pack_values(values, 12)
    large, small = onnx.load_from_string(packed.graph).graph.initializer
    assert {entry.key: entry.value for entry in large.external_data} == {
        "location": "weights",
        "offset": "0",
        "length": "8192",
    }
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(small), few)
    unpacked = onnx.numpy_helper.to_array(rounded(model, 12).graph.initializer[0])
    np.testing.assert_array_equal(unpacked, round_values(values, 12))
