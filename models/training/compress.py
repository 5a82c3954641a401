"""int8 matrices whose rounding errors cancel on real light curves, instead of rounding each weight by itself.

Row after row is rounded, and what its error does to the outputs is taken back by the rows that follow (GPTQ, Frantar
et al. 2022, arXiv:2210.17323). The inputs of each matrix come from the float32 graph itself, run by onnxruntime.
"""

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import ArrayLike, NDArray
from onnx import helper

from broker.lightcurve import LightCurves, thin

N_LEVELS = 127
DAMPING = 0.01  # of the mean square of the inputs: of seven, .001 to 1, the one that changes fewest answers
MAX_POINTS = 96  # of the light curves that the inputs are taken from
Array = NDArray[np.float32]


def quantised(matrix: ArrayLike, inputs: Array | None = None) -> tuple[NDArray[np.int8], Array]:
    """Integers -127 to 127 (in, out) and a scale per column (out,), whose product is near the matrix.

    inputs: (n, in), what the matrix is multiplied with; without them each weight is rounded to the nearest.
    """
    exact = np.array(matrix, np.float64)
    scale = (np.abs(exact).max(0) / N_LEVELS + 1e-12).astype(np.float32)
    if inputs is None:
        return np.clip(np.round(exact / scale), -N_LEVELS, N_LEVELS).astype(np.int8), scale
    x = inputs.astype(np.float64)
    square = x.T @ x / len(x)
    square += DAMPING * np.trace(square) / len(square) * np.eye(len(square))
    order = np.argsort(-np.diag(square), kind="stable")  # the rows that matter most first: the others make up for them
    factor = np.linalg.cholesky(np.linalg.inv(square[np.ix_(order, order)])).T  # upper
    whole = np.zeros(exact.shape, np.int8)
    for i, row in enumerate(order):
        whole[row] = np.clip(np.round(exact[row] / scale), -N_LEVELS, N_LEVELS)
        error = (exact[row] - whole[row] * scale) / factor[i, i]
        exact[order[i + 1 :]] -= factor[i, i + 1 :, None] * error
    return whole, scale


def inputs_of_matrices(graph: onnx.ModelProto, curves: LightCurves) -> list[Array]:
    """What each Gemm of a float32 graph is given, (n, in), in the order of its nodes, padded tokens included."""
    wanted = list(dict.fromkeys(node.input[0] for node in graph.graph.node if node.op_type == "Gemm"))
    open_graph = onnx.ModelProto()
    open_graph.CopyFrom(graph)
    for name in wanted:
        open_graph.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = ort.InferenceSession(open_graph.SerializeToString(), providers=["CPUExecutionProvider"])
    found = dict(zip(wanted, session.run(wanted, padded(curves)), strict=True))
    return [found[node.input[0]] for node in graph.graph.node if node.op_type == "Gemm"]


def padded(light_curves: LightCurves) -> dict[str, NDArray[np.generic]]:
    """The graph's inputs, (n, MAX_POINTS); all bands of the table in broker/lightcurve.py."""
    curves = thin(light_curves, MAX_POINTS)
    valid = np.arange(MAX_POINTS) < curves.counts[:, None]
    at = np.where(valid, curves.offsets[:-1, None] + np.arange(MAX_POINTS), 0)
    feed: dict[str, NDArray[np.generic]] = {"mjd": curves.mjd_tai[at], "flux": curves.flux[at]}
    feed |= {"flux_err": curves.flux_err[at], "detected": curves.detected[at]}
    return feed | {"band": np.where(valid, curves.band[at], -1).astype(np.int32)}
