// A new node is as wide as its rows need: newer frontends begin narrower than some of our values are
// long, and would cut them.

import { app } from "../../scripts/app.js";

const BESIDE_TEXTS = 80; // the margins, arrows and gap of a row, px

function rowWidth(context, widget) {
  const texts = [widget.label ?? widget.name, String(widget.value ?? "")];
  return texts.reduce((width, text) => width + context.measureText(text).width, BESIDE_TEXTS);
}

app.registerExtension({
  name: "LoraAtelier.Legible",

  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("Atelier")) return;
    const context = document.createElement("canvas").getContext("2d");
    context.font = `${LiteGraph.NODE_TEXT_SIZE}px ${LiteGraph.NODE_FONT}`;
    const rows = (node.widgets ?? []).filter((widget) => !widget.element); // text areas wrap
    const width = Math.max(...rows.map((widget) => rowWidth(context, widget)), node.size[0]);
    if (width > node.size[0]) node.setSize([Math.ceil(width), node.size[1]]);
  },
});
