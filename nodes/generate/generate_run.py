"""Painting the pictures that a folder lacks, and telling how it goes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

from PIL.Image import Image
from torch import Tensor

from ...training.generate.picture_folder import PictureFolder
from ...training.generate.plan import Base, Planned
from ...training.generate.records import parameters, png, to_picture
from ..graph.outputs import output_folder, shown
from ..live.progress import duration, show_text

MOST_SHOWN = 16
"""Pictures that the node shows in the end."""

Batches = Iterator[list[tuple[Planned, Tensor]]]


class Painting:
    """The progress of one run.

    Args:
        pictures: how many there are to be painted.
        steps: of the sampler, for each.
    """

    def __init__(self, pictures: int, steps: int) -> None:
        from ...training.host.progress import HostProgress

        self.pictures, self.steps = pictures, steps
        self.bar = HostProgress(pictures * steps)
        self.done = 0
        self._within = 0
        """Steps of the batch that is being painted, all its pictures together."""
        self._begin = monotonic()

    def step(self, pictures: int) -> None:
        """So many pictures took a step; raises the host's exception after a press on Cancel."""
        self._within = min(self._within + pictures, pictures * self.steps)  # some take more
        self.bar.update(self.done * self.steps + self._within)

    def finished(self, pictures: int, newest: Image) -> None:
        """A batch is on the disk."""
        self.done, self._within = self.done + pictures, 0
        seconds = (monotonic() - self._begin) / self.done * (self.pictures - self.done)
        show_text(f"picture {self.done}/{self.pictures} · {duration(seconds)} left")
        self.bar.show(newest)


def keep(
    batches: Batches, folder: PictureFolder, painting: Painting, graph: Mapping[str, str]
) -> None:
    """Write every batch as it comes.

    Args:
        graph: texts for the header of each picture; empty when pictures are not to tell.
    """
    for batch in batches:
        files = []
        for planned, image in batch:
            picture = to_picture(image)
            texts = dict(graph)
            if graph:
                texts["parameters"] = parameters(folder.record(planned, picture.size))
            files.append((planned, picture.size, png(picture, texts)))
        folder.add(files)
        painting.finished(len(batch), picture)


def graph_texts(prompt: Any, extra: Mapping[str, Any] | None) -> dict[str, str]:
    """What SaveImage writes, so that a picture dropped on the canvas brings the graph back."""
    texts = {"prompt": json.dumps(prompt or {})}
    return texts | {name: json.dumps(value) for name, value in (extra or {}).items()}


def report(folder: PictureFolder, base: Base, painted: int) -> str:
    """For the node."""
    count = len(folder.planned)
    lines = [f"{count} {'picture' if count == 1 else 'pictures'} → {shown(folder.folder)}"]
    lines.append(f"{painted} painted now, {count - painted} were there")
    if folder.broken:
        lines.append(f"{folder.broken} files were broken and are made again")
    if others := folder.others():
        lines.append(f"{others} other pictures stay there and are not in the dataset")
    if base.digest is None:
        lines.append(
            "Another node has changed the model, CLIP or VAE in a way that cannot be told from "
            "its numbers: all pictures are made anew each time"
        )
    return "\n".join(lines)


def shown_pictures(folder: PictureFolder) -> list[dict[str, str]]:
    """A few of them, evenly chosen, by the names under which /view serves them."""
    names = [picture.file_name for picture in folder.planned]
    count = min(len(names), MOST_SHOWN)
    chosen = [names[i * len(names) // count] for i in range(count)]
    subfolder = folder.folder.relative_to(Path(output_folder()).absolute()).as_posix()
    return [{"filename": name, "subfolder": subfolder, "type": "output"} for name in chosen]
