"""A released model: its card, and class probabilities of light curves by ONNX Runtime.

All preprocessing is inside the graph; this module checks the folder, pads light curves and runs them. The result of a
curve depends on that curve alone, bit for bit: its padded length follows from its own number of points, and no call
has fewer than two rows, because a batch of one takes another kernel and differs in the last bits.
"""

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from broker import classes
from broker.errors import ModelError
from broker.lightcurve import BANDS, RULES_VERSION, LightCurves, Summary, thin

T = TypeVar("T")

# They share no base class, and versions differ in which there are.
ORT_ERRORS = tuple(kind for kind in vars(ort_state).values() if isinstance(kind, type) and issubclass(kind, Exception))
MODEL_FILE, CARD_FILE = "model.onnx", "card.toml"
INPUTS = {
    "mjd": "tensor(double)",
    "flux": "tensor(float)",
    "flux_err": "tensor(float)",
    "band": "tensor(int32)",
    "detected": "tensor(bool)",
}
OUTPUT = "probabilities"
# Padded lengths. Multiples of 16: with others some elements of a tensor fall behind its last full vector register,
# take the scalar path of a logarithm, and a result changes its last bit with the batch it came in.
LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256)
MIN_ROWS, MAX_ROWS = 2, 64
# Fails in onnxruntime 1.19, which Fink has, on nodes without names; without it bits and time are the same
UNUSED = ["GatherSliceToSplitFusion"]
POINTS_PER_CALL = 2048  # 64 rows of 32 points, 32 of 64: larger calls leave the cache and cost more per curve


@dataclass(frozen=True)
class ClassName:
    """A class of the model: name, id in the taxonomy of DESC/ELAsTiCC, share of the training batches."""

    name: str
    taxonomy_id: int
    prior: float


@dataclass(frozen=True)
class Threshold:
    """Below `probability` of the winning class the evidence is not enough, from `min_detections` detections on.

    A transient also needs `transient`: that much probability for all classes of the first level transient together.
    """

    survey: str
    min_detections: int
    probability: float
    transient: float = 0.0


@dataclass(frozen=True)
class TrainingData:
    """A set that the model learned from: its folder's name, AB magnitude of flux 1, whether positions joined groups."""

    name: str
    zero_point: float
    has_positions: bool


@dataclass(frozen=True)
class Card:
    """What a released model needs and promises; the order of classes and bands is the graph's."""

    name: str
    version: str
    sha256: str
    classes: tuple[ClassName, ...]
    bands: tuple[str, ...]
    max_points: int
    min_points: int
    rules_version: int
    thresholds: tuple[Threshold, ...]
    training_data: tuple[TrainingData, ...] = ()
    split_rule: str = ""  # how training, calibration and test objects were told apart (broker.split); "" unknown

    def threshold(self, survey: str, n_detections: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Least winning probability for a verdict, same shape as n_detections. ELAsTiCC counts as `lsst`.

        Raises ModelError if the card has no thresholds for the survey.
        """
        return self._limits(survey, n_detections)[..., 0]

    def evident(self, survey: str, probabilities: npt.NDArray[np.floating], summary: Summary) -> npt.NDArray[np.bool_]:
        """Whether the evidence is enough for a verdict (n,); probabilities (n, classes), rows of NaN are not evident.

        The winning class reaches its threshold. A transient has also shone brighter than the template at least once,
        and the classes of the first level transient together reach the threshold that keeps variables and AGN out.

        Raises ModelError if the card has no thresholds for the survey.
        """
        limits = self._limits(survey, summary.n_detections)
        is_transient = np.array([classes.BY_NAME[c.name].level == classes.TRANSIENT for c in self.classes])
        found: npt.NDArray[np.bool_] = probabilities.max(1, initial=0) >= limits[:, 0]
        new_light = (probabilities[:, is_transient].sum(1) >= limits[:, 1]) & (summary.n_positive > 0)
        found &= new_light | ~is_transient[probabilities.argmax(1)]
        return found

    def _limits(self, survey: str, n_detections: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Both thresholds, (..., 2)."""
        known = "lsst" if survey == "elasticc" else survey
        steps = sorted((t.min_detections, t.probability, t.transient) for t in self.thresholds if t.survey == known)
        if not steps:
            names = ", ".join(sorted({t.survey for t in self.thresholds}))
            raise ModelError(f"model {self.name}: no thresholds for survey {survey!r}; the card has {names}")
        starts = np.array([start for start, _, _ in steps])
        at = np.searchsorted(starts, np.asarray(n_detections), side="right") - 1
        found: npt.NDArray[np.float64] = np.array([limits for _, *limits in steps])[np.maximum(at, 0)]
        return found


class Model:
    """A loaded model. Use `load`, once per process: it reads and checks the folder."""

    def __init__(self, card: Card, session: ort.InferenceSession) -> None:
        self.card = card
        self._session = session
        index = {name: i for i, name in enumerate(card.bands)}
        self._band = np.array([index.get(name, -1) for name in BANDS], np.int32)

    def predict(self, light_curves: LightCurves) -> npt.NDArray[np.float32]:
        """Class probabilities, float32 (n, classes); NaN for a curve without a point in a band of the model.

        Curves longer than the card's max_points are thinned by the rules.
        """
        curves = self._readable(light_curves)
        counts = curves.counts
        found = np.full((len(curves), len(self.card.classes)), np.nan, np.float32)
        length = np.array(LENGTHS)[np.searchsorted(LENGTHS, counts)]
        length[counts == 0] = 0
        for padded in np.unique(length[length > 0]).tolist():
            rows = np.flatnonzero(length == padded)
            size = max(MIN_ROWS, min(MAX_ROWS, POINTS_PER_CALL // padded))
            for start in range(0, len(rows), size):
                chunk = rows[start : start + size]
                found[chunk] = self._run(curves, chunk, padded)[: len(chunk)]
        return found

    def _readable(self, curves: LightCurves) -> LightCurves:
        """Points in bands of the model, no curve longer than the model takes."""
        known = self._band[curves.band] >= 0
        if not known.all():
            curves = curves.select(known)
        return thin(curves, self.card.max_points)

    def _run(self, curves: LightCurves, rows: npt.NDArray[np.intp], length: int) -> npt.NDArray[np.float32]:
        """Probabilities of these curves, padded to `length`; at least MIN_ROWS rows."""
        if len(rows) < MIN_ROWS:
            rows = np.resize(rows, MIN_ROWS)
        column = np.arange(length)
        valid = column < curves.counts[rows][:, None]
        at = np.where(valid, curves.offsets[rows][:, None] + column, 0)
        feed = {
            "mjd": curves.mjd_tai[at],
            "flux": curves.flux[at],
            "flux_err": curves.flux_err[at],
            "band": np.where(valid, self._band[curves.band[at]], np.int32(-1)),
            "detected": curves.detected[at],
        }
        result: npt.NDArray[np.float32] = self._session.run([OUTPUT], feed)[0]
        return result


def find(name: str) -> Path:
    """Folder of a released model by name, or the folder itself. Raises ModelError naming the released ones."""
    released = _released()
    for folder in (released / name, Path(name)):
        if (folder / CARD_FILE).is_file():
            return folder
    names = ", ".join(sorted(p.parent.name for p in released.glob(f"*/{CARD_FILE}"))) or "none"
    raise ModelError(f"no model {name!r}: neither a released one ({names}) nor a folder with a {CARD_FILE}")


def released() -> list[Card]:
    """Cards of the released models, by name."""
    return [read_card(path) for path in sorted(_released().glob(f"*/{CARD_FILE}"))]


def _released() -> Path:
    try:
        return Path(str(resources.files("broker.models")))
    except ModuleNotFoundError:  # a checkout that is not installed: the data package lies beside ours
        return Path(__file__).resolve().parent.parent / "models"


def load(folder: Path) -> Model:
    """Reads and checks a model folder. Raises ModelError saying which file or value differs from the card."""
    card = read_card(folder / CARD_FILE)
    path = folder / MODEL_FILE
    content = _read(path)
    digest = hashlib.sha256(content).hexdigest()
    if digest != card.sha256:
        raise ModelError(f"{path}: sha256 is {digest}, the card says {card.sha256}; fetch the model again")
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # Spark's tasks are the parallelism
    options.use_deterministic_compute = True
    options.log_severity_level = 3
    # session.set_denormal_as_zero is left alone: it changes the calling thread, so numpy would lose subnormals as well,
    # and the network's scores are bounded, so none arise (no difference in time was measured)
    try:
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"], disabled_optimizers=UNUSED)
    except ORT_ERRORS as error:
        raise ModelError(f"{path}: onnxruntime {ort.__version__} can't load it: {error}") from error
    _compare(path, card, session)
    return Model(card, session)


def _compare(path: Path, card: Card, session: ort.InferenceSession) -> None:
    """The graph's inputs, bands and classes are the card's."""
    inputs = {i.name: i.type for i in session.get_inputs()}
    if inputs != INPUTS:
        raise ModelError(f"{path}: graph inputs are {inputs}, expected {INPUTS}; re-export the model")
    outputs = {o.name: o.shape for o in session.get_outputs()}
    n_classes = outputs.get(OUTPUT, [None])[-1]
    if n_classes != len(card.classes):
        raise ModelError(f"{path}: card lists {len(card.classes)} classes, graph output {OUTPUT!r} has {n_classes}")
    n_bands = session.get_modelmeta().custom_metadata_map.get("n_bands")
    if n_bands != str(len(card.bands)):
        raise ModelError(f"{path}: card lists {len(card.bands)} bands, the graph was exported for {n_bands}")


def read_card(path: Path) -> Card:
    """The card of a model. Raises ModelError naming the key that is missing or has another type."""
    try:
        content = tomllib.loads(_read(path).decode())
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError are both
        raise ModelError(f"{path}: not a TOML file: {error}") from error
    card = Card(
        name=_value(path, content, "name", str),
        version=_value(path, content, "version", str),
        sha256=_value(path, content, "sha256", str),
        classes=tuple(
            ClassName(
                _value(path, c, "name", str),
                _value(path, c, "taxonomy_id", int),
                _value(path, c, "prior", float),
            )
            for c in _tables(path, content, "classes")
        ),
        bands=tuple(_value(path, b, "name", str) for b in _tables(path, content, "bands")),
        max_points=_value(path, content, "max_points", int),
        min_points=_value(path, content, "min_points", int),
        rules_version=_value(path, content, "rules_version", int),
        thresholds=tuple(
            Threshold(
                _value(path, t, "survey", str),
                _value(path, t, "min_detections", int),
                _value(path, t, "probability", float),
                _value(path, t, "transient", float) if "transient" in t else 0.0,
            )
            for t in _tables(path, content, "not_enough_evidence")
        ),
        training_data=tuple(
            TrainingData(
                _value(path, t, "name", str), _value(path, t, "zero_point", float), _value(path, t, "positions", bool)
            )
            for t in (_tables(path, content, "training_data") if "training_data" in content else ())
        ),
        split_rule=_value(path, content, "split_rule", str) if "split_rule" in content else "",
    )
    _check(path, card)
    return card


def _check(path: Path, card: Card) -> None:
    names = [c.name for c in card.classes]
    if len(set(names)) != len(names):
        raise ModelError(f"{path}: classes {', '.join(names)} are repeated")
    for c in card.classes:
        known = classes.BY_NAME.get(c.name)
        if known is None:
            allowed = ", ".join(classes.BY_NAME)
            raise ModelError(f"{path}: class {c.name!r} is unknown; the table in broker/classes.py has {allowed}")
        if known.taxonomy_id != c.taxonomy_id:
            expected = f"the table of classes has {known.taxonomy_id}"
            raise ModelError(f"{path}: class {c.name} has taxonomy_id {c.taxonomy_id}, {expected}; correct the card")
    unknown = sorted(set(card.bands) - set(BANDS))
    if unknown or len(set(card.bands)) != len(card.bands):
        raise ModelError(f"{path}: bands {unknown or card.bands} are unknown or repeated; known: {', '.join(BANDS)}")
    if card.rules_version != RULES_VERSION:
        raise ModelError(
            f"{path}: trained with light-curve rules {card.rules_version}, this broker has {RULES_VERSION}; "
            "use a model of the same rules"
        )
    if not 1 <= card.min_points <= card.max_points or card.max_points not in LENGTHS:
        sizes = ", ".join(map(str, LENGTHS))
        limits = f"min_points {card.min_points}, max_points {card.max_points}"
        raise ModelError(f"{path}: {limits}; need 1 <= min_points <= max_points, and max_points one of {sizes}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        needs = f"{MODEL_FILE} and {CARD_FILE}"
        raise ModelError(f"{path}: can't be read ({error.strerror}); a model folder holds {needs}") from error


def _tables(path: Path, table: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = _value(path, table, key, list)
    if not found or not all(isinstance(item, dict) for item in found):
        raise ModelError(f"{path}: {key!r} must be a list of at least one table, [[{key}]]")
    return found


def _value(path: Path, table: Mapping[str, Any], key: str, kind: type[T]) -> T:
    if key not in table:
        raise ModelError(f"{path}: key {key!r} is missing, expected a {kind.__name__}")
    value = table[key]
    if kind is float and isinstance(value, int):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ModelError(f"{path}: {key!r} is {value!r}, expected a {kind.__name__}")
    return value
