"""Trains the network on the labelled sets and writes its weights.

    python -m models.training.train --data ../shared/datasets --weights build/t2b-1.npz
    python -m models.training.train --data ../shared/datasets --weights build/t2b-1-open.npz

The second learns from nothing, by light curves under MIT, Apache-2.0 or BSD alone.

Top to bottom: read, cut the first model down (or, from nothing, pre-train: guess hidden fluxes), fine-tune (classes),
distil, save. `release.py` calibrates the weights, measures them and writes the model's folder.
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

from models.training import augment, dataset, network, prune
from models.training.network import Batch, Params, Shape

SEED = 0
FIRST = Path(__file__).parent / "t2b-0.onnx"  # the first model, of the same recipe: its 28,000 steps are not lost
BATCH = 128  # large enough that a step of 32 points keeps two cores busy
PRETRAIN_STEPS = 8000  # masked fluxes were worth +.03 macro-F1 on spcc in earlier, shorter runs
STEPS = 14_571  # 13 minutes; the calibration side's loss gained nothing from the second half of them
TAUGHT_STEPS = 10_800  # with teachers it falls again
TAUGHT = 0.6  # weight of the teachers against the label
LEARNING_RATE = 1.5e-3
DECAY, TAUGHT_DECAY = 0.3, 0.5  # after a constant rate, so that a run can be made longer without starting anew
WARM_UP = 200
WEIGHT_DECAY = 0.02
CLIP_NORM = 1.0
AVERAGE = 0.998  # exponential mean of the weights over about 500 steps: what is exported
SMOOTHING = 0.03  # label smoothing: catalogue labels are wrong now and then
HIDDEN = 0.35  # share of points hidden in pre-training, where not the future is
FLUX_FLOOR = 0.05  # relative error added to each hidden flux, so that bright curves do not own the loss
REPORT_EVERY = 1000

Loss = Callable[..., jax.Array]
Drawn = tuple[Batch, NDArray[np.generic]]  # a batch and its targets


def class_loss(params: Params, batch: Batch, label: jax.Array, teachers: Sequence[Params] = ()) -> jax.Array:
    """Cross-entropy with label smoothing, the labels mixed with what teachers say of the same packet.

    Outliers have the flat target, so that they end in "not enough evidence".
    """
    log_p = jax.nn.log_softmax(network.logits(params, batch))
    n_classes = log_p.shape[1]
    target = jax.nn.one_hot(label, n_classes) * (1 - SMOOTHING) + SMOOTHING / n_classes
    if teachers:
        said = [jax.nn.softmax(network.logits(t, batch)) for t in teachers]
        target = (1 - TAUGHT) * target + TAUGHT * sum(said) / len(said)
    target = jnp.where((label == dataset.OUTLIER)[:, None], 1 / n_classes, target)
    return jnp.asarray(-(log_p * target).sum(1).mean())


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


def learning_rate(step: int, steps: int, decay: float) -> float:
    """Rises over WARM_UP steps, stays, and falls to nothing over the last `decay` of all steps."""
    left = (steps - step) / (decay * steps)
    return LEARNING_RATE * min(1.0, step / min(WARM_UP, max(steps // 2, 1)), max(left, 0.0))


def optimise(
    loss: Loss, params: Params, next_batch: Callable[[], Drawn], steps: int, name: str, decay: float = DECAY
) -> Params:
    """AdamW; returns the averaged weights. Logs the mean loss every REPORT_EVERY steps."""
    only_matrices = jax.tree.map(lambda x: x.ndim > 1, params)
    optimiser = optax.chain(
        optax.clip_by_global_norm(CLIP_NORM),
        optax.adamw(1.0, weight_decay=WEIGHT_DECAY, mask=only_matrices),
    )

    @jax.jit
    def step(
        params: Params, state: optax.OptState, mean: Params, batch: Batch, target: jax.Array, rate: float
    ) -> tuple[Params, optax.OptState, Params, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(params, batch, target)
        updates, state = optimiser.update(gradient, state, params)
        params = jax.tree.map(lambda a, b: a + rate * b, params, updates)
        mean = jax.tree.map(lambda a, b: AVERAGE * a + (1 - AVERAGE) * b, mean, params)
        return params, state, mean, value

    state, mean = optimiser.init(params), params
    losses, started = [], time.monotonic()
    for i in range(1, steps + 1):
        batch, target = next_batch()
        params, state, mean, value = step(params, state, mean, batch, target, learning_rate(i, steps, decay))
        losses.append(value)
        if i % REPORT_EVERY == 0 or i == steps:
            seconds = time.monotonic() - started
            print(f"{name} step {i} loss {np.mean(losses[-REPORT_EVERY:]):.4f} {i / seconds:.1f} steps/s", flush=True)
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
    with ThreadPoolExecutor(1) as executor:
        found = optimise(masked_flux_loss, both, Ahead(draw, executor), steps, "pre-training")
    encoder: Params = found["encoder"]
    return encoder | {"head": params["head"]}


def finetune(
    data: dataset.TrainingSet, params: Params, steps: int, size: int = BATCH, teachers: Sequence[Params] = ()
) -> Params:
    """Weights after learning the classes, from the labels or from them and teachers."""
    sampler = augment.Sampler(data, augment.class_weights(data), SEED + (3 if teachers else 2))

    def draw() -> list[Drawn]:
        return [(batch, label.astype(np.int32)) for batch, label in augment.batches(sampler, size)]

    def loss(params: Params, batch: Batch, label: jax.Array) -> jax.Array:
        return class_loss(params, batch, label, teachers)

    name, decay = ("distilling", TAUGHT_DECAY) if teachers else ("fine-tuning", DECAY)
    with ThreadPoolExecutor(1) as executor:
        return optimise(loss, params, Ahead(draw, executor), steps, name, decay)


@dataclass(frozen=True)
class Plan:
    """Numbers of steps, and the file of the first model; without it training starts with pre-training."""

    pretrain_steps: int = PRETRAIN_STEPS
    steps: int = STEPS
    taught_steps: int = TAUGHT_STEPS
    size: int = BATCH
    first: Path | None = FIRST


def train(data: dataset.TrainingSet, plan: Plan) -> Params:
    """The whole training: the first model cut down, fine-tuning, then distilling the result and the whole first model.

    Without a first model: pre-training, fine-tuning, then distilling the result from itself.
    """
    shape, size = Shape(len(dataset.CLASSES)), plan.size
    print(f"{len(data)} light curves", flush=True)
    if plan.first is None:
        params = pretrain(data, network.initial(SEED, shape), plan.pretrain_steps, size)
        whole = []
    else:
        sampler = augment.Sampler(data, augment.class_weights(data), SEED + 1)
        batch = augment.batches(sampler, size)[0][0]
        params = prune.start(plan.first, shape, batch)
        whole = [prune.start(plan.first, replace(shape, **prune.UNCUT), batch)]
    params = finetune(data, params, plan.steps, size)
    return finetune(data, params, plan.taught_steps, size, [params, *whole])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the labelled sets")
    parser.add_argument("--weights", type=Path, required=True, help="file to write: NAME.npz, NAME-open.npz")
    parser.add_argument("--from-nothing", action="store_true", help="pre-train instead of cutting t2b-0 down")
    arguments = parser.parse_args()
    started = time.monotonic()
    name = arguments.weights.stem
    plan = Plan(first=None if arguments.from_nothing or name.endswith(dataset.OPEN) else FIRST)
    steps = f"{plan.steps} and {plan.taught_steps} steps of {plan.size}"
    how = f"from {plan.first.name}" if plan.first else f"{plan.pretrain_steps} steps of pre-training"
    print(f"revision {revision()}, jax {jax.__version__}, seed {SEED}, {how}, {steps}", flush=True)
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
