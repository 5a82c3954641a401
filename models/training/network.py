"""Latent-query transformer over irregular photometry, in plain JAX: points in raw units in, logits out.

Each point becomes a token; eight learned queries read all tokens once (linear in the number of points), two
transformer blocks work among those eight latents only. `export.py` writes the same arithmetic as an ONNX graph, and
the constants below are shared with it. Shapes: B light curves, L points (padded), F features, D width, K latents.

What does not pay its time or bytes is left out: norms have no weights of their own (the matrix behind each holds
them), projections into the residual no bias, and the neighbours in time lend 24 channels each, not all 48.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

Params = dict[str, Any]

PERIODS_D = (8.0, 20.0, 50.0, 125.0)  # time scales of supernovae, resolved as phases rather than as one asinh
BAND_CENTRES_NM = (367.1, 482.7, 622.3, 754.6, 869.1, 971.2)  # LSST's bands carry the radial basis in log wavelength
BAND_WIDTH = 0.13  # in log wavelength: neighbouring centres overlap, so an unseen band lands between known ones
N_FEATURES = 8 + 2 * len(PERIODS_D) + len(BAND_CENTRES_NM) + 1
MAX_SNR = 1e6  # |flux|/error beyond this says nothing more, and keeps tiny errors finite
MIN_ERROR_NJY = 1e-3  # 36 mag below the faintest survey: only there so that no division overflows
MAX_DAYS = 1e5  # clip of relative times, so that nonsense times stay finite
SCALE_FLOOR_NJY = 1e-3
MASKED = -1e4  # added to a padded token's score: exp() of it is exactly 0 in float32


@dataclass(frozen=True)
class Shape:
    """Sizes of the network. Multiples of 16 fill the vector registers; NOTES.md has what each costs."""

    n_classes: int
    width: int = 48
    n_reads: int = 4  # attention maps of each latent over the points
    n_latents: int = 8
    n_blocks: int = 2
    n_heads: int = 4  # of the attention among the latents
    feed_forward: int = 64
    n_shifted: int = 24  # channels that a point takes from the one before it and the one behind it


class Batch(NamedTuple):
    """Padded light curves, each (B, L), points in time order with the padding at the end."""

    days: Any  # float32, since the first detection (see `relative_days`)
    flux: Any  # float32, nJy
    flux_err: Any  # float32, nJy
    wavelength_nm: Any  # float32, of the band; any value where padded
    detected: Any  # float32, 1 where the point came as a detection
    valid: Any  # float32, 0 where padded


def relative_days(
    mjd: NDArray[np.float64], detected: NDArray[np.bool_], valid: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Days since the first detection (since the newest point if there is none), (B, L); 0 where padded.

    In double: float32 at MJD 60,000 steps by 5.6 minutes. The ONNX graph does the same inside.
    """
    newest = np.where(valid, mjd, -np.inf).max(1, keepdims=True)
    first = np.where(valid & detected, mjd, np.inf).min(1, keepdims=True)
    days = np.where(valid, mjd - np.minimum(first, newest), 0.0)
    return np.clip(days, -MAX_DAYS, MAX_DAYS).astype(np.float32)


def band_basis(wavelength_nm: Any) -> Any:
    """Radial basis of log wavelength, (..., 6)."""
    distance = jnp.log(wavelength_nm)[..., None] - jnp.log(jnp.asarray(BAND_CENTRES_NM, jnp.float32))
    return jnp.exp(-0.5 * (distance / BAND_WIDTH) ** 2)


def features(batch: Batch) -> tuple[Any, Any]:
    """Tokens (B, L, F) and the flux scale (B, 1) in nJy: the largest flux, each weighted down below S/N 5."""
    valid = batch.valid
    flux = jnp.where(valid > 0, batch.flux, 0.0)
    error = jnp.where(valid > 0, jnp.maximum(batch.flux_err, MIN_ERROR_NJY), 1.0)
    snr = jnp.clip(flux / error, -MAX_SNR, MAX_SNR)
    scale = jnp.max(jnp.abs(flux) * jnp.minimum(jnp.abs(snr) * 0.2, 1.0), 1, keepdims=True) + SCALE_FLOOR_NJY
    days = batch.days
    newest = jnp.max(jnp.where(valid > 0, days, -MAX_DAYS), 1, keepdims=True)
    previous = jnp.concatenate([days[:, :1], days[:, :-1]], 1)
    phase = days[..., None] * jnp.asarray([2 * np.pi / p for p in PERIODS_D], jnp.float32)
    columns = [
        jnp.arcsinh(snr) / 3,
        jnp.clip(flux / scale, -2, 2),
        jnp.clip(jnp.log10(error / scale), -4, 2),
        jnp.arcsinh(days / 10) / 2,
        jnp.arcsinh((newest - days) / 10) / 2,
        jnp.arcsinh(days - previous) / 3,
        jnp.broadcast_to(jnp.log10(scale) - 4, days.shape),
        batch.detected,
    ]
    one = jnp.ones_like(days)[..., None]  # the bias of the stem, as a feature: padded tokens stay exactly 0
    tokens = [jnp.stack(columns, -1), jnp.sin(phase), jnp.cos(phase), band_basis(batch.wavelength_nm), one]
    return jnp.concatenate(tokens, -1) * valid[..., None], scale


def _weights(rng: np.random.Generator, n_in: int, n_out: int, gain: float = 1.0) -> Any:
    return jnp.asarray(rng.standard_normal((n_in, n_out)) * gain / np.sqrt(n_in), jnp.float32)


def _linear(rng: np.random.Generator, n_in: int, n_out: int, gain: float = 1.0) -> Params:
    return {"w": _weights(rng, n_in, n_out, gain), "b": jnp.zeros(n_out, jnp.float32)}


def initial(seed: int, shape: Shape) -> Params:
    """Fresh weights. The queries are constants, so they fold with their keys into one matrix `read`."""
    rng = np.random.default_rng(seed)
    d, ff = shape.width, shape.feed_forward
    params: Params = {
        "stem": {"w": _weights(rng, N_FEATURES, d, 1.4)},
        "conv": _linear(rng, d + 2 * shape.n_shifted, d),
        "read": {"w": _weights(rng, d, shape.n_latents * shape.n_reads)},
        "out": {"w": _weights(rng, shape.n_reads * d, d)},
        "latents": jnp.asarray(rng.standard_normal((shape.n_latents, d)) * 0.5, jnp.float32),
        "blocks": [],
        "head": _linear(rng, d, shape.n_classes, 0.3),
    }
    for _ in range(shape.n_blocks):
        block = {"qkv": _linear(rng, d, 3 * d), "out": {"w": _weights(rng, d, d, 0.5)}}
        block |= {"up": _linear(rng, d, ff, 1.4), "down": {"w": _weights(rng, ff, d, 0.5)}}
        params["blocks"].append(block)
    return params


def linear(x: Any, p: Params) -> Any:
    """x @ w + b over the last axis, where there is a b."""
    y = x.reshape(-1, x.shape[-1]) @ p["w"]  # as one matrix: a fifth less time a step than with (B, L, D)
    y = y + p["b"] if "b" in p else y
    return y.reshape(*x.shape[:-1], -1)


def layer_norm(x: Any) -> Any:
    """Layer normalisation over the last axis without gain and offset, epsilon 1e-5 as in the ONNX operator."""
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)


def encode(params: Params, tokens: Any, valid: Any, n_heads: int) -> Any:
    """Latents (B, K, D) of tokens (B, L, F); n_heads of the attention among latents."""
    n = len(tokens)
    k, d = params["latents"].shape
    h = jax.nn.relu(linear(tokens, params["stem"]))
    shifted = (params["conv"]["w"].shape[0] - d) // 2
    edge = jnp.zeros((n, 1, shifted), h.dtype)
    before = jnp.concatenate([edge, h[:, :-1, :shifted]], 1)
    behind = jnp.concatenate([h[:, 1:, :shifted], edge], 1)
    h = layer_norm(h + jax.nn.relu(linear(jnp.concatenate([before, h, behind], -1), params["conv"])))
    score = linear(h, params["read"]) + (1 - valid[..., None]) * MASKED
    seen = jnp.einsum("blm,bld->bmd", jax.nn.softmax(score, 1), h).reshape(n, k, -1)
    z = params["latents"] + linear(seen, params["out"])
    for p in params["blocks"]:
        z = block(p, z, n_heads)
    return z


def block(p: Params, z: Any, n_heads: int) -> Any:
    """One pre-norm transformer block among latents (B, K, D)."""
    n, k, d = z.shape
    qkv = linear(layer_norm(z), p["qkv"]).reshape(n, k, 3, n_heads, d // n_heads)
    score = jnp.einsum("bqhd,bkhd->bhqk", qkv[:, :, 0], qkv[:, :, 1]) / np.sqrt(d // n_heads)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(score, -1), qkv[:, :, 2]).reshape(n, k, d)
    z = z + linear(mixed, p["out"])
    return z + linear(jax.nn.relu(linear(layer_norm(z), p["up"])), p["down"])


def logits(params: Params, batch: Batch, n_heads: int = Shape.n_heads) -> Any:
    """Class logits (B, C)."""
    tokens, _ = features(batch)
    z = encode(params, tokens, batch.valid, n_heads)
    return linear(layer_norm(z).mean(1), params["head"])


def initial_decoder(seed: int, shape: Shape) -> Params:
    """Weights of the masked-flux decoder, used in pre-training only and never exported."""
    rng = np.random.default_rng(seed + 99)
    d = shape.width
    n_query = 2 + 2 * len(PERIODS_D) + len(BAND_CENTRES_NM)
    return {
        "query": _linear(rng, n_query, d, 1.4),
        "query2": _linear(rng, d, d),
        "key": _linear(rng, d, d),
        "value": _linear(rng, d, d),
        "mix": _linear(rng, 2 * d, d, 1.4),
        "flux": _linear(rng, d, 1, 0.3),
    }


def decode(params: Params, z: Any, days: Any, wavelength_nm: Any) -> Any:
    """Flux over scale at (days, wavelength), (B, L): each asked point reads the latents z (B, K, D)."""
    phase = days[..., None] * jnp.asarray([2 * np.pi / p for p in PERIODS_D], jnp.float32)
    asked = [jnp.arcsinh(days / 10)[..., None] / 2, (days / 100)[..., None], jnp.sin(phase), jnp.cos(phase)]
    query = jax.nn.relu(linear(jnp.concatenate([*asked, band_basis(wavelength_nm)], -1), params["query"]))
    query = linear(query, params["query2"])
    score = jnp.einsum("bld,bkd->blk", query, linear(z, params["key"])) / np.sqrt(query.shape[-1])
    read = jnp.einsum("blk,bkd->bld", jax.nn.softmax(score, -1), linear(z, params["value"]))
    mixed = jax.nn.relu(linear(jnp.concatenate([query, read], -1), params["mix"]))
    return linear(mixed, params["flux"])[..., 0]


def n_parameters(params: Params) -> int:
    """Number of weights."""
    return sum(int(x.size) for x in jax.tree.leaves(params))


def save(params: Params, path: Path) -> None:
    """Writes the weights, one array per matrix in the order of the tree."""
    np.savez(path, allow_pickle=False, **{f"w{i:03d}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(params))})


def restore(path: Path, shape: Shape) -> Params:
    """The weights that `save` wrote, of a network of this shape."""
    like = initial(0, shape)
    with np.load(path) as stored:
        leaves = [jnp.asarray(stored[name]) for name in sorted(stored.files)]
    if [x.shape for x in leaves] != [x.shape for x in jax.tree.leaves(like)]:
        raise ValueError(f"{path}: holds the weights of a network of another shape than {shape}")
    found: Params = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return found
