"""Captioners of every family say what transformers says when it is asked as its pages tell."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import tiny_captioners as tiny
from lora_atelier.training.captioning.captioner import Captioner, Writing, load_captioner
from lora_atelier.training.captioning.families import INSTRUCTION
from lora_atelier.training.captioning.folder import captioner_folder
from lora_atelier.training.errors import AtelierError

BRIEF = Writing(max_new_tokens=6, num_beams=2)
GENERATE = {"max_new_tokens": 6, "num_beams": 2, "do_sample": False}
PICTURES = tiny.pictures(4)
CHATS = ("llava", "qwen2_vl")


@pytest.fixture(scope="module", params=tiny.ALL)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each family in turn; nothing in this module may use the network."""
    return tiny.ALL[request.param](tmp_path_factory.mktemp("models") / request.param)


@pytest.fixture
def blip(tmp_path: Path) -> Path:
    return tiny.blip(tmp_path / "blip")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError(f"it asked the network: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> Captioner:
    return load_captioner(captioner_folder(folder), dtype)


def say(captioner: Captioner, writing: Writing = BRIEF, pictures: list = PICTURES) -> list[str]:
    return captioner.captions(pictures, writing, lambda: None)


def directly(folder: Path, prompt: str) -> list[str]:
    """As the documentation of transformers asks each of them, a picture at a time."""
    path, kind = str(folder), folder.name
    network = transformers.AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32)
    if kind == "vision-encoder-decoder":
        read = transformers.ViTImageProcessor.from_pretrained(path)
        write = transformers.AutoTokenizer.from_pretrained(path)
        ask = lambda image: {"pixel_values": read(image, return_tensors="pt").pixel_values}  # noqa: E731
    else:
        read = transformers.AutoProcessor.from_pretrained(path)
        write = read.tokenizer
        text = {
            "blip": prompt,
            "git": prompt,
            "florence2": prompt,
            "llava": f"<image> {prompt} shows",
            "qwen2_vl": f"<|vision_start|><|image_pad|><|vision_end|> {prompt} shows",
        }[kind]
        ask = lambda image: _asked(read, image, text, kind)  # noqa: E731
    answers = []
    for image in PICTURES:
        inputs = ask(image)
        ids = network.eval().generate(**inputs, **GENERATE)[0]
        if kind in CHATS:
            ids = ids[inputs["input_ids"].shape[1] :]
        answers.append(write.decode(ids, skip_special_tokens=True).strip())
    return answers


def _asked(processor: Any, image: Any, text: str, kind: str) -> dict[str, Any]:
    if kind == "git":  # as in its page on visual questions
        ids = processor(text=text, add_special_tokens=False).input_ids
        ids = torch.tensor([[processor.tokenizer.cls_token_id, *ids]])
        return {**processor(images=image, return_tensors="pt"), "input_ids": ids}
    return dict(processor(images=image, text=text or None, return_tensors="pt"))


@pytest.mark.parametrize("prompted", [False, True])
def test_a_captioner_says_what_transformers_says(folder: Path, prompted: bool) -> None:
    chats = dict.fromkeys(CHATS, "the dog is")
    given = {"blip": "a red", "git": "a red", "florence2": "<CAPTION>", **chats}
    usual = {"florence2": "<MORE_DETAILED_CAPTION>", **dict.fromkeys(CHATS, INSTRUCTION)}
    prompt = given.get(folder.name, "") if prompted else ""
    answers = say(loaded(folder), BRIEF._replace(prompt=prompt))
    assert answers == directly(folder, prompt or usual.get(folder.name, ""))
    assert len(set(answers)) > 1  # the pictures matter


def test_a_batch_says_what_single_pictures_say(folder: Path) -> None:
    captioner = loaded(folder)
    alone = [say(captioner, BRIEF, [picture])[0] for picture in PICTURES]
    assert say(captioner) == alone and any(alone)


def test_the_beginning_stays_in_the_caption_and_an_instruction_does_not(tmp_path: Path) -> None:
    for kind in ("blip", "git"):
        answers = say(loaded(tiny.ALL[kind](tmp_path / kind)), BRIEF._replace(prompt="the large"))
        assert all(text.startswith("the large") for text in answers)
    chat = loaded(tiny.llava(tmp_path / "llava"))
    assert not any("the dog is" in t for t in say(chat, BRIEF._replace(prompt="the dog is")))


def test_length_and_beams_are_kept_to(blip: Path) -> None:
    captioner = loaded(blip)
    lengths = {n: len(say(captioner, Writing("", n, 1))[0].split()) for n in (1, 3, 9)}
    assert lengths == {1: 1, 3: 3, 9: 9}
    long = [say(captioner, Writing("", 12, beams)) for beams in (1, 4)]
    assert long[0] != long[1]


def test_weights_take_the_numbers_that_are_asked_for(folder: Path) -> None:
    captioner = loaded(folder, torch.bfloat16)
    assert {p.dtype for p in captioner.network.parameters()} == {torch.bfloat16}
    assert len(say(captioner)) == len(PICTURES)


def test_cancel_is_looked_at_at_every_word(folder: Path) -> None:
    class Cancelled(Exception):
        """What the host raises."""

    calls = []

    def check() -> None:
        calls.append(None)
        if len(calls) == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        loaded(folder).captions(PICTURES, Writing("", 40, 1), check)
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("kind", "prompt", "message"),
    [
        ("vision-encoder-decoder", "a fox", 'prompt is "a fox", but this captioner takes none'),
        ("florence2", "<OD>", "<OD> asks where things are, which is no caption"),
        ("florence2", "<CAPTION> red", "<CAPTION> must stand alone"),
    ],
)
def test_prompts_that_do_not_fit(tmp_path: Path, kind: str, prompt: str, message: str) -> None:
    captioner = loaded(tiny.ALL[kind](tmp_path / kind))
    with pytest.raises(AtelierError, match=message):
        say(captioner, BRIEF._replace(prompt=prompt))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("", 0, 3), "max_new_tokens is 0"),
        (("", 5000, 3), "max_new_tokens is 5000"),
        (("", 10, 0), "num_beams is 0"),
        (("", 10, 17), "num_beams is 17"),
    ],
)
def test_numbers_out_of_range(values: tuple, message: str) -> None:
    with pytest.raises(AtelierError, match=message):
        Writing(*values).require_sound()


# Folders that are not as they should be


def test_weights_that_are_not_there_are_not_made_up(blip: Path) -> None:
    file = blip / "model.safetensors"
    weights = load_file(file)
    gone = [name for name in weights if "crossattention.self.query" in name]
    save_file({n: t for n, t in weights.items() if n not in gone}, file, {"format": "pt"})
    with pytest.raises(AtelierError, match=f'{len(gone)} weights of "blip" are not in .*chance'):
        loaded(blip)


def test_weights_of_another_shape_are_refused(blip: Path) -> None:
    file = blip / "model.safetensors"
    weights = load_file(file)
    name = next(n for n in weights if n.endswith("crossattention.self.query.weight"))
    weights[name] = weights[name][:3].contiguous()
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(AtelierError, match=r"1 weights of .*crossattention\.self\.query\.weight"):
        loaded(blip)


def test_a_weight_that_no_caption_depends_on_may_lack(tmp_path: Path) -> None:
    """As in the files of ViT-GPT2."""
    folder = tiny.vision_encoder_decoder(tmp_path / "vit")
    answers = say(loaded(folder))
    weights = load_file(folder / "model.safetensors")
    kept = {n: t for n, t in weights.items() if "pooler" not in n}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    assert say(loaded(folder)) == answers


def test_a_pickle_is_not_read_in_place_of_safetensors_of_another_name(blip: Path) -> None:
    weights = load_file(blip / "model.safetensors")
    (blip / "model.safetensors").rename(blip / "other.safetensors")
    torch.save(weights, blip / "pytorch_model.bin")
    with pytest.raises(AtelierError, match=r'the model in ".*" cannot be read \('):
        loaded(blip)


def test_a_file_that_is_cut_short(blip: Path) -> None:
    file = blip / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(AtelierError, match=r'the model in ".*" cannot be read \('):
        loaded(blip)


@pytest.mark.parametrize("name", ["processor_config.json", "tokenizer.json"])
def test_without_what_prepares_its_inputs(folder: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(folder, tmp_path / folder.name)
    if folder.name == "vision-encoder-decoder":
        name = name.replace("processor_config", "preprocessor_config")
    (copy / name).unlink()
    (copy / "tokenizer_config.json").unlink()
    with pytest.raises(AtelierError, match="what prepares pictures and text in .* cannot be read"):
        loaded(copy)


@pytest.mark.parametrize("kind", ["bert", "nothing_known"])
def test_a_model_that_describes_no_pictures(blip: Path, kind: str) -> None:
    config = json.loads((blip / "config.json").read_text())
    (blip / "config.json").write_text(json.dumps({**config, "model_type": kind}))
    with pytest.raises(AtelierError, match=f'"blip" is a "{kind}", which transformers .* not know'):
        loaded(blip)


# Code of its own

OWN = """
from pathlib import Path
from transformers import BlipConfig, BlipForConditionalGeneration
Path({mark!r}).touch()
class OwnConfig(BlipConfig):
    model_type = {kind!r}
class Own(BlipForConditionalGeneration):
    config_class = OwnConfig
"""


def with_code(blip: Path, kind: str) -> Callable[[], bool]:
    """Give the folder code of its own; whether it has run."""
    mark = blip.parent / "it_ran"
    (blip / "own.py").write_text(OWN.format(mark=str(mark), kind=kind))
    config = json.loads((blip / "config.json").read_text())
    config |= {"model_type": kind, "architectures": ["Own"]}
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
    (blip / "config.json").write_text(json.dumps(config))
    return mark.exists


def test_code_in_the_folder_runs_only_when_the_person_says_so(
    blip: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    modules = "transformers.dynamic_module_utils.HF_MODULES_CACHE"
    monkeypatch.setattr(modules, str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    answers = say(loaded(blip))
    ran = with_code(blip, "own_captioner")
    with pytest.raises(AtelierError, match=r"brings program code of its own \(own.py\)") as refusal:
        loaded(blip)
    trust = blip.with_name(f"{blip.name}.trust_remote_code")
    assert not ran() and f'make an empty file "{trust}" and queue' in str(refusal.value)
    trust.touch()
    assert say(loaded(blip)) == answers and ran()


def test_code_that_is_not_needed_does_not_run(blip: Path) -> None:
    answers = say(loaded(blip))
    ran = with_code(blip, "blip")
    assert say(loaded(blip)) == answers and not ran()
