"""Writes the network of `network.py` as an ONNX graph by hand, raw units in, probabilities out.

Inputs, each (batch, points): mjd float64, flux and flux_err float32 (nJy), band int32 (index into the card's band
table, -1 = padding), detected bool. Output: probabilities float32 (batch, classes).
Opset 21 and IR 10 at most, because Fink's Python 3.9 stops at onnxruntime 1.19.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from models.training import compress, network
from models.training.compress import Array
from models.training.network import Params, Shape

OPSET = 21
IR_VERSION = 10
LN10 = float(np.log(10))
STEM_ORDER = [0, 3, 4, 5, 1, 2, 6, 7]  # rows of the stem as `_features` leaves the first columns, and their factors
STEM_FACTORS = np.array([1 / 3, 0.5, 0.5, 1 / 3, 1, 1 / LN10, 1 / LN10, 1], np.float32)
FAR = 1e300  # stands for "no time" in reductions and sorts: finite, so that no inf - inf can arise


class Graph:
    """Collects nodes and constants; equal constants are stored once, names are short because they are bytes."""

    def __init__(self, *, int8: bool = True, inputs: Iterable[Array] = ()) -> None:
        self.int8 = int8
        self._inputs: Iterator[Array] = itertools.islice(inputs, 1, None)  # the first is the stem's
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
        if not self.int8:
            return self.const(matrix)
        whole, scale = compress.quantised(matrix, next(self._inputs, None))
        return self.add("Mul", self.add("Cast", self.const(whole, np.int8), to=TensorProto.FLOAT), self.vector(scale))

    def vector(self, values: ArrayLike) -> str:
        """Whatever is small, stored as float16: a relative error of 5e-4."""
        if not self.int8:
            return self.const(values)
        return self.add("Cast", self.const(values, np.float16), to=TensorProto.FLOAT)

    def linear(self, x: str, p: Params, added: str | None = None) -> str:
        """x @ w + b of a matrix x, or x @ w + added: Gemm adds and rectifies in the same pass, MatMul and Add don't."""
        last = [self.vector(p["b"])] if "b" in p else [added] if added else []
        return self.add("Gemm", x, self.weights(p["w"]), *last)

    def norm(self, x: str, width: int) -> str:
        """Layer normalisation over the last axis."""
        return self.add(
            "LayerNormalization",
            x,
            self.const(np.ones(width)),
        )

    def slice(self, x: str, start: int, stop: int, axis: int) -> str:
        """x[start:stop] along one axis."""
        return self.add("Slice", x, self.ints(start), self.ints(stop), self.ints(axis))


def _sorted_inputs(g: Graph) -> dict[str, str]:
    """The inputs in time order with all padding last, so that padding may stand anywhere in them."""
    valid = g.add("GreaterOrEqual", "band", g.const(0, np.int32))
    key = g.add("Where", valid, "mjd", g.const(FAR, np.float64))
    extent = g.add("Shape", "band")
    length = g.slice(extent, 1, 2, 0)
    order = g.name()
    # ties keep their order: ONNX breaks them by the lower index
    g.nodes.append(helper.make_node("TopK", [key, length], [g.name(), order], largest=0))
    points = {n: g.add("GatherElements", n, order, axis=1) for n in ("mjd", "flux", "flux_err", "band", "detected")}
    points["extent"] = extent
    points["valid"] = g.add("GreaterOrEqual", points["band"], g.const(0, np.int32))
    return points


def _relative_days(g: Graph, p: dict[str, str]) -> str:
    """`network.relative_days` in the graph: the reference is subtracted in double, then cast."""
    axis = g.ints(1)
    far = g.const(FAR, np.float64)
    newest = g.add("ReduceMax", g.add("Where", p["valid"], p["mjd"], g.const(-FAR, np.float64)), axis)
    seen = g.add("And", p["valid"], p["detected"])
    first = g.add("ReduceMin", g.add("Where", seen, p["mjd"], far), axis)
    days = g.add("Sub", p["mjd"], g.add("Min", first, newest))
    days = g.add("Where", p["valid"], days, g.const(0.0, np.float64))
    limit = network.MAX_DAYS
    days = g.add("Clip", days, g.const(-limit, np.float64), g.const(limit, np.float64))
    return g.add("Cast", days, to=TensorProto.FLOAT)


def _features(g: Graph, p: dict[str, str], wavelength_nm: Sequence[float]) -> str:
    """`network.features` in the graph, without the constant factors that `_stem` holds: (batch, points, features)."""
    one, zero, axis, last = g.const(1), g.const(0), g.ints(1), g.ints(2)
    days = _relative_days(g, p)
    flux = g.add("Where", p["valid"], p["flux"], zero)
    error = g.add("Max", p["flux_err"], g.const(network.MIN_ERROR_NJY))
    error = g.add("Where", p["valid"], error, one)
    snr = g.add("Clip", g.add("Div", flux, error), g.const(-network.MAX_SNR), g.const(network.MAX_SNR))
    weight = g.add("Min", g.add("Abs", g.add("Mul", snr, g.const(0.2))), one)
    scale = g.add("ReduceMax", g.add("Mul", g.add("Abs", flux), weight), axis)
    scale = g.add("Add", scale, g.const(network.SCALE_FLOOR_NJY))
    newest = g.add("Where", p["valid"], days, g.const(-network.MAX_DAYS))
    newest = g.add("ReduceMax", newest, axis)
    previous = g.add("Concat", g.slice(days, 0, 1, 1), g.slice(days, 0, -1, 1), axis=1)
    log_error = g.add("Log", g.add("Div", error, scale))
    # Log of (batch, 1) would differ in the last bit between a vector register and its remainder, and so by batch size;
    # of (batch, points) it does not where points is a multiple of 16
    wide_scale = g.add("Where", p["valid"], scale, one)
    tenth = g.const(0.1)
    since, ago = g.add("Mul", days, tenth), g.add("Mul", g.add("Sub", newest, days), tenth)
    columns = [
        *(g.add("Asinh", x) for x in (snr, since, ago, g.add("Sub", days, previous))),
        g.add("Clip", g.add("Div", flux, scale), g.const(-2), g.const(2)),
        g.add("Clip", log_error, g.const(-4 * LN10), g.const(2 * LN10)),
        g.add(
            "Sub", g.add("Log", wide_scale), g.const(4 * LN10)
        ),  # centred, so that int8 loses nothing to a cancellation
        g.add("Cast", p["detected"], to=TensorProto.FLOAT),
    ]
    columns = [g.add("Unsqueeze", c, last) for c in columns]
    phase = g.add("Mul", g.add("Unsqueeze", days, last), g.const([2 * np.pi / x for x in network.PERIODS_D]))
    # one row per band of the card, and a 1; the row of zeros at the end is what index -1 picks
    basis = np.asarray(network.band_basis(np.asarray(wavelength_nm, np.float32)))
    basis = np.concatenate([basis, np.ones_like(basis[:, :1])], 1)
    basis = np.concatenate([basis, np.zeros_like(basis[:1])])
    band = g.add("Gather", g.vector(basis), p["band"])
    features = g.add("Concat", *columns, g.add("Sin", phase), g.add("Cos", phase), band, axis=2)
    mask = g.add("Unsqueeze", g.add("Cast", p["valid"], to=TensorProto.FLOAT), last)
    return g.add("Mul", features, mask)  # every feature is finite, and a Where takes twice the time


def _stem(params: Params) -> Array:
    """The stem's matrix for the features as `_features` leaves them: their order, and their factors multiplied in."""
    w = np.asarray(params["stem"]["w"], np.float32)
    return np.concatenate([w[STEM_ORDER] * STEM_FACTORS[:, None], w[len(STEM_ORDER) :]])


def _tokens(g: Graph, params: Params, features: str, extent: str, shape: Shape) -> str:
    """Stem, neighbours in time, norm: (batch * points, width)."""
    d, n = shape.width, shape.n_shifted
    rows = g.add("Reshape", features, g.ints(-1, network.N_FEATURES))
    # float16: its inputs differ in size, and int8 here changed the class of 2 % of the packets, of all others 0.3 %
    flat = g.add("Relu", g.add("Gemm", rows, g.vector(_stem(params))))
    h = g.add("Reshape", flat, g.add("Concat", extent, g.ints(d), axis=0))
    padded = g.add("Pad", h, g.ints(0, 1, 0, 0, 1, 0))
    before = g.add("Slice", padded, g.ints(0, 0), g.ints(-2, n), g.ints(1, 2))
    behind = g.add("Slice", padded, g.ints(2, 0), g.ints(1 << 40, n), g.ints(1, 2))
    window = g.add("Reshape", g.add("Concat", before, h, behind, axis=2), g.ints(-1, d + 2 * n))
    conv = g.add("Relu", g.linear(window, params["conv"]))
    return g.norm(g.add("Add", flat, conv), d)


def _read(g: Graph, params: Params, h: str, points: dict[str, str], shape: Shape) -> str:
    """The latents read the tokens: (batch * latents, width)."""
    d, k, maps = shape.width, shape.n_latents, shape.n_latents * shape.n_reads
    extent = points["extent"]
    score = g.add("Reshape", g.linear(h, params["read"]), g.add("Concat", extent, g.ints(maps), axis=0))
    score = g.add("Transpose", score, perm=[0, 2, 1])
    away = g.add("Where", g.add("Unsqueeze", points["valid"], g.ints(1)), g.const(0), g.const(network.MASKED))
    weight = g.add("Softmax", g.add("Add", score, away))
    tokens = g.add("Reshape", h, g.add("Concat", extent, g.ints(d), axis=0))
    seen = g.add("Reshape", g.add("MatMul", weight, tokens), g.ints(-1, shape.n_reads * d))
    z = g.add("Reshape", g.linear(seen, params["out"]), g.ints(-1, k, d))
    return g.add("Reshape", g.add("Add", z, g.vector(params["latents"])), g.ints(-1, d))


def _block(g: Graph, p: Params, z: str, shape: Shape) -> str:
    """One pre-norm transformer block among the latents, (batch * latents, width) in and out."""
    d, heads, k = shape.width, shape.n_heads, shape.n_latents
    size = d // heads
    qkv = g.add("Reshape", g.linear(g.norm(z, d), _scaled_queries(p["qkv"], size)), g.ints(-1, k, 3, heads, size))
    names = [g.name() for _ in range(3)]
    g.nodes.append(helper.make_node("Split", [g.add("Transpose", qkv, perm=[2, 0, 3, 1, 4])], names, num_outputs=3))
    query, key, value = (g.add("Reshape", x, g.ints(-1, heads, k, size)) for x in names)
    weight = g.add("Softmax", g.add("MatMul", query, g.add("Transpose", key, perm=[0, 1, 3, 2])))
    mixed = g.add("Transpose", g.add("MatMul", weight, value), perm=[0, 2, 1, 3])
    z = g.linear(g.add("Reshape", mixed, g.ints(-1, d)), p["out"], z)
    return g.linear(g.add("Relu", g.linear(g.norm(z, d), p["up"])), p["down"], z)


def _scaled_queries(p: Params, size: int) -> Params:
    """The matrix of queries, keys and values with the 1/sqrt(size) of the scores in its queries."""
    factor = np.ones(p["b"].shape, np.float32)
    factor[: len(factor) // 3] = 1 / np.sqrt(size)
    return {"w": np.asarray(p["w"]) * factor, "b": np.asarray(p["b"]) * factor}


def _sharpness(g: Graph, band: str, names: Sequence[str], temperature: Mapping[str, float]) -> str:
    """1 / temperature of each curve's survey, (batch, 1): ztf where all bands are ZTF's, else lsst."""
    is_other = np.array([[not name.startswith("ztf")] for name in names] + [[False]])
    other = g.add("Gather", g.const(is_other[:, 0], np.float32), band)
    other = g.add("ReduceMax", other, g.ints(1))
    ztf, lsst = 1 / temperature["ztf"], 1 / temperature["lsst"]
    return g.add("Add", g.add("Mul", other, g.const(lsst - ztf)), g.const(ztf))


def graph(
    params: Params,
    shape: Shape,
    wavelength_nm: Mapping[str, float],
    temperature: Mapping[str, float] | None = None,
    *,
    int8: bool = True,
    inputs: Iterable[Array] = (),
) -> onnx.ModelProto:
    """The whole model. `wavelength_nm` is the card's band table in order; temperature: divisor of logits per survey.

    int8 False leaves the matrices in float32. inputs: what each matrix is given, so that its rounding suits them.
    """
    g = Graph(int8=int8, inputs=inputs)
    points = _sorted_inputs(g)
    h = _tokens(g, params, _features(g, points, [*wavelength_nm.values()]), points["extent"], shape)
    z = _read(g, params, h, points, shape)
    for block in params["blocks"]:
        z = _block(g, block, z, shape)
    last = g.add("Reshape", g.norm(z, shape.width), g.ints(-1, shape.n_latents, shape.width))
    logits = g.linear(g.add("ReduceMean", last, g.ints(1), keepdims=0), params["head"])
    sharpness = _sharpness(g, points["band"], [*wavelength_nm], temperature or {"ztf": 1.0, "lsst": 1.0})
    g.add("Softmax", g.add("Mul", logits, sharpness), out="probabilities")

    info = helper.make_tensor_value_info
    types = {"mjd": TensorProto.DOUBLE, "flux": TensorProto.FLOAT, "flux_err": TensorProto.FLOAT}
    types |= {"band": TensorProto.INT32, "detected": TensorProto.BOOL}
    declared = [info(name, kind, ["batch", "points"]) for name, kind in types.items()]
    output = info("probabilities", TensorProto.FLOAT, ["batch", shape.n_classes])
    body = helper.make_graph(g.nodes, "light_curve_classifier", declared, [output], g.constants)
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
