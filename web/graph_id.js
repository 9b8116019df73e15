// A graph that is new, or came without an id, gets one with its first node of ours. The server tells
// graphs apart by it: without one, a chart or gallery would be lost when the page is reloaded, or
// shown in another graph.

import { app } from "../../scripts/app.js";
import { root } from "./graph_nodes.js";

const NONE = "00000000-0000-0000-0000-000000000000";

app.registerExtension({
  name: "LoraAtelier.GraphId",

  nodeCreated(node) {
    const graph = root();
    if (node.comfyClass?.startsWith("Atelier") && graph?.id === NONE) {
      graph.id = LiteGraph.uuidv4();
    }
  },
});
