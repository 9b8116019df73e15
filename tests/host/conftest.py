"""Tests in this folder may import ComfyUI's modules, and the pack's nodes, at their top."""

from comfy_modules import make_importable

make_importable()
