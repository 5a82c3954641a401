"""The paper's way of compressing, step by step, on a released model: clustering, pruning, int8, what a file packs to.

    python -m models.training.ladder --data ../shared/datasets [--model t2b-1]

Clustering and pruning are applied to the trained matrices, without training on; each saves bytes only where the file is
deflated. The float32 form is the released one multiplied out. The paper: Allam, Peloton, McEwen 2023, arXiv:2303.08951.
"""

import argparse
import re
import tempfile
import zlib
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper

from broker import model, scores
from models.training import compress, dataset, evaluate
from models.training.baselines import timing
from models.training.compress import Array
from models.training.dataset import CLASSES, TEST
from models.training.evaluate import CUTS

SMALLEST = 512  # weights: what is smaller is no matrix of the network
N_ROUNDS = 50  # of k-means
POINTS = 32


def clustered(matrix: Array, n: int) -> Array:
    """Each weight as the nearest of n values, fitted to the matrix by k-means from its quantiles."""
    flat = np.sort(matrix.ravel())
    centres = np.unique(np.quantile(flat, (np.arange(n) + 0.5) / n))
    for _ in range(N_ROUNDS):
        at = np.searchsorted((centres[1:] + centres[:-1]) / 2, flat)
        size = np.bincount(at, minlength=len(centres))
        centres = np.where(size > 0, np.bincount(at, flat, len(centres)) / np.maximum(size, 1), centres)
    return centres[np.searchsorted((centres[1:] + centres[:-1]) / 2, matrix)].astype(matrix.dtype)


def pruned(matrix: Array, share: float) -> Array:
    """This share of the weights, the smallest ones, becomes 0."""
    return np.where(np.abs(matrix) < np.quantile(np.abs(matrix), share), 0, matrix).astype(matrix.dtype)


STEPS: dict[str, Callable[[Array], Array]] = {
    "as it is": lambda m: m,
    "64 values a matrix": lambda m: clustered(m, 64),
    "32 values": lambda m: clustered(m, 32),
    "16 values": lambda m: clustered(m, 16),
    "a quarter of the weights 0": lambda m: pruned(m, 0.25),
    "half of them 0": lambda m: pruned(m, 0.5),
    "half of them 0, then 32 values": lambda m: clustered(pruned(m, 0.5), 32),
}


def multiplied_out(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The same network with its matrices and vectors in float32."""
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    kept, made = [], dict[str, NDArray[np.generic]]()
    for node in graph.graph.node:
        found = [known.get(name) for name in node.input]
        if node.op_type == "Cast" and found[0] is not None and node.attribute[0].i == onnx.TensorProto.FLOAT:
            known[node.output[0]] = made[node.output[0]] = found[0].astype(np.float32)
        elif node.op_type == "Mul" and node.input[0] in made and node.input[1] in made:
            known[node.output[0]] = made[node.output[0]] = known[node.input[0]] * known[node.input[1]]
        else:
            kept.append(node)
    used = {name for node in kept for name in node.input}
    out = onnx.ModelProto()
    out.CopyFrom(graph)
    del out.graph.node[:], out.graph.initializer[:]
    out.graph.node.extend(kept)
    out.graph.initializer.extend(numpy_helper.from_array(known[name], name) for name in known if name in used)
    onnx.checker.check_model(out, full_check=True)
    return out


def changed(graph: onnx.ModelProto, change: Callable[[Array], Array]) -> onnx.ModelProto:
    """The network with each matrix changed, in the type that it is stored in."""
    out = onnx.ModelProto()
    out.CopyFrom(graph)
    for tensor in out.graph.initializer:
        matrix = numpy_helper.to_array(tensor)
        if matrix.ndim == 2 and matrix.size >= SMALLEST and matrix.dtype in (np.int8, np.float32):
            new = change(matrix.astype(np.float32))
            new = np.round(new) if matrix.dtype == np.int8 else new
            tensor.CopyFrom(numpy_helper.from_array(new.astype(matrix.dtype), tensor.name))
    return out


def loaded(graph: onnx.ModelProto, card: str) -> model.Model:
    """A graph behind a released model's card."""
    with tempfile.TemporaryDirectory() as folder:
        content = graph.SerializeToString(deterministic=True)
        Path(folder, model.MODEL_FILE).write_bytes(content)
        digest = f'sha256 = "{sha256(content).hexdigest()}"'
        Path(folder, model.CARD_FILE).write_text(re.sub(r"^sha256 = .*$", digest, card, count=1, flags=re.MULTILINE))
        return model.load(Path(folder))


def ort_bytes(graph: onnx.ModelProto) -> int:
    """Size of the graph in onnxruntime's own format."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(Path(folder, "model.ort"))
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.add_session_config_entry("session.save_model_format", "ORT")
        ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return Path(folder, "model.ort").stat().st_size


def table(released: Path, data: dataset.TrainingSet) -> list[str]:
    """A row for each step on each form of the file."""
    card, graph = (released / model.CARD_FILE).read_text(), onnx.load(released / model.MODEL_FILE)
    forms: Mapping[str, onnx.ModelProto] = {"float32": multiplied_out(graph), "int8": graph}
    parts = [evaluate.packets(data, TEST, k) for k in CUTS]
    label = np.concatenate([part.label for part in parts])
    some = compress.padded(timing.of_length(parts[-1].curves, POINTS))
    some = {name: values[:, :POINTS] for name, values in some.items()}
    exact: NDArray[np.intp] | None = None
    rows = ["| file | step | bytes | deflated | same class | macro-F1 | us |", "|---|---|---|---|---|---|---|"]
    for form, base in forms.items():
        for step, change in STEPS.items():
            new = changed(base, change)
            answers = np.concatenate([loaded(new, card).predict(part.curves) for part in parts]).argmax(1)
            exact = answers if exact is None else exact
            content, session = new.SerializeToString(deterministic=True), timing.session(new)
            us = timing.least({"": lambda session=session: session.run(None, some)})[""]  # type: ignore[misc]
            f1 = float(scores.macro_f1(scores.confusion(label, answers, len(CLASSES))))
            same = float((answers == exact).mean())
            packed = len(zlib.compress(content, 9))
            rows.append(f"| {form} | {step} | {len(content):,} | {packed:,} | {same:.3f} | {f1:.3f} | {us:.1f} |")
            print(rows[-1], flush=True)
        rows.append(f"| {form} | in onnxruntime's own format | {ort_bytes(base):,} | | | | |")
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="t2b-1")
    asked = parser.parse_args()
    table(model.find(asked.model), dataset.load(asked.data))


if __name__ == "__main__":
    main()
