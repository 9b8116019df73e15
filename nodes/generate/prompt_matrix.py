"""The node that makes prompts, and the captions to train on, from lists."""

from __future__ import annotations

import hashlib
from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui

from ...training.generate.matrix_report import matrix_report
from ...training.generate.prompt_matrix import MOST_PROMPTS, MatrixOptions, PromptMatrix
from ...training.generate.wildcards import Wildcards, folder_state
from ..graph.checks import verdict
from ..graph.wires import AtelierPrompts
from ..live.progress import show_text

OPTIONS = MatrixOptions(
    subjects="a fox in the snow\na lighthouse by the sea\na {red|blue} bicycle",
    styles="flat vector illustration",
)


class PromptMatrixNode(io.ComfyNode):
    """Lists of subjects, styles and templates -> ATELIER_PROMPTS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierPromptMatrix",
            display_name="Prompt Matrix",
            category="training/atelier/generate",
            is_output_node=True,
            description=(
                "Every subject in every style, as prompts for the base model, and for each the "
                "caption to train on: without the style's words, with the trigger word. Shows how "
                "many there are and some examples."
            ),
            inputs=[*_lists(), *_captions(), *_choices()],
            outputs=[
                AtelierPrompts.Output(
                    "prompts",
                    display_name="prompts",
                    tooltip="Prompts with their captions, for Generate Dataset.",
                ),
                io.String.Output(
                    "prompt_texts",
                    display_name="prompt_texts",
                    is_output_list=True,
                    tooltip=(
                        "The prompts one by one: what is wired here runs once for each, such as "
                        "CLIP Text Encode and KSampler."
                    ),
                ),
                io.String.Output(
                    "captions",
                    display_name="captions",
                    is_output_list=True,
                    tooltip=(
                        "The captions in the same order, for the captions of Dataset From Images."
                    ),
                ),
                io.Int.Output(
                    "count", display_name="count", tooltip="How many prompts came out of it."
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        subjects: str | None = None,
        styles: str | None = None,
        templates: str | None = None,
        class_tokens: str | None = None,
        caption_template: str | None = None,
        prompt_count: int | None = None,
    ) -> bool | str:
        return verdict(
            _matrix, subjects, styles, templates, class_tokens, caption_template, prompt_count
        )

    @classmethod
    def fingerprint_inputs(
        cls,
        subjects: str | None = None,
        styles: str | None = None,
        templates: str | None = None,
        **others: str | int | bool | None,
    ) -> str:
        """Runs again when a wildcard file changed, if the texts may name one."""
        texts = (subjects, styles, templates)
        if not any(text is None or "__" in text for text in texts):
            return ""
        return hashlib.sha256(folder_state(wildcards_folder()).encode()).hexdigest()

    @classmethod
    def execute(
        cls,
        subjects: str,
        styles: str,
        templates: str,
        class_tokens: str,
        caption_template: str,
        prompt_count: int,
        shuffle: bool,
        seed: int,
    ) -> io.NodeOutput:
        matrix = _matrix(
            subjects, styles, templates, class_tokens, caption_template, prompt_count, shuffle, seed
        )
        made = matrix.prompts()
        text = matrix_report(matrix, made)
        show_text(text)
        prompts = made.prompts
        return io.NodeOutput(
            made,
            [prompt.text for prompt in prompts],
            [prompt.caption for prompt in prompts],
            len(prompts),
            ui=ui.PreviewText(text),
        )


def wildcards_folder() -> Path:
    """Where wildcard files lie."""
    return Path(folder_paths.get_input_directory()) / "wildcards"


def _matrix(*options: str | int | bool) -> PromptMatrix:
    return PromptMatrix(MatrixOptions(*options), Wildcards(wildcards_folder()))


def _lists() -> list[io.String.Input]:
    return [
        io.String.Input(
            "subjects",
            default=OPTIONS.subjects,
            multiline=True,
            placeholder="one subject a line",
            tooltip=(
                "What is painted, one a line. {red|blue} is one of both, {2$$a|b|c} two of them, "
                "__colours__ a line of input/wildcards/colours.txt. The caption says the one that "
                "was painted. Lines that begin with # do not count."
            ),
        ),
        io.String.Input(
            "styles",
            default=OPTIONS.styles,
            multiline=True,
            placeholder="one style a line (optional)",
            tooltip=(
                "How it is painted, one a line, written like subjects. Several wordings of one "
                "style make the set more varied. Empty for pictures without a style, such as "
                "regularisation pictures."
            ),
        ),
        io.String.Input(
            "templates",
            default=OPTIONS.templates,
            multiline=True,
            tooltip=(
                "How a prompt is put together, one a line: [subject] and [style] in square "
                "brackets, since braces hold alternatives. Several templates multiply the prompts."
            ),
        ),
    ]


def _captions() -> list[io.String.Input]:
    return [
        io.String.Input(
            "class_tokens",
            default=OPTIONS.class_tokens,
            placeholder="trigger word (optional)",
            tooltip=(
                "Trigger word that will stand for the style. Choose one that means nothing to the "
                "base model, such as flatvec. It goes into captions and not into prompts."
            ),
        ),
        io.String.Input(
            "caption_template",
            default=OPTIONS.caption_template,
            tooltip=(
                "How a caption is put together: [trigger], [subject], [style], or [prompt] for "
                "the whole prompt. Leave [style] out, so that the trigger word learns it. Without "
                "[trigger] the trigger word goes in front."
            ),
        ),
    ]


def _choices() -> list[io.Input]:
    return [
        io.Int.Input(
            "prompt_count",
            default=OPTIONS.prompt_count,
            min=0,
            max=MOST_PROMPTS,
            tooltip=(
                "How many prompts to draw, none twice; the subjects take turns. 0 = every "
                "combination. 30 to 100 are usual for a style."
            ),
        ),
        io.Boolean.Input(
            "shuffle",
            default=OPTIONS.shuffle,
            tooltip=(
                "On: in the order in which they are drawn, so that a larger prompt_count only "
                "adds prompts at the end. Off: in the order of the lists."
            ),
        ),
        io.Int.Input(
            "seed",
            default=OPTIONS.seed,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=False,
            tooltip=(
                "Decides which prompts are drawn and their order. The same seed and lists give "
                "the same prompts. Does nothing while all come in the order of the lists."
            ),
        ),
    ]
