"""The node that writes a dataset to disk."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io, ui

from ...training.dataset.samples import ImageDataset
from ...training.dataset.save import IfExists, save_dataset
from ..graph.checks import choice, verdict
from ..graph.outputs import shown
from ..graph.wires import AtelierDataset
from ..live.progress import show_text
from .folders import SaveInto, save_folder


class SaveDataset(io.ComfyNode):
    """ATELIER_DATASET -> folder of pictures, captions, masks and metadata."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierSaveDataset",
            display_name="Save Dataset",
            category="training/atelier/dataset",
            is_output_node=True,
            description=(
                "Writes a dataset as a folder of ordinary files: pictures, a caption file and a "
                "mask beside each, and a metadata.jsonl with the rest. Load Image Dataset and "
                "other trainers read it. It appears whole or not at all."
            ),
            inputs=[
                AtelierDataset.Input(
                    "dataset", tooltip="Pictures and captions to keep, whatever made them."
                ),
                io.String.Input(
                    "folder",
                    default="datasets/my_dataset",
                    tooltip=(
                        "Name of the folder below ComfyUI's output or input folder. Files go "
                        "nowhere else: no full path, no .. in it."
                    ),
                ),
                io.Combo.Input(
                    "save_into",
                    options=SaveInto,
                    default=SaveInto.OUTPUT,
                    tooltip=(
                        "output for what the graph made, as with saved pictures; input for "
                        "what you will train on again and again. Load Image Dataset looks in both."
                    ),
                ),
                io.Combo.Input(
                    "if_exists",
                    options=IfExists,
                    default=IfExists.NEW_FOLDER,
                    tooltip=(
                        "If the folder is there already: new_folder writes beside it (_2, _3, …); "
                        "stop refuses; replace overwrites files of the same name and leaves the "
                        "others, e.g. to write edited captions back."
                    ),
                ),
            ],
            outputs=[
                io.String.Output(
                    "saved_folder",
                    display_name="folder",
                    tooltip="Full path of the folder; Load Image Dataset takes it as its folder.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, folder: str | None = None, save_into: str | None = None) -> bool | str:
        return verdict(_target, folder, save_into)

    @classmethod
    def execute(
        cls, dataset: ImageDataset, folder: str, save_into: str, if_exists: str
    ) -> io.NodeOutput:
        from ...training.host.progress import HostProgress

        target = _target(folder, save_into)
        progress = HostProgress(len(dataset.samples))
        saved = save_dataset(
            dataset, target, choice("if_exists", if_exists, IfExists), progress.tick
        )
        text = saved.summary(shown(saved.folder))
        show_text(text)
        return io.NodeOutput(str(saved.folder), ui=ui.PreviewText(text))


def _target(folder: str, save_into: str) -> Path:
    return save_folder(folder, choice("save_into", save_into, SaveInto))
