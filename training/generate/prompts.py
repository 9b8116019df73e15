"""What pictures are painted from: prompts, and the captions they are trained with."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import require


@dataclass(frozen=True, slots=True)
class Prompt:
    """One picture to be painted."""

    text: str
    """What the base model is asked for."""
    caption: str
    """What the picture is trained with: style words out, trigger word in."""
    name: str
    """Fit for a file name, from the subject; need not be unique."""
    subject: str = ""
    style: str = ""
    class_tokens: str = ""
    """The trigger word in the caption."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts in the order in which they are painted; at least one."""

    prompts: tuple[Prompt, ...]

    def __post_init__(self) -> None:
        require(len(self.prompts) > 0, "There is no prompt. Write at least one subject.")
