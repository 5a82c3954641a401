"""The replica of the paper's network as a graph, and as a model folder that is served and measured like any other.

    python -m models.training.baselines.replica models/t2-paper --data ../shared/datasets \\
        --weights build/paper/weights.npz

The graph takes raw points as every released model does, so the Gaussian process of `grid.py` is part of it. ONNX has no
operator that solves linear equations: a Loop over the points does it, by Gauss and Jordan without pivoting (the matrix
is symmetric and positive), in double.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from broker.lightcurve import BANDS
from models.training import dataset, release
from models.training.baselines import grid, paper
from models.training.dataset import CLASSES

HEAD_SIZE = paper.WIDTH // paper.HEADS
FAR = 1e300  # stands for "no time"
MIN_ERROR_NJY = 1e-3  # only there so that no division overflows
NETWORK = """
  embedded = MatMul(grid, embed_w)
  embedded_b = Add(embedded, embed_b)
  rectified = Relu(embedded_b)
  h = Add(rectified, positions)
  q = MatMul(h, query_w)
  q_b = Add(q, query_b)
  q_split = Reshape(q_b, by_head)
  q_t = Transpose <perm = [0, 2, 1, 3]> (q_split)
  k = MatMul(h, key_w)
  k_b = Add(k, key_b)
  k_split = Reshape(k_b, by_head)
  k_t = Transpose <perm = [0, 2, 3, 1]> (k_split)
  v = MatMul(h, value_w)
  v_b = Add(v, value_b)
  v_split = Reshape(v_b, by_head)
  v_t = Transpose <perm = [0, 2, 1, 3]> (v_split)
  q_scaled = Mul(q_t, scale)
  score = MatMul(q_scaled, k_t)
  weight = Softmax <axis = -1> (score)
  mixed = MatMul(weight, v_t)
  mixed_t = Transpose <perm = [0, 2, 1, 3]> (mixed)
  joined = Reshape(mixed_t, whole)
  out = MatMul(joined, out_w)
  out_b_ = Add(out, out_b)
  first = Add(h, out_b_)
  normed = LayerNormalization <axis = -1, epsilon = 0.000001> (first, norm1_gain, norm1_shift)
  up = MatMul(normed, up_w)
  up_b_ = Add(up, up_b)
  up_r = Relu(up_b_)
  down = MatMul(up_r, down_w)
  down_b_ = Add(down, down_b)
  second = Add(normed, down_b_)
  last = LayerNormalization <axis = -1, epsilon = 0.000001> (second, norm2_gain, norm2_shift)
  pooled = ReduceMean <keepdims = 0> (last, times_axis)
  head = MatMul(pooled, head_w)
  logit = Add(head, head_b)
"""
OF_GRIDS = f"""
<ir_version: 10, opset_import: ["" : 21]>
t2 (float[batch, {grid.N_TIMES}, {len(grid.LSST_NM)}] grid) => (float[batch, {len(CLASSES)}] probabilities) {{
{NETWORK}
  probabilities = Softmax <axis = -1> (logit)
}}
"""
OF_POINTS = f"""
<ir_version: 10, opset_import: ["" : 21], producer_name: "t2-broker">
t2 (double[batch, points] mjd, float[batch, points] flux, float[batch, points] flux_err, int32[batch, points] band,
    bool[batch, points] detected) => (float[batch, {len(CLASSES)}] probabilities) {{
  valid = GreaterOrEqual(band, no_band)
  known = Max(band, no_band)

  seen = And(valid, detected)
  seen_number = Cast <to = 1> (seen)
  seen_most = ReduceMax <keepdims = 1> (seen_number, one)
  is_seen = Greater(seen_most, none)
  is_unseen = Not(is_seen)
  all = And(valid, is_unseen)
  counts = Or(seen, all)
  counted_low = Where(counts, mjd, far)
  counted_high = Where(counts, mjd, before)
  first_seen = ReduceMin <keepdims = 1> (counted_low, one)
  last_seen = ReduceMax <keepdims = 1> (counted_high, one)
  earliest = Sub(first_seen, margin)
  latest = Add(last_seen, margin)
  is_late = GreaterOrEqual(mjd, earliest)
  is_early = LessOrEqual(mjd, latest)
  is_near = And(is_late, is_early)
  keep = And(valid, is_near)
  kept = Cast <to = 11> (keep)

  wide_flux = Cast <to = 11> (flux)
  wide_error = Cast <to = 11> (flux_err)
  some_error = Max(wide_error, least_error)
  error = Where(keep, some_error, unit)
  value = Where(keep, wide_flux, zero)
  ratio = Div(value, error)
  snr = Abs(ratio)
  fifth = Mul(snr, secure_by)
  secure = Min(fifth, unit)
  size = Abs(value)
  weighed = Mul(size, secure)
  largest = ReduceMax <keepdims = 1> (weighed, one)
  peak = Add(largest, least_peak)
  y = Div(value, peak)
  e = Div(error, peak)

  kept_mjd = Where(keep, mjd, far)
  start_mjd = ReduceMin <keepdims = 1> (kept_mjd, one)
  since = Sub(mjd, start_mjd)
  days = Where(keep, since, zero)
  nm = Gather(nm_of_band, known)
  days_row = Unsqueeze(days, one)
  days_column = Unsqueeze(days, two)
  nm_row = Unsqueeze(nm, one)
  nm_column = Unsqueeze(nm, two)
  kept_row = Unsqueeze(kept, one)
  kept_column = Unsqueeze(kept, two)
  of_days_apart = Sub(days_column, days_row)
  of_days_distance = Abs(of_days_apart)
  of_days_r = Mul(of_days_distance, per_day)
  of_days_minus = Neg(of_days_r)
  of_days_decay = Exp(of_days_minus)
  of_days_more = Add(of_days_r, unit)
  of_days = Mul(of_days_more, of_days_decay)
  of_nm_apart = Sub(nm_column, nm_row)
  of_nm_distance = Abs(of_nm_apart)
  of_nm_r = Mul(of_nm_distance, per_nm)
  of_nm_minus = Neg(of_nm_r)
  of_nm_decay = Exp(of_nm_minus)
  of_nm_more = Add(of_nm_r, unit)
  of_nm = Mul(of_nm_more, of_nm_decay)
  of_both = Mul(of_days, of_nm)
  strong = Mul(of_both, variance)
  strong_row = Mul(strong, kept_row)
  kernel = Mul(strong_row, kept_column)
  e_squared = Mul(e, e)
  noise = Add(e_squared, floor)
  diagonal = Where(keep, noise, unit)
  diagonal_column = Unsqueeze(diagonal, two)
  shape = Shape(mjd)
  n = Gather(shape, last_axis)
  index = Range(start, n, step)
  index_row = Unsqueeze(index, start_axis)
  index_column = Unsqueeze(index, one)
  is_diagonal = Equal(index_row, index_column)
  eye = Cast <to = 11> (is_diagonal)
  added = Mul(diagonal_column, eye)
  matrix = Add(kernel, added)
  y_column = Unsqueeze(y, two)
  system = Concat <axis = 2> (matrix, y_column)
  solved = Loop <body = eliminate (int64 i, bool go, double[batch, points, wide] a)
    => (bool on, double[batch, points, wide] b) {{
    on = Identity(go)
    column = Gather <axis = 2> (a, i)
    row = Gather <axis = 1> (a, i)
    pivot = Gather <axis = 1> (row, i)
    pivot_column = Unsqueeze(pivot, one)
    scaled_row = Div(row, pivot_column)
    unit_row = Gather <axis = 0> (eye, i)
    factor = Sub(column, unit_row)
    factor_column = Unsqueeze(factor, two)
    scaled_flat = Unsqueeze(scaled_row, one)
    product = Mul(factor_column, scaled_flat)
    b = Sub(a, product)
  }}> (n, always, system)
  weight_of_point = Gather <axis = 2> (solved, n)

  longest = ReduceMax <keepdims = 1> (days, one)
  times = Mul(longest, fractions)
  times_column = Unsqueeze(times, two)
  of_times_apart = Sub(times_column, days_row)
  of_times_distance = Abs(of_times_apart)
  of_times_r = Mul(of_times_distance, per_day)
  of_times_minus = Neg(of_times_r)
  of_times_decay = Exp(of_times_minus)
  of_times_more = Add(of_times_r, unit)
  of_times = Mul(of_times_more, of_times_decay)
  of_bands_apart = Sub(nm_column, lsst_nm)
  of_bands_distance = Abs(of_bands_apart)
  of_bands_r = Mul(of_bands_distance, per_nm)
  of_bands_minus = Neg(of_bands_r)
  of_bands_decay = Exp(of_bands_minus)
  of_bands_more = Add(of_bands_r, unit)
  of_bands = Mul(of_bands_more, of_bands_decay)
  weight_row = Unsqueeze(weight_of_point, one)
  told = Mul(of_times, weight_row)
  told_by = MatMul(told, of_bands)
  in_peaks = Mul(told_by, variance)
  peak_column = Unsqueeze(peak, two)
  in_njy = Mul(in_peaks, peak_column)
  fluxes = Cast <to = 1> (in_njy)

  is_other = Gather(other_band, band)
  is_any = ReduceMax <keepdims = 0> (is_other, one)
  survey = Sub(last_axis, is_any)
  middle = Gather(middles, survey)
  spread = Gather(spreads, survey)
  middle_row = Unsqueeze(middle, one)
  spread_row = Unsqueeze(spread, one)
  from_middle = Sub(fluxes, middle_row)
  in_spreads = Div(from_middle, spread_row)
  grid = Asinh(in_spreads)
{NETWORK}
  sharpness = Gather(sharpnesses, survey)
  sharpness_column = Unsqueeze(sharpness, one)
  sharp = Mul(logit, sharpness_column)
  probabilities = Softmax <axis = -1> (sharp)
}}
"""


def _constants(params: paper.Params) -> dict[str, NDArray[Any]]:
    constants: dict[str, NDArray[Any]] = {
        f"{name}_{kind}": np.asarray(x, np.float32) for name, of in params.items() for kind, x in of.items()
    }
    return constants | {
        "positions": paper.positions(),
        "by_head": np.array([0, grid.N_TIMES, paper.HEADS, HEAD_SIZE], np.int64),
        "whole": np.array([0, grid.N_TIMES, paper.WIDTH], np.int64),
        "scale": np.array(1 / np.sqrt(HEAD_SIZE), np.float32),
        "times_axis": np.array([1], np.int64),
    }


def network(params: paper.Params) -> onnx.ModelProto:
    """The replica from its finished input on: scaled grids (batch, 100, 6) to probabilities."""
    return _made(OF_GRIDS, _constants(params))


def graph(params: paper.Params, scales: NDArray[np.float32], temperature: Mapping[str, float]) -> onnx.ModelProto:
    """The replica from raw points on. scales: (LSST and ZTF, median and range, bands) of its grids, in nJy.

    temperature: divisor of the logits per survey. A light curve is ZTF's where all of its bands are.
    """
    wide = np.float64
    constants = _constants(params) | {
        "no_band": np.array(0, np.int32),
        "none": np.array(0, np.float32),
        "zero": np.array(0, wide),
        "unit": np.array(1, wide),
        "far": np.array(FAR, wide),
        "before": np.array(-FAR, wide),
        "margin": np.array(grid.MARGIN_D, wide),
        "least_error": np.array(MIN_ERROR_NJY, wide),
        "least_peak": np.array(1e-3, wide),
        "secure_by": np.array(0.2, wide),
        "floor": np.array(grid.FLOOR**2, wide),
        "variance": np.array(grid.AMPLITUDE**2, wide),
        "per_day": np.array(np.sqrt(3) / grid.TIME_SCALE_D, wide),
        "per_nm": np.array(np.sqrt(3) / grid.WAVELENGTH_SCALE_NM, wide),
        "nm_of_band": grid.NM.astype(wide),
        "lsst_nm": grid.LSST_NM.astype(wide)[None, None],
        "fractions": np.linspace(0, 1, grid.N_TIMES)[None],
        "start_axis": np.array([0], np.int64),
        "one": np.array([1], np.int64),
        "two": np.array([2], np.int64),
        "start": np.array(0, np.int64),
        "step": np.array(1, np.int64),
        "last_axis": np.array(1, np.int64),
        "always": np.array(True),
        # the last one is padding's, which -1 points at
        "other_band": np.array([*(not name.startswith("ztf") for name in BANDS), False], np.int64),
        "middles": scales[:, 0],
        "spreads": scales[:, 1],
        "sharpnesses": np.array([1 / temperature["lsst"], 1 / temperature["ztf"]], np.float32),
    }
    made = _made(OF_POINTS, constants)
    helper.set_model_props(made, {"n_bands": str(len(BANDS)), "n_classes": str(len(CLASSES))})
    return made


def _made(text: str, constants: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
    made = onnx.parser.parse_model(text)
    made.graph.initializer.extend(numpy_helper.from_array(x, name) for name, x in constants.items())
    onnx.checker.check_model(made, full_check=True)
    return made


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="model folder to write")
    parser.add_argument("--data", type=Path, required=True, help="folder of the labelled sets")
    parser.add_argument("--weights", type=Path, required=True, help="what models.training.baselines.paper wrote")
    arguments = parser.parse_args()
    params, scales = paper.load(arguments.weights)
    release.release(arguments.folder, dataset.load(arguments.data), lambda t: graph(params, scales, t))


if __name__ == "__main__":
    main()
