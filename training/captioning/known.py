"""Captioners that the node can fetch, each at a fixed commit of its repository.

Of BLIP only the large one: the repository of the base one holds its weights as a pickle.
"""

from __future__ import annotations

from ..model_files import KnownFile, KnownModel


def _beside(sizes: dict[str, int]) -> tuple[KnownFile, ...]:
    """Small files with their sizes, about. Only config.json must be there: what a processor and a
    tokenizer are kept in differs between repositories, and the folder is looked at before use."""
    return tuple(
        KnownFile(name, size, if_there=name != "config.json") for name, size in sizes.items()
    )


_FLORENCE = _beside(
    {
        "config.json": 7_000,
        "generation_config.json": 300,
        "preprocessor_config.json": 800,
        "processor_config.json": 200,
        "added_tokens.json": 23_000,
        "special_tokens_map.json": 150_000,
        "tokenizer_config.json": 200_000,
        "tokenizer.json": 3_700_000,
        "vocab.json": 800_000,
        "merges.txt": 456_000,
    }
)

_BLIP = _beside(
    {
        "config.json": 5_000,
        "preprocessor_config.json": 300,
        "special_tokens_map.json": 200,
        "tokenizer_config.json": 600,
        "tokenizer.json": 712_000,
        "vocab.txt": 232_000,
    }
)

_MODELS = (
    KnownModel(
        "Florence-2-base-ft",
        "florence-community/Florence-2-base-ft",
        "0b03b6f15a4a211370fb204aee4e7dd48887ea37",
        (
            *_FLORENCE,
            KnownFile(
                "model.safetensors",
                463_178_864,
                "ab06dea66b16d5e54513256d64854be2194443452fd0d84353b40a278bf87d42",
            ),
        ),
        "MIT",
    ),
    KnownModel(
        "Florence-2-large-ft",
        "florence-community/Florence-2-large-ft",
        "26b734a54fdfbf9c398351eedfabb7f27fc470b7",
        (*_FLORENCE, KnownFile("model.safetensors", 1_550_000_000)),
        "MIT",
    ),
    KnownModel(
        "blip-image-captioning-large",
        "Salesforce/blip-image-captioning-large",
        "353689b859fcf0523410b1806dace5fb46ecdf41",
        (*_BLIP, KnownFile("model.safetensors", 1_879_014_680)),
        "BSD-3-Clause",
    ),
)

KNOWN_CAPTIONERS = {model.name: model for model in _MODELS}
"""By the name of their folder; the smallest first."""
