"""The fp32 graph with int8 weights and activations, at scales fixed beforehand.

In: the graph and encoded train narratives. Out: the int8 graph, as quantise/dequantise pairs that
ONNX Runtime runs as int8 products. Ignores: how good it is; the gates say that. Scales are static:
dynamic ones would make a patient's risk depend on who shares the batch.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime import InferenceSession
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.learning.alignment import Encoded
from ckd_ehr.release.quiet import quiet
from ckd_ehr.release.session import INT8, Feed, feed_of, runtime_operators

# Between 0 (activations as they are) and 1 (all channels equally wide). Measured on MiniLM after
# distillation: largest p99 |Δp| of a label 0.037, 0.040 and 0.025 at 0.3, 0.5 and 0.7 with all
# matrices in int8, and 0.022, 0.010 and 0.009 with the narrowing ones left in fp32.
SMOOTHING = 0.7
SMALLEST = 1e-5
Floats32 = NDArray[np.float32]


def quantise(model: onnx.ModelProto, texts: Sequence[Encoded]) -> onnx.ModelProto:
    """The int8 graph.

    A matrix that narrows its input stays in fp32: that of the second feed-forward layer, since what
    comes out of a GELU spans too wide for 256 steps, and the head's.

    Args:
        model: of `export_student`.
        texts: train narratives, on which the activations' ranges are fitted.

    Raises:
        CkdEhrError: ONNX Runtime runs fewer products in int8 than were prepared.
    """
    feeds = [feed_of([text], tokens=len(text.input_ids), pad_token=0) for text in texts]
    smooth = smoothed(model, feeds)
    chosen = [node.name for node in _widening(smooth)]
    with tempfile.TemporaryDirectory() as folder, quiet(""):
        path = Path(folder) / "int8.onnx"
        quantize_static(
            smooth,
            path,
            _Feeds(feeds),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=chosen,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
        )
        quantised = onnx.load(path)
    if (found := runtime_operators(quantised)[INT8]) != len(chosen):
        raise CkdEhrError(
            f"ONNX Runtime runs {found} of {len(chosen)} products in int8; publish fp32 alone "
            "(--precision fp32), or take the version of onnxruntime in constraints.txt"
        )
    return quantised


class _Feeds(CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime ships no types
    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds: Iterator[Feed] = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


def smoothed(model: onnx.ModelProto, feeds: Sequence[Feed]) -> onnx.ModelProto:
    """An equal graph whose activations are of more equal width from channel to channel.

    Each input of a product is divided, and the matrix multiplied, by max|x|^a / max|w|^(1 - a) of
    a channel (SmoothQuant, Xiao et al. 2023), a being `SMOOTHING`.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in _widening(result):
        readers.setdefault(node.input[0], []).append(node)
    widest = _widest(result, list(readers), feeds)
    stored = {tensor.name: tensor for tensor in graph.initializer}
    nodes = list(graph.node)
    for name, products in readers.items():
        matrices = [numpy_helper.to_array(stored[node.input[1]]) for node in products]
        rows = np.max([np.abs(matrix).max(1) for matrix in matrices], axis=0)
        activations = np.maximum(widest[name], SMALLEST) ** SMOOTHING
        factor = activations / np.maximum(rows, SMALLEST) ** (1 - SMOOTHING)
        for node, matrix in zip(products, matrices, strict=True):
            scaled = (matrix * factor[:, None]).astype(np.float32)
            stored[node.input[1]].CopyFrom(numpy_helper.from_array(scaled, node.input[1]))
            node.input[0] = f"{name}_smooth"
        inverse = (1 / factor).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(inverse, f"{name}_factor"))
        divide = onnx.helper.make_node(
            "Mul", [name, f"{name}_factor"], [f"{name}_smooth"], name=f"{name}_smoothing"
        )
        nodes.insert(nodes.index(products[0]), divide)
    del graph.node[:]
    graph.node.extend(nodes)
    return result


def _widening(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Products with a stored matrix of at least as many columns as rows."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    stored = [node for node in products if len(shapes.get(node.input[1], ())) == 2]
    return [node for node in stored if shapes[node.input[1]][0] <= shapes[node.input[1]][1]]


def _widest(
    model: onnx.ModelProto, names: Sequence[str], feeds: Sequence[Feed]
) -> dict[str, Floats32]:
    """The largest size of each channel of these tensors (batch, tokens, channels)."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    session = InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    widest: dict[str, Floats32] = {}
    for feed in feeds:
        for name, value in zip(names, session.run(list(names), feed), strict=True):
            largest = np.abs(value).max((0, 1))
            widest[name] = np.maximum(widest.get(name, largest), largest)
    return widest
