// How the values of a series become lines: pure drawing, with x(step) and y(value) in px.

const FAINT = 0.5;
const THIN = 1.25; // px; of 1 px and less, each piece is blended alone, and many become opaque

/** A faint line, or where points are bins, a band from their smallest to their largest values. */
export function drawBand(pen, steps, { min, max }, x, y, bound) {
  pen.globalAlpha = FAINT;
  if (max.some((value, i) => value !== min[i])) fillColumns(pen, steps, { min, max }, x, y);
  else drawLine(pen, steps, max, x, y, THIN);
  pen.globalAlpha = 1;
  steps.forEach((step, i) => {
    if (max[i] > bound.high) pen.fillRect(x(step) - 1.5, bound.top - 4, 3, 3); // goes on above
  });
}

/** A bar for every bin, or for every px where there are more bins: no spike is lost. */
function fillColumns(pen, steps, { min, max }, x, y) {
  const width = (x(steps[steps.length - 1]) - x(steps[0])) / Math.max(1, steps.length - 1);
  const columns = new Map(); // left edge -> [right edge, highest, lowest]
  steps.forEach((step, i) => {
    if (min[i] === null) return;
    const left = Math.round(x(step) - width / 2);
    const right = Math.max(left + 1, Math.round(x(step) + width / 2));
    const [, high, low] = columns.get(left) ?? [right, Infinity, -Infinity];
    columns.set(left, [right, Math.min(high, y(max[i])), Math.max(low, y(min[i]))]);
  });
  for (const [left, [right, high, low]] of columns) {
    pen.fillRect(left, high, right - left, Math.max(1, low - high));
  }
}

/** A line through values, which may be null. */
export function drawLine(pen, steps, values, x, y, width) {
  pen.lineWidth = width;
  pen.beginPath();
  let drawing = false;
  steps.forEach((step, i) => {
    if (values[i] === null) {
      drawing = false;
      return;
    }
    drawing ? pen.lineTo(x(step), y(values[i])) : pen.moveTo(x(step), y(values[i]));
    drawing = true;
  });
  pen.stroke();
}

/** Few values, each with a dot. */
export function drawPoints(pen, points, x, y) {
  const known = points.filter(([, value]) => value !== null);
  drawLine(pen, known.map(([step]) => step), known.map(([, value]) => value), x, y, 1.5);
  for (const [step, value] of known) drawDot(pen, x(step), y(value));
}

/** A dotted line from side to side. */
export function drawLevel(pen, { left, right }, y) {
  const at = Math.round(y);
  pen.lineWidth = 2;
  pen.setLineDash([2, 4]);
  pen.beginPath();
  pen.moveTo(left, at);
  pen.lineTo(right, at);
  pen.stroke();
  pen.setLineDash([]);
}

export function drawDot(pen, x, y) {
  pen.beginPath();
  pen.arc(x, y, 3, 0, 2 * Math.PI);
  pen.fill();
}

/** A label on the axis of the steps. */
export function drawTag(pen, text, x, top, bounds, ink, ground) {
  const half = pen.measureText(text).width / 2 + 4;
  const middle = Math.min(bounds.right - half, Math.max(bounds.left + half, x));
  pen.fillStyle = ink;
  pen.beginPath();
  pen.roundRect(middle - half, top, 2 * half, 14, 3);
  pen.fill();
  pen.fillStyle = ground;
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.fillText(text, middle, top + 7.5);
}
