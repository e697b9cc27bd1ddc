"""Networks that compute the same in floating point and are hard to quantise.

Every way changes the inside of residual blocks alone, between a block's first convolution and the second,
so that nothing else of the network sees it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

_Array = np.ndarray[Any, np.dtype[np.floating[Any]]]


def scale_channels(model: onnx.ModelProto, blocks: Iterable[int], factor: float, seed: int) -> None:
    """Multiply each hidden channel by a factor of its own, and divide by it where the channel is read.

    The factors are log-uniform in [1 / factor, factor]. Relu keeps positive factors, so that the function
    stays. Channels of one tensor then differ in range as those of depthwise networks do (Nagel et al.,
    2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", figure 2); scaling
    them back is that paper's cure.
    """
    random = np.random.default_rng(seed)
    for block in blocks:
        first, bias, second = _hidden(model, block)
        channels = len(numpy_helper.to_array(bias))
        scales = np.exp(random.uniform(-np.log(factor), np.log(factor), channels)).astype(np.float32)
        _change(first, numpy_helper.to_array(first) * scales[:, None, None, None])
        _change(bias, numpy_helper.to_array(bias) * scales)
        _change(second, numpy_helper.to_array(second) / scales[None, :, None, None])


def add_cancelling_twins(model: onnx.ModelProto, blocks: Iterable[int], factor: float) -> None:
    """Give each block two equal hidden channels, large and read with large weights that cancel.

    A twin is the block's strongest hidden channel times the factor. It is read at the centre of the kernel
    with the largest weight of the output channel times the factor, one twin with plus, one with minus.
    Whatever scaling a twin down spares the activations' range it costs the weights', so that no scaling
    of channels helps, only more bits.
    """
    for block in blocks:
        first, bias, second = _hidden(model, block)
        rows, shifts, weight = (numpy_helper.to_array(tensor) for tensor in (first, bias, second))
        strongest = int(np.abs(rows).sum(axis=(1, 2, 3)).argmax())
        twin = rows[[strongest, strongest]] * np.float32(factor)
        _change(first, np.concatenate([rows, twin]))
        _change(bias, np.concatenate([shifts, shifts[[strongest, strongest]] * np.float32(factor)]))
        read = np.zeros((len(weight), 2, *weight.shape[2:]), np.float32)
        large = np.abs(weight).max(axis=(1, 2, 3)) * np.float32(factor)
        read[:, 0, 1, 1], read[:, 1, 1, 1] = large, -large
        _change(second, np.concatenate([weight, read], axis=1))
    del model.graph.value_info[:]  # their shapes are the narrower network's


def add_offsets(model: onnx.ModelProto, blocks: Iterable[int], offset: float) -> None:
    """Lift every hidden channel by an offset and take it off again, in two pointwise convolutions.

    The tensor between them holds what lies near the offset, and every grid must hold zero besides: its
    step is that of the whole way up. Scaling channels, clipping and rounding leave that as it is; only
    more bits help, at the one convolution that reads the tensor.
    """
    for block in blocks:
        reader = next(node for node in model.graph.node if f"blocks.{block}.main.2.0.weight" in node.input)
        place, hidden = list(model.graph.node).index(reader), reader.input[0]
        channels = numpy_helper.to_array(_hidden(model, block)[1]).size
        identity = np.eye(channels, dtype=np.float32)[:, :, None, None]
        for name, shift in (("lift", offset), ("lower", -offset)):
            node_name = f"blocks.{block}.{name}"
            stored = {
                f"{node_name}.weight": identity,
                f"{node_name}.bias": np.full(channels, shift, np.float32),
            }
            model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in stored.items())
            node = helper.make_node("Conv", [hidden, *stored], [node_name], node_name, kernel_shape=[1, 1])
            model.graph.node.insert(place, node)
            place, hidden = place + 1, node_name
        reader.input[0] = hidden


def _hidden(model: onnx.ModelProto, block: int) -> tuple[onnx.TensorProto, ...]:
    """Return the first convolution's weight and bias, and the second one's weight."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    names = ("main.0.0.weight", "main.0.0.bias", "main.2.0.weight")
    return tuple(tensors[f"blocks.{block}.{name}"] for name in names)


def _change(tensor: onnx.TensorProto, numbers: _Array) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(numbers, np.float32), tensor.name))
