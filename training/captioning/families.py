"""How each family of captioners is asked, and where its own words begin.

=====================  ==========================================  ==========================
config.json            asked with                                  answers
=====================  ==========================================  ==========================
blip, git              the beginning of the caption, or nothing    the caption, beginning and all
florence2              a task such as <MORE_DETAILED_CAPTION>       the caption
vision-encoder-…       nothing                                     the caption
with a chat template   an instruction                              the caption behind it
all others             text as their makers say, or nothing        the caption, behind it or alone
=====================  ==========================================  ==========================
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..errors import require

Inputs = Mapping[str, Any]
"""What ``generate`` takes: tensors, their first dimension the picture."""

Ask = Callable[[Any, Sequence[Image.Image], str], Inputs]
"""(processor, RGB pictures, prompt) -> inputs."""

INSTRUCTION = "Describe this picture in one or two sentences."


@dataclass(frozen=True, slots=True)
class Family:
    """Models that are asked alike."""

    ask: Ask
    default_prompt: str = ""
    """In place of an empty one."""
    begins_with_prompt: bool = False
    """The prompt is part of the caption."""


def family_of(model_type: str, processor: Any) -> Family:
    """How to ask a model of this type."""
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    tokenizer = getattr(processor, "tokenizer", None)
    chats = getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)
    return Family(_chat, INSTRUCTION) if chats else Family(_pictures_and_text)


def own_words(answer: Tensor, asked: Tensor | None) -> Tensor:
    """An answer without the question that some models repeat in front of it.

    Args:
        answer: [B, T] token ids.
        asked: [B, L] token ids, or None.
    """
    if asked is None or answer.shape[1] < asked.shape[1]:
        return answer
    length = asked.shape[1]
    return answer[:, length:] if torch.equal(answer[:, :length], asked) else answer


def _pictures_and_text(processor: Any, images: Sequence[Image.Image], prompt: str) -> Inputs:
    text = {"text": [prompt] * len(images), "padding": True} if prompt else {}
    return processor(images=list(images), return_tensors="pt", **text)


def _pictures_alone(processor: Any, images: Sequence[Image.Image], prompt: str) -> Inputs:
    require(
        not prompt,
        f'prompt is "{prompt}", but this captioner takes none. Leave prompt empty; Edit Captions '
        "puts text in front of every caption.",
    )
    return {"pixel_values": _pixels(processor, images)}


def _task(processor: Any, images: Sequence[Image.Image], prompt: str) -> Inputs:
    """Florence-2: a task in angle brackets, or free text as its descendants take it."""
    kinds = getattr(processor, "tasks_answer_post_processing_type", {})
    named = [task for task in kinds if task in prompt]
    for task in named:
        require(
            kinds[task] == "pure_text",
            f'prompt is "{prompt}": {task} asks where things are, which is no caption. '
            "<CAPTION>, <DETAILED_CAPTION> and <MORE_DETAILED_CAPTION> are usual.",
        )
        require(
            task == prompt or task.startswith("<REGION"),
            f'prompt is "{prompt}": {task} must stand alone. Take the rest out.',
        )
    return _pictures_and_text(processor, images, prompt)


def _beginning(processor: Any, images: Sequence[Image.Image], prompt: str) -> Inputs:
    """GIT: its processor would end the text, so that there was nothing to go on with."""
    tokenizer = processor.tokenizer
    begin = tokenizer(prompt, add_special_tokens=False).input_ids
    ids = torch.tensor([[tokenizer.cls_token_id, *begin]] * len(images))
    return {"pixel_values": _pixels(processor, images), "input_ids": ids}


def _chat(processor: Any, images: Sequence[Image.Image], prompt: str) -> Inputs:
    processor.tokenizer.padding_side = "left"  # so that the answers begin at one place
    talks = [
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": image}, {"type": "text", "text": prompt}],
            }
        ]
        for image in images
    ]
    options: dict[str, Any] = {"return_tensors": "pt", "padding": True}
    if "processor_kwargs" in inspect.signature(processor.apply_chat_template).parameters:
        options = {"processor_kwargs": options}  # where they belong since transformers 5
    return processor.apply_chat_template(
        talks, add_generation_prompt=True, tokenize=True, return_dict=True, **options
    )


def _pixels(processor: Any, images: Sequence[Image.Image]) -> Tensor:
    return processor.image_processor(list(images), return_tensors="pt")["pixel_values"]


FAMILIES: dict[str, Family] = {
    "blip": Family(_pictures_and_text, begins_with_prompt=True),
    "florence2": Family(_task, "<MORE_DETAILED_CAPTION>"),
    "git": Family(_beginning, begins_with_prompt=True),
    "vision-encoder-decoder": Family(_pictures_alone),
}
"""By ``model_type``."""

ASKED_APART = frozenset({"git", "vision-encoder-decoder"})
"""They get pictures and text from the two halves of a processor; some have no whole one."""
