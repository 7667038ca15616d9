"""Networks of one convolution in ONNX files, for tests."""

import importlib.util

import numpy as np
import pytest

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime")),
    reason='needs onnx and onnxruntime: pip install ".[onnx]"',
)
WEIGHTS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def write_onnx(
    path,
    *,
    size=("h", "w"),
    batch="n",
    last=(),
    layout="NCHW",
    weights=WEIGHTS,
    stride=1,
    external=False,
):
    """Writes a convolution of 1 x 1 and the operations `last` as an ONNX file."""
    import onnx
    from onnx import TensorProto, helper

    count, channels = weights.shape
    nodes, value = [], "images"
    if layout == "NHWC":
        nodes.append(helper.make_node("Transpose", [value], ["first"], perm=[0, 3, 1, 2]))
        value = "first"
    nodes.append(helper.make_node("Conv", [value, "w"], ["conv"], strides=[stride, stride]))
    value = "conv"
    for name, attributes in last:
        nodes.append(helper.make_node(name, [value], [f"{name}.out"], **attributes))
        value = f"{name}.out"
    nodes[-1].output[0] = "scores"
    axes = [batch, channels, *size] if layout == "NCHW" else [batch, *size, channels]
    kind = TensorProto.INT64 if last and last[-1][0] == "ArgMax" else TensorProto.FLOAT
    # Each operation but the last is an output, too.
    middle = [node.output[0] for node in nodes[:-1] if node.op_type not in ("Conv", "Transpose")]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in middle
    ] + [helper.make_tensor_value_info("scores", kind, [None] * 4)]
    kernel = helper.make_tensor(
        "w", TensorProto.FLOAT, (count, channels, 1, 1), weights.tobytes(), raw=True
    )
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, axes)],
        outputs,
        [kernel],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 0}
    onnx.save(model, path, **(options if external else {}))
    return str(path)
