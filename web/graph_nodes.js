// Nodes of the open graph by the ids that the server uses, subgraphs included.

import { app } from "../../scripts/app.js";

export const root = () => app.rootGraph ?? app.graph;

/** The node with an id such as "12:7": node 7 in the graph of the subgraph node 12. */
export function findNode(path) {
  let graph = root();
  const ids = String(path).split(":");
  const last = ids.pop();
  for (const id of ids) graph = graph?.getNodeById(id)?.subgraph;
  return graph?.getNodeById(last) ?? null;
}

export function* allNodes(graph) {
  for (const node of graph?._nodes ?? []) {
    yield node;
    if (node.subgraph) yield* allNodes(node.subgraph);
  }
}

/**
 * Node -> id of the newest thing the server knows of it, among the nodes of the open graph.
 *
 * @param known [{id, node, workflow}], the newest first.
 * @param isWanted whether a node takes part.
 */
export function newestOf(known, isWanted) {
  const found = new Map();
  for (const { id, node, workflow } of known) {
    if (workflow && workflow !== root()?.id) continue; // of another graph
    const target = findNode(node);
    if (target && isWanted(target) && !found.has(target)) found.set(target, id);
  }
  return found;
}
