// The gallery's look, in the colours of ComfyUI's theme: the dialog, and the panel on the node.

const COLOURS = `
  --line: color-mix(in srgb, var(--fg-color) 18%, transparent);
  --ground: color-mix(in srgb, var(--comfy-input-bg) 92%, var(--fg-color));
  --blue: #2f6fc4; --ring: #4a90e2; --state: #8b95a5;
`;

const STATES = (selector) => `
${selector}[data-status="waiting"] { --state: #e3a008; }
${selector}[data-status="done"] { --state: #4a90e2; }
${selector}[data-status="timed_out"] { --state: #e5534b; }
`;

export const PANEL_STYLE = `
.atelier-gallery-panel {
  ${COLOURS}
  box-sizing: border-box; width: 100%; height: 100%; overflow: hidden;
  display: flex; flex-direction: column; gap: 6px; padding: 7px 8px;
  border: 1px solid var(--line); border-radius: 8px;
  background: var(--comfy-input-bg); color: var(--fg-color);
  font: 11px/1.35 Inter, Arial, sans-serif; user-select: none;
}
.atelier-gallery-panel * { box-sizing: border-box; }
.atelier-gallery-panel [hidden] { display: none !important; }
.atelier-gallery-panel.empty {
  border-style: dashed; background: transparent; padding: 0 8px; justify-content: center;
}
.atelier-gallery-panel.empty > :not(.atelier-hint) { display: none; }
.atelier-gallery-panel:not(.empty) > .atelier-hint { display: none; }
.atelier-gallery-panel .atelier-hint { text-align: center; opacity: 0.55; white-space: nowrap; }
${STATES(".atelier-gallery-panel")}
.atelier-gallery-status {
  font-weight: 600; white-space: nowrap; overflow: hidden; text-overflow: ellipsis;
  font-variant-numeric: tabular-nums;
}
.atelier-gallery-status::before {
  content: ""; display: inline-block; width: 8px; height: 8px; margin-right: 6px;
  border-radius: 50%; background: var(--state);
}
.atelier-gallery-panel[data-status="waiting"] .atelier-gallery-status::before {
  animation: atelier-gallery-pulse 1.6s ease-in-out infinite;
}
@keyframes atelier-gallery-pulse { 50% { opacity: 0.35; } }
@media (prefers-reduced-motion: reduce) {
  .atelier-gallery-status::before { animation: none !important; }
}
.atelier-gallery-strip { display: flex; gap: 4px; height: 42px; overflow: hidden; cursor: pointer; }
.atelier-gallery-strip img {
  flex: none; width: 42px; height: 42px; object-fit: cover; border-radius: 4px;
  background: var(--line);
}
.atelier-gallery-strip img.dropped { opacity: 0.25; filter: grayscale(1); }
.atelier-gallery-row { display: flex; gap: 6px; }
.atelier-gallery-panel button {
  flex: 1; font: inherit; color: inherit; cursor: pointer; white-space: nowrap;
  padding: 3px 9px; border-radius: 6px; border: 1px solid var(--line); background: var(--ground);
}
.atelier-gallery-panel button:hover:not(:disabled) { border-color: var(--fg-color); }
.atelier-gallery-panel button:focus-visible { outline: 2px solid var(--ring); outline-offset: 1px; }
.atelier-gallery-panel button:disabled { opacity: 0.45; cursor: default; }
.atelier-gallery-panel button.atelier-continue {
  background: var(--blue); border-color: var(--blue); color: #fff;
}
`;

const FRAME = `
:host { all: initial; }
* { box-sizing: border-box; }
[hidden] { display: none !important; }
dialog {
  ${COLOURS}
  width: min(1700px, 96vw); height: 94vh; max-width: none; max-height: none; padding: 0;
  border: 1px solid var(--line); border-radius: 12px; overflow: hidden;
  background: var(--comfy-menu-bg); color: var(--fg-color);
  font: 13px/1.4 Inter, Arial, sans-serif; outline: none;
  box-shadow: 0 20px 60px rgb(0 0 0 / 50%); position: fixed;
}
dialog[open] { display: flex; flex-direction: column; }
dialog::backdrop { background: rgb(0 0 0 / 55%); }
header, footer, .bar, .row { display: flex; align-items: center; gap: 8px; }
header, footer { padding: 10px 14px; }
header { border-bottom: 1px solid var(--line); }
footer { border-top: 1px solid var(--line); gap: 10px; }
h1, h2, h3, p { margin: 0; font-size: 13px; font-weight: 600; }
h1 { font-size: 15px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.room { flex: 1; }
.counts { font-weight: 600; font-variant-numeric: tabular-nums; white-space: nowrap; }
.status { white-space: nowrap; font-variant-numeric: tabular-nums; }
.status::before {
  content: ""; display: inline-block; width: 9px; height: 9px; margin-right: 6px;
  border-radius: 50%; background: var(--state);
}
${STATES(".status")}
button, input, select, textarea {
  font: inherit; color: inherit; border: 1px solid var(--line); border-radius: 6px;
  background: var(--ground); padding: 4px 10px; min-width: 0;
}
input, select, textarea { background: var(--comfy-input-bg); }
option { background: var(--comfy-input-bg); color: var(--fg-color); }
button { cursor: pointer; white-space: nowrap; }
button:hover:not(:disabled) { border-color: var(--fg-color); }
button:disabled { opacity: 0.45; cursor: default; }
:focus-visible { outline: 2px solid var(--ring); outline-offset: 1px; }
button.icon { width: 30px; padding: 4px 0; text-align: center; }
button.primary {
  background: var(--blue); border-color: var(--blue); color: #fff; font-weight: 600;
  padding: 7px 16px;
}
.words { flex: 1; min-width: 0; }
.words p { font-weight: 400; }
.words .keys { opacity: 0.6; font-size: 11px; }
.words .failure { color: #e5534b; font-weight: 600; }
.words .failure:empty { display: none; }
`;

const PICTURES = `
.main { flex: 1; min-height: 0; display: flex; }
.left { flex: 1; min-width: 0; display: flex; flex-direction: column; position: relative; }
.bar { padding: 8px 14px; flex-wrap: wrap; }
.bar .find { width: 190px; }
.bar .size { padding: 0; width: 120px; accent-color: var(--ring); }
.bar .shown { opacity: 0.7; font-variant-numeric: tabular-nums; }
.none { position: absolute; inset: 50% 0 auto; text-align: center; opacity: 0.6; }
.grid {
  flex: 1; min-height: 0; overflow-y: auto; overflow-x: hidden; position: relative;
  padding: 0 6px; background: var(--comfy-input-bg); outline-offset: -2px; user-select: none;
  scrollbar-width: thin; overflow-anchor: none;
}
.ground { position: relative; contain: layout size style; }
.cell {
  position: absolute; left: 0; top: 0; contain: layout size style; cursor: pointer;
  border-radius: 8px;
}
.cell .frame {
  position: absolute; inset: 0 0 20px; border-radius: 8px; overflow: hidden;
  background: var(--line); outline: 1px solid var(--line);
}
.cell.grouped .frame { outline: 3px solid var(--group); }
.cell.selected .frame::after {
  content: ""; position: absolute; inset: 0; border-radius: 8px; pointer-events: none;
  box-shadow: inset 0 0 0 4px var(--ring); background: rgb(74 144 226 / 14%);
}
.cell.selected { background: color-mix(in srgb, var(--ring) 45%, transparent); }
.cell.current .frame { outline: 3px solid var(--ring); outline-offset: -1px; }
.cell img { display: block; width: 100%; height: 100%; object-fit: contain; opacity: 0; }
.cell.ready img { opacity: 1; }
.cell.dropped img { opacity: 0.22; filter: grayscale(1); }
.cell.dropped .name { text-decoration: line-through; opacity: 0.6; }
.cell .name {
  position: absolute; inset: auto 3px 0; height: 19px; line-height: 19px; font-size: 11px;
  overflow: hidden; text-overflow: ellipsis; white-space: nowrap; text-align: center;
}
.cell .note, .cell .group, .cell .edited, .cell .open {
  position: absolute; padding: 0 5px; border-radius: 5px; font-size: 11px; line-height: 18px;
  color: #fff; background: rgb(0 0 0 / 72%);
}
.cell .note {
  left: 5px; right: 5px; bottom: 5px; width: fit-content; max-width: calc(100% - 10px);
  overflow-wrap: anywhere;
}
.cell .note:empty, .cell .group:empty { display: none; }
.cell .group { left: 5px; top: 5px; background: var(--group); }
.cell .edited { right: 5px; bottom: 5px; background: var(--blue); }
.cell .open { right: 5px; top: 5px; opacity: 0; }
.cell:hover .open, .cell.current .open { opacity: 1; }
`;

const BESIDE = `
.side {
  flex: none; width: 320px; border-left: 1px solid var(--line); padding: 12px 14px;
  display: flex; flex-direction: column; gap: 9px; overflow-y: auto; scrollbar-width: thin;
}
.side h2 { overflow-wrap: anywhere; }
.side h2:empty, .facts:empty { display: none; }
.side h3 { margin-top: 6px; }
.facts { display: flex; flex-direction: column; gap: 1px; font-size: 12px; opacity: 0.85; }
.field { display: flex; flex-direction: column; gap: 4px; font-size: 12px; }
.field textarea { resize: vertical; min-height: 84px; font-size: 13px; }
.side .row { flex-wrap: wrap; }
.side .row > button { flex: 1; }
.side form input { flex: 1 1 100%; }
.selected-count { flex: 1; white-space: nowrap; }
.tags { display: flex; flex-wrap: wrap; gap: 4px; align-content: flex-start; }
.tags .tag {
  padding: 1px 7px; font-size: 12px; border-radius: 10px; max-width: 100%;
  overflow: hidden; text-overflow: ellipsis;
}
.tags .tag[aria-pressed="true"] { background: var(--blue); border-color: var(--blue); color: #fff; }
.tags .tag b { margin-left: 5px; font-weight: 600; opacity: 0.7; }
.large {
  position: absolute; inset: 0; display: flex; flex-direction: column; gap: 8px;
  padding: 12px 14px; background: #101012; color: #fff;
}
.large button { background: rgb(255 255 255 / 12%); border-color: transparent; color: #fff; }
.large .stage { flex: 1; min-height: 0; display: flex; align-items: center; gap: 12px; }
.large .stage img {
  flex: 1; min-width: 0; width: 100%; height: 100%; object-fit: contain; image-rendering: auto;
}
.large.dropped .stage img { opacity: 0.3; filter: grayscale(1); }
.large .step { font-size: 26px; padding: 14px; }
.large p {
  text-align: center; font-weight: 400; white-space: pre-line; max-height: 20%; overflow-y: auto;
}
.large .state { opacity: 0.8; }
`;

export const STYLE = FRAME + PICTURES + BESIDE;
