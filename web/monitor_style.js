// The monitor's look, in the colours of ComfyUI's theme.

import { addStyle } from "./elements.js";

const STYLE = `
.atelier-monitor {
  --line: color-mix(in srgb, var(--fg-color) 18%, transparent);
  --ground: color-mix(in srgb, var(--comfy-input-bg) 92%, var(--fg-color));
  box-sizing: border-box; width: 100%; height: 100%; overflow: hidden;
  display: flex; flex-direction: column; gap: 5px; padding: 7px 8px;
  border: 1px solid var(--line); border-radius: 8px;
  background: var(--comfy-input-bg); color: var(--fg-color);
  font: 11px/1.35 Inter, Arial, sans-serif; user-select: none;
}
.atelier-monitor * { box-sizing: border-box; }
.atelier-monitor [hidden] { display: none !important; }
.atelier-monitor.empty {
  border-style: dashed; background: transparent; padding: 0 8px; justify-content: center;
}
.atelier-monitor.empty > :not(.atelier-hint) { display: none; }
.atelier-monitor:not(.empty) > .atelier-hint { display: none; }
.atelier-hint { text-align: center; opacity: 0.55; white-space: nowrap; }
.atelier-head { display: flex; align-items: center; gap: 6px; min-height: 22px; }
.atelier-status { font-weight: 600; font-size: 12px; white-space: nowrap; }
.atelier-status::before {
  content: ""; display: inline-block; width: 8px; height: 8px; margin-right: 6px;
  border-radius: 50%; background: var(--state);
}
.atelier-monitor { --state: #8b95a5; }
.atelier-monitor[data-status="running"] { --state: #3fb950; }
.atelier-monitor[data-status="paused"] { --state: #e3a008; }
.atelier-monitor[data-status="finished"] { --state: #4a90e2; }
.atelier-monitor[data-status="failed"] { --state: #e5534b; }
.atelier-monitor[data-status="running"] .atelier-status::before {
  animation: atelier-pulse 1.6s ease-in-out infinite;
}
@keyframes atelier-pulse { 50% { opacity: 0.35; } }
@media (prefers-reduced-motion: reduce) { .atelier-status::before { animation: none !important; } }
.atelier-room { flex: 1; }
.atelier-monitor button {
  font: inherit; color: inherit; cursor: pointer; white-space: nowrap;
  padding: 2px 9px; border-radius: 6px; border: 1px solid var(--line); background: var(--ground);
}
.atelier-monitor button:hover:not(:disabled) { border-color: var(--fg-color); }
.atelier-monitor button:focus-visible { outline: 2px solid #4a90e2; outline-offset: 1px; }
.atelier-monitor button:disabled { opacity: 0.45; cursor: default; }
.atelier-monitor button.atelier-finish { background: #2f6fc4; border-color: #2f6fc4; color: #fff; }
.atelier-bar { flex: none; height: 3px; border-radius: 2px; background: var(--line); }
.atelier-bar > i {
  display: block; height: 100%; width: 0; border-radius: 2px; background: var(--state);
  transition: width 0.2s linear;
}
.atelier-figures { display: flex; flex-wrap: wrap; gap: 0 10px; opacity: 0.85; }
.atelier-figures > span, .atelier-legend b { font-variant-numeric: tabular-nums; }
.atelier-legend { display: flex; flex-wrap: wrap; gap: 3px 4px; align-items: center; }
.atelier-monitor .atelier-legend button {
  display: flex; align-items: center; gap: 5px; padding: 1px 6px; border-color: transparent;
  background: none;
}
.atelier-monitor .atelier-legend button[aria-pressed="false"] { opacity: 0.5; }
.atelier-monitor .atelier-legend button[aria-pressed="false"] i { background: transparent; }
.atelier-monitor .atelier-legend button.atelier-log { border-color: var(--line); }
.atelier-monitor .atelier-legend button.atelier-log[aria-pressed="true"] {
  background: var(--ground); border-color: var(--fg-color);
}
.atelier-legend i {
  width: 9px; height: 9px; border-radius: 3px; border: 1.5px solid var(--of);
  background: var(--of);
}
.atelier-legend b { font-weight: 600; }
.atelier-plot { flex: 1 1 110px; min-height: 90px; position: relative; }
.atelier-plot canvas {
  position: absolute; inset: 0; width: 100%; height: 100%; cursor: crosshair; touch-action: none;
  background: var(--comfy-input-bg);
}
.atelier-messages { flex: none; max-height: 60px; overflow-y: auto; user-select: text; }
.atelier-messages:empty, .atelier-strip:empty { display: none; }
.atelier-messages p { margin: 0; padding-left: 7px; border-left: 2px solid var(--line); }
.atelier-messages p.warning { border-color: #e3a008; }
.atelier-messages p.error { border-color: #e5534b; }
.atelier-strip {
  flex: none; display: flex; gap: 5px; overflow-x: auto; padding-bottom: 2px;
  scrollbar-width: thin;
}
.atelier-monitor .atelier-strip button {
  flex: none; position: relative; padding: 0; height: 64px; min-width: 40px; overflow: hidden;
}
.atelier-strip img { display: block; height: 100%; width: auto; }
.atelier-strip span {
  position: absolute; left: 3px; bottom: 3px; padding: 0 4px; font-size: 9px;
  border-radius: 4px; color: #fff; background: rgb(0 0 0 / 70%);
}
.atelier-lightbox {
  position: fixed; inset: 0; z-index: 3000; display: flex; flex-direction: column; gap: 10px;
  align-items: center; justify-content: center; background: rgb(0 0 0 / 82%);
  cursor: zoom-out; outline: none;
}
.atelier-lightbox img {
  max-width: 92vw; max-height: 86vh; min-width: min(512px, 80vw); object-fit: contain;
  border-radius: 6px;
}
.atelier-lightbox p { margin: 0; color: #fff; font: 14px Inter, Arial, sans-serif; }
`;

export const addMonitorStyle = () => addStyle("atelier-monitor-style", STYLE);
