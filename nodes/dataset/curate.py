"""The node that chooses the good pictures of a dataset: by a rule, and by hand."""

from __future__ import annotations

from enum import Enum
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ...training.curation.choice import Choice, parse_choice
from ...training.curation.report import report_text, short_text
from ...training.curation.scores import Score
from ...training.curation.selection import MOST_PICTURES, SelectionRule
from ...training.dataset.samples import ImageDataset
from ...training.errors import require_number
from ..gallery.gallery import Status
from ..graph.checks import choice as chosen
from ..graph.checks import verdict
from ..graph.wires import AtelierDataset
from ..live.browsers import Audience
from ..live.progress import show_text

RULE = SelectionRule()
SECONDS = 60
"""Of a minute."""
MOST_MINUTES = 10_080
"""A week."""


class Mode(str, Enum):
    AUTOMATIC = "automatic"
    WAIT_FOR_ME = "wait_for_me"
    USE_SAVED_CHOICE = "use_saved_choice"


class CurateDataset(io.ComfyNode):
    """ATELIER_DATASET -> ATELIER_DATASET with the good pictures alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierCurateDataset",
            display_name="Curate Dataset",
            category="training/atelier/dataset",
            is_output_node=True,
            description=(
                "Keeps the good pictures of a dataset. A rule drops duplicates, outliers and the "
                "less sharp or less like your reference pictures; in a gallery on the node you "
                "choose by hand and edit captions while the queue waits. The choice is kept in "
                "the graph and can be repeated."
            ),
            inputs=[
                AtelierDataset.Input(
                    "dataset", tooltip="Pictures to choose from, loaded or generated."
                ),
                *_mode_and_rule(),
                *_gallery(),
                *_compared_with(),
            ],
            outputs=[
                AtelierDataset.Output(
                    "curated_dataset",
                    display_name="dataset",
                    tooltip="The kept pictures, with the captions as edited in the gallery.",
                ),
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="How many were kept and dropped, and the reason for each picture.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        keep_best: int | None = None,
        timeout_minutes: int | None = None,
        choice: str | None = None,
    ) -> bool | str:
        verdicts = (
            verdict(SelectionRule, keep_best=keep_best),
            verdict(_require_minutes, timeout_minutes),
            verdict(parse_choice, choice),
        )
        return next((text for text in verdicts if text is not True), True)

    @classmethod
    def fingerprint_inputs(cls, mode: str | None = None, **others: Any) -> float | str:
        """Who asked to be waited for is waited for, also when nothing else has changed."""
        return float("nan") if mode == Mode.WAIT_FOR_ME.value else ""

    @classmethod
    def execute(
        cls,
        dataset: ImageDataset,
        mode: str,
        score: str,
        keep_best: int,
        drop_duplicates: bool,
        drop_outliers: bool,
        timeout_minutes: int,
        choice: str,
        reference: Tensor | None = None,
        clip_vision: Any = None,
    ) -> io.NodeOutput:
        from .curating import ask, look_over, make_gallery  # the host: not at start-up

        _require_minutes(timeout_minutes)
        how = chosen("mode", mode, Mode)
        rule = SelectionRule(
            chosen("score", score, Score), keep_best, drop_duplicates, drop_outliers
        )
        saved = Choice() if how is Mode.AUTOMATIC else parse_choice(choice)
        looked = look_over(dataset, rule, reference, clip_vision)
        notice = ""
        if how is Mode.WAIT_FOR_ME:
            saved, notice = ask(looked, mode, saved, timeout_minutes * SECONDS, Audience())
        else:
            make_gallery(looked, mode, saved, Status.DONE).open()
        curated = looked.with_choice(saved)
        told = None if how is Mode.AUTOMATIC else saved
        text = "\n".join(filter(None, [notice, short_text(dataset, curated, told)]))
        show_text(text)
        report = "\n".join(filter(None, [notice, report_text(dataset, curated, told)]))
        return io.NodeOutput(curated.dataset, report, ui=ui.PreviewText(text))


def _mode_and_rule() -> list[io.Input]:
    return [
        io.Combo.Input(
            "mode",
            options=Mode,
            default=Mode.AUTOMATIC,
            tooltip=(
                "automatic: the rule below alone. wait_for_me: the queue waits while you choose "
                "in the gallery on this node; Continue saves your choice in the graph. "
                "use_saved_choice: that choice again, without waiting, also on another machine."
            ),
        ),
        io.Combo.Input(
            "score",
            options=Score,
            default=RULE.score,
            tooltip=(
                "What good means. sharpness: little blur. reference_similarity: colours, edges and "
                "texture like those of reference, no model needed. clip_similarity: alike in the "
                "eyes of clip_vision, for the same face or style. none: the order of the dataset."
            ),
        ),
        io.Int.Input(
            "keep_best",
            default=RULE.keep_best,
            min=0,
            max=MOST_PICTURES,
            tooltip=(
                "How many training pictures stay at most, those with the best score. 20 to 60 are "
                "usual for a style. 0 = all."
            ),
        ),
        io.Boolean.Input(
            "drop_duplicates",
            default=RULE.drop_duplicates,
            tooltip=(
                "Of pictures that are nearly the same only the best stays. Switch it on for "
                "generated sets and bursts of photos; what is there twice is learned too well."
            ),
        ),
        io.Boolean.Input(
            "drop_outliers",
            default=RULE.drop_outliers,
            tooltip=(
                "Drops pictures that are far less like reference, or the rest, than the others "
                "are. Needs reference or clip_vision; off, they are only marked in the gallery."
            ),
        ),
    ]


def _gallery() -> list[io.Input]:
    return [
        io.Int.Input(
            "timeout_minutes",
            default=60,
            min=0,
            max=MOST_MINUTES,
            tooltip=(
                "With wait_for_me: how long the queue waits. When the time is up, or no browser "
                "is open, the rule and the saved choice decide, and the node says so. 0 = no limit."
            ),
        ),
        io.String.Input(
            "choice",
            default="",
            multiline=True,
            placeholder="written by the gallery",
            tooltip=(
                "What you chose in the gallery, by the content of the pictures: kept, dropped, new "
                "captions. The gallery writes it; empty it to begin anew. Pictures that it does "
                "not name follow the rule. automatic does not read it."
            ),
        ),
    ]


def _compared_with() -> list[io.Input]:
    return [
        io.Image.Input(
            "reference",
            optional=True,
            tooltip=(
                "Pictures of the wanted look or the wanted face, 4 to 20 are usual. What is less "
                "like them has a lower score."
            ),
        ),
        io.ClipVision.Input(
            "clip_vision",
            optional=True,
            tooltip=(
                "Image encoder (Load CLIP Vision) for clip_similarity. Without reference, pictures "
                "are compared with the rest of the set. On a CPU it takes up to a second a picture."
            ),
        ),
    ]


def _require_minutes(timeout_minutes: int) -> None:
    require_number(
        "timeout_minutes", timeout_minutes, 0, MOST_MINUTES, "60 is usual, 0 = no limit."
    )
