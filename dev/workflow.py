"""The pack's own reader of saved workflows, for the tools and tests that run outside of ComfyUI."""

from __future__ import annotations

import importlib.util

from bootstrap import ROOT

_SPEC = importlib.util.spec_from_file_location(
    "saved_workflow", ROOT / "nodes" / "headless" / "workflow.py"
)
_READER = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_READER)

NOTES = _READER.NOTES
WorkflowError = _READER.WorkflowError
to_prompt = _READER.to_prompt
widget_names = _READER.widget_names
