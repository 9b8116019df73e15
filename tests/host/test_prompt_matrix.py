"""The Prompt Matrix node: its outputs, the wildcards of ComfyUI's input folder, a queued graph."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths
import pytest

from host import HostServer
from lora_atelier.nodes.generate.prompt_matrix import PromptMatrixNode
from lora_atelier.training.errors import AtelierError
from training_graph import Watched, node
from widget_runs import call

NODE = "AtelierPromptMatrix"


@pytest.fixture
def wildcards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's folder of them."""
    folder = tmp_path / "input" / "wildcards"
    folder.mkdir(parents=True)
    (folder / "colours.txt").write_text("red\nblue\n", "utf-8")
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    return folder


def test_as_it_comes_it_makes_prompts_of_one_style() -> None:
    made, texts, captions, count = call(NODE, {})
    assert texts == [f"flat vector illustration, a picture of {subject}" for subject in captions]
    assert captions[2:] == ["a red bicycle", "a blue bicycle"] and count == 4
    assert [(p.text, p.caption) for p in made.prompts] == list(zip(texts, captions, strict=True))


def test_wildcards_are_read_from_the_input_folder(wildcards: Path) -> None:
    _, _, captions, _ = call(NODE, {"subjects": "a __colours__ fox", "class_tokens": "sks"})
    assert captions == ["sks, a red fox", "sks, a blue fox"]


@pytest.mark.parametrize(
    ("widgets", "complaint"),
    [
        ({"subjects": "a __colors__ fox"}, "no wildcard file.*It holds: colours"),
        ({"styles": "__../../secret__"}, "leads out of"),
        ({"subjects": ""}, "subjects is empty"),
        ({"subjects": "{0|1|2|3|4|5|6|7|8|9}" * 6}, "make 1,000,000 prompts"),
    ],
)
def test_wrong_lists_are_refused_before_the_queue(
    wildcards: Path, widgets: dict[str, str], complaint: str
) -> None:
    with pytest.raises(AtelierError, match=complaint):
        call(NODE, widgets)


def test_linked_lists_are_judged_when_it_runs(wildcards: Path) -> None:
    assert PromptMatrixNode.validate_inputs(None, "ink", "[subject]", "", "", 0) is True


def test_it_runs_again_when_a_wildcard_file_changed(wildcards: Path) -> None:
    texts = {"subjects": "a __colours__ fox", "styles": "", "templates": "[subject]"}
    before = PromptMatrixNode.fingerprint_inputs(**texts, seed=1)
    assert before == PromptMatrixNode.fingerprint_inputs(**texts, seed=1)
    linked = PromptMatrixNode.fingerprint_inputs(**texts | {"subjects": None})
    plain = PromptMatrixNode.fingerprint_inputs(**texts | {"subjects": "a fox"})
    os.utime(wildcards / "colours.txt", ns=(1, 1))
    assert PromptMatrixNode.fingerprint_inputs(**texts, seed=1) != before
    assert PromptMatrixNode.fingerprint_inputs(**texts | {"subjects": None}) != linked
    assert PromptMatrixNode.fingerprint_inputs(**texts | {"subjects": "a fox"}) == plain


def test_in_a_graph_what_follows_runs_once_for_each_prompt(server: HostServer) -> None:
    folder = server.base / "input" / "wildcards"
    folder.mkdir(exist_ok=True)
    (folder / "sizes.txt").write_text("big\nsmall\n", "utf-8")
    widgets = {"styles": "ink", "templates": "[subject] in [style]", "class_tokens": "sks"}
    graph = {
        "words": node("PrimitiveStringMultiline", value="# mine\na __sizes__ fox"),
        "matrix": node(
            NODE,
            subjects=["words", 0],
            caption_template="[trigger], [subject]",
            prompt_count=0,
            shuffle=False,
            seed=0,
            **widgets,
        ),
        "texts": node("PreviewAny", source=["matrix", 1]),
        "captions": node("PreviewAny", source=["matrix", 2]),
        "count": node("PreviewAny", source=["matrix", 3]),
    }
    done = Watched(server, graph)
    shown = {name: done.result.check().outputs[name]["text"] for name in graph if name != "words"}
    assert shown["texts"] == ["a big fox in ink", "a small fox in ink"]
    assert shown["captions"] == ["sks, a big fox", "sks, a small fox"]
    assert shown["count"] == ["2"]
    report = "2 prompts from 1 subject, 1 style, 1 template\n\n"
    report += "a big fox in ink → sks, a big fox\na small fox in ink → sks, a small fox"
    assert shown["matrix"] == [report] and done.text("matrix") == report
    assert not Watched(server, graph).ran("matrix")
    (folder / "sizes.txt").write_text("tiny\n", "utf-8")
    again = Watched(server, graph)
    assert again.result.check().outputs["captions"]["text"] == ["sks, a tiny fox"]
