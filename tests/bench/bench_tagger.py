"""Tagging beside ONNX Runtime alone, over the same photos.

The bare loop is the shortest program that does the same: open a picture, prepare it, run the model.
Ours decodes beside the model, and also hashes, remembers and writes captions. The model is the test
suite's at the full 448 px, where it takes some 30 ms a picture; a real WD14 model takes many times
that, so less of the rest shows. Both take turns in one process. Run it with `make bench`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
import pytest

from lora_atelier.training.dataset.pictures import ImageFile, check_image, open_picture
from lora_atelier.training.dataset.samples import ImageDataset, Sample
from lora_atelier.training.tagging.auto_tag import auto_tag
from lora_atelier.training.tagging.tag_options import TagOptions
from lora_atelier.training.tagging.tagger import BATCH, tagger_files, tagger_input
from taggers import SIZE, real_tagger, tuxpaint_photos

ROUNDS = 5
PICTURES = 24


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def test_tagging_beside_the_bare_model(tmp_path: Path) -> None:
    folder = tuxpaint_photos()
    if folder is None:
        pytest.skip("the package tuxpaint-stamps-default cannot be fetched here")
    files = tagger_files(real_tagger(side=SIZE))
    assert files is not None
    photos = [
        ImageFile(str(p), check_image(p)) for p in sorted((folder / "animals").rglob("*.png"))
    ]
    photos = photos[:PICTURES]
    dataset = ImageDataset(tuple(Sample(p, p.path) for p in photos))
    cached = iter(range(2 * ROUNDS + 1))

    def tagging() -> None:
        auto_tag(dataset, files, TagOptions(), tmp_path / str(next(cached)))

    def bare() -> None:
        session = onnxruntime.InferenceSession(files.model, providers=["CPUExecutionProvider"])
        for start in range(0, len(photos), BATCH["CPU"]):
            images = map(open_picture, photos[start : start + BATCH["CPU"]])
            batch = np.stack([tagger_input(image, SIZE) for image in images])
            session.run(None, {"input": batch.astype(np.float32)})

    tagging(), bare()
    pairs = [(seconds(bare), seconds(tagging)) for _ in range(ROUNDS)]
    share = median(alone / whole for alone, whole in pairs)
    rate = len(photos) / median(whole for _, whole in pairs)
    sys.stdout.write(f"\n{rate:.0f} pictures/s tagged, {share:.2f} of the bare loop's rate\n")
    assert share >= 0.9
