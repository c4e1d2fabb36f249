"""Train what is replaced so that the model gives what the original gives; needs no labels."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convfactor.model.inputs import ModelInputs
from convfactor.planning.descent import Descent
from convfactor.planning.pupil import Pupil, Refined
from convfactor.plans.plan import Plan

# Side of the crops, where a model takes crops: one makes a step.
CROP = 96
# As many steps as take some seconds, within limits.
STEPS, FEWEST, SECONDS = 1000, 150, 25.0
WARM_UP = 20
# Steps relative to the size of a weight. On SRCNN 1e-3 and 2e-3 end within 0.01 dB.
RATE, SLOWER = 1e-3, 0.3
# Windows of the schedule, and how many of the last ones end with a look at unseen data. Before, it
# tells little: SRCNN was 0.02 to 0.36 dB worse half way than in the end, when the rate is low.
WINDOWS, CHECKED = 8, 3
# The loss may grow this much at a high rate; where it grows more, the rate is too high.
WILD = 4.0
SAMPLES = 20  # steps of which the loss is measured before the first
SCALED = 8  # batches that tell how much the outputs vary


def refine(
    model: nn.Module,
    chosen: Plan,
    batches: Sequence[ModelInputs],
    loss: Callable[[nn.Module], float],
    seed: int,
    end: float,
    timed: bool,
    report: Callable[[str], None],
) -> dict[int, Refined]:
    """Train the replaced layers of a model so that it gives what the original gives.

    Args:
        model: The original; it is left as it was.
        chosen: What is replaced in it.
        batches: What to train on.
        loss: How much worse a model is, on data that is not trained on.
        seed: Seed of the crops.
        end: Time of ``time.monotonic`` at which to stop.
        timed: Whether the number of steps follows from how long they take.
        report: Told how far it is.

    Returns:
        The layers by index of the entry, as they were when the loss was lowest; empty where it was
        lowest before, or where no gradient reaches them.
    """
    pupil = Pupil.of(model, chosen)
    if not pupil.layers:
        return {}
    pupil.calibrate(batches[:SCALED])
    crops = _Crops(pupil, batches, seed)
    started = time.monotonic()
    if not _trains(pupil, crops.draw()):
        return {}
    steps = STEPS
    if timed:
        seconds = time.monotonic() - started
        steps = round(min(STEPS, max(FEWEST, SECONDS / seconds), (end - started) / seconds))
    return _Training(pupil, crops, loss, steps, end, report).run()


@dataclass(eq=False)
class _Training:
    """Steps at a rate that falls to nothing, and is lowered where it does harm."""

    pupil: Pupil
    crops: _Crops
    loss: Callable[[nn.Module], float]
    steps: int
    end: float
    report: Callable[[str], None]

    def run(self) -> dict[int, Refined]:
        """Train, and give the best that was seen."""
        pupil, rate = self.pupil, RATE
        best: dict[int, Refined] = {}
        lowest, kept, sizes = pupil.judged(self.loss), pupil.state(), pupil.sizes()
        window, losses = max(1, self.steps // WINDOWS), list[float]()
        usual = sum(float(self._loss().detach()) for _ in range(SAMPLES)) / SAMPLES
        descent = Descent(pupil.parameters, pupil.groups)
        for step in range(self.steps):
            share = 0.5 * (1 + math.cos(math.pi * step / self.steps))
            share *= min(1.0, (step + 1) / WARM_UP)
            descent.zero_grad()
            loss = self._loss()
            loss.backward()
            descent.step([share * rate * size for size in sizes])
            losses.append(float(loss.detach()))
            last = step == self.steps - 1 or time.monotonic() > self.end
            if not last and (step + 1) % window:
                continue
            mean, losses = sum(losses) / len(losses), []
            if not mean < WILD * usual:
                pupil.restore(kept)
                descent.forget()
                rate *= SLOWER
            elif mean < usual:
                usual, kept = mean, pupil.state()
            self.report(f"step {step + 1} of {self.steps}, loss {mean:.3g}")
            if last or step >= self.steps - CHECKED * window:
                now = pupil.judged(self.loss)
                if now < lowest:
                    best, lowest = pupil.refined(), now
            if last:
                break
        return best

    def _loss(self) -> Tensor:
        """The loss of one step."""
        with torch.enable_grad():
            return self.pupil.loss(self.crops.draw())


class _Crops:
    """Draws crops of the batches where the model takes them, and whole batches otherwise."""

    def __init__(self, pupil: Pupil, batches: Sequence[ModelInputs], seed: int) -> None:
        """Find out whether crops are taken."""
        self._batches = batches
        self._generator = torch.Generator().manual_seed(seed)
        self._cropped = self._fits(pupil)

    def draw(self) -> ModelInputs:
        """What a step sees: a batch, or the same crop of each of its images."""
        index = int(torch.randint(len(self._batches), (1,), generator=self._generator))
        return self._crop(self._batches[index]) if self._cropped else self._batches[index]

    def _crop(self, batch: ModelInputs) -> ModelInputs:
        """Cut the same window out of all images, which are of one size."""
        height, width = _image_sizes(batch).pop()
        top, left = (
            int(torch.randint(side - CROP + 1, (1,), generator=self._generator))
            for side in (height, width)
        )

        def cut(x: Tensor) -> Tensor:
            return x[..., top : top + CROP, left : left + CROP] if x.dim() == 4 else x

        return batch.map(cut)

    def _fits(self, pupil: Pupil) -> bool:
        """Whether all images are larger than a crop, and the model runs on one."""
        for batch in self._batches:
            sizes = _image_sizes(batch)
            if len(sizes) != 1 or min(min(sizes)) <= CROP:
                return False
        try:
            pupil.loss(self._crop(self._batches[0]))
        except Exception:  # whatever a user's forward raises
            return False
        return True


def _image_sizes(batch: ModelInputs) -> set[tuple[int, int]]:
    """Sizes of the images among the inputs."""
    return {(t.shape[-2], t.shape[-1]) for t in batch.tensors if t.dim() == 4}


def _trains(pupil: Pupil, batch: ModelInputs) -> bool:
    """Whether gradients reach what is to be trained."""
    try:
        with torch.enable_grad():
            pupil.loss(batch).backward()
    except Exception:  # whatever a user's forward raises
        return False
    found = [parameter.grad for parameter in pupil.parameters]
    return all(g is not None and bool(g.isfinite().all()) for g in found)
