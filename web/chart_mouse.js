// What the mouse does on a chart: pointing reads values, dragging zooms, a double click resets.

const MIN_DRAG = 5; // px; less is a click

/** Let a chart follow the mouse on its canvas. */
export function listen(chart) {
  const { canvas } = chart;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !chart.box) return;
    canvas.setPointerCapture(event.pointerId);
    const at = place(chart, event);
    chart.drag = [at, at];
    event.stopPropagation(); // or the graph is dragged
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!chart.box) return;
    const at = place(chart, event);
    if (chart.drag) chart.drag[1] = at;
    point(chart, nearest(chart.points.step, chart.stepAt(at)));
  });
  canvas.addEventListener("pointerup", () => drop(chart));
  canvas.addEventListener("pointercancel", () => letGo(chart));
  canvas.addEventListener("pointerleave", () => chart.drag || point(chart, null));
  canvas.addEventListener("dblclick", (event) => {
    event.stopPropagation();
    chart.zoom = null;
    chart.redraw();
  });
}

/** Where the mouse is between the axes, in the canvas's own px: the graph stretches them. */
function place({ canvas, box }, event) {
  const frame = canvas.getBoundingClientRect();
  const x = ((event.clientX - frame.left) * canvas.clientWidth) / frame.width;
  return Math.min(box.right, Math.max(box.left, x));
}

/** The number of the step nearest to one that is wanted; null when there is none. */
function nearest(steps, wanted) {
  if (!steps.length) return null;
  let [low, high] = [0, steps.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    steps[middle] < wanted ? (low = middle) : (high = middle);
  }
  return Math.abs(steps[low] - wanted) <= Math.abs(steps[high] - wanted) ? low : high;
}

function point(chart, at) {
  chart.hover = at;
  chart.onHover();
  chart.redraw();
}

function drop(chart) {
  if (!chart.drag) return;
  const [from, to] = [...chart.drag].sort((a, b) => a - b);
  if (to - from >= MIN_DRAG) {
    const zoom = [from, to].map((at) => Math.round(chart.stepAt(at)));
    if (zoom[1] > zoom[0]) chart.zoom = zoom;
  }
  letGo(chart);
}

function letGo(chart) {
  chart.drag = null;
  chart.redraw();
}
