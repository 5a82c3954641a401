"""Writes the network of `network.py` as an ONNX graph by hand, raw units in, probabilities out.

Inputs, each (batch, points): mjd float64, flux and flux_err float32 (nJy), band int32 (index into the card's band
table, -1 = padding), detected bool. Output: probabilities float32 (batch, classes).
Opset 21 and IR 10 at most, because Fink's Python 3.9 stops at onnxruntime 1.19.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

from models.training import network
from models.training.network import Params, Shape

OPSET = 21
IR_VERSION = 10
FAR = 1e300  # stands for "no time" in reductions and sorts: finite, so that no inf - inf can arise


def quantised(matrix: ArrayLike) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers -127 to 127 (in, out) and a scale per column (out,), whose product is near the matrix."""
    exact = np.asarray(matrix, np.float32)
    scale = (np.abs(exact).max(0) / 127 + 1e-12).astype(np.float32)
    return np.clip(np.round(exact / scale), -127, 127).astype(np.int8), scale


def compressed(params: Any) -> Any:
    """The weights that the exported graph computes with, for comparing it with JAX."""
    if isinstance(params, dict):
        return {key: _product(value) if key == "w" else compressed(value) for key, value in params.items()}
    return [compressed(p) for p in params] if isinstance(params, list) else params


def _product(matrix: ArrayLike) -> NDArray[np.float32]:
    whole, scale = quantised(matrix)
    return whole.astype(np.float32) * scale


class Graph:
    """Collects nodes and constants; equal constants are stored once, names are short because they are bytes."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._stored: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._n = 0

    def name(self) -> str:
        """A fresh name."""
        self._n += 1
        return f"_{self._n:x}"

    def const(self, value: ArrayLike, dtype: Any = np.float32) -> str:
        """Name of a constant tensor."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._stored:
            self._stored[key] = self.name()
            self.constants.append(numpy_helper.from_array(array, self._stored[key]))
        return self._stored[key]

    def ints(self, *values: int) -> str:
        """Name of an int64 vector, as shapes and axes need."""
        return self.const(values, np.int64)

    def add(self, op: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        """Appends a node with one output and returns the output's name."""
        output = out or self.name()
        self.nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def weights(self, matrix: ArrayLike) -> str:
        """A matrix stored as int8 times one float per column. onnxruntime multiplies it out once, when it loads.

        DequantizeLinear would not be folded and costs a quarter more time.
        """
        whole, scale = quantised(matrix)
        return self.add("Mul", self.add("Cast", self.const(whole, np.int8), to=TensorProto.FLOAT), self.const(scale))

    def linear(self, x: str, p: Params) -> str:
        """x @ w + b."""
        return self.add("Add", self.add("MatMul", x, self.weights(p["w"])), self.const(p["b"]))

    def norm(self, x: str, p: Params) -> str:
        """Layer normalisation over the last axis."""
        return self.add("LayerNormalization", x, self.const(p["g"]), self.const(p["b"]), axis=-1, epsilon=1e-5)

    def slice(self, x: str, start: int, stop: int, axis: int) -> str:
        """x[start:stop] along one axis."""
        return self.add("Slice", x, self.ints(start), self.ints(stop), self.ints(axis))


def _sorted_inputs(g: Graph) -> dict[str, str]:
    """The inputs in time order with all padding last, so that padding may stand anywhere in them."""
    valid = g.add("GreaterOrEqual", "band", g.const(0, np.int32))
    key = g.add("Where", valid, "mjd", g.const(FAR, np.float64))
    length = g.slice(g.add("Shape", "band"), 1, 2, 0)
    order = g.name()
    # ties keep their order: ONNX breaks them by the lower index
    g.nodes.append(helper.make_node("TopK", [key, length], [g.name(), order], axis=1, largest=0, sorted=1))
    points = {n: g.add("GatherElements", n, order, axis=1) for n in ("mjd", "flux", "flux_err", "band", "detected")}
    points["valid"] = g.add("GreaterOrEqual", points["band"], g.const(0, np.int32))
    return points


def _relative_days(g: Graph, p: dict[str, str]) -> str:
    """`network.relative_days` in the graph: the reference is subtracted in double, then cast."""
    axis = g.ints(1)
    far = g.const(FAR, np.float64)
    newest = g.add("ReduceMax", g.add("Where", p["valid"], p["mjd"], g.const(-FAR, np.float64)), axis, keepdims=1)
    seen = g.add("And", p["valid"], p["detected"])
    first = g.add("ReduceMin", g.add("Where", seen, p["mjd"], far), axis, keepdims=1)
    days = g.add("Sub", p["mjd"], g.add("Min", first, newest))
    days = g.add("Where", p["valid"], days, g.const(0.0, np.float64))
    limit = network.MAX_DAYS
    days = g.add("Clip", days, g.const(-limit, np.float64), g.const(limit, np.float64))
    return g.add("Cast", days, to=TensorProto.FLOAT)


def _features(g: Graph, p: dict[str, str], mask: str, wavelength_nm: Sequence[float]) -> str:
    """`network.features` in the graph: (batch, points, features)."""
    one, zero, axis = g.const(1), g.const(0), g.ints(1)
    days = _relative_days(g, p)
    flux = g.add("Where", p["valid"], p["flux"], zero)
    error = g.add("Max", p["flux_err"], g.const(network.MIN_ERROR_NJY))
    error = g.add("Where", p["valid"], error, one)
    snr = g.add("Clip", g.add("Div", flux, error), g.const(-network.MAX_SNR), g.const(network.MAX_SNR))
    weight = g.add("Min", g.add("Mul", g.add("Abs", snr), g.const(0.2)), one)
    scale = g.add("ReduceMax", g.add("Mul", g.add("Abs", flux), weight), axis, keepdims=1)
    scale = g.add("Add", scale, g.const(network.SCALE_FLOOR_NJY))
    ln10 = g.const(1 / np.log(10))
    newest = g.add("Where", p["valid"], days, g.const(-network.MAX_DAYS))
    newest = g.add("ReduceMax", newest, axis, keepdims=1)
    previous = g.add("Concat", g.slice(days, 0, 1, 1), g.slice(days, 0, -1, 1), axis=1)
    log_error = g.add("Mul", g.add("Log", g.add("Div", error, scale)), ln10)
    # Log of (batch, 1) would differ in the last bit between a vector register and its remainder, and so by batch size;
    # of (batch, points) it does not where points is a multiple of 16
    wide_scale = g.add("Where", p["valid"], scale, one)

    def asinh(x: str, inner: float, outer: float) -> str:
        inside = x if inner == 1 else g.add("Mul", x, g.const(inner))
        return g.add("Mul", g.add("Asinh", inside), g.const(outer))

    columns = [
        asinh(snr, 1, 1 / 3),
        g.add("Clip", g.add("Div", flux, scale), g.const(-2), g.const(2)),
        g.add("Clip", log_error, g.const(-4), g.const(2)),
        asinh(days, 0.1, 0.5),
        asinh(g.add("Sub", newest, days), 0.1, 0.5),
        asinh(g.add("Sub", days, previous), 1, 1 / 3),
        g.add("Sub", g.add("Mul", g.add("Log", wide_scale), ln10), g.const(4)),
        g.add("Cast", p["detected"], to=TensorProto.FLOAT),
    ]
    last = g.ints(2)
    columns = [g.add("Unsqueeze", c, last) for c in columns]
    phase = g.add("Mul", g.add("Unsqueeze", days, last), g.const([2 * np.pi / x for x in network.PERIODS_D]))
    # one row per band of the card; the row of zeros at the end is what index -1 picks
    basis = np.asarray(network.band_basis(np.asarray(wavelength_nm, np.float32)))
    basis = np.concatenate([basis, np.zeros_like(basis[:1])])
    band = g.add("Gather", g.const(basis), p["band"])
    features = g.add("Concat", *columns, g.add("Sin", phase), g.add("Cos", phase), band, axis=2)
    return g.add("Mul", features, g.add("Unsqueeze", mask, last))


def _tokens(g: Graph, params: Params, features: str, mask3: str) -> str:
    """Stem, convolution over neighbours in time (as shift, concatenate, multiply) and norm."""
    h = g.add("Mul", g.add("Relu", g.linear(features, params["stem"])), mask3)
    edge = g.add("Mul", g.slice(h, 0, 1, 1), g.const(0))
    before = g.add("Concat", edge, g.slice(h, 0, -1, 1), axis=1)
    after = g.add("Concat", g.slice(h, 1, 1 << 40, 1), edge, axis=1)
    window = g.add("Concat", before, h, after, axis=2)
    conv = g.add("Mul", g.add("Relu", g.linear(window, params["conv"])), mask3)
    return g.norm(g.add("Add", h, conv), params["norm"])


def _read(g: Graph, params: Params, h: str, mask3: str, shape: Shape) -> str:
    """The latents read the tokens: (batch, latents, width)."""
    d, heads, k = shape.width, shape.n_heads, shape.n_latents
    away = g.add("Mul", g.add("Sub", g.const(1), mask3), g.const(network.MASKED))
    score = g.add("Add", g.linear(h, params["read"]), away)
    weight = g.add("Softmax", g.add("Transpose", score, perm=[0, 2, 1]), axis=-1)
    weight = g.add("Reshape", weight, g.ints(0, heads, k, -1))
    value = g.add("Reshape", g.linear(h, params["value"]), g.ints(0, 0, heads, d // heads))
    value = g.add("Transpose", value, perm=[0, 2, 1, 3])
    z = g.add("Transpose", g.add("MatMul", weight, value), perm=[0, 2, 1, 3])
    z = g.add("Reshape", z, g.ints(0, 0, d))
    return g.add("Add", g.linear(z, params["out"]), g.const(params["latents"]))


def _block(g: Graph, p: Params, z: str, shape: Shape) -> str:
    """One pre-norm transformer block among the latents."""
    d, heads, k = shape.width, shape.n_heads, shape.n_latents
    qkv = g.linear(g.norm(z, p["norm1"]), p["qkv"])
    parts = []
    for j, perm in enumerate(([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])):
        part = g.add("Reshape", g.slice(qkv, j * d, (j + 1) * d, 2), g.ints(0, k, heads, d // heads))
        parts.append(g.add("Transpose", part, perm=perm))
    query = g.add("Mul", parts[0], g.const(1 / np.sqrt(d // heads)))
    weight = g.add("Softmax", g.add("MatMul", query, parts[1]), axis=-1)
    mixed = g.add("Transpose", g.add("MatMul", weight, parts[2]), perm=[0, 2, 1, 3])
    z = g.add("Add", z, g.linear(g.add("Reshape", mixed, g.ints(0, k, d)), p["out"]))
    return g.add("Add", z, g.linear(g.add("Relu", g.linear(g.norm(z, p["norm2"]), p["up"])), p["down"]))


def graph(params: Params, shape: Shape, wavelength_nm: Sequence[float], temperature: float = 1.0) -> onnx.ModelProto:
    """The whole model. `wavelength_nm` is the card's band table in order; logits are divided by `temperature`."""
    g = Graph()
    points = _sorted_inputs(g)
    mask = g.add("Cast", points["valid"], to=TensorProto.FLOAT)
    mask3 = g.add("Unsqueeze", mask, g.ints(2))
    h = _tokens(g, params, _features(g, points, mask, wavelength_nm), mask3)
    z = _read(g, params, h, mask3, shape)
    for block in params["blocks"]:
        z = _block(g, block, z, shape)
    pooled = g.add("ReduceMean", g.norm(z, params["final"]), g.ints(1), keepdims=0)
    scaled = g.add("Mul", g.linear(pooled, params["head"]), g.const(1 / temperature))
    g.add("Softmax", scaled, axis=-1, out="probabilities")

    info = helper.make_tensor_value_info
    types = {"mjd": TensorProto.DOUBLE, "flux": TensorProto.FLOAT, "flux_err": TensorProto.FLOAT}
    types |= {"band": TensorProto.INT32, "detected": TensorProto.BOOL}
    inputs = [info(name, kind, ["batch", "points"]) for name, kind in types.items()]
    output = info("probabilities", TensorProto.FLOAT, ["batch", shape.n_classes])
    body = helper.make_graph(g.nodes, "light_curve_classifier", inputs, [output], g.constants)
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(body, opset_imports=opsets, ir_version=IR_VERSION, producer_name="t2-broker")
    # onnxruntime shows these two to the loader, which compares them with the card
    helper.set_model_props(model, {"n_bands": str(len(wavelength_nm)), "n_classes": str(shape.n_classes)})
    onnx.checker.check_model(model, full_check=True)
    return model


def write(model: onnx.ModelProto, path: Path) -> int:
    """Writes the file and returns its size in bytes."""
    content = model.SerializeToString(deterministic=True)
    path.write_bytes(content)
    return len(content)
