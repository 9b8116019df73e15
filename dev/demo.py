"""The demo: train a style LoRA in a real ComfyUI, with pictures before and after.

    python dev/run.py demo [--steps N] [--serve] [--folder FOLDER]

Runs `workflows/style_lora.json` through the server's own queue, as the browser would. With --serve
the server stays up afterwards, so that the graph can be opened and changed in a browser.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from bootstrap import ROOT
from host import HostError, HostServer, Result
from workflow import to_prompt

WORKFLOW = ROOT / "workflows" / "style_lora.json"
BASE_MODEL = "atelier_demo_base.safetensors"


def prepare(server: HostServer) -> None:
    """Put the base model and the pictures where ComfyUI looks for them."""
    base_model = server.base / "models" / "checkpoints" / BASE_MODEL
    weights = ROOT / "demo" / "base" / "weights"
    files = list(weights.glob("*.safetensors"))
    if not files:
        raise HostError(f"The demo's weights are missing from {weights}: this copy is not whole.")
    newest = max(file.stat().st_mtime for file in files)
    if not base_model.exists() or base_model.stat().st_mtime < newest:
        say("Putting the demo's base model together ...")
        _assemble(base_model)
    server.put_input(ROOT / "demo" / "images" / "glossy" / "train", "glossy")


def _assemble(path: Path) -> None:
    file = ROOT / "demo" / "base" / "assemble.py"
    spec = importlib.util.spec_from_file_location("assemble", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.assemble(path)


class ProgressLine:
    """One line that is rewritten while nodes run: what, how far, the loss, the time left."""

    def __init__(self, prompt: dict[str, Any]) -> None:
        self.names = {
            node: spec.get("_meta", {}).get("title") or spec["class_type"]
            for node, spec in prompt.items()
        }
        self.node = ""

    def __call__(self, event: str, data: Any) -> None:
        if event == "executing" and data.get("node") in self.names:
            self.node = data["node"]
            self._write(self.names[self.node])
        elif event == "progress" and data.get("node") in self.names:
            self._write(f"{self.names[data['node']]}  {data['value']:.0f}/{data['max']:.0f}")
        elif event == "atelier.run" and self._is_of_a_step(data):
            left = time.strftime("%M:%S", time.gmtime(data["seconds_left"]))
            self._write(
                f"{self.names[data['node']]}  step {data['step']}/{data['last_step']}"
                f"  loss {data['latest']['loss']:.4f}  {left} left"
            )

    def _is_of_a_step(self, data: dict[str, Any]) -> bool:
        running = data["node"] in self.names and data["status"] == "running"
        return running and data["seconds_left"] is not None

    def _write(self, text: str) -> None:
        if sys.stdout.isatty():
            sys.stdout.write(f"\r\x1b[2K{text}")
        else:  # a log file: one line after another
            sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def before_after(server: HostServer, result: Result, prompt: dict[str, Any], path: Path) -> None:
    """The pictures of the two SaveImage nodes as two labelled rows: base above, LoRA below."""
    nodes = [node for node, spec in prompt.items() if spec["class_type"] == "SaveImage"]
    nodes.sort(key=lambda node: prompt[node]["inputs"]["filename_prefix"] != "atelier/base")
    rows = []
    for node in nodes:
        files = [server.image(reference) for reference in result.images(node)]
        rows.append([Image.open(io.BytesIO(file)).convert("RGB") for file in files])
    side, label, gap = 192, 96, 8
    columns = max(map(len, rows))
    sheet = Image.new(
        "RGB", (label + columns * (side + gap), len(rows) * (side + gap) + gap), "white"
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(22)
    for y, (name, pictures) in enumerate(zip(("base", "LoRA"), rows, strict=True)):
        top = gap + y * (side + gap)
        draw.text((16, top + side // 2), name, fill="black", font=font, anchor="lm")
        for x, picture in enumerate(pictures):
            large = picture.resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(large, (label + x * (side + gap), top))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def run(server: HostServer, steps: int | None) -> None:
    """Queue the workflow, then say where everything lies."""
    prompt = to_prompt(json.loads(WORKFLOW.read_text("utf-8")), server.object_info())
    by_type = {spec["class_type"]: node for node, spec in prompt.items()}
    if steps is not None:
        prompt[by_type["AtelierTrainLoRA"]]["inputs"]["max_train_steps"] = steps
    started = time.monotonic()
    result = server.queue(prompt, on_event=ProgressLine(prompt), timeout=3600).check()
    results = server.base / "output" / "atelier"
    pictures, chart = results / "before_after.png", results / "loss.png"
    before_after(server, result, prompt, pictures)
    (loss,) = result.images(by_type["AtelierLossChart"])
    chart.write_bytes(server.image(loss))
    lora = result.outputs[by_type["AtelierSaveLoRA"]]["text"][0].splitlines()[0]
    say(
        f"\nDone in {time.monotonic() - started:.0f} s.\n"
        f"  LoRA          {lora}\n"
        f"  before/after  {pictures}\n"
        f"  loss chart    {chart}"
    )


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, help="training steps instead of the workflow's")
    parser.add_argument("--serve", action="store_true", help="keep ComfyUI running afterwards")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / ".work" / "demo", help="where everything is kept"
    )
    arguments = parser.parse_args()
    # Yesterday's server may have left a cache of pictures; results are kept.
    shutil.rmtree(arguments.folder / "temp", ignore_errors=True)
    say("Starting ComfyUI ...")
    try:
        with HostServer(arguments.folder) as server:
            prepare(server)
            run(server, arguments.steps)
            if arguments.serve:
                say(f"ComfyUI is running at {server.url} (Ctrl+C ends it).")
                say("There, open Templates (in the bar on the left) > lora-atelier > style_lora.")
                while server.running:
                    time.sleep(1)
    except HostError as error:
        say(f"\n{error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
