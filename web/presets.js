// Shows a preset's rank and alpha in the widgets of LoRA Network. What counts is the preset itself
// (training/network/presets.py holds the same numbers), so a number edited by hand makes it custom.

import { app } from "../../scripts/app.js";

const CUSTOM = "custom";
const SIZES = {
  anime_style: { network_dim: 32, network_alpha: 16 },
  complex_style: { network_dim: 128, network_alpha: 64 },
  light: { network_dim: 16, network_alpha: 8 },
};

function afterChange(widget, react) {
  const before = widget.callback;
  widget.callback = function (...change) {
    const answer = before?.apply(this, change);
    react();
    return answer;
  };
}

app.registerExtension({
  name: "LoraAtelier.Presets",

  nodeCreated(node) {
    if (node.comfyClass !== "AtelierNetwork") return;
    const find = (name) => node.widgets?.find((widget) => widget.name === name);
    const preset = find("preset");
    const numbers = ["network_dim", "network_alpha"].map(find);
    if (!preset || numbers.includes(undefined)) return;
    afterChange(preset, () => {
      const size = SIZES[preset.value];
      if (size) for (const number of numbers) number.value = size[number.name];
      node.setDirtyCanvas?.(true, true);
    });
    for (const number of numbers) {
      afterChange(number, () => {
        const size = SIZES[preset.value];
        if (size && number.value !== size[number.name]) preset.value = CUSTOM;
      });
    }
  },
});
