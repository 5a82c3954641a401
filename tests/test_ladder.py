"""The steps of compressing a released model do what their names say, and nothing else changes."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from broker import model
from broker.lightcurve import LightCurves
from models.training import ladder

FOLDER = model.find("t2b-1")
RELEASED = onnx.load(FOLDER / model.MODEL_FILE)
MATRIX = np.random.default_rng(1).standard_normal((48, 64)).astype(np.float32)


@pytest.mark.parametrize("n", [16, 64])
def test_a_clustered_matrix_has_so_many_values_each_near_the_weight(n: int) -> None:
    found = ladder.clustered(MATRIX, n)
    values = np.unique(found)
    assert len(values) == n
    nearest = np.abs(MATRIX.ravel()[:, None] - values).argmin(1)
    assert np.array_equal(values[nearest], found.ravel())
    edges = np.quantile(MATRIX, (np.arange(n) + 0.5) / n)  # where k-means began
    began = np.abs(MATRIX[..., None] - edges).min(-1)
    assert ((MATRIX - found) ** 2).mean() < (began**2).mean()


def test_the_smallest_weights_are_pruned() -> None:
    found = ladder.pruned(MATRIX, 0.5)
    gone = found == 0
    assert gone.mean() == 0.5
    assert np.abs(MATRIX[gone]).max() < np.abs(MATRIX[~gone]).min()
    assert np.array_equal(found[~gone], MATRIX[~gone])


def test_multiplied_out_is_the_same_network() -> None:
    card = (FOLDER / model.CARD_FILE).read_text()
    whole = ladder.multiplied_out(RELEASED)
    assert all(tensor.data_type != onnx.TensorProto.INT8 for tensor in whole.graph.initializer)
    golden = np.load(FOLDER / "golden.npz")
    light_curves = LightCurves(*(golden[name] for name in LightCurves.__dataclass_fields__))
    assert np.abs(ladder.loaded(whole, card).predict(light_curves) - golden["probabilities"]).max() < 1e-5


def test_a_step_changes_the_matrices_alone() -> None:
    halved = ladder.changed(RELEASED, lambda m: ladder.pruned(m, 0.5))
    before, after = (
        {t.name: numpy_helper.to_array(t) for t in graph.graph.initializer} for graph in (RELEASED, halved)
    )
    for name, was in before.items():
        assert after[name].dtype == was.dtype
        if was.size >= ladder.SMALLEST and was.dtype == np.int8:
            assert (after[name] == 0).mean() > (was == 0).mean() + 0.3
        else:
            assert np.array_equal(after[name], was)
