"""The node that has the base model paint a dataset."""

from __future__ import annotations

from functools import partial
from math import sqrt
from pathlib import Path
from typing import Any

from comfy_api.latest import io
from comfy_execution.utils import get_executing_context

from ...training.dataset.folder import folder_fingerprint
from ...training.dataset.samples import ImageDataset, Role
from ...training.errors import AtelierError
from ...training.generate.picture_folder import PictureFolder
from ...training.generate.plan import MOST_PER_PROMPT, GenerateSpec, plan
from ...training.generate.prompts import PromptSet
from ...training.generate.records import Provenance, record
from ..config.preview import require_offered
from ..dataset.folders import SaveInto, save_folder
from ..graph.checks import choice, verdict
from ..graph.graph_names import base_model_file
from ..graph.outputs import cache_folder
from ..graph.wires import AtelierDataset, AtelierPrompts
from ..live.progress import show_text
from .folder_memory import FolderMemory
from .generate_run import Painting, graph_texts, keep, report, shown_pictures

memory = FolderMemory(folder_fingerprint)
RESOLUTIONS = (64, 4096)
"""What Load Image Dataset takes, px."""


class GenerateDataset(io.ComfyNode):
    """MODEL, CLIP, VAE and prompts -> pictures on disk, as ATELIER_DATASET."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierGenerateDataset",
            display_name="Generate Dataset",
            category="training/atelier/generate",
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            description=(
                "Has the base model paint a picture for every prompt, as KSampler would, and keeps "
                "them as a dataset on disk. Queue again after Cancel or a crash: what is there is "
                "not painted twice."
            ),
            inputs=[*_wires(), *_sampler(), *_texts()],
            outputs=[
                AtelierDataset.Output(
                    "dataset",
                    display_name="dataset",
                    tooltip="The pictures with the captions of the prompts, read from the folder.",
                ),
                io.String.Output(
                    "saved_folder",
                    display_name="folder",
                    tooltip="Full path of the folder; Load Image Dataset takes it as its folder.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        folder: str | None = None,
        images_per_prompt: int | None = None,
        seed: int | None = None,
        steps: int | None = None,
        cfg: float | None = None,
        guidance: float | None = None,
    ) -> bool | str:
        numbers = {"images_per_prompt": images_per_prompt, "seed": seed, "steps": steps, "cfg": cfg}
        numbers["guidance"] = guidance
        known = {name: value for name, value in numbers.items() if value is not None}
        verdicts = (verdict(_target, folder), verdict(GenerateSpec, **known))
        return next((text for text in verdicts if text is not True), True)

    @classmethod
    def fingerprint_inputs(cls, folder: str | None, **others: Any) -> str:
        """Runs again when a file of the folder changed that it has not written itself."""
        if folder is None:  # linked
            return "linked"
        try:
            return memory.fingerprint(_target(folder))
        except AtelierError as error:
            return str(error)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        prompts: PromptSet,
        latent_image: dict[str, Any],
        folder: str,
        images_per_prompt: int,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        negative: str = "",
        role: str = Role.TRAIN.value,
        license: str = "",
        source: str = "",
        guidance: float = 0.0,
    ) -> io.NodeOutput:
        from ...training.host.generating import (
            Models,
            base_of,
            empty_latent,
            may_write_metadata,
            paint,
        )
        from ...training.host.progress import raise_if_cancelled

        spec = GenerateSpec(
            images_per_prompt, seed, steps, cfg, sampler_name, scheduler, negative, guidance
        )
        require_offered(spec)
        target, provenance = (
            _target(folder),
            Provenance(choice("role", role, Role), source, license),
        )
        latent, batch_size = empty_latent(latent_image)
        models = Models(model, clip, vae)
        base = base_of(models, latent, _base_name(cls.hidden))
        pictures = PictureFolder(
            target,
            plan(prompts, spec, base),
            partial(record, spec=spec, base=base, provenance=provenance),
            anew=base.digest is None,
            tick=raise_if_cancelled,
        )
        if pictures.missing:
            painting = Painting(len(pictures.missing), spec.steps)
            batches = paint(models, latent, spec, pictures.missing, batch_size, painting.step)
            keep(batches, pictures, painting, _texts_of(cls.hidden) if may_write_metadata() else {})
        dataset = _read(pictures)
        memory.leave(target)
        text = report(pictures, base, len(pictures.missing))
        show_text(text)
        ui = {"images": shown_pictures(pictures), "text": (text,)}
        return io.NodeOutput(dataset, str(target), ui=ui)


def _target(folder: str) -> Path:
    return save_folder(folder, SaveInto.OUTPUT)


def _read(pictures: PictureFolder) -> ImageDataset:
    """At about the size they have: training neither shrinks nor blows them up."""
    from ...training.host.progress import raise_if_cancelled

    low, high = RESOLUTIONS
    width, height = pictures.size
    resolution = min(max(round(sqrt(width * height) / 8) * 8, low), high)
    return pictures.dataset(resolution, cache_folder() / "index", raise_if_cancelled)


def _base_name(hidden: Any) -> str:
    context = get_executing_context()
    return base_model_file(hidden.prompt if hidden else None, context and context.node_id)


def _texts_of(hidden: Any) -> dict[str, str]:
    return graph_texts(hidden.prompt, hidden.extra_pnginfo) if hidden else graph_texts(None, None)


def _wires() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="What paints: the base model, with LoRAs if you like."),
        io.Clip.Input("clip", tooltip="Its text encoder, which reads the prompts."),
        io.Vae.Input("vae", tooltip="Its VAE, which makes pictures of what the sampler gives."),
        AtelierPrompts.Input(
            "prompts", tooltip="What to paint and the captions to train on, from Prompt Matrix."
        ),
        io.Latent.Input(
            "latent_image",
            tooltip=(
                "Empty Latent Image: its width and height are those of the pictures (512 for "
                "SD1.5, 1024 for SDXL and Flux), its batch_size says how many are painted at once: "
                "more is faster while memory lasts; 1 is exact to the bit."
            ),
        ),
    ]


def _sampler() -> list[io.Input]:
    from ...training.host.sampling import sampler_names, scheduler_names

    return [
        io.String.Input(
            "folder",
            default="datasets/style",
            tooltip=(
                "Name of the folder below ComfyUI's output folder. Pictures that are there and are "
                "what this graph would paint are kept; all others stay and are left out."
            ),
        ),
        io.Int.Input(
            "images_per_prompt",
            default=1,
            min=1,
            max=MOST_PER_PROMPT,
            tooltip=(
                "Pictures of every prompt, each from another seed. More later adds pictures and "
                "keeps the first. 1 with many prompts gives more variety."
            ),
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=False,
            tooltip=(
                "Seed of the first picture; the next ones count on from it. Another seed paints "
                "another set."
            ),
        ),
        io.Int.Input(
            "steps",
            default=20,
            min=1,
            max=10_000,
            tooltip="As in KSampler: 20 to 30 as a rule, 4 to 8 for distilled models.",
        ),
        io.Float.Input(
            "cfg",
            default=7.0,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="As in KSampler: 7 for SD1.5, 5 for SDXL, 1 for Flux and distilled models.",
        ),
        io.Combo.Input(
            "sampler_name",
            options=sampler_names(),
            default="euler",
            tooltip=(
                "As in KSampler. Those that draw noise as they go (ancestral, sde, lcm) paint one "
                "picture at a time, so that each depends on its own seed alone."
            ),
        ),
        io.Combo.Input(
            "scheduler",
            options=scheduler_names(),
            default="normal",
            tooltip="As in KSampler. normal for SD1.5 and SDXL, simple for Flux and SD3.",
        ),
    ]


def _texts() -> list[io.Input]:
    return [
        io.String.Input(
            "negative",
            optional=True,
            default="",
            multiline=True,
            placeholder="negative prompt (optional)",
            tooltip="Negative prompt of all pictures, as you would give it to KSampler.",
        ),
        io.Combo.Input(
            "role",
            optional=True,
            options=Role,
            default=Role.TRAIN,
            tooltip=(
                "What the pictures are for. train: to learn from. regularisation: pictures of the "
                "class in general, painted without the style or subject, that keep the model from "
                "forgetting it. validation: never trained on."
            ),
        ),
        io.String.Input(
            "license",
            optional=True,
            default="",
            placeholder="licence of the base model",
            tooltip=(
                "Licence that the pictures come under: that of the base model says what may be "
                "made of them, e.g. CreativeML Open RAIL-M. It is written into the LoRA."
            ),
        ),
        io.String.Input(
            "source",
            optional=True,
            default="",
            placeholder="empty: generated with <base model>",
            tooltip=(
                "Where the pictures come from, written into the LoRA. Empty = generated with the "
                "file of the base model."
            ),
        ),
        io.Float.Input(
            "guidance",
            optional=True,
            default=0.0,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip=(
                "Only for guidance-distilled models such as Flux dev: what Flux Guidance would "
                "give, 3.5 as a rule. 0 = the model's own; other models never see it."
            ),
        ),
    ]
