// ComfyUI's frontend goes on showing the last live preview of a node that has finished, in place of
// the pictures it gave. For the pack's nodes that do both, the preview makes room.

import { app } from "../../scripts/app.js";

function dropPreview(node) {
  const { graph } = node;
  const inSubgraph = graph && graph !== (graph.rootGraph ?? app.graph);
  delete app.nodePreviewImages?.[inSubgraph ? `${graph.id}:${node.id}` : node.id];
  node.preview = undefined;
  node.images = undefined; // what the frontend compares with, to see that there is something new
  node.setDirtyCanvas?.(true, true);
}

app.registerExtension({
  name: "LoraAtelier.FinishedPictures",

  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("Atelier")) return;
    const before = node.onExecuted;
    node.onExecuted = function (output) {
      before?.call(this, output);
      if (output?.images?.length) dropPreview(this);
    };
  },
});
