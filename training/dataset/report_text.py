"""The dataset report in words: what to mend, the worst first, then the numbers."""

from __future__ import annotations

from collections import Counter
from statistics import median

from .analysis import LONGEST_SIDE
from .report import DatasetReport
from .report_findings import findings
from .samples import Role, shorten
from .token_counts import distinct_encoders
from .wording import count, number, quote, size_text

NOTHING = "Nothing was found."

MOST_LINES = 12
"""Of a table."""


def report_text(report: DatasetReport) -> str:
    """The whole report, a screen or two long however large the dataset is."""
    mend = [f"{found.what}: {found.advice}" for found in findings(report)]
    parts = [heading(report), "", "WHAT TO MEND"]
    parts += [f"{i}. {text}" for i, text in enumerate(mend, start=1)] or [NOTHING]
    for title, lines in (
        ("SIZES AND SHARPNESS", _pictures(report)),
        ("BUCKETS", _buckets(report)),
        ("STEPS", _steps(report)),
        ("CAPTIONS", _captions(report)),
        ("TOKENS", _tokens(report)),
        ("VARIETY", [*_variety(report), *_spread(report)]),
        ("WHERE THEY COME FROM", _origin(report)),
    ):
        if lines:
            parts += ["", title, *lines]
    return "\n".join(parts)


def short_text(report: DatasetReport) -> str:
    """The set, and what to mend in a line each."""
    what = [f"{i}. {found.what}" for i, found in enumerate(findings(report), start=1)]
    return "\n".join([heading(report), *(what or [NOTHING])])


def heading(report: DatasetReport) -> str:
    """The set in two lines; in one when there is nothing to train on."""
    roles = Counter(sample.role for sample in report.samples)
    counts = [count(len(report.samples), "picture")]
    if set(roles) - {Role.TRAIN}:
        counts.append(f"{roles[Role.TRAIN]} to train on")
    counts += [f"{roles[r]} for {r.value}" for r in Role if r is not Role.TRAIN and roles[r]]
    first = f"{report.dataset.name}: {', '.join(counts)}"
    if report.epoch is None:
        return first
    buckets = count(len(report.buckets), "bucket")
    return f"{first}\n{report.epoch.pictures} an epoch · {buckets} · {_steps_per_epoch(report)}"


def _pictures(report: DatasetReport) -> list[str]:
    if not report.samples:
        return []
    sizes = Counter(sample.image.size for sample in report.samples)
    areas = sorted(sizes, key=lambda size: size[0] * size[1])
    common = ", ".join(f"{size_text(size)} ({n})" for size, n in sizes.most_common(5))
    lines = [f"all pictures: {size_text(areas[0])} px"]
    if len(sizes) > 1:
        lines = [
            f"{len(sizes)} sizes, from {size_text(areas[0])} to {size_text(areas[-1])} px",
            f"most frequent: {common}",
        ]
    blur = f"median blur of the edges: {report.blur:.1f} px of {LONGEST_SIDE} (0.4 to 0.8 is sharp)"
    return [*lines, blur] if report.blur else lines


def _buckets(report: DatasetReport) -> list[str]:
    if not report.buckets:
        return []
    lines = [f"{'width × height':>14} {'pictures':>9} {'an epoch':>9} {'batches':>8} {'cut':>5}"]
    lines += [
        f"{size_text(b.size):>14} {b.pictures:>9} {b.seen:>9} {b.batches:>8} {b.cut:>5.0%}"
        for b in report.buckets[:MOST_LINES]
    ]
    rest = report.buckets[MOST_LINES:]
    if rest:
        lines.append(f"and {len(rest)} more with {sum(b.pictures for b in rest)} pictures")
    return lines


def _steps(report: DatasetReport) -> list[str]:
    epoch = report.epoch
    if epoch is None:
        return []
    lines = [f"{_steps_per_epoch(report)}; 1000 steps are {number(1000 / epoch.steps)} epochs"]
    extra = epoch.batches - epoch.full_batches
    if extra:
        lines.append(
            f"{count(epoch.batches, 'batch', 'batches')}, {extra} of them because a bucket's last "
            "batch is short; pictures in short batches weigh more"
        )
    return lines


def _captions(report: DatasetReport) -> list[str]:
    captions = report.captions
    if not captions.captioned:
        return []
    kind, unit = ("prose", "word") if captions.prose else ("tags", "tag")
    lines = [f"{kind}; {count(len(captions.counts), f'different {unit}')}"]
    counts = captions.counts.most_common(15)
    frequent = ", ".join(f"{quote(tag, 40)} ({n})" for tag, n in counts if n > 1)
    lines += [f"most frequent: {frequent}"] if frequent else []
    if captions.in_all:
        every = shorten([quote(tag, 40) for tag in captions.in_all])
        lines.append(
            f"in every caption: {every}. The trigger word belongs there; take others out of the "
            "captions to have the trigger word stand for them too"
        )
    if captions.once:
        once = shorten([quote(tag, 40) for tag in captions.once])
        lines.append(f"only once: {len(captions.once)} ({once})")
    if captions.shared:
        shared = [f'"{quote(text, 40)}" ({n})' for text, n in captions.shared]
        lines.append(f"the same caption at several pictures: {shorten(shared, 3)}")
    return lines


def _tokens(report: DatasetReport) -> list[str]:
    if report.tokens is None:
        return ["not counted: connect clip to see what is too long for the text encoder"]
    lines = []
    for tokens in distinct_encoders(report.tokens):
        counts = tokens.counts or (0,)
        longest, middle = max(counts), round(median(counts))
        line = f"{tokens.encoder}: median {middle}, longest {longest}"
        if tokens.limit is None:
            lines.append(f"{line}; any length goes through")
            continue
        over = f"{len(tokens.over)} of {len(tokens.counts)} over {tokens.limit}"
        passes = (
            f", up to {tokens.passes(longest)} passes" if tokens.over and not tokens.cuts else ""
        )
        lines.append(f"{line}; {over}{passes}")
    return lines


def _variety(report: DatasetReport) -> list[str]:
    told = report.told_variety
    lines = []
    for group, found in told.items():
        kinds = ", ".join(f"{kind} {n}" for kind, n in found.counts.items())
        lines.append(
            f"{group}: {kinds} (named in {found.named} of {report.captions.captioned} captions; "
            f"evenness {found.evenness:.2f} of 1)"
        )
    silent = [group for group in report.variety if group not in told]
    if silent:
        lines.append(f"named in too few captions to judge: {', '.join(silent)}")
    return lines


def _spread(report: DatasetReport) -> list[str]:
    spread = report.spread
    if spread is None:
        return []
    train = [sample.name for sample in report.samples if sample.role is Role.TRAIN]
    alike = [f"{train[i]} = {train[j]} ({cosine:.2f})" for i, j, cosine in spread.alike]
    far = [f"{train[i]} ({cosine:.2f})" for i, cosine in spread.outliers]
    some = spread.compared < len(train)
    among = f" among {spread.compared} of {len(train)}" if some else ""
    return [
        f"spread in the eyes of clip_vision: {spread.spread:.3f} (0 = all alike; compare with "
        "another set through the same encoder)",
        f"most alike{among}: {shorten(alike)}",
        f"farthest from the rest: {shorten(far)}",
    ]


def _origin(report: DatasetReport) -> list[str]:
    sources, licenses = report.dataset.sources, report.dataset.licenses
    lines = [f"source: {quote(sources)}"] if sources else []
    return lines + ([f"licence: {quote(licenses)}"] if licenses else [])


def _steps_per_epoch(report: DatasetReport) -> str:
    epoch = report.epoch
    if epoch is None:
        return ""
    each = f"batch {epoch.train_batch_size}"
    if epoch.gradient_accumulation_steps > 1:
        each += f" × {epoch.gradient_accumulation_steps} accumulated"
    steps = number(epoch.steps)
    return f"{steps} optimizer step{'' if steps == '1' else 's'} an epoch at {each}"
