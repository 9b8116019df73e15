"""Factors for the blocks of a model, as one line of numbers or as ``name=number``.

The lines are those of LoRA Block Weight (hako-mikan/sd-webui-lora-block-weight): 17 numbers for
SD1.5 and 12 for SDXL count the text encoders (BASE) and the blocks with attention, 26 and 20 all of
the blocks; a block that a line leaves out counts 0.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass

from ..errors import AtelierError, require, require_number

BASE = "BASE"
RANGE = (-10.0, 10.0)
SHORT = {"input_blocks.": "IN", "output_blocks.": "OUT"}
"""LoRA Block Weight's names of the blocks of a U-Net; the middle one is MID."""


@dataclass(frozen=True)
class Blocks:
    """The parts of a model and its text encoders, in their own order."""

    names: tuple[str, ...]
    """Blocks: ``input_blocks.4``, ``middle_block``, ``double_blocks.0``."""
    attending: tuple[str, ...]
    """Those of them that a short line counts."""
    others: tuple[str, ...] = ()
    """Layers of the model outside of them: ``time_embed``."""
    encoders: tuple[str, ...] = ()
    """``clip_l``, ``t5xxl``."""


@dataclass(frozen=True)
class BlockWeights:
    """What was written: numbers in a row, or (name, number) from general to special."""

    row: tuple[float, ...] = ()
    named: tuple[tuple[str, float], ...] = ()

    def factors(self, blocks: Blocks) -> dict[str, float]:
        """Part of the model -> its factor.

        Raises:
            AtelierError: the row is of another length than these blocks, or there is no such name.
        """
        parts = (*blocks.encoders, *blocks.names, *blocks.others)
        if not self.row:
            return self._by_name(dict.fromkeys(parts, 1.0), blocks)
        for counted in (blocks.attending, blocks.names):
            if len(self.row) == len(counted) + 1:
                of_blocks = dict(zip(counted, self.row[1:], strict=True))
                return {
                    **dict.fromkeys(blocks.encoders, self.row[0]),
                    **{name: of_blocks.get(name, 0.0) for name in blocks.names},
                    **dict.fromkeys(blocks.others, 1.0),
                }
        lengths = sorted({len(blocks.attending) + 1, len(blocks.names) + 1})
        raise AtelierError(
            f"block_weights has {len(self.row)} numbers, but for this model it must have "
            f"{' or '.join(map(str, lengths))}: first the text encoders, then "
            f"{', '.join(map(short_name, blocks.attending))}. Or write name=number."
        )

    def _by_name(self, factors: dict[str, float], blocks: Blocks) -> dict[str, float]:
        for wanted, factor in self.named:
            fitting = [part for part in factors if _is_meant(wanted, part)]
            if wanted.upper() == BASE:
                fitting = list(blocks.encoders)
            known = ", ".join([BASE, *map(short_name, blocks.names), *blocks.others])
            require(
                bool(fitting) or wanted.upper() == BASE,
                f'block_weights: no part of this model is called "{wanted}". There is: {known}. A '
                "* stands for any letters.",
            )
            factors |= dict.fromkeys(fitting, factor)
        return factors


def parse_block_weights(text: str) -> BlockWeights:
    """``1, 0, 0.5, …`` or ``IN04=0.5``, ``double_blocks.*=0``, separated by commas or lines.

    Raises:
        AtelierError: something is no number, out of range, or both ways are mixed.
    """
    entries = [entry.strip() for entry in re.split(r"[,\n]", text)]
    if not any(entries):
        return BlockWeights()
    if "=" not in text:
        return BlockWeights(
            row=tuple(_number(entry, f"number {i}") for i, entry in _from_1(entries))
        )
    named = []
    for entry in filter(None, entries):
        name, equals, number = (part.strip() for part in entry.partition("="))
        require(
            bool(name and equals),
            f'block_weights: "{entry}" is not name=number. Write all of them so, such as IN04=0.5, '
            "or only numbers.",
        )
        named.append((name, _number(number, name)))
    return BlockWeights(named=tuple(named))


def short_name(block: str) -> str:
    """``IN04`` for ``input_blocks.4``; what has no short name keeps its own."""
    if block == "middle_block":
        return "MID"
    for start, short in SHORT.items():
        if block.startswith(start):
            return f"{short}{int(block.removeprefix(start)):02}"
    return block


def _is_meant(wanted: str, part: str) -> bool:
    pattern = wanted.lower()
    return any(fnmatch.fnmatchcase(name.lower(), pattern) for name in (part, short_name(part)))


def _from_1(entries: list[str]) -> list[tuple[int, str]]:
    """Counted; a comma at the end begins nothing."""
    while entries and not entries[-1]:
        entries.pop()
    return list(enumerate(entries, start=1))


def _number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise AtelierError(
            f'block_weights: {what} is "{text}", which is no number. Write 1 for as it is, 0 for '
            "off."
        ) from error
    require_number(f"block_weights: {what}", value, *RANGE, "1 is as it was trained.")
    return value
