"""Weights of a released file of our own, so that a training can go on from it: export.py backwards."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from models.training import ladder
from models.training.export import STEM_FACTORS, STEM_ORDER
from models.training.network import Params, Shape

Array = NDArray[Any]


def weights(path: Path, shape: Shape) -> Params:
    """Of a network of this shape; int8 matrices multiplied out. The temperature of the file is no weight."""
    graph = ladder.multiplied_out(onnx.load(path)).graph
    known = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    gemms = [[known[i] for i in node.input[1:] if i in known] for node in graph.node if node.op_type == "Gemm"]
    d, size = shape.width, shape.width // shape.n_heads
    (latents,) = (
        known[node.input[1]]
        for node in graph.node
        if node.op_type == "Add" and node.input[1] in known and known[node.input[1]].shape == (shape.n_latents, d)
    )
    stem = gemms[0][0].astype(np.float64)
    first = (stem[: len(STEM_ORDER)] / STEM_FACTORS[:, None])[np.argsort(STEM_ORDER)]
    stem = np.concatenate([first, stem[len(STEM_ORDER) :]])
    params: Params = {"stem": {"w": stem}, "conv": _linear(gemms[1]), "read": _linear(gemms[2])}
    params |= {"out": _linear(gemms[3]), "latents": latents, "blocks": [], "head": _linear(gemms[-1])}
    for i in range(4, 4 + 4 * shape.n_blocks, 4):
        qkv, out, up, down = (_linear(g) for g in gemms[i : i + 4])
        for matrix in qkv.values():
            matrix[..., :d] *= np.sqrt(size)
        params["blocks"].append({"qkv": qkv, "out": out, "up": up, "down": down})
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)  # type: ignore[no-any-return]


def _linear(gemm: list[Array]) -> dict[str, Array]:
    return dict(zip("wb", (x.astype(np.float64) for x in gemm), strict=False))
