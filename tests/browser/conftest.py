"""A real Chromium in front of a real ComfyUI with this pack."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from frontend import Frontend
from host import HostServer

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")

MODELS = {
    "checkpoints": (
        "atelier_demo_base.safetensors",
        "v1-5-pruned-emaonly-fp16.safetensors",
        "sd_xl_base_1.0.safetensors",
    ),
    "diffusion_models": ("flux1-dev.safetensors",),
    "text_encoders": ("clip_l.safetensors", "t5xxl_fp8_e4m3fn_scaled.safetensors"),
    "vae": ("ae.safetensors",),
}
"""Those of the workflows: newer frontends mark loaders whose file is missing."""

Open = Callable[..., AbstractContextManager[Frontend]]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless browser with an empty profile. Ends with the module: while Playwright runs, no
    other test could start an event loop of its own."""
    executable = next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the path")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, headless=True, args=list(FLAGS)
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def open_frontend(server: HostServer, chromium: Any, tiny_checkpoint: Path) -> Open:
    """Opens ComfyUI in a window of its own, in a language and a theme."""
    for kind, names in MODELS.items():
        for name in names:
            server.put_model(tiny_checkpoint, name, kind)
    server.put_input(ROOT / "demo" / "images" / "glossy" / "heldout", "glossy")

    @contextmanager
    def opened(locale: str = "en", palette: str = "dark") -> Iterator[Frontend]:
        window = chromium.new_context(viewport={"width": 1920, "height": 1080}, locale="en-US")
        try:
            window.set_default_timeout(120_000)  # a busy machine takes its time
            yield Frontend(window.new_page(), server, locale, palette)
        finally:
            window.close()

    return opened


@pytest.fixture(scope="module")
def english(open_frontend: Open) -> Iterator[Frontend]:
    with open_frontend() as frontend:
        yield frontend


@pytest.fixture(scope="module")
def chinese(open_frontend: Open) -> Iterator[Frontend]:
    with open_frontend(locale="zh") as frontend:
        yield frontend
