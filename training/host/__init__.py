"""Where the engine touches ComfyUI: its diffusion models, text encoders, VAEs and LoRA loader.

Differences between ComfyUI versions are met here and nowhere else.
"""
