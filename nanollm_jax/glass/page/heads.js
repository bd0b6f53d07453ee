// Where the heads looked: all of them small, one of them large, and what it read when one token was chosen.
//   const part = heads(story, { onpick: (t) => ... })
//   part.node     part.show(t)     the heads of the choice of token t     part.chosen()     [layer, head] that is shown large
// begin: which one that is at first, the first of the middle layer if it is not given. A mouse over the text looks at other choices.
// rows: async (layer) => (head, t) => all weights of the choice of token t; where there is more to be had than the story has.

import { chips } from "./chips.js";
import { grid } from "./grid.js";
import { element, ink, percent, word } from "./make.js";

const SMALL = 48; // pixels of a picture of one head, before it is drawn smaller

/** The whole attention of a head as a picture: queries down, what they read across. */
function picture(story, layer, n) {
  const size = story.size - 1, cells = Math.min(SMALL, size);
  const strength = new Float32Array(cells * cells);
  for (let t = 1; t <= size; t++) {
    const down = Math.floor(((t - 1) * cells) / size) * cells;
    for (const { place, weight } of story.looked(layer, n, t)) {
      const cell = down + Math.floor((place * cells) / size);
      strength[cell] = Math.max(strength[cell], weight);
    }
  }
  const canvas = element("canvas", { width: cells, height: cells });
  const context = canvas.getContext("2d");
  const image = context.createImageData(cells, cells);
  const [red, green, blue] = ink("--cool").match(/[\d.]+/g).map(Number);
  strength.forEach((weight, n) => image.data.set([red, green, blue, 255 * Math.sqrt(weight)], 4 * n));
  context.putImageData(image, 0, 0);
  return canvas;
}

export function heads(story, { onpick, rows, begin = [Math.floor(story.layers.length / 2), 0] }) {
  const { size } = story;
  const title = element("h3");
  const read = chips({ label: "What this head read", onpick, onlook: (t) => look(t || now) });
  let pictures = new Map(), chosen = [0, 0], now = 1;
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => (pictures = new Map()));

  const name = (l, n) => `layer ${story.layers[l]}, head ${n}`;
  const whole = () => story.layers[chosen[0]] === story.head.rows;
  const fetched = new Map(); // of layers, what rows() gave
  const overview = grid({
    label: "All heads, a row for each layer",
    rows: story.layers.length, columns: story.heads, row: (r) => `${story.layers[r]}`,
    least: 40, most: 76, highest: "square", left: 24,
    says: (r, c) => (r === null ? "" : `${name(r, c)}: ${favourite(r, c)}`),
    onpick: (r, c) => choose(r, c),
    paint: (context, r, c, x, y, w, h, colours) => {
      const key = `${r} ${c}`;
      if (!pictures.has(key)) pictures.set(key, picture(story, r, c));
      context.fillStyle = ink("--well");
      context.fillRect(x, y, w - 2, h - 2);
      context.imageSmoothingEnabled = false;
      context.drawImage(pictures.get(key), x + 2, y + 2, w - 6, h - 6);
    },
  });
  let weights = new Map(); // of the head that is shown, by query: { place: weight }
  const large = grid({
    label: "One head: a row for each token that was chosen, a column for each that could be read",
    rows: size - 1, columns: size - 1, row: () => "", least: 2, most: Math.max(2, Math.min(16, Math.floor(400 / size))), highest: "square",
    value: (r, c) => Math.sqrt(weights.get(r)?.[c] ?? 0),
    says: (r, c) => (r === null || c === null ? "" : `choosing ${quoted(r + 1)}, ${percent(weights.get(r)?.[c] ?? 0)} on ${quoted(c)}`),
    onpick: (r) => onpick(r + 1),
  });
  large.node.classList.add("large");

  const quoted = (t) => `“${word(story.head.tokens[t] || story.head.names[t])}”`;

  function favourite(layer, n) {
    const [most] = story.looked(layer, n, now);
    return most ? `choosing ${quoted(now)}, ${percent(most.weight)} on ${quoted(most.place)}` : "nothing that is shown";
  }

  function seen(t) {
    const row = fetched.get(chosen[0])?.(chosen[1], t) ?? (whole() ? story.row(chosen[1], t) : null);
    if (row) return row;
    const found = {};
    for (const { place, weight } of story.looked(...chosen, t)) found[place] = weight;
    return found;
  }

  function look(at) {
    const found = seen(at);
    read.shade(Array.from({ length: size }, (_, t) => Math.sqrt(found[t] ?? 0)));
    title.textContent = `Layer ${story.layers[chosen[0]]}, head ${chosen[1]}, choosing ${quoted(at)}`;
  }

  function mark() {
    look(now);
    read.pick(now);
    large.pick(now - 1, null);
    overview.pick(...chosen);
  }

  async function choose(layer, n) {
    chosen = [layer, n];
    draw();
    if (!rows || fetched.has(layer)) return;
    fetched.set(layer, await rows(story.layers[layer]));
    if (chosen[0] === layer) draw();
  }

  function draw() {
    weights = new Map();
    for (let t = 1; t < size; t++) weights.set(t - 1, seen(t));
    large.draw();
    mark();
  }

  read.show(Array.from({ length: size }, (_, t) => story.token(t)));
  choose(...begin);
  const node = element("div", { className: "heads" }, overview.node, element("div", {}, title, read.node, large.node));
  return {
    node,
    chosen: () => chosen,
    show(t) {
      now = Math.max(1, t);
      mark();
    },
  };
}
