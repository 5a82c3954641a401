"""Trains the network on the labelled sets and writes its weights.

    python -m models.training.train --data ../shared/datasets --weights build/t2b-1.npz
    python -m models.training.train --data ../shared/datasets --weights build/t2b-1-open.npz

The second learns from nothing, by light curves under MIT, Apache-2.0 or BSD alone.

Top to bottom: read, start (from the model before or, from nothing, by pre-training: guess hidden fluxes, and
fine-tuning: classes), go on for long while the start itself is the teacher of what would be learnt by heart, and twice
more with both as the teachers, whose word is in the end all that counts beside simulated light curves; save.
`release.py` calibrates the weights, measures them and writes the model's folder.
"""

import argparse
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from models.training import augment, dataset, network, reread
from models.training.network import Batch, Params, Shape

SEED = 0
FIRST = Path(__file__).parent / "t2b-1-before.onnx"  # its 53,000 steps by AdamW, with teachers, are not lost
BATCH = 256  # a step costs less per light curve than with 128, and as many of them come further (NOTES.md)
PRETRAIN_STEPS = 3000  # from nothing only; worth +.03 macro-F1 on spcc to AdamW, nothing so far to Muon (NOTES.md)
SIMULATED = ("spcc", "elasticc_fink_tutorials")
# Sets that are not learnt by heart: t2b-1 had much the same loss on what it had learnt from and beside it. In the
# others, real or small, it was .03 and .63, .11 and .29, .25 and .47 (yse_dr1, real_transients, mallorn; all points)
BY_LABEL = (*SIMULATED, "ztf_snia", "sdss_rrl", "varstars")
NAMELESS = 0.5  # share of unlabelled objects in the draws of a set that has such: a teacher has not seen their answers
PRETRAIN_RATE = 8e-3
WARM_UP = 200
WEIGHT_DECAY = 0.02
CLIP_NORM = 1.0
UPDATE = 0.2  # root mean square of an update over the rate, as of AdamW: then its rates are of the same size
AVERAGE = 0.998  # exponential mean of the weights over about 500 steps: what is exported
SMOOTHING = 0.03  # label smoothing: catalogue labels are wrong now and then
HIDDEN = 0.35  # share of points hidden in pre-training, where not the future is
FLUX_FLOOR = 0.05  # relative error added to each hidden flux, so that bright curves do not own the loss
REPORT_EVERY = 1000


@dataclass(frozen=True)
class Stage:
    """A part of the training. taught: how much teachers count against the label, but in the sets of by_label."""

    name: str
    steps: int
    rate: float  # with Muon on spcc alone 4e-3, 8e-3 and 1.6e-2 were the same to .01 in loss
    decay: float  # share of the steps, the last ones, over which the rate falls to nothing
    seed: int
    taught: float = 0.0
    by_label: tuple[str, ...] = ()


# Of labels alone: 10,000 steps were worse than 6,000 on the calibration side (.428 in place of .404)
LABELS = Stage("labels", 6_000, 8e-3, 0.3, SEED + 2)
LONG = Stage("taught by the start", 30_000, 4e-3, 0.6, SEED + 3, 0.7, BY_LABEL)
AGAIN = Stage("taught by both", 14_000, 3e-3, 1.0, SEED + 4, 0.9, BY_LABEL)
# Labels of sets of one class make a packet of one point the set that it is from: ztf_snia gains .1 of loss there,
# real_transients loses .3. This stage brings back what the start says there
HELD = Stage("held", 10_000, 3e-3, 1.0, SEED + 22, 1.0, SIMULATED)

Loss = Callable[..., jax.Array]
Target = NDArray[np.generic] | tuple[NDArray[np.generic], NDArray[np.generic]]
Drawn = tuple[Batch, Target]


def class_loss(
    params: Params, batch: Batch, target: tuple[jax.Array, jax.Array], teachers: Sequence[Params] = ()
) -> jax.Array:
    """Cross-entropy with label smoothing. target: labels (B,), and how much teachers count against them (B,).

    Outliers have the flat target, so that they end in "not enough evidence".
    """
    label, taught = target
    log_p = jax.nn.log_softmax(network.logits(params, batch))
    n_classes = log_p.shape[1]
    wanted = jax.nn.one_hot(label, n_classes) * (1 - SMOOTHING) + SMOOTHING / n_classes
    if teachers:
        said = [jax.nn.softmax(network.logits(t, batch)) for t in teachers]
        wanted += taught[:, None] * (sum(said) / len(said) - wanted)
    wanted = jnp.where((label == dataset.OUTLIER)[:, None], 1 / n_classes, wanted)
    return jnp.asarray(-(log_p * wanted).sum(1).mean())


def masked_flux_loss(params: Params, batch: Batch, hidden: jax.Array) -> jax.Array:
    """Huber loss of the hidden fluxes in units of the visible curve's scale."""
    visible = batch._replace(valid=batch.valid * (1 - hidden))
    tokens, scale = network.features(visible)
    z = network.encode(params["encoder"], tokens, visible.valid, Shape.n_heads)
    guess = network.decode(params["decoder"], z, jnp.clip(batch.days, -100, 400), batch.wavelength_nm)
    sigma = jnp.sqrt((batch.flux_err / scale) ** 2 + FLUX_FLOOR**2)
    miss = (jnp.clip(batch.flux / scale, -3, 6) - guess) / sigma
    huber = jnp.where(jnp.abs(miss) < 1.5, 0.5 * miss**2, 1.5 * jnp.abs(miss) - 1.125)
    weight = hidden * batch.valid * (scale > 1e-2)
    return jnp.asarray((huber * jnp.minimum(1, sigma / 0.1) * weight).sum() / (weight.sum() + 1))


def hidden_points(batch: Batch, rng: np.random.Generator) -> NDArray[np.float32]:
    """What pre-training hides: the future in half of the rows, 35 % of the points in the others; never all."""
    days, valid = np.asarray(batch.days), np.asarray(batch.valid) > 0
    newest = np.where(valid, days, -np.inf).max(1, keepdims=True)
    cut = newest * rng.random((len(days), 1))
    future = (days > cut) & (days > 0)
    some = rng.random(days.shape) < HIDDEN
    hide = np.where(rng.random((len(days), 1)) < 0.5, future, some) & valid
    hide[:, 0] = False
    return hide.astype(np.float32)


def learning_rate(step: int, steps: int, rate: float, decay: float) -> float:
    """Rises over WARM_UP steps to `rate`, stays, and falls to nothing over the last `decay` of all steps."""
    left = (steps - step) / (decay * steps)
    return rate * min(1.0, step / min(WARM_UP, max(steps // 2, 1)), max(left, 0.0))


def optimise(loss: Loss, params: Params, next_batch: Callable[[], Drawn], stage: Stage) -> Params:
    """Muon, AdamW for vectors; returns the averaged weights. Logs the mean loss every REPORT_EVERY steps.

    Muon (Jordan et al. 2024) gives matrices updates whose directions weigh the same. On spcc alone 2,000 of its steps
    came to a loss of .356, as many of AdamW to .400 (at its best of two rates, .394).
    """
    only_matrices = jax.tree.map(lambda x: x.ndim > 1, params)
    optimiser = optax.chain(
        optax.clip_by_global_norm(CLIP_NORM),
        optax.contrib.muon(1.0, weight_decay=WEIGHT_DECAY, weight_decay_mask=only_matrices, consistent_rms=UPDATE),
    )

    @jax.jit
    def step(
        params: Params, state: optax.OptState, mean: Params, batch: Batch, target: Target, rate: float
    ) -> tuple[Params, optax.OptState, Params, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(params, batch, target)
        updates, state = optimiser.update(gradient, state, params)
        params = jax.tree.map(lambda a, b: a + rate * b, params, updates)
        mean = jax.tree.map(lambda a, b: AVERAGE * a + (1 - AVERAGE) * b, mean, params)
        return params, state, mean, value

    state, mean, steps = optimiser.init(params), params, stage.steps
    losses, started = [], time.monotonic()
    for i in range(1, steps + 1):
        batch, target = next_batch()
        params, state, mean, value = step(
            params, state, mean, batch, target, learning_rate(i, steps, stage.rate, stage.decay)
        )
        losses.append(value)
        if i % REPORT_EVERY == 0 or i == steps:
            seconds = time.monotonic() - started
            print(
                f"{stage.name}, step {i} loss {np.mean(losses[-REPORT_EVERY:]):.4f} {i / seconds:.1f} steps/s",
                flush=True,
            )
    return mean


class Ahead:
    """Calls give one batch after another; the next pool is drawn in a thread while the last one is learned from."""

    def __init__(self, draw: Callable[[], list[Drawn]], executor: ThreadPoolExecutor) -> None:
        self._draw, self._executor = draw, executor
        self._pool: list[Drawn] = []
        self._next = executor.submit(draw)

    def __call__(self) -> Drawn:
        if not self._pool:
            self._pool = self._next.result()
            self._next = self._executor.submit(self._draw)
        return self._pool.pop()


def pretrain(data: dataset.TrainingSet, params: Params, steps: int, size: int = BATCH) -> Params:
    """Encoder weights after learning to fill in hidden fluxes of every training curve, labelled or not."""
    weight = (data.split == dataset.TRAIN) * np.bincount(data.about.origin)[data.about.origin] ** -0.3
    sampler = augment.Sampler(data, weight / weight.sum(), SEED + 1)

    def draw() -> list[Drawn]:
        return [(batch, hidden_points(batch, sampler.rng)) for batch, _ in augment.batches(sampler, size)]

    both = {"encoder": params, "decoder": network.initial_decoder(SEED, Shape(len(dataset.CLASSES)))}
    stage = Stage("pre-training", steps, PRETRAIN_RATE, 0.3, SEED + 1)
    with ThreadPoolExecutor(1) as executor:
        found = optimise(masked_flux_loss, both, Ahead(draw, executor), stage)
    encoder: Params = found["encoder"]
    return encoder | {"head": params["head"]}


def finetune(
    data: dataset.TrainingSet, params: Params, stage: Stage, size: int = BATCH, teachers: Sequence[Params] = ()
) -> Params:
    """Weights after learning the classes, from the labels and, beside the sets of `by_label`, from teachers.

    Objects without a label are drawn where there is a teacher, whose word is all that counts there.
    """
    sampler = augment.Sampler(data, augment.class_weights(data, unlabelled=NAMELESS if teachers else 0.0), stage.seed)
    label = data.about.label.astype(np.int32)
    taught = np.where(np.isin(dataset.SET_NAMES, stage.by_label), 0, stage.taught)[data.about.origin]
    taught = np.where(label == dataset.UNLABELLED, 1, taught).astype(np.float32)

    def draw() -> list[Drawn]:
        return [(batch, (label[rows], taught[rows])) for batch, rows in augment.batches(sampler, size)]

    def loss(params: Params, batch: Batch, target: tuple[jax.Array, jax.Array]) -> jax.Array:
        return class_loss(params, batch, target, teachers)

    with ThreadPoolExecutor(1) as executor:
        return optimise(loss, params, Ahead(draw, executor), stage)


@dataclass(frozen=True)
class Plan:
    """Steps of each stage, size of a batch, and the file to go on from; without it training starts from nothing."""

    pretrain_steps: int = PRETRAIN_STEPS
    labels: Stage = LABELS
    long: Stage = LONG
    again: Stage = AGAIN
    held: Stage = HELD
    size: int = BATCH
    first: Path | None = FIRST


def train(data: dataset.TrainingSet, plan: Plan) -> Params:
    """The whole training."""
    shape, size = Shape(len(dataset.CLASSES)), plan.size
    print(f"{len(data)} light curves", flush=True)
    if plan.first:
        start = reread.weights(plan.first, shape)
    else:
        start = pretrain(data, network.initial(SEED, shape), plan.pretrain_steps, size)
        start = finetune(data, start, plan.labels, size)
    longer = finetune(data, start, plan.long, size, [start])
    again = finetune(data, longer, plan.again, size, [start, longer])
    return finetune(data, again, plan.held, size, [start, again])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the labelled sets")
    parser.add_argument("--weights", type=Path, required=True, help="file to write: NAME.npz, NAME-open.npz")
    arguments = parser.parse_args()
    started = time.monotonic()
    name = arguments.weights.stem
    plan = Plan(first=None if name.endswith(dataset.OPEN) else FIRST)
    shown = replace(plan, first=plan.first and Path(plan.first.name))
    print(f"revision {revision()}, jax {jax.__version__}, seed {SEED}, {shown}", flush=True)
    params = train(dataset.load_for(name, arguments.data), plan)
    network.save(params, arguments.weights)
    print(f"trained in {(time.monotonic() - started) / 60:.0f} minutes", flush=True)


def revision() -> str:
    """The commit that this code is of, with a mark if files differ from it; "unknown" outside a checkout."""
    call = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(call, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


if __name__ == "__main__":
    main()
