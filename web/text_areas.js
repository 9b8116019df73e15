// Text areas: their hints in Chinese, and their height on nodes that show pictures. A text area takes
// its share of a node's height, which would be most of that of pictures that come later.

import { app } from "../../scripts/app.js";
import { CHINESE } from "./text_area_hints.js";

const WITH_PICTURES = [
  "AtelierCompareGrid",
  "AtelierCurateDataset",
  "AtelierEvaluate",
  "AtelierGenerateDataset",
];
const TALLEST = 110; // px, eight lines

app.registerExtension({
  name: "LoraAtelier.TextAreas",

  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("Atelier")) return;
    const locale = String(app.ui.settings.getSettingValue("Comfy.Locale"));
    for (const { name, element, options } of node.widgets ?? []) {
      if (element?.tagName !== "TEXTAREA") continue;
      const hint = locale.startsWith("zh") && CHINESE[`${node.comfyClass}.${name}`];
      if (hint) element.placeholder = hint;
      if (WITH_PICTURES.includes(node.comfyClass)) options.getMaxHeight = () => TALLEST;
    }
  },
});
