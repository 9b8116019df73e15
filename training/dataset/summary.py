"""What a node says of a dataset: how many pictures, how a caption looks, what was left out."""

from __future__ import annotations

from .samples import ImageDataset, Role, shorten

MOST_PROBLEMS = 5
LONGEST_CAPTION = 200
"""Characters."""


def summary(dataset: ImageDataset) -> str:
    """A few lines of text, the most important first: a node shows two unless it is drawn larger."""
    named, reasons = left_out(dataset)[:1], left_out(dataset)[1:]
    return "\n".join([_counts(dataset), *named, _first_caption(dataset), *reasons])


def left_out(dataset: ImageDataset) -> list[str]:
    """A line that names the files that were left out, and one with the reason for each."""
    problems = dataset.problems
    if not problems:
        return []
    names = shorten([problem.name for problem in problems], 3)
    lines = [f"{len(problems)} file{'s' if len(problems) > 1 else ''} left out: {names}"]
    lines += [problem.reason for problem in problems[:MOST_PROBLEMS]]
    rest = len(problems) - MOST_PROBLEMS
    return lines + ([f"and {rest} more"] if rest > 0 else [])


def _counts(dataset: ImageDataset) -> str:
    resolutions = sorted({r for sample in dataset.samples for r in sample.fit.resolutions})
    parts = [f"{len(dataset.samples)} pictures", f"{dataset.images_per_epoch} an epoch"]
    for role in (Role.REGULARISATION, Role.VALIDATION):
        count = len(dataset.with_role(role))
        parts += [f"{count} for {role.value}"] if count else []
    silent = sum(not any(sample.captions) for sample in dataset.samples)
    parts += [f"{silent} without a caption"] if silent else []
    masks = sum(sample.mask is not None for sample in dataset.samples)
    parts += [f"{masks} with a mask"] if masks else []
    return ", ".join([*parts, " + ".join(map(str, resolutions)) + " px"])


def _first_caption(dataset: ImageDataset) -> str:
    captions = dataset.samples[0].captions
    text = captions[0]
    if len(text) > LONGEST_CAPTION:
        text = text[:LONGEST_CAPTION] + " …"
    others = f" (and {len(captions) - 1} more of this picture)" if len(captions) > 1 else ""
    return f'first caption: "{text}"{others}'
