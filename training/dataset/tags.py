"""Captions as lists of tags."""

from __future__ import annotations


def split_tags(caption: str, separator: str = ",") -> list[str]:
    """The parts between commas, stripped; empty ones are left out."""
    return [tag.strip() for tag in caption.split(separator) if tag.strip()]


def join_caption(class_tokens: str, caption: str) -> str:
    """``trigger, caption``; a trigger that is a tag of the caption moves to the front."""
    trigger, tags = split_tags(class_tokens), split_tags(caption)
    if not trigger or tags[: len(trigger)] == trigger:
        return caption
    if not any(tag in trigger for tag in tags):
        return ", ".join([*trigger, caption]) if caption else ", ".join(trigger)
    return ", ".join(trigger + [tag for tag in tags if tag not in trigger])
