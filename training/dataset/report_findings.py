"""What is to be mended in a dataset, or at least looked at, the worst first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from .analysis import LONGEST_SIDE
from .report import SOFT_SET, DatasetReport, Fitted
from .samples import shorten
from .token_counts import CLIP_TOKENS, distinct_encoders
from .wording import are, count, have, quote

CUT_MUCH = 0.2
"""Share of a picture; more may take a head or a hand away."""

SHORT_COST = 1.1
"""Batches over those that were needed if all were full."""


class Finding(NamedTuple):
    """Something to mend or to look at."""

    what: str
    """In a few words."""
    advice: str
    """Which pictures, and what to do."""


def findings(report: DatasetReport) -> list[Finding]:
    """What to mend, the worst first."""
    return [finding for find in FINDERS for finding in find(report)]


def _left_out(report: DatasetReport) -> Iterator[Finding]:
    problems = report.problems
    if not problems:
        return
    reasons = [f"   {problem.reason}" for problem in problems[:5]]
    rest = len(problems) - len(reasons)
    reasons += [f"   and {rest} more"] if rest > 0 else []
    what = are(len(problems), "file", "left out")
    if report.broken:
        what += (
            f", {report.broken} because broken" if report.broken < len(problems) else " as broken"
        )
    yield Finding(what, "\n".join(["", *reasons]))


def _nothing_to_train_on(report: DatasetReport) -> Iterator[Finding]:
    if report.epoch is None:
        advice = "no sound picture has the role train. Set role to train in Load Image Dataset."
        yield Finding("There is nothing to train on", advice)


def _too_narrow(report: DatasetReport) -> Iterator[Finding]:
    narrow = report.too_narrow
    if narrow:
        yield Finding(
            f"{are(len(narrow), 'picture', 'too narrow')} for a bucket and cannot train",
            f"{_names(report, narrow)}. Turn bucket_no_upscale off in Fit Images, or remove them.",
        )


def _leaks(report: DatasetReport) -> Iterator[Finding]:
    leaks = report.leaks
    if leaks:
        yield Finding(
            f"{are(len(leaks), 'picture', 'held out')} for validation though a copy trains",
            f"{_groups(report, leaks)}. The validation loss will look better than it is. Keep all "
            "copies of a picture on one side.",
        )


def _without_caption(report: DatasetReport) -> Iterator[Finding]:
    empty, partly = report.captions.empty, report.captions.partly_empty
    if empty:
        yield Finding(
            have(len(empty), "picture", "no caption"),
            f"{_names(report, empty)}. Write what they show, or give a trigger word.",
        )
    if partly:
        yield Finding(
            f"{have(len(partly), 'picture', 'an empty caption')} among several",
            f"{_names(report, partly)}. Now and then they train without words.",
        )


def _duplicates(report: DatasetReport) -> Iterator[Finding]:
    same, near = report.same, report.near
    if same:
        yield Finding(
            f"{are(_extra(same), 'picture', 'the same file')} as another",
            f"{_groups(report, same)}. Keep one of each; to weigh a picture more, use num_repeats.",
        )
    if near:
        yield Finding(
            f"{are(_extra(near), 'picture', 'nearly the same')} as another",
            f"{_groups(report, near)}. Look at these: near copies are learned by heart. Keep the "
            "best of each, unless the difference is what you want to teach.",
        )


def _same_caption(report: DatasetReport) -> Iterator[Finding]:
    captions = report.captions
    if captions.shared and captions.shared[0][1] == captions.captioned:
        yield Finding(
            "Every picture has the same caption",
            f'"{quote(captions.shared[0][0])}". All that they show is learned under it: describe '
            "what should stay changeable, such as subject, pose and background.",
        )


def _forgotten_tag(report: DatasetReport) -> Iterator[Finding]:
    captions = report.captions
    if captions.forgotten and not captions.prose:
        tag, lacking = captions.forgotten[0]
        yield Finding(
            f'"{quote(tag, 40)}" is in {captions.counts[tag]} of {captions.captioned} captions',
            f"not in those of {_names(report, lacking)}. If it is the trigger word, add it there.",
        )


def _too_small(report: DatasetReport) -> Iterator[Finding]:
    small = report.too_small
    if small:
        yield Finding(
            f"{are(len(small), 'picture', 'smaller')} than what they train at",
            f"{_listed(report, small, lambda f: f'scaled up {f.upscale:.2f}×')}. That teaches "
            "softness. Find larger ones, lower the resolution, or turn on bucket_no_upscale in Fit "
            "Images.",
        )


def _much_cut(report: DatasetReport) -> Iterator[Finding]:
    cut = report.most_cut(CUT_MUCH)
    if cut:
        lose = f"{count(len(cut), 'picture')} lose{'s' if len(cut) == 1 else ''}"
        yield Finding(
            f"{lose} {CUT_MUCH:.0%} or more to the crop",
            f"{_listed(report, cut, lambda f: f'{f.cut:.0%}')}. Heads and hands may be cut off: "
            "crop them yourself, turn on enable_bucket, or allow longer buckets.",
        )


def _blurred(report: DatasetReport) -> Iterator[Finding]:
    if report.blank:
        yield Finding(
            are(len(report.blank), "picture", "of one colour"),
            f"{_names(report, report.blank)}. Look at these: a failed download, or a light drawing "
            "laid on a light background?",
        )
    if report.blurred:
        sigmas = {i: report.measurements[i].blur for i in report.blurred}
        listed = [f"{report.samples[i].name} ({sigma:.1f} px)" for i, sigma in sigmas.items()]
        yield Finding(
            f"{count(len(listed), 'picture')} seem{'s' if len(listed) == 1 else ''} blurred",
            f"{shorten(listed)}; the median of the set is {report.blur:.1f} px. Look at these: "
            "out of focus, shaken, or scaled up before?",
        )
    if report.blur >= SOFT_SET:
        yield Finding(
            "The set is soft as a whole",
            f"median blur {report.blur:.1f} px of {LONGEST_SIDE}. If that is not its style, the "
            "pictures were scaled up or compressed: find better copies.",
        )


def _long_captions(report: DatasetReport) -> Iterator[Finding]:
    for tokens in distinct_encoders(report.tokens or ()):
        if not tokens.beyond:
            continue
        index, words = tokens.beyond[0]
        captions = have(len(tokens.over), "caption", f"more than {tokens.limit} tokens")
        longest = f'The longest has {tokens.counts[index]}; beyond lies "{quote(words)}"'
        if tokens.cuts:
            cut = f"the encoder {tokens.encoder} cuts off the rest. {longest}. Shorten them."
            yield Finding(captions, cut)
        elif tokens.limit == CLIP_TOKENS:
            yield Finding(
                captions,
                "ComfyUI reads them in several passes; many other programs cut there. "
                f"{longest}. Put what matters first.",
            )


def _costly_batches(report: DatasetReport) -> Iterator[Finding]:
    epoch = report.epoch
    if epoch is not None and epoch.batches > SHORT_COST * epoch.full_batches:
        yield Finding(
            f"An epoch takes {epoch.batches} batches instead of {epoch.full_batches}",
            f"each of the {count(len(report.buckets), 'bucket')} ends with a short one. Use fewer "
            "buckets (larger bucket_reso_steps in Fit Images) or a smaller train_batch_size.",
        )


def _one_sided(report: DatasetReport) -> Iterator[Finding]:
    for group, found in report.told_variety.items():
        kind = found.one_sided
        if kind:
            yield Finding(
                f"The {group} is nearly always “{kind}”",
                f"{found.counts[kind]} of the {found.named} captions that name one. For a "
                "character, add pictures with others, or it can hardly be drawn in another way.",
            )


def _licence_gaps(report: DatasetReport) -> Iterator[Finding]:
    source, licence = report.without("source"), report.without("license")
    gaps = [("source", "no source", source), ("license", "no licence", licence)]
    if source and source == licence:
        gaps = [("source and license", "neither source nor licence", source)]
    for fields, words, names in gaps:
        if names:
            which = "all of them" if len(names) == len(report.samples) else shorten(names)
            yield Finding(
                have(len(names), "picture", words),
                f"{which}. Fill in {fields} in Load Image Dataset: it is written into the LoRA.",
            )


FINDERS: tuple[Callable[[DatasetReport], Iterator[Finding]], ...] = (
    _left_out,
    _nothing_to_train_on,
    _too_narrow,
    _leaks,
    _without_caption,
    _duplicates,
    _same_caption,
    _forgotten_tag,
    _too_small,
    _much_cut,
    _blurred,
    _long_captions,
    _costly_batches,
    _one_sided,
    _licence_gaps,
)


def _names(report: DatasetReport, places: Iterable[int]) -> str:
    return shorten([report.samples[i].name for i in places])


def _listed(
    report: DatasetReport, fitted: Sequence[Fitted], number: Callable[[Fitted], str]
) -> str:
    return shorten([f"{report.samples[f.sample].name} ({number(f)})" for f in fitted])


def _groups(report: DatasetReport, groups: Sequence[Sequence[int]]) -> str:
    names = [[report.samples[i].name for i in group] for group in groups]
    texts = [" = ".join(n[:3]) + (f" = … ({len(n)} in all)" if len(n) > 3 else "") for n in names]
    return shorten(texts)


def _extra(groups: Iterable[Sequence[int]]) -> int:
    return sum(len(group) - 1 for group in groups)
