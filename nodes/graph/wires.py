"""The pack's own wire types; everything else on our wires is ComfyUI's."""

from __future__ import annotations

from comfy_api.latest import io

AtelierCheckpoints = io.Custom("ATELIER_CHECKPOINTS")
AtelierDataset = io.Custom("ATELIER_DATASET")
AtelierNetwork = io.Custom("ATELIER_NETWORK")
AtelierObjective = io.Custom("ATELIER_OBJECTIVE")
AtelierOptimizer = io.Custom("ATELIER_OPTIMIZER")
AtelierPreview = io.Custom("ATELIER_PREVIEW")
AtelierPrompts = io.Custom("ATELIER_PROMPTS")
AtelierScheduler = io.Custom("ATELIER_SCHEDULER")
AtelierState = io.Custom("ATELIER_STATE")
