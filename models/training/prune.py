"""The start of training: weights of t2b-0, the larger first model, cut down to the shape of `network.py`.

t2b-0's network had 4 x 8 reading maps with values of their own, norms with gains, biases everywhere, a convolution over
all channels and 96 hidden units. Gains, biases and values fold exactly into the matrices behind them; channels lent to
neighbours and hidden units are cut, the least active ones first, and the mean of what was cut becomes a constant.
Without cuts the result is t2b-0's to 1e-4 (tested).
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from models.training import network
from models.training.network import Batch, Params, Shape

Array = NDArray[np.float32]
OLD_HEADS, OLD_BLOCKS = 4, 2
UNCUT = {"feed_forward": 97, "n_shifted": 48}  # 96 hidden units, and the one that carries a bias


def start(path: Path, shape: Shape, batch: Batch) -> Params:
    """Weights of this shape from t2b-0's file; batch: light curves on which the activity of units is measured."""
    old = _read(path)
    h, tokens = _old_tokens(old, batch)
    lent = np.argsort(-_lending(old, h), kind="stable")  # most important first
    w = old["conv"]["w"].reshape(3, shape.width, shape.width)[:, lent][:, :, lent]
    n = shape.n_shifted
    params: Params = {
        "stem": {"w": np.concatenate([old["stem"]["w"], old["stem"]["b"][None]])[:, lent]},
        "conv": {"w": np.concatenate([w[0, :n], w[1], w[2, :n]]), "b": old["conv"]["b"][lent]},
    }
    valid = np.asarray(batch.valid) > 0
    cut = h[:, :, lent][valid].mean(0)[n:] @ (w[0, n:] + w[2, n:])
    params["conv"]["b"] = params["conv"]["b"] + cut
    params |= _folded_read(old, shape, lent)
    params["blocks"] = []
    z = np.asarray(_latents(params, tokens, batch, shape))
    for block in old["blocks"]:
        params["blocks"].append(_folded_block(block, shape, z))
        z = np.asarray(network.block(jax.tree.map(jnp.asarray, params["blocks"][-1]), jnp.asarray(z), shape.n_heads))
    params["head"] = _after_norm(old["final"], old["head"])
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)  # type: ignore[no-any-return]


def _read(path: Path) -> Params:
    """Matrices and vectors in the order in which t2b-0's graph uses them."""
    graph = onnx.load(path).graph
    known = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    matrices: list[dict[str, Array]] = []
    norms: list[dict[str, Array]] = []
    latents, product = np.zeros(0, np.float32), ""
    for node in graph.node:
        inputs = node.input
        if node.op_type == "Cast" and inputs[0] in known:
            known[node.output[0]] = known[inputs[0]].astype(np.float32)
        elif node.op_type == "Mul" and inputs[0] in known and inputs[1] in known:
            known[node.output[0]] = known[inputs[0]] * known[inputs[1]]
        elif node.op_type == "MatMul" and inputs[1] in known:
            matrices.append({"w": known[inputs[1]]})
            product = node.output[0]
        elif node.op_type == "Add" and inputs[0] == product:
            matrices[-1]["b"] = known[inputs[1]]
        elif node.op_type == "Add" and inputs[1] in known and known[inputs[1]].ndim == 2:
            latents = known[inputs[1]]
        elif node.op_type == "LayerNormalization":
            norms.append({"g": known[inputs[1]], "b": known[inputs[2]]})
    names = ("stem", "conv", "read", "value", "out")
    old: Params = dict(zip(names, matrices, strict=False)) | {"norm": norms[0], "final": norms[-1]}
    old |= {"latents": latents, "head": matrices[-1], "blocks": []}
    for i in range(OLD_BLOCKS):
        four = dict(zip(("qkv", "out", "up", "down"), matrices[5 + 4 * i : 9 + 4 * i], strict=True))
        old["blocks"].append(four | {"norm1": norms[1 + 2 * i], "norm2": norms[2 + 2 * i]})
    return old


def _old_tokens(old: Params, batch: Batch) -> tuple[Array, Array]:
    """Stem's output (B, L, D) and the new network's features of the batch."""
    tokens = np.asarray(network.features(batch)[0])
    h = np.maximum(tokens[..., :-1] @ old["stem"]["w"] + old["stem"]["b"] * tokens[..., -1:], 0)
    return h, tokens


def _lending(old: Params, h: Array) -> Array:
    """How much each channel gives its neighbours: its activity times the size of their weights."""
    before, _, behind = old["conv"]["w"].reshape(3, h.shape[-1], -1)
    activity = np.sqrt((h**2).mean((0, 1)))
    return np.asarray(activity * np.sqrt((before**2).sum(1) + (behind**2).sum(1)))


def _after_norm(norm: dict[str, Array], p: dict[str, Array]) -> dict[str, Array]:
    """A linear map behind a norm with gain g and offset b, for a norm without them."""
    return {"w": norm["g"][:, None] * p["w"], "b": norm["b"] @ p["w"] + p["b"]}


def _folded_read(old: Params, shape: Shape, lent: NDArray[np.intp]) -> Params:
    """read, out and latents: values and their projection become one matrix per head of the old network."""
    d, k = shape.width, shape.n_latents
    size = d // OLD_HEADS
    norm = {key: value[lent] for key, value in old["norm"].items()}
    read, value = old["read"]["w"][lent], old["value"]["w"][lent]
    columns = np.arange(OLD_HEADS * k).reshape(OLD_HEADS, k).T.ravel()  # latent by latent instead of head by head
    heads = [
        (norm["g"][:, None] * value[:, i * size : (i + 1) * size]) @ old["out"]["w"][i * size : (i + 1) * size]
        for i in range(OLD_HEADS)
    ]
    constant = (norm["b"] @ value + old["value"]["b"]) @ old["out"]["w"] + old["out"]["b"]
    read = (norm["g"][:, None] * read)[:, columns]
    return {"read": {"w": read}, "out": {"w": np.concatenate(heads)}, "latents": old["latents"] + constant}


def _latents(params: Params, tokens: Array, batch: Batch, shape: Shape) -> Any:
    empty = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params | {"blocks": []})
    return network.encode(empty, jnp.asarray(tokens), jnp.asarray(batch.valid), shape.n_heads)


def _folded_block(p: Params, shape: Shape, z: Array) -> Params:
    """One block: the bias behind the attention moves into the values, the least active hidden units go.

    One unit stays switched on and carries the bias of `down` and the mean of what was cut.
    """
    d = shape.width
    qkv = _after_norm(p["norm1"], p["qkv"])
    qkv["b"][2 * d :] += np.linalg.lstsq(p["out"]["w"].T, p["out"]["b"], rcond=None)[0]
    block: Params = {"qkv": qkv, "out": {"w": p["out"]["w"]}}
    up = _after_norm(p["norm2"], p["up"])
    still = {"up": {"w": up["w"][:, :0], "b": up["b"][:0]}, "down": {"w": p["down"]["w"][:0]}}
    mixed = np.asarray(network.block(jax.tree.map(jnp.asarray, block | still), jnp.asarray(z), shape.n_heads))
    active = np.maximum(np.asarray(network.layer_norm(jnp.asarray(mixed))) @ up["w"] + up["b"], 0)
    weight = active.std((0, 1)) * np.linalg.norm(p["down"]["w"], axis=1)
    order = np.argsort(-weight, kind="stable")
    kept, cut = order[: shape.feed_forward - 1], order[shape.feed_forward - 1 :]
    constant = p["down"]["b"] + active.mean((0, 1))[cut] @ p["down"]["w"][cut]
    block["up"] = {
        "w": np.concatenate([up["w"][:, kept], np.zeros((d, 1), np.float32)], 1),
        "b": np.append(up["b"][kept], np.float32(1)),
    }
    block["down"] = {"w": np.concatenate([p["down"]["w"][kept], constant[None]])}
    return block
