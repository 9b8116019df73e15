"""What Evaluate LoRA does: losses and pictures of every LoRA, their measures, the choice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ...training.dataset.pictures import ImagePixels, fitted_pixels, has_file, open_picture
from ...training.dataset.samples import ImageDataset, Role, Sample
from ...training.errors import require
from ...training.evaluation.features import common_side, kept, seen
from ...training.evaluation.picture import draw_evaluation
from ...training.evaluation.report import report_text
from ...training.evaluation.results import Candidate, Pictures, compare
from ...training.evaluation.rule import Recommendation, recommend
from ...training.evaluation.spec import MOST_REPAINTED, EvaluationSpec, chosen_prompts, evenly
from ...training.results.preview_spec import PreviewSpec
from ...training.runs.examples import HELD_OUT, placement_of
from ...training.runs.run import TrainingState
from ..live.progress import duration, show_text
from .evaluated_loras import Listed, labels

SECONDS_BETWEEN_TEXTS = 1.0


class Evaluated(NamedTuple):
    """What comes out."""

    recommendation: Recommendation
    picture: Tensor
    """[1, H, W, 3]"""
    report: str


def evaluate(
    state: TrainingState,
    loras: Sequence[Listed],
    preview: PreviewSpec,
    prompts: str,
    strengths: tuple[float, ...],
    images_per_checkpoint: int,
    clip_vision: Any,
) -> Evaluated:
    """Measure all of them and choose.

    Raises:
        AtelierError: there is nothing to evaluate, or too much.
    """
    from ...training.host.evaluation import Evaluator
    from ...training.host.grid import GridLora

    run = state.run
    require(run.models is not None, "state: it holds no models. Take it from a training node.")
    training = run.dataset.with_role(Role.TRAIN)
    require(
        all(has_file(sample.image) for sample in training),
        "state: it comes from a training job, which holds no pictures, only what was encoded of "
        "them. Wire the dataset itself to Load Training State, load the job's newest state there, "
        "and evaluate that.",
    )
    spec = EvaluationSpec(
        preview,
        labels(loras),
        chosen_prompts(prompts, run.dataset),
        strengths,
        images_per_checkpoint,
    )
    progress = _Progress(spec)
    readable = [GridLora(name, lora.read) for name, lora in zip(spec.loras, loras, strict=True)]
    evaluator = Evaluator(run, readable, spec, progress.work)
    looks = _Looks(run.dataset, preview, clip_vision)
    encoded = 0 if clip_vision is None else len(training)
    encoded += 0 if clip_vision is None else len(spec.variants) * images_per_checkpoint
    places = [i for i, s in enumerate(run.dataset.samples) if s.role is Role.TRAIN]
    places = evenly(places, MOST_REPAINTED) if clip_vision is None else []
    progress.begin(evaluator.work + len(training) + len(places) + encoded)
    references = looks.of_training(training, evaluator.repainted(places), progress)
    measured = []
    for one in evaluator.measure():
        # Not the drawn pictures themselves, which are large.
        measured.append((one._replace(pictures=[]), looks.of_drawn(one.pictures, progress)))
        progress.next()
    (base, base_pictures), *others = measured
    evaluation = compare(
        [
            Candidate(
                spec.loras[one.variant.lora],
                one.variant.lora,
                loras[one.variant.lora].step,
                strengths[one.variant.strength],
                one.losses,
                pictures,
                loras[one.variant.lora].run,
            )
            for one, pictures in others
        ],
        base_pictures,
        base.losses,
        references,
        [sample.name for sample in training],
        [asked.prompt for asked in spec.asked],
        evaluator.are_held_out,
    )
    recommendation = recommend(evaluation)
    text = report_text(recommendation, spec, evaluator.notes, len(base.losses))
    return Evaluated(recommendation, draw_evaluation(recommendation).unsqueeze(0), text)


class _Looks:
    """Turns pictures into numbers: by their own pixels, and in the eyes of an image encoder."""

    def __init__(self, dataset: ImageDataset, preview: PreviewSpec, clip_vision: Any) -> None:
        self.clip_vision = clip_vision
        samples = dataset.with_role(Role.TRAIN)
        sizes = [placement_of(sample, HELD_OUT).size for sample in samples]
        self.side = common_side((preview.width, preview.height), *sizes)

    def of_training(
        self, samples: Sequence[Sample], repainted: Iterable[np.ndarray], progress: _Progress
    ) -> Pictures:
        """As they are trained on, and some of them through the VAE."""
        found = []
        for sample in samples:
            placement = placement_of(sample, HELD_OUT)
            pixels = fitted_pixels(open_picture(sample.image), placement, sample.fit.background)
            found.append(seen((pixels.numpy() * 255).round().astype(np.uint8), self.side))
            progress.work(1)
        painted = []
        for pixels in repainted:
            painted.append(seen(pixels, self.side))
            progress.work(1)
        return Pictures(found, self._embedded(samples, progress), painted)

    def of_drawn(self, drawn: Sequence[np.ndarray], progress: _Progress) -> Pictures:
        """As the base or a LoRA has drawn them."""
        samples = [
            Sample(ImagePixels(kept(pixels)), str(place)) for place, pixels in enumerate(drawn)
        ]
        found = [seen(pixels, self.side) for pixels in drawn]
        return Pictures(found, self._embedded(samples, progress))

    def _embedded(self, samples: Sequence[Sample], progress: _Progress) -> np.ndarray | None:
        from ...training.host.vision import image_embeddings

        if self.clip_vision is None:
            return None
        return image_embeddings(self.clip_vision, samples, lambda: progress.work(1)).numpy()


class _Progress:
    """The bar and the text of the node; raises the host's exception after a press on Cancel."""

    def __init__(self, spec: EvaluationSpec) -> None:
        self.spec = spec
        self._done = self._variant = 0
        self._begin = self._told = monotonic()

    def begin(self, total: int) -> None:
        """All of the work, in the units of :meth:`work`."""
        from ...training.host.progress import HostProgress

        self._total = total
        self._bar = HostProgress(total)

    def next(self) -> None:
        """A variant is done."""
        self._variant += 1

    def work(self, amount: int) -> None:
        """Something was done; some samplers take another number of steps than they are told."""
        from ...training.host.progress import raise_if_cancelled

        raise_if_cancelled()
        self._done = min(self._done + amount, self._total)
        self._bar.update(self._done)
        if self._done and monotonic() - self._told > SECONDS_BETWEEN_TEXTS:
            self._told = monotonic()
            left = (self._told - self._begin) / self._done * (self._total - self._done)
            show_text(f"{self._place()} · {duration(left)} left")

    def _place(self) -> str:
        variants = self.spec.variants
        variant = variants[min(self._variant, len(variants) - 1)]
        number = f"{min(self._variant + 1, len(variants))}/{len(variants)}"
        if variant is None:
            return f"{number} base"
        strength = self.spec.strengths[variant.strength]
        return f"{number} {self.spec.loras[variant.lora]} at strength {strength:g}"
