"""The node that lets an image-to-text model caption a dataset."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ...training.captioning.captioner import Writing
from ...training.captioning.describe import Captioned
from ...training.captioning.folder import captioner_folder, stamp
from ...training.captioning.known import KNOWN_CAPTIONERS
from ...training.captioning.wording import HABITS, ExistingCaptions
from ...training.dataset.samples import ImageDataset, Sample, shorten
from ...training.errors import AtelierError, require_number
from ...training.host.captioner import Precision, caption_dataset
from ...training.host.progress import HostProgress
from ...training.model_files import fetch, in_megabytes
from ..graph.checks import choice, verdict
from ..graph.outputs import cache_folder
from ..graph.wires import AtelierDataset
from ..live.progress import duration, show_text
from .model_folders import CAPTIONERS, folder_for, models_in, own_folder

EXAMPLES = 5
"""Captions that the node shows."""

SHOWN_EVERY = 0.2
"""Seconds."""

WRITING = Writing()
"""The defaults."""


class CaptionImages(io.ComfyNode):
    """ATELIER_DATASET -> ATELIER_DATASET with what a model says of the pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierCaptionImages",
            display_name="Caption Images",
            category="training/atelier/dataset",
            description=(
                "Writes a caption for every picture with Florence-2, BLIP or another "
                "image-to-text model from a folder in models/captioners. Nothing is fetched "
                "unless you say so; the files of the dataset stay as they are."
            ),
            inputs=[
                AtelierDataset.Input("dataset", tooltip="Pictures that are to be captioned."),
                *_model(),
                *_writing(),
                *_use(),
            ],
            outputs=[
                AtelierDataset.Output(
                    "captioned_dataset",
                    display_name="dataset",
                    tooltip="The same pictures with the new captions, for Edit Captions.",
                ),
                io.String.Output(
                    "captions",
                    display_name="captions",
                    tooltip="All captions as text, a line each with the name of its picture.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        captioner: str | None = None,
        download_if_missing: bool | None = None,
        max_new_tokens: int | None = None,
        num_beams: int | None = None,
        batch_size: int | None = None,
    ) -> bool | str:
        wrong = [
            verdict(_require_captioner, captioner, download_if_missing),
            verdict(_writing_of, "", max_new_tokens, num_beams),
            verdict(_require_batch_size, batch_size),
        ]
        return next((text for text in wrong if text is not True), True)

    @classmethod
    def fingerprint_inputs(cls, captioner: str | None = None, **others: Any) -> str:
        """A model that was exchanged under its old name is another one."""
        folder = models_in(CAPTIONERS).get(captioner or "")
        return f"{captioner} {stamp(folder) if folder else ''}"

    @classmethod
    def execute(
        cls,
        dataset: ImageDataset,
        captioner: str,
        download_if_missing: bool,
        prompt: str,
        max_new_tokens: int,
        num_beams: int,
        batch_size: int,
        precision: str,
        remove_phrases: str,
        existing_captions: str,
    ) -> io.NodeOutput:
        writing = _writing_of(prompt, max_new_tokens, num_beams)
        _require_batch_size(batch_size)
        existing = choice("existing_captions", existing_captions, ExistingCaptions)
        numbers = choice("precision", precision, Precision)
        captioned = caption_dataset(
            _captioner(captioner, download_if_missing),
            dataset,
            writing,
            numbers,
            batch_size,
            remove_phrases,
            existing,
            cache_folder(),
            _reporter(),
        )
        show_text(_summary(captioned))
        return io.NodeOutput(captioned.dataset, _lines(captioned.dataset.samples))


def _require_batch_size(batch_size: int) -> None:
    require_number("batch_size", batch_size, 1, 64, "4 is usual; less needs less memory.")


def _writing_of(prompt: str, max_new_tokens: int, num_beams: int) -> Writing:
    writing = Writing(prompt, max_new_tokens, num_beams)
    writing.require_sound()
    return writing


def _require_captioner(name: str, download: bool) -> Path | None:
    """The folder of a captioner; None when it is to be fetched.

    Raises:
        AtelierError: it is not there, or not as it should be, and may not, or cannot, be fetched.
    """
    found = models_in(CAPTIONERS)
    known = KNOWN_CAPTIONERS.get(name)
    if name in found:
        try:
            return captioner_folder(found[name]).path
        except AtelierError:
            if known is None or not download:
                raise
            return None  # what it lacks is fetched
    if known is None:
        there = f" There are: {', '.join(found)}." if found else ""
        raise AtelierError(
            f'captioner: there is no folder "{name}" in {own_folder(CAPTIONERS)}.{there} Put the '
            "model there (config.json, *.safetensors and its other small files) and reload the "
            "page."
        )
    if not download:
        raise AtelierError(
            f'captioner: "{name}" is not on this machine. Turn download_if_missing on to fetch it '
            f"({known.size}, licence {known.licence}), or put the files from {known.page} into "
            f'"{folder_for(CAPTIONERS, name)}".'
        )
    return None


def _captioner(name: str, download: bool) -> Path:
    folder = _require_captioner(name, download)
    if folder is not None:
        return folder
    progress = HostProgress(1000)

    def tick(done: int, total: int) -> None:
        progress.update(1000 * done // max(total, 1))
        show_text(f"{name}: {in_megabytes(done)} of {in_megabytes(total)}")

    return fetch(KNOWN_CAPTIONERS[name], folder_for(CAPTIONERS, name), tick)


def _reporter() -> Callable[[int, int, Sample, str], None]:
    """Bar, time left and the last answer, at most some times a second."""
    began = shown_at = time.monotonic()
    bar: HostProgress | None = None

    def told(done: int, total: int, sample: Sample, answer: str) -> None:
        nonlocal bar, shown_at
        bar = bar or HostProgress(total)
        bar.update(done)
        now = time.monotonic()
        if now - shown_at >= SHOWN_EVERY:
            shown_at, left = now, (now - began) / done * (total - done)
            show_text(f"{done}/{total} · {duration(left)} left · {sample.name}: {answer}")

    return told


def _summary(captioned: Captioned) -> str:
    samples = captioned.dataset.samples
    kept = len(samples) - captioned.described
    known = captioned.described - captioned.asked
    counts = [f"{captioned.described} pictures captioned"]
    counts += [f"{known} of them known from an earlier run"] if known else []
    counts += [f"{kept} kept as they were"] if kept else []
    lines = [" · ".join(counts)]
    if captioned.silent:
        lines.append(f"nothing was said of: {shorten(list(captioned.silent))}")
    if captioned.dataset.problems:
        lines.append(f"left out: {shorten([p.name for p in captioned.dataset.problems])}")
    return "\n".join([*lines, _lines(samples[:EXAMPLES])])


def _lines(samples: tuple[Sample, ...]) -> str:
    return "\n".join(f"{s.name}: {caption}" for s in samples for caption in s.captions)


def _model() -> list[io.Input]:
    return [
        io.Combo.Input(
            "captioner",
            options=list(dict.fromkeys([*models_in(CAPTIONERS), *KNOWN_CAPTIONERS])),
            default=next(iter(KNOWN_CAPTIONERS)),
            tooltip=(
                "Folder in models/captioners. Can be fetched: "
                + ", ".join(f"{m.name} ({m.size})" for m in KNOWN_CAPTIONERS.values())
                + ". Florence-2 describes in detail, BLIP in few words. Others: safetensors only; "
                "code in a folder NAME runs only if a file NAME.trust_remote_code lies beside it."
            ),
        ),
        io.Boolean.Input(
            "download_if_missing",
            default=False,
            tooltip=(
                "On: a known captioner that is not there is fetched from the Hugging Face hub, "
                "once, at a fixed revision, and checked. Off: nothing is ever fetched."
            ),
        ),
    ]


def _writing() -> list[io.Input]:
    return [
        io.String.Input(
            "prompt",
            default=WRITING.prompt,
            placeholder="empty = what the model is usually asked",
            tooltip=(
                "Florence-2: <CAPTION> for a few words, <DETAILED_CAPTION>, or "
                "<MORE_DETAILED_CAPTION> (if empty). BLIP and GIT: how the caption begins. "
                "Models that chat: an instruction, e.g. Describe the clothes in one sentence."
            ),
        ),
        io.Int.Input(
            "max_new_tokens",
            default=WRITING.max_new_tokens,
            min=1,
            max=4096,
            tooltip=(
                "Most tokens of a caption, about ¾ of a word each; longer ones are cut off. 128 "
                "is enough for a paragraph, 40 for a sentence."
            ),
        ),
        io.Int.Input(
            "num_beams",
            default=WRITING.num_beams,
            min=1,
            max=16,
            tooltip=(
                "Wordings followed side by side, of which the likeliest is kept. 3 is usual; 1 is "
                "quickest and needs the least memory."
            ),
        ),
        io.Int.Input(
            "batch_size",
            default=4,
            min=1,
            max=64,
            tooltip=(
                "Pictures captioned at a time. More is quicker on a GPU and takes more memory; 1 "
                "if it runs out."
            ),
        ),
        io.Combo.Input(
            "precision",
            options=Precision,
            default=Precision.AUTO,
            tooltip=(
                "Numbers the model calculates with. auto: bf16 or fp16 on a GPU that is quick "
                "with them, fp32 on the CPU. Choose fp32 if captions come out as nonsense."
            ),
        ),
    ]


def _use() -> list[io.Input]:
    return [
        io.String.Input(
            "remove_phrases",
            default="\n".join(HABITS),
            multiline=True,
            tooltip=(
                "A phrase a line, capitals or not. Captions that begin with one lose it, again "
                "and again: what every caption begins with teaches nothing. Empty = keep all."
            ),
        ),
        io.Combo.Input(
            "existing_captions",
            options=ExistingCaptions,
            default=ExistingCaptions.REPLACE,
            tooltip=(
                "Where there is a caption: replace it, append the new one behind it, prepend it, "
                "or caption only the pictures that have none (only_empty)."
            ),
        ),
    ]
