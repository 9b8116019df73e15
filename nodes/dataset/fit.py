"""The node that says how pictures are scaled, cut and mirrored."""

from __future__ import annotations

from comfy_api.latest import io

from ...training.dataset.fit import BUCKET_RESO_STEPS, Crop, LatentKind
from ...training.dataset.refit import bucket_summary, fit_dataset, fit_options
from ...training.dataset.samples import ImageDataset
from ...training.dataset.summary import left_out
from ..graph.checks import choice, verdict
from ..graph.wires import AtelierDataset
from ..live.progress import show_text


class FitImages(io.ComfyNode):
    """ATELIER_DATASET -> ATELIER_DATASET with other sizes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierFitImages",
            display_name="Fit Images",
            category="training/atelier/dataset",
            description=(
                "Says at which size the pictures train, and how they get there: grouped by aspect "
                "ratio (buckets) or cut to squares, cut in the middle or at random, mirrored or "
                "not. Shows how the pictures spread over the sizes."
            ),
            inputs=[
                AtelierDataset.Input(
                    "dataset", tooltip="Pictures; what was said of their size before is replaced."
                ),
                io.String.Input(
                    "resolution",
                    default="512",
                    tooltip=(
                        "A picture trains at about resolution × resolution pixels: 512 for SD1.5, "
                        '1024 for SDXL and Flux. Several with commas ("512, 768") show each '
                        "picture once at each size, so that the LoRA works at all of them."
                    ),
                ),
                io.Boolean.Input(
                    "enable_bucket",
                    default=True,
                    tooltip=(
                        "On: each picture keeps about its aspect ratio, and pictures of one size "
                        "are batched together. Off: every picture is cut to a square."
                    ),
                ),
                io.Combo.Input(
                    "bucket_reso_steps",
                    options=[str(steps) for steps in sorted(BUCKET_RESO_STEPS, reverse=True)],
                    default="64",
                    tooltip=(
                        "Sides of the buckets are multiples of this, in pixels. 64 suits every "
                        "model; smaller cuts less away, and makes more buckets with fewer "
                        "pictures each."
                    ),
                ),
                io.Int.Input(
                    "min_bucket_reso",
                    default=0,
                    min=0,
                    max=16384,
                    step=8,
                    tooltip=(
                        "Shortest side of a bucket in pixels. 0 = half the resolution, which is "
                        "right for most sets."
                    ),
                ),
                io.Int.Input(
                    "max_bucket_reso",
                    default=0,
                    min=0,
                    max=16384,
                    step=8,
                    tooltip=(
                        "Longest side of a bucket in pixels. 0 = twice the resolution; raise it "
                        "for very long panoramas."
                    ),
                ),
                io.Boolean.Input(
                    "bucket_no_upscale",
                    default=False,
                    tooltip=(
                        "On: pictures smaller than the resolution keep their size instead of being "
                        "blown up, which would teach the blur. Turn it on for sets with small "
                        "pictures."
                    ),
                ),
                io.Combo.Input(
                    "crop",
                    options=Crop,
                    default=Crop.CENTER,
                    tooltip=(
                        "What is kept where a picture is longer than its bucket: center takes the "
                        "middle; random takes another part every time, which hides fewer edges "
                        "but may cut a head off."
                    ),
                ),
                io.Int.Input(
                    "crop_variants",
                    default=4,
                    min=1,
                    max=64,
                    tooltip=(
                        "With random crop: how many different parts of each picture are encoded "
                        "before training. More is more varied, and takes that much longer to "
                        "encode. 4 is usual."
                    ),
                ),
                io.Boolean.Input(
                    "flip_aug",
                    default=False,
                    tooltip=(
                        "Mirrors each picture every other time, which doubles a small set. Leave "
                        "it off for faces, text and anything else with a left and a right."
                    ),
                ),
                io.Combo.Input(
                    "latents",
                    options=LatentKind,
                    default=LatentKind.MODE,
                    tooltip=(
                        "What is taken of the VAE's answer: mode is its most likely value, steady "
                        "and usual; sample draws around it once when the picture is encoded, as "
                        "kohya's trainer does."
                    ),
                ),
                io.String.Input(
                    "background",
                    default="#ffffff",
                    tooltip=(
                        "Colour that transparent pictures are laid on: a name such as white or "
                        "grey, or a number such as #808080. White suits cut-out drawings."
                    ),
                ),
            ],
            outputs=[
                AtelierDataset.Output(
                    "fitted_dataset",
                    display_name="dataset",
                    tooltip="The same pictures and captions with the new sizes, for Train LoRA.",
                )
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        resolution: str | None = None,
        enable_bucket: bool | None = None,
        bucket_reso_steps: str | None = None,
        min_bucket_reso: int | None = None,
        max_bucket_reso: int | None = None,
        bucket_no_upscale: bool | None = None,
        crop_variants: int | None = None,
        background: str | None = None,
    ) -> bool | str:
        return verdict(
            fit_options,
            resolution=resolution,
            enable_bucket=enable_bucket,
            bucket_reso_steps=bucket_reso_steps,
            min_bucket_reso=min_bucket_reso,
            max_bucket_reso=max_bucket_reso,
            bucket_no_upscale=bucket_no_upscale,
            crop_variants=crop_variants,
            background=background,
        )

    @classmethod
    def execute(
        cls,
        dataset: ImageDataset,
        resolution: str,
        enable_bucket: bool,
        bucket_reso_steps: str,
        min_bucket_reso: int,
        max_bucket_reso: int,
        bucket_no_upscale: bool,
        crop: str,
        crop_variants: int,
        flip_aug: bool,
        latents: str,
        background: str,
    ) -> io.NodeOutput:
        options = fit_options(
            resolution=resolution,
            enable_bucket=enable_bucket,
            bucket_reso_steps=bucket_reso_steps,
            min_bucket_reso=min_bucket_reso,
            max_bucket_reso=max_bucket_reso,
            bucket_no_upscale=bucket_no_upscale,
            crop=choice("crop", crop, Crop),
            crop_variants=crop_variants,
            flip_aug=flip_aug,
            latents=choice("latents", latents, LatentKind),
            background=background,
        )
        fitted = fit_dataset(dataset, options)
        show_text("\n".join([bucket_summary(fitted), *left_out(fitted)]))
        return io.NodeOutput(fitted)
