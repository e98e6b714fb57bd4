"""Graphs with their large tensors in one file that they share.

In: graphs. Out: NAME.onnx for each, and `weights.bin` beside them. Ignores: what they compute. An
equal tensor is kept once, and one of fp32 as fp16, which ONNX Runtime widens again when it loads:
sums are of fp32, and a bundle of both graphs is half as large.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from ckd_ehr.contracts.files import write_bytes
from ckd_ehr.release.manifest import Precision

WEIGHTS = "weights.bin"
LARGE_BYTES = 1 << 14
ALIGNMENT = 64


class _Place(NamedTuple):
    offset: int
    length: int


class _WeightsFile:
    """Bytes one after the other, equal ones once."""

    def __init__(self) -> None:
        self.content = bytearray()
        self._places: dict[str, _Place] = {}

    def add(self, data: bytes) -> _Place:
        key = hashlib.sha256(data).hexdigest()
        if key not in self._places:
            self.content.extend(bytes(-len(self.content) % ALIGNMENT))
            self._places[key] = _Place(len(self.content), len(data))
            self.content.extend(data)
        return self._places[key]


def write_graphs(graphs: Mapping[Precision, onnx.ModelProto], folder: Path) -> None:
    """Write NAME.onnx of each graph, and the file of their weights."""
    weights = _WeightsFile()
    for name, graph in graphs.items():
        write_bytes(folder / f"{name}.onnx", _packed(graph, weights).SerializeToString())
    write_bytes(folder / WEIGHTS, bytes(weights.content))


def _packed(model: onnx.ModelProto, weights: _WeightsFile) -> onnx.ModelProto:
    packed = onnx.ModelProto()
    packed.CopyFrom(model)
    graph, casts = packed.graph, []
    for tensor in graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.nbytes < LARGE_BYTES:
            continue
        name, shape = tensor.name, list(tensor.dims)
        if value.dtype == np.float32:
            value = value.astype(np.float16)
            casts.append(
                onnx.helper.make_node("Cast", [f"{name}_fp16"], [name], to=TensorProto.FLOAT)
            )
            name = f"{name}_fp16"
        place = weights.add(value.tobytes())
        kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        tensor.CopyFrom(TensorProto(name=name, data_type=kind, dims=shape))
        tensor.data_location = TensorProto.EXTERNAL
        for key, what in (
            ("location", WEIGHTS),
            ("offset", place.offset),
            ("length", place.length),
        ):
            tensor.external_data.add(key=key, value=str(what))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return packed
