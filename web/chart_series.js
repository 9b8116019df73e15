// The lines of a run's chart, and colours in which they can be told apart.

/** The losses share an axis; each of the others has its own, from 0 up. */
export const SERIES = [
  { name: "loss", axis: "loss", kind: "band", shown: true },
  { name: "smoothed", axis: "loss", kind: "line", shown: true },
  { name: "validation", axis: "loss", kind: "points", shown: true },
  { name: "learning_rate", axis: "learning_rate", kind: "line", shown: false },
  { name: "grad_norm", axis: "grad_norm", kind: "line", shown: false },
];

export const OWN_AXES = ["learning_rate", "grad_norm"];

const COLOURS = {
  dark: {
    loss: "#8fb4e0",
    smoothed: "#ff7a85",
    validation: "#f5d76e",
    learning_rate: "#7fd6a4",
    grad_norm: "#c59bf0",
  },
  light: {
    loss: "#2c5f9e",
    smoothed: "#b3122f",
    validation: "#6d4a00",
    learning_rate: "#0c6138",
    grad_norm: "#6a30ad",
  },
};

/** Colours that can be read where the element's text can. */
export function coloursBeside(element) {
  const rgb = getComputedStyle(element).color.match(/[\d.]+/g) ?? [255, 255, 255];
  const [r, g, b] = rgb.map(Number);
  return COLOURS[0.3 * r + 0.59 * g + 0.11 * b > 127 ? "dark" : "light"];
}
