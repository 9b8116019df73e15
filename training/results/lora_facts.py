"""What a LoRA file says of its pictures and its base model, under kohya's and ModelSpec's names.

Sources: kohya-ss/sd-scripts, train_network.py (``ss_*``) and library/sai_model_spec.py, after
Stability-AI/ModelSpec 1.0.1 (``modelspec.*``). Values are given as they are; "" = nothing to say.
"""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime, timezone

from ..base_model.facts import BaseModelFacts
from ..dataset.samples import ImageDataset, Role, Sample
from ..dataset.tag_layout import TagLayout
from ..runs.examples import effective_repeats, items


def dataset_metadata(dataset: ImageDataset) -> dict[str, object]:
    """Folders, buckets, sizes and what is done to captions."""
    train = dataset.with_role(Role.TRAIN)
    first = train[0]
    resolutions = sorted({r for sample in train for r in sample.fit.resolutions})
    limits = [first.fit.bucket_limits(r) for r in first.fit.resolutions]
    captions = first.caption_options
    return {
        "ss_num_train_images": dataset.images_per_epoch,
        "ss_num_reg_images": _seen(dataset, Role.REGULARISATION),
        "ss_num_validation_images": len(dataset.with_role(Role.VALIDATION)),
        "ss_dataset_dirs": json.dumps(_folders(dataset, Role.TRAIN), ensure_ascii=False),
        "ss_reg_dataset_dirs": json.dumps(
            _folders(dataset, Role.REGULARISATION), ensure_ascii=False
        ),
        "ss_resolution": ", ".join(f"({r}, {r})" for r in resolutions),
        "ss_enable_bucket": first.fit.enable_bucket,
        "ss_bucket_no_upscale": first.fit.bucket_no_upscale,
        "ss_min_bucket_reso": min(low for low, _ in limits),
        "ss_max_bucket_reso": max(high for _, high in limits),
        "ss_bucket_info": json.dumps(_buckets(dataset)),
        "ss_tag_frequency": json.dumps({dataset.name: tag_frequency(train)}, ensure_ascii=False),
        "ss_flip_aug": first.fit.flip_aug,
        "ss_random_crop": first.fit.crops > 1,
        "ss_shuffle_caption": captions.shuffle_caption,
        "ss_keep_tokens": captions.keep_tokens,
        "ss_caption_dropout_rate": captions.caption_dropout_rate,
        "ss_caption_dropout_every_n_epochs": captions.caption_dropout_every_n_epochs,
        "ss_caption_tag_dropout_rate": captions.caption_tag_dropout_rate,
        "atelier.dataset_source": dataset.sources,
        "atelier.dataset_license": dataset.licenses,
    }


def tag_frequency(samples: tuple[Sample, ...]) -> dict[str, int]:
    """Tag -> how many pictures of one epoch carry it; what LoRA managers show."""
    count: Counter[str] = Counter()
    for sample in samples:
        for tag in dict.fromkeys(TagLayout.of(sample.caption_options).tags(sample.caption)):
            count[tag] += sample.num_repeats
    return dict(count.most_common())


def base_metadata(base: BaseModelFacts) -> dict[str, object]:
    """The base model, as far as it can be told from the model itself."""
    return {
        "ss_base_model_version": base.version,
        "ss_v2": base.is_v2 if base.version else "",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{base.architecture}/lora" if base.architecture else "",
        "modelspec.implementation": base.implementation,
        "modelspec.prediction_type": base.prediction_type,
    }


def modelspec_metadata(dataset: ImageDataset) -> dict[str, object]:
    """What ModelSpec wants to know of every LoRA."""
    train = dataset.with_role(Role.TRAIN)
    largest = max(r for sample in train for r in sample.fit.resolutions)
    return {
        "modelspec.resolution": f"{largest}x{largest}",
        "modelspec.date": datetime.now(timezone.utc).replace(microsecond=0).isoformat(),
        "modelspec.title": dataset.name,
        "modelspec.trigger_phrase": dataset.trigger_phrase,
    }


def _folders(dataset: ImageDataset, role: Role) -> dict[str, dict[str, int]]:
    """Folder -> how often its pictures are repeated and how many there are; a folder whose pictures
    are repeated differently counts with the mean, rounded."""
    samples = dataset.with_role(role)
    if not samples:
        return {}
    repeats = round(sum(sample.num_repeats for sample in samples) / len(samples))
    return {dataset.name: {"n_repeats": repeats, "img_count": len(samples)}}


def _seen(dataset: ImageDataset, role: Role) -> int:
    """Pictures of a role in one epoch, repeats and resolutions counted."""
    pairs = zip(dataset.samples, effective_repeats(dataset), strict=True)
    return sum(n * len(s.fit.resolutions) for s, n in pairs if s.role is role)


def _buckets(dataset: ImageDataset) -> dict[str, object]:
    """sd-scripts' layout: number -> size (width, height) and pictures in it, repeats counted."""
    count: Counter[tuple[int, int]] = Counter()
    found = items(dataset)
    for bucket, repeats in zip(found.buckets, found.num_repeats, strict=True):
        count[bucket] += repeats
    rows = enumerate(sorted(count.items()))
    return {"buckets": {str(i): {"resolution": list(b), "count": n} for i, (b, n) in rows}}
