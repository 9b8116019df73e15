// The gallery on Curate Dataset. The server tells when a node waits for a choice; after a reload,
// and whenever a graph is opened, the server is asked. In the window that queued the graph it opens
// by itself.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { GalleryDialog } from "./gallery_dialog.js";
import { GalleryPanel } from "./gallery_panel.js";
import { ask, obstacle, savedChoice, sendChoice, storeChoice } from "./gallery_server.js";
import { Session } from "./gallery_session.js";
import { textsFor } from "./gallery_texts.js";
import { allNodes, newestOf, root } from "./graph_nodes.js";
import { inTurnFor } from "./in_turn.js";

const NODE = "AtelierCurateDataset";
const EVENT = "atelier.gallery";
const WIDGET = "atelier_gallery";
const OWN = "LoraAtelier.Gallery.prompt"; // the newest prompt that this window queued
const RESTORE_AFTER_MS = 50; // nodes get their ids after they were created
const SECOND = 1000;

const sessions = new Map(); // id -> session
const panels = new WeakMap(); // node -> panel
let known = []; // summaries, the newest first
let dialog = null;
let clock = null;

const texts = () => textsFor(app.ui.settings.getSettingValue("Comfy.Locale"));
const newest = () => newestOf(known, (node) => panels.has(node));
const inTurn = inTurnFor("gallery");

/** The node of a gallery in the open graph. */
function nodeOf(id) {
  for (const [node, shown] of newest()) if (shown === id) return node;
  return null;
}

async function load(id, node) {
  const session = new Session(await ask(`/${id}`), savedChoice(node));
  sessions.set(id, session);
  return session;
}

function show(node, session) {
  const panel = panels.get(node);
  const height = panel.minHeight;
  if (panel.session !== session) panel.show(session);
  else panel.refresh();
  if (panel.minHeight !== height) {
    // Not by the difference: a node from a saved graph or another tab has its room already.
    node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
  }
  node.setDirtyCanvas?.(true, true);
}

/** Give every node of the graph its newest gallery. */
async function restore() {
  if (![...allNodes(root())].some((node) => panels.has(node))) return;
  known = await ask("");
  const wanted = newest();
  for (const [node, id] of wanted) {
    const session = sessions.get(id) ?? (await load(id, node));
    session.hear(known.find((summary) => summary.id === id));
    show(node, session);
    openIfOwn(session);
    if (dialog?.session === session) dialog.refresh();
  }
  for (const node of allNodes(root())) {
    if (panels.get(node)?.session && !wanted.has(node)) show(node, null);
  }
  for (const id of sessions.keys()) if (!known.some((one) => one.id === id)) sessions.delete(id);
  runClock();
}

async function follow({ detail: summary }) {
  const isNew = !known.some(({ id }) => id === summary.id);
  if (isNew) known = [summary, ...known];
  else known = known.map((one) => (one.id === summary.id ? summary : one));
  const node = nodeOf(summary.id);
  if (node) {
    const session = sessions.get(summary.id) ?? (await load(summary.id, node));
    session.hear(summary);
    show(node, session);
    if (isNew) openIfOwn(session);
  }
  sessions.get(summary.id)?.hear(summary);
  if (dialog?.session.report.id === summary.id) dialog.refresh();
  runClock();
}

function openIfOwn(session) {
  const isOwn = sessionStorage.getItem(OWN) === session.report.prompt;
  if (session.waiting && isOwn && !dialog) open(session);
}

function open(session) {
  dialog?.close();
  const before = document.activeElement;
  dialog = new GalleryDialog(session, texts(), {
    proceed,
    save,
    cancelRun: async ({ report }) => {
      await api.interrupt(report.prompt);
      dialog?.close();
    },
    obstacle: () => obstacle(nodeOf(session.report.id)),
    closed: () => {
      dialog = null;
      before?.focus?.();
    },
  });
}

/** Send the choice, let the graph go on, and let the node repeat the choice from now on. */
async function proceed(session) {
  const { id } = session.report;
  const choice = session.curation.choice();
  try {
    await sendChoice(id, choice);
  } catch (error) {
    restoreSoon(); // it may have ended meanwhile
    throw error;
  }
  storeChoice(nodeOf(id), choice);
  session.hear({ status: "done", seconds_left: null });
  const node = nodeOf(id);
  if (node) show(node, session);
  dialog?.close();
}

async function save(session) {
  storeChoice(nodeOf(session.report.id), session.curation.choice());
  session.editing = false;
  dialog?.close();
}

/** Count down while something waits. */
function runClock() {
  const waits = [...sessions.values()].some((session) => session.waiting);
  if (waits === (clock !== null)) return;
  if (!waits) {
    clearInterval(clock);
    clock = null;
    return;
  }
  clock = setInterval(() => {
    dialog?.tick();
    for (const node of allNodes(root())) panels.get(node)?.tick();
  }, SECOND);
}

let soon;
function restoreSoon() {
  clearTimeout(soon);
  soon = setTimeout(() => inTurn(restore), RESTORE_AFTER_MS);
}

app.registerExtension({
  name: "LoraAtelier.Gallery",

  setup() {
    api.addEventListener(EVENT, (event) => inTurn(() => follow(event)));
    // Sent only to the window that queued the prompt.
    api.addEventListener("execution_start", ({ detail }) =>
      sessionStorage.setItem(OWN, detail.prompt_id),
    );
    api.addEventListener("reconnected", () => {
      sessions.clear(); // the server may be another one
      restoreSoon();
    });
  },

  afterConfigureGraph: restoreSoon,

  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const panel = new GalleryPanel(texts(), { open, proceed });
    panels.set(node, panel);
    restoreSoon();
    const widget = node.addDOMWidget(WIDGET, WIDGET, panel.element, {
      serialize: false,
      hideOnZoom: false,
      margin: 6,
      getMinHeight: () => panel.minHeight + 12,
      getMaxHeight: () => panel.minHeight + 12,
    });
    widget.serialize = false; // in a saved graph it would stand among the values
    widget.gallery = panel;
    const [width, height] = node.computeSize();
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
    panel.element.addEventListener("wheel", (event) => app.canvas?.processMouseWheel?.(event));
  },
});
