"""Nodes that make datasets."""

from __future__ import annotations

from comfy_api.latest import io

from ..training.dataset import folder_fingerprint, load_folder
from ..training.errors import AtelierError
from .checks import verdict
from .folders import dataset_folder
from .progress import show_text
from .wires import AtelierDataset


class LoadImageDataset(io.ComfyNode):
    """Folder of pictures and captions -> ATELIER_DATASET."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierLoadDataset",
            display_name="Load Image Dataset",
            category="training/atelier/dataset",
            description=(
                "Reads a folder of pictures with captions: beside each picture (fox.png) lies a "
                "text file with the same name (fox.txt) that says what it shows."
            ),
            inputs=[
                io.String.Input(
                    "folder",
                    default="",
                    placeholder="folder name inside ComfyUI/input",
                    tooltip=(
                        "Folder with the pictures, subfolders included. A name is looked up in "
                        "ComfyUI's input and output folders and in those listed as "
                        "atelier_datasets in extra_model_paths.yaml; a full path must lie in one "
                        "of them."
                    ),
                ),
                io.Int.Input(
                    "resolution",
                    default=512,
                    min=64,
                    max=4096,
                    step=8,
                    tooltip=(
                        "Side in pixels of the square that every picture is scaled and cut to. Use "
                        "what the base model was made for: 512 for SD1.5, 1024 for SDXL and Flux. "
                        "Smaller trains faster and learns less detail."
                    ),
                ),
                io.Int.Input(
                    "num_repeats",
                    default=1,
                    min=1,
                    max=10000,
                    tooltip=(
                        "How often each picture is seen in one epoch. 1 is fine for most sets; "
                        "raise it to balance a small set against a large one."
                    ),
                ),
                io.String.Input(
                    "class_tokens",
                    default="",
                    placeholder="trigger word (optional)",
                    tooltip=(
                        "Trigger word put before every caption; later you write it in the prompt "
                        'to call the LoRA. Choose something rare, such as "glossy style" or '
                        '"sks fox". Empty = captions stay as they are.'
                    ),
                ),
                io.String.Input(
                    "source",
                    default="",
                    placeholder="where the pictures come from",
                    tooltip=(
                        "Where the pictures come from (own photos, a museum, a web address). It is "
                        "written into the LoRA, so that others can tell what it was trained on."
                    ),
                ),
                io.String.Input(
                    "license",
                    default="",
                    placeholder="licence of the pictures",
                    tooltip=(
                        "Licence of the pictures, e.g. CC0, CC BY 4.0, MIT, own work. It is "
                        "written into the LoRA. Train only on pictures you have the right to use."
                    ),
                ),
            ],
            outputs=[
                AtelierDataset.Output(
                    "dataset",
                    display_name="dataset",
                    tooltip="The pictures with their captions, for Train LoRA.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, folder: str | None = None) -> bool | str:
        return verdict(dataset_folder, folder)

    @classmethod
    def fingerprint_inputs(cls, folder: str | None, **widgets) -> str:
        """Runs again when a file of the folder changed, and only then."""
        if folder is None:  # linked: changed files go unnoticed until the value changes
            return "linked"
        try:
            return folder_fingerprint(dataset_folder(folder))
        except AtelierError as error:
            return str(error)

    @classmethod
    def execute(
        cls,
        folder: str,
        resolution: int,
        num_repeats: int,
        class_tokens: str,
        source: str,
        license: str,
    ) -> io.NodeOutput:
        dataset = load_folder(
            dataset_folder(folder),
            resolution=resolution,
            num_repeats=num_repeats,
            class_tokens=class_tokens,
            source=source,
            license=license,
        )
        show_text(dataset.summary())
        return io.NodeOutput(dataset)
