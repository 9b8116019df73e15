"""What Prompt Matrix shows on itself."""

from __future__ import annotations

from ..dataset.wording import count, quote
from .prompt_matrix import PromptMatrix
from .prompts import Prompt, PromptSet

EXAMPLES = 6


def matrix_report(matrix: PromptMatrix, made: PromptSet) -> str:
    """How many prompts there are and of what, and some of them with their captions."""
    options = matrix.options
    lines = [
        f"{count(len(made.prompts), 'prompt')} from {count(len(matrix.subjects), 'subject')}, "
        f"{count(len(matrix.styles), 'style')}, {count(len(matrix.ways.options), 'template')}"
    ]
    if len(made.prompts) < matrix.count:
        lines.append(f"drawn with seed {options.seed} from {matrix.count_text} combinations")
    elif options.prompt_count > matrix.count:
        lines.append(f"prompt_count is {options.prompt_count}: there are no more combinations")
    shown = spread(made.prompts)
    lines += ["", *(f"{quote(p.text)} → {quote(p.caption) or '(no caption)'}" for p in shown)]
    return "\n".join(lines)


def spread(prompts: tuple[Prompt, ...], most: int = EXAMPLES) -> list[Prompt]:
    """Some from the first to the last, evenly."""
    if len(prompts) <= most:
        return list(prompts)
    return [prompts[i * (len(prompts) - 1) // (most - 1)] for i in range(most)]
