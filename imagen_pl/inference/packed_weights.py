"""Quantised weights for a download: the large tensors of an ONNX file, packed into another file.

A tensor is packed in one of two ways:

- float16;
- b bits a value: in each group of 128, value = largest * (code / (2^(b-1) - 1) - 1), where code is a whole
  number of b bits and `largest` a float32, the largest absolute value of the group. Codes are stored by bits:
  first the lowest eight of all codes, then the next eight, then the remaining bits, as many in a byte as fit.

imagen_pl/web/source/src/weights.js unpacks them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

GROUP = 128  # values that share a scale
HALF = 0  # bits of float16, which has no scale
# Ascending. The bits beyond whole bytes, 2 or 4, divide a byte evenly.
BITS = (8, 10, 12, HALF, 16, 18, 20, 24)
_SMALLEST = 1024  # values; smaller tensors stay in the graph


@dataclass(frozen=True)
class PackedGraph:
    """An ONNX file without its large tensors, and these.

    Args:
        graph: the ONNX file, which reads its large tensors from external data.
        weights: the packed tensors, one after the other.
        tensors: of each tensor, the number of its values, in order; unpacked as float32, they make up the
            external data.
        bits: of a value; 0 is float16.
    """

    graph: bytes
    weights: bytes
    tensors: tuple[int, ...]
    bits: int


def pack(model: Any, bits: int, location: str) -> PackedGraph:
    """Take the large float32 tensors out of an ONNX model and pack them.

    Args:
        model: an onnx.ModelProto; it is not changed.
        bits: one of BITS.
        location: name of the external data in the graph.
    """
    import onnx
    from onnx import numpy_helper

    slim, packed, sizes, offset = copy.deepcopy(model), [], [], 0
    for tensor in slim.graph.initializer:
        if not is_large(tensor):
            continue
        values = numpy_helper.to_array(tensor)
        packed.append(pack_values(values, bits))
        sizes.append(values.size)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in {"location": location, "offset": offset, "length": 4 * values.size}.items():
            tensor.external_data.add(key=key, value=str(value))
        offset += 4 * values.size
    return PackedGraph(slim.SerializeToString(), b"".join(packed), tuple(sizes), bits)


def rounded(model: Any, bits: int) -> Any:
    """The ONNX model with its large tensors as they are after packing and unpacking."""
    from onnx import numpy_helper

    made = copy.deepcopy(model)
    for tensor in made.graph.initializer:
        if is_large(tensor):
            values = numpy_helper.to_array(tensor)
            tensor.raw_data = round_values(values, bits).tobytes()
    return made


def is_large(tensor: Any) -> bool:
    """Whether a tensor of an ONNX model is packed."""
    import onnx

    return bool(tensor.data_type == onnx.TensorProto.FLOAT and np.prod(tensor.dims) >= _SMALLEST)


def pack_values(values: np.ndarray, bits: int) -> bytes:
    """The bytes of a float32 tensor in so many bits a value."""
    if bits == HALF:
        return values.astype("<f2").tobytes()
    codes, largest = _codes(values, bits)
    parts = [largest.astype("<f4").tobytes()]
    parts += [((codes >> shift) & 255).astype(np.uint8).tobytes() for shift in range(0, bits - bits % 8, 8)]
    if left := bits % 8:
        high = (codes >> (bits - left)).astype(np.uint8)
        each = 8 // left
        high = np.pad(high, (0, -len(high) % each)).reshape(-1, each)
        parts.append(np.bitwise_or.reduce(high << (left * np.arange(each, dtype=np.uint8)), axis=1).tobytes())
    return b"".join(parts)


def round_values(values: np.ndarray, bits: int) -> np.ndarray:
    """A float32 tensor after packing and unpacking."""
    if bits == HALF:
        return values.astype(np.float16).astype(np.float32)
    codes, largest = _codes(values, bits)
    scales = np.repeat(largest, GROUP)[: codes.size].astype(np.float64)
    result = scales * (codes / (2 ** (bits - 1) - 1) - 1)
    return result.astype(np.float32).reshape(values.shape)


def _codes(values: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The code of each value, flat, and the largest absolute value of each group."""
    flat = values.reshape(-1).astype(np.float32)
    groups = np.pad(flat, (0, -flat.size % GROUP)).reshape(-1, GROUP)
    largest = np.abs(groups).max(1)
    most = 2 ** (bits - 1) - 1
    shares = groups.astype(np.float64) / np.where(largest > 0, largest, 1)[:, None]
    codes = (np.rint(shares * most) + most).astype(np.uint32).reshape(-1)[: flat.size]
    return codes, largest
