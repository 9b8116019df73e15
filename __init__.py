"""LoRA Atelier: train LoRAs inside the ComfyUI graph."""

from .nodes import AtelierExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> AtelierExtension:
    """Called by ComfyUI when it loads the pack."""
    return AtelierExtension()
