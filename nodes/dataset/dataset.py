"""Nodes that make datasets: from a folder, from pictures of the graph, from other datasets."""

from __future__ import annotations

from collections.abc import Sequence

from comfy_api.latest import io
from torch import Tensor

from ...training.dataset.combine import combine
from ...training.dataset.fit import FitOptions
from ...training.dataset.folder import (
    CaptionLines,
    CaptionSource,
    FolderOptions,
    MaskSource,
    UnusableFiles,
    folder_fingerprint,
    load_folder,
)
from ...training.dataset.from_images import dataset_from_images
from ...training.dataset.samples import ImageDataset, Role, require_sample_numbers
from ...training.dataset.summary import summary
from ...training.errors import AtelierError
from ..graph.checks import choice, verdict
from ..graph.outputs import cache_folder
from ..graph.wires import AtelierDataset
from ..live.progress import show_text
from .folders import dataset_folder, dataset_roots, mask_folder_of

CATEGORY = "training/atelier/dataset"
MOST_DATASETS = 6


class LoadImageDataset(io.ComfyNode):
    """Folder of pictures and captions -> ATELIER_DATASET."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierLoadDataset",
            display_name="Load Image Dataset",
            category=CATEGORY,
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
                *_numbers(),
                *_texts(),
                _role(optional=True),
                io.Float.Input(
                    "validation_fraction",
                    optional=True,
                    default=0.0,
                    min=0.0,
                    max=0.9,
                    step=0.05,
                    round=0.001,
                    tooltip=(
                        "Share of the pictures that is set aside and never trained on. Their loss, "
                        "measured while the others train, rises when the LoRA learns by heart. "
                        "0 = none, 0.1 is usual for 50 pictures and more."
                    ),
                ),
                io.Combo.Input(
                    "captions",
                    optional=True,
                    options=CaptionSource,
                    default=CaptionSource.FILES,
                    tooltip=(
                        "files: text files, metadata.jsonl and kohya folders (10_red fox); a "
                        "picture that none of them names has the trigger word alone. "
                        "files_or_name: it takes its own file name (red_fox.png: red fox)."
                    ),
                ),
                io.Combo.Input(
                    "caption_lines",
                    optional=True,
                    options=CaptionLines,
                    default=CaptionLines.ALTERNATIVES,
                    tooltip=(
                        "What several lines in a caption file are. alternatives: other ways to say "
                        "it; training draws one of them each time. first: only the first line "
                        "counts."
                    ),
                ),
                io.Combo.Input(
                    "mask",
                    optional=True,
                    options=MaskSource,
                    default=MaskSource.NONE,
                    tooltip=(
                        "Where to look while learning. none: at the whole picture. alpha: "
                        "transparent parts do not count. files: a mask beside each picture "
                        "(fox.mask.png) or in mask_folder; white counts, black does not."
                    ),
                ),
                io.String.Input(
                    "mask_folder",
                    optional=True,
                    default="",
                    placeholder="folder with masks (optional)",
                    tooltip=(
                        "With mask = files: folder whose files have the names of the pictures, "
                        "looked up like folder. Empty = fox.mask.png beside fox.png."
                    ),
                ),
                io.Combo.Input(
                    "unusable_files",
                    optional=True,
                    options=UnusableFiles,
                    default=UnusableFiles.SKIP,
                    tooltip=(
                        "Files that are broken, empty or no pictures. skip leaves them out and "
                        "names them on the node; stop ends with an error that names them."
                    ),
                ),
                _loss_weight(optional=True),
            ],
            outputs=[_dataset_output()],
        )

    @classmethod
    def validate_inputs(
        cls,
        folder: str | None = None,
        resolution: int | None = None,
        num_repeats: int | None = None,
        mask_folder: str | None = None,
        loss_weight: float | None = None,
    ) -> bool | str:
        verdicts = (
            verdict(dataset_folder, folder),
            verdict(mask_folder_of, mask_folder),
            verdict(_require_numbers, resolution, num_repeats, loss_weight),
        )
        return next((text for text in verdicts if text is not True), True)

    @classmethod
    def fingerprint_inputs(
        cls, folder: str | None, mask_folder: str | None = None, **widgets
    ) -> str:
        """Runs again when a file of the folder changed, and only then."""
        if folder is None:  # linked: changed files go unnoticed until the value changes
            return "linked"
        try:
            masks = mask_folder_of(mask_folder or "")
            return folder_fingerprint(dataset_folder(folder), masks, dataset_roots())
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
        role: str = Role.TRAIN.value,
        validation_fraction: float = 0.0,
        captions: str = CaptionSource.FILES.value,
        caption_lines: str = CaptionLines.ALTERNATIVES.value,
        mask: str = MaskSource.NONE.value,
        mask_folder: str = "",
        unusable_files: str = UnusableFiles.SKIP.value,
        loss_weight: float = 1.0,
    ) -> io.NodeOutput:
        from ...training.host.progress import raise_if_cancelled  # the host: not at start-up

        options = FolderOptions(
            num_repeats=num_repeats,
            class_tokens=class_tokens,
            source=source,
            license=license,
            role=choice("role", role, Role),
            validation_fraction=validation_fraction,
            captions=choice("captions", captions, CaptionSource),
            caption_lines=choice("caption_lines", caption_lines, CaptionLines),
            mask=choice("mask", mask, MaskSource),
            mask_folder=mask_folder_of(mask_folder),
            unusable_files=choice("unusable_files", unusable_files, UnusableFiles),
            loss_weight=loss_weight,
            fit=FitOptions(resolutions=(resolution,)),
        )
        dataset = load_folder(
            dataset_folder(folder),
            options,
            within=dataset_roots(),
            index=cache_folder() / "index",
            tick=raise_if_cancelled,
        )
        show_text(summary(dataset))
        return io.NodeOutput(dataset)


class DatasetFromImages(io.ComfyNode):
    """IMAGE (and MASK) from the graph -> ATELIER_DATASET."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierDatasetFromImages",
            display_name="Dataset From Images",
            category=CATEGORY,
            is_input_list=True,
            description=(
                "Makes a dataset of pictures that the graph has made or loaded. They stay in "
                "memory, so use Save Dataset for large sets."
            ),
            inputs=[
                io.Image.Input(
                    "images",
                    tooltip="Pictures to learn from: a batch, or a list whose sizes may differ.",
                ),
                io.String.Input(
                    "captions",
                    default="",
                    multiline=True,
                    placeholder="one caption for all, or one a line",
                    tooltip=(
                        "What the pictures show: one caption for all of them, or exactly as many "
                        "as pictures, one a line. Wire a text or a list of texts to caption in "
                        "the graph."
                    ),
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip=(
                        "Where to look: white counts in the loss, black does not. One for all "
                        "pictures or one each. Load Image gives masks the other way round: put "
                        "Invert Mask between."
                    ),
                ),
                *_numbers(),
                *_texts(),
                io.String.Input(
                    "name",
                    default="images",
                    tooltip=(
                        "Name of the dataset; its pictures are called name_0001.png and so on. "
                        "Give each its own if you combine several."
                    ),
                ),
                _role(),
                _loss_weight(),
            ],
            outputs=[_dataset_output()],
        )

    @classmethod
    def validate_inputs(
        cls,
        resolution: Sequence[int | None] = (None,),
        num_repeats: Sequence[int | None] = (None,),
        loss_weight: Sequence[float | None] = (None,),
    ) -> bool | str:
        return verdict(_require_numbers, resolution[0], num_repeats[0], loss_weight[0])

    @classmethod
    def execute(
        cls,
        images: list[Tensor],
        captions: list[str],
        resolution: list[int],
        num_repeats: list[int],
        class_tokens: list[str],
        source: list[str],
        license: list[str],
        name: list[str],
        role: list[str],
        loss_weight: list[float],
        masks: list[Tensor] | None = None,
    ) -> io.NodeOutput:
        from ...training.host.progress import raise_if_cancelled  # the host: not at start-up

        dataset = dataset_from_images(
            images,
            captions,
            masks or (),
            name=name[0],
            resolution=resolution[0],
            num_repeats=num_repeats[0],
            class_tokens=class_tokens[0],
            source=source[0],
            license=license[0],
            role=choice("role", role[0], Role),
            loss_weight=loss_weight[0],
            tick=raise_if_cancelled,
        )
        show_text(summary(dataset))
        return io.NodeOutput(dataset)


class CombineDatasets(io.ComfyNode):
    """Several ATELIER_DATASETs -> one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierCombineDatasets",
            display_name="Combine Datasets",
            category=CATEGORY,
            description=(
                "Puts datasets together. Each picture keeps its captions, repeats, role, weight, "
                "size and licence, so balance the sets with num_repeats where they are loaded."
            ),
            inputs=[
                AtelierDataset.Input("dataset_1", tooltip="First dataset, e.g. the subject."),
                *(
                    AtelierDataset.Input(
                        f"dataset_{number}",
                        optional=True,
                        tooltip="Another dataset, e.g. a second folder or regularisation pictures.",
                    )
                    for number in range(2, MOST_DATASETS + 1)
                ),
                io.String.Input(
                    "name",
                    default="",
                    placeholder="name (optional)",
                    tooltip=(
                        "Name of the new dataset, used for files that training writes. Empty = the "
                        "old names with + between them."
                    ),
                ),
            ],
            outputs=[
                AtelierDataset.Output(
                    "combined_dataset",
                    display_name="dataset",
                    tooltip="All pictures in one dataset, for Train LoRA.",
                )
            ],
        )

    @classmethod
    def execute(
        cls, dataset_1: ImageDataset, name: str, **others: ImageDataset | None
    ) -> io.NodeOutput:
        rest = [others.get(f"dataset_{number}") for number in range(2, MOST_DATASETS + 1)]
        dataset = combine([dataset_1, *(other for other in rest if other is not None)], name)
        show_text(summary(dataset))
        return io.NodeOutput(dataset)


def _numbers() -> list[io.Int.Input]:
    return [
        io.Int.Input(
            "resolution",
            default=512,
            min=64,
            max=4096,
            step=8,
            tooltip=(
                "A picture trains at about resolution × resolution pixels and keeps about its "
                "aspect ratio. Use what the base model was made for: 512 for SD1.5, 1024 for SDXL "
                "and Flux. Fit Images sets all the rest, squares and several sizes included."
            ),
        ),
        io.Int.Input(
            "num_repeats",
            default=1,
            min=1,
            max=10000,
            tooltip=(
                "How often each picture is seen in one epoch. 1 is fine for most sets; raise it "
                "to balance a small set against a large one."
            ),
        ),
    ]


def _texts() -> list[io.String.Input]:
    return [
        io.String.Input(
            "class_tokens",
            default="",
            placeholder="trigger word (optional)",
            tooltip=(
                "Trigger word put before every caption; later you write it in the prompt to call "
                'the LoRA. Choose something rare, such as "glossy style" or "sks fox". Empty = '
                "captions stay as they are."
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
                "Licence of the pictures, e.g. CC0, CC BY 4.0, MIT, own work. It is written into "
                "the LoRA. Train only on pictures you have the right to use."
            ),
        ),
    ]


def _role(optional: bool = False) -> io.Combo.Input:
    return io.Combo.Input(
        "role",
        optional=optional,
        options=Role,
        default=Role.TRAIN,
        tooltip=(
            "What the pictures are for. train: to learn from. regularisation: pictures of the "
            "class in general (any fox, for sks fox) that keep the model from forgetting it. "
            "validation: never trained on; their loss is measured while the others train, and "
            "rises when the LoRA learns those by heart."
        ),
    )


def _loss_weight(optional: bool = False) -> io.Float.Input:
    return io.Float.Input(
        "loss_weight",
        optional=optional,
        default=1.0,
        min=0.0,
        max=100.0,
        step=0.05,
        round=0.001,
        tooltip=(
            "How much the pictures count when the model learns from them. 1 is usual; lower it "
            "for pictures of poor quality, or for regularisation pictures that hold too much back."
        ),
    )


def _dataset_output() -> io.Output:
    return AtelierDataset.Output(
        "dataset",
        display_name="dataset",
        tooltip="The pictures with their captions, for Train LoRA.",
    )


def _require_numbers(resolution: int, num_repeats: int, loss_weight: float) -> None:
    FitOptions(resolutions=(resolution,))
    require_sample_numbers(num_repeats, loss_weight)
