"""The node that lets a tagger write captions."""

from __future__ import annotations

import hashlib
from typing import Any

from comfy_api.latest import io, ui

from ...training.dataset.samples import ImageDataset
from ...training.errors import AtelierError
from ...training.model_files import fetch, in_megabytes
from ...training.tagging.auto_tag import auto_tag
from ...training.tagging.known_taggers import KNOWN_TAGGERS
from ...training.tagging.tag_options import LEAST, ExistingCaptions, TagOptions, TagOrder
from ...training.tagging.tag_picture import draw_tags
from ...training.tagging.tagger import MODEL_FILE, TABLE_FILE, TaggerFiles, tagger_files
from ..graph.checks import choice, verdict
from ..graph.outputs import cache_folder
from ..graph.wires import AtelierDataset
from ..live.progress import show_text
from .model_folders import TAGGERS, folder_for, models_in, own_folder

OPTIONS = TagOptions()
SIZES = ", ".join(f"{model.name} {model.size}" for model in KNOWN_TAGGERS.values())


class AutoTag(io.ComfyNode):
    """ATELIER_DATASET -> the same with tags in its captions, and how often each was given."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierAutoTag",
            display_name="Auto-Tag Images",
            category="training/atelier/dataset",
            description=(
                "Lets a tagger of the WD14 family look at each picture and writes what it sees "
                "into the captions, as tags. Taggers lie in models/taggers, a folder each. Needs "
                "the package onnxruntime."
            ),
            inputs=[
                AtelierDataset.Input(
                    "dataset", tooltip="Pictures to tag, those for validation and prior included."
                ),
                io.Combo.Input(
                    "tagger",
                    options=_choices(),
                    tooltip=(
                        "A folder in models/taggers with a .onnx and selected_tags.csv, or one "
                        f"that can be fetched: {SIZES}. wd-vit-tagger-v3 is fast, "
                        "wd-eva02-large-tagger-v3 sees most. Made for drawings; photos do as well."
                    ),
                ),
                io.Boolean.Input(
                    "download_if_missing",
                    default=False,
                    tooltip=(
                        "On: a tagger of the list that is not in models/taggers yet is fetched "
                        "from huggingface.co, at a fixed revision and checked by its SHA-256. Off: "
                        "nothing is ever fetched; the node says where to put the files."
                    ),
                ),
                io.Float.Input(
                    "general_threshold",
                    default=OPTIONS.general_threshold,
                    min=LEAST,
                    max=1.0,
                    step=0.01,
                    tooltip=(
                        "How sure the tagger must be of a tag. 0.35 is usual; lower finds more, "
                        "and more that is wrong. Changing it takes no time: each picture is "
                        "looked at once."
                    ),
                ),
                io.Float.Input(
                    "character_threshold",
                    default=OPTIONS.character_threshold,
                    min=LEAST,
                    max=1.0,
                    step=0.01,
                    tooltip=(
                        "The same for names of characters, which are taken for each other easily. "
                        "0.85 is usual; 1 for none."
                    ),
                ),
                io.Int.Input(
                    "max_tags",
                    default=OPTIONS.max_tags,
                    min=0,
                    max=10_000,
                    tooltip=(
                        "Most tags of a picture, the surest ones; 0 = all. About 20 fit into one "
                        "pass of CLIP. always_include and the rating come on top."
                    ),
                ),
                io.String.Input(
                    "exclude_tags",
                    default=OPTIONS.exclude_tags,
                    multiline=True,
                    tooltip=(
                        "Tags never to write, separated by commas or lines; * stands for anything: "
                        "*_background, solo. Leave out here what your trigger word is to mean."
                    ),
                ),
                io.String.Input(
                    "always_include",
                    default=OPTIONS.always_include,
                    tooltip=(
                        "Tags to put in front of every caption, separated by commas, such as a "
                        "trigger word. With only_empty, of those that are filled."
                    ),
                ),
                io.Boolean.Input(
                    "replace_underscores",
                    default=OPTIONS.replace_underscores,
                    tooltip=(
                        "On: long hair. Off: long_hair, as the table has it. Kaomoji such as >_< "
                        "stay as they are. On suits nearly every base model."
                    ),
                ),
                io.Boolean.Input(
                    "add_rating",
                    default=OPTIONS.add_rating,
                    tooltip=(
                        "Write the likeliest rating (general, sensitive, questionable, explicit) "
                        "as the last tag. On only for base models that were trained with them."
                    ),
                ),
                io.Combo.Input(
                    "order",
                    options=TagOrder,
                    default=OPTIONS.order,
                    tooltip=(
                        "score: the surest first, so that what is cut off matters least; "
                        "alphabetical; as_in_table: as in selected_tags.csv, the commonest tags of "
                        "Danbooru first, then characters."
                    ),
                ),
                io.Combo.Input(
                    "existing_captions",
                    options=ExistingCaptions,
                    default=OPTIONS.existing_captions,
                    tooltip=(
                        "append: tags that a caption lacks go behind it; prepend: in front; "
                        "replace: captions are dropped; only_empty: only pictures without a "
                        "caption are tagged. Alternatives of a picture all get the tags."
                    ),
                ),
            ],
            outputs=[
                AtelierDataset.Output(
                    "tagged", display_name="dataset", tooltip="The same pictures, captions tagged."
                ),
                io.String.Output(
                    "tag_table",
                    display_name="tag_table",
                    tooltip="CSV: tag,count, the most frequent first. Save it, or Preview as Text.",
                ),
                io.Image.Output(
                    "picture",
                    display_name="picture",
                    tooltip="The most frequent tags as bars, coloured by their kind.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        tagger: str | None = None,
        download_if_missing: bool | None = None,
        general_threshold: float | None = None,
        character_threshold: float | None = None,
        max_tags: int | None = None,
    ) -> bool | str:
        numbers = verdict(TagOptions, general_threshold, character_threshold, max_tags)
        if numbers is not True:
            return numbers
        return verdict(_installed, tagger, download_if_missing)

    @classmethod
    def fingerprint_inputs(cls, tagger: str | None = None, **others: Any) -> str:
        """A model that was exchanged under its old name is another one."""
        folder = models_in(TAGGERS).get(tagger or "")
        try:
            files = tagger_files(folder) if folder else None
            facts = [p.stat() for p in (files.model, files.table)] if files else []
        except (AtelierError, OSError) as error:
            return str(error)
        text = " ".join(f"{stat.st_size} {stat.st_mtime_ns}" for stat in facts)
        return hashlib.sha256(f"{tagger} {text}".encode()).hexdigest()

    @classmethod
    def execute(
        cls,
        dataset: ImageDataset,
        tagger: str,
        download_if_missing: bool,
        general_threshold: float,
        character_threshold: float,
        max_tags: int,
        exclude_tags: str,
        always_include: str,
        replace_underscores: bool,
        add_rating: bool,
        order: str,
        existing_captions: str,
    ) -> io.NodeOutput:
        from ...training.host.progress import HostProgress, raise_if_cancelled

        options = TagOptions(
            general_threshold,
            character_threshold,
            max_tags,
            exclude_tags,
            always_include,
            replace_underscores,
            add_rating,
            choice("order", order, TagOrder),
            choice("existing_captions", existing_captions, ExistingCaptions),
        )
        files = _installed(tagger, download_if_missing) or _fetched(tagger)
        progress = HostProgress(len(dataset.samples))
        tagged, report = auto_tag(
            dataset, files, options, cache_folder(), progress.tick, raise_if_cancelled
        )
        show_text(report.text())
        picture = draw_tags(report).unsqueeze(0)
        shown = ui.PreviewImage(picture, cls=cls)
        return io.NodeOutput(tagged, report.table, picture, ui=shown)


def _choices() -> list[str]:
    """Taggers that lie in models/taggers, then those that can be fetched."""
    return list(dict.fromkeys([*models_in(TAGGERS), *KNOWN_TAGGERS]))


def _installed(tagger: str, download_if_missing: bool) -> TaggerFiles | None:
    """The files of a tagger; None when they are to be fetched.

    Raises:
        AtelierError: it is not there, and cannot or must not be fetched; says what to do.
    """
    folder = models_in(TAGGERS).get(tagger)
    files = tagger_files(folder) if folder else None
    known = KNOWN_TAGGERS.get(tagger)
    if files is not None or (known is not None and download_if_missing):
        return files
    needed = f"{MODEL_FILE} and {TABLE_FILE}"
    if known is not None:
        raise AtelierError(
            f'tagger: "{tagger}" is not in models/taggers. Switch download_if_missing on to fetch '
            f"{known.size} from huggingface.co, or get {needed} from {known.page} yourself and put "
            f'them into "{folder_for(TAGGERS, tagger)}".'
        )
    if folder is not None:
        raise AtelierError(f'tagger: "{folder}" lacks a .onnx or {TABLE_FILE}. Put both into it.')
    raise AtelierError(
        f'tagger: there is no tagger "{tagger}". Put {needed} into a folder of that name in '
        f'"{own_folder(TAGGERS)}" and press R, or choose one of {", ".join(_choices())}.'
    )


def _fetched(tagger: str) -> TaggerFiles:
    """Fetch a known tagger, with the node's bar and Cancel."""
    from ...training.host.progress import HostProgress

    model = KNOWN_TAGGERS[tagger]
    progress = HostProgress(model.size_bytes)
    last = -1

    def tick(done: int, total: int) -> None:
        nonlocal last
        progress.update(done)
        if (percent := 100 * done // max(total, 1)) > last:
            last = percent
            show_text(f"fetching {tagger}: {percent}% of {in_megabytes(total)}")

    files = tagger_files(fetch(model, folder_for(TAGGERS, tagger), tick))
    if files is None:  # somebody took them away at once
        raise AtelierError(f'"{folder_for(TAGGERS, tagger)}" is empty again. Queue once more.')
    return files
