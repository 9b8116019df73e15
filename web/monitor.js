// The live monitor on the nodes that train. It follows the server's events, and asks the server for
// the runs after a reload, in a second tab, and whenever a graph is opened.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { allNodes, newestOf, root } from "./graph_nodes.js";
import { inTurnFor } from "./in_turn.js";
import { Panel } from "./monitor_panel.js";
import { follows, merge } from "./monitor_run.js";
import { textsFor } from "./monitor_texts.js";

const NODES = ["AtelierTrainLoRA", "AtelierTrainSteps", "AtelierLoadJob"];
const EVENT = "atelier.run";
const WIDGET = "atelier_monitor";
const ROUTE = "/atelier/runs";
const RESTORE_AFTER_MS = 50; // nodes get their ids after they were created

const runs = new Map(); // id -> run, see monitor_run.js
const panels = new WeakMap(); // node -> panel
let known = []; // [{id, node, workflow}], the newest first

async function ask(path, options) {
  const answer = await api.fetchApi(`${ROUTE}${path}`, options);
  if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
  return answer.json();
}

/** Node -> id of the newest run that was queued from it. */
const newestRuns = () => newestOf(known, (node) => panels.has(node));

function show(node, run) {
  const panel = panels.get(node);
  const height = panel.minHeight;
  panel.show(run);
  if (panel.minHeight !== height) {
    // Not by the difference: a node from a saved graph or another tab has its room already.
    node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
  }
  node.setDirtyCanvas?.(true, true);
}

async function load(id) {
  const report = await ask(`/${id}`);
  runs.set(id, merge(undefined, report));
  return runs.get(id);
}

/** Give every node of the graph its newest run. */
async function restore() {
  known = await ask("");
  for (const [node, id] of newestRuns()) {
    const run = runs.get(id) ?? (await load(id));
    show(node, run);
  }
  // What a server that is gone has left behind would stand there as running.
  for (const node of allNodes(root())) {
    const run = panels.get(node)?.run;
    if (run && !known.some(({ id }) => id === run.id)) show(node, null);
  }
}

async function follow({ detail: report }) {
  if (!known.some(({ id }) => id === report.id)) known = [report, ...known];
  const before = runs.get(report.id);
  const run = follows(before, report) ? merge(before, report) : await load(report.id);
  runs.set(run.id, run);
  for (const [node, id] of newestRuns()) if (id === run.id) show(node, run);
}

const inTurn = inTurnFor("monitor");

let soon;
function restoreSoon() {
  clearTimeout(soon);
  soon = setTimeout(() => inTurn(restore), RESTORE_AFTER_MS);
}

app.registerExtension({
  name: "LoraAtelier.Monitor",

  setup() {
    api.addEventListener(EVENT, (event) => inTurn(() => follow(event)));
    api.addEventListener("reconnected", () => {
      runs.clear(); // the server may be another one
      restoreSoon();
    });
  },

  afterConfigureGraph: restoreSoon,

  nodeCreated(node) {
    if (!NODES.includes(node.comfyClass)) return;
    const text = textsFor(app.ui.settings.getSettingValue("Comfy.Locale"));
    const panel = new Panel(text, (id, action) => ask(`/${id}/${action}`, { method: "POST" }));
    panels.set(node, panel);
    restoreSoon();
    const widget = node.addDOMWidget(WIDGET, WIDGET, panel.element, {
      serialize: false,
      hideOnZoom: false,
      margin: 6,
      getMinHeight: () => panel.minHeight + 12,
      getMaxHeight: () => (panel.run ? undefined : panel.minHeight + 12),
      onDraw: () => panel.refresh(),
    });
    widget.serialize = false; // in a saved graph it would stand among the values
    widget.monitor = panel;
    const [width, height] = node.computeSize();
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
    panel.element.addEventListener("wheel", (event) => app.canvas?.processMouseWheel?.(event));
  },
});
