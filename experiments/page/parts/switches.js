// What the model would say after each layer, with a head switched off.
//   switches({ tokens: [T texts], words: {id: text}, layers, heads, runs: [{ off: [[layer, head]], ids: [L][T][k], chances: [L][T][k] }] })
// The first run has all heads; those with several off have buttons of their own.

import { element, percent, visible, word } from "./make.js";
import { grid } from "./grid.js";

export function switches({ tokens, words, layers, heads, runs }) {
  let run = runs[0], at = { r: 0, c: tokens.length - 1 };
  const key = (off) => off.map(([layer, head]) => `${layer}.${head}`).join(" and ");
  const name = (r) => `layer ${layers - 1 - r}`;
  const best = (one, r, c) => one.ids[layers - 1 - r][c].map((id, n) => ({ text: words[id], id, chance: one.chances[layers - 1 - r][c][n] }));
  const found = (said) => said.map(({ text, chance }) => `“${word(text)}” ${percent(chance)}`).join(", ");

  function says(r, c) {
    if (r === null || c === null) return "";
    const [here, plain] = [best(run, r, c), best(runs[0], r, c)];
    return `Behind ${name(r)}, after “${word(tokens[c])}”: ${found(here)}${run === runs[0] ? "" : `. With all heads: ${found(plain)}`}.`;
  }

  const map = grid({
    label: "What would be said after each layer", rows: layers, columns: tokens.length, row: name, column: (c) => visible(tokens[c]),
    value: (r, c) => (best(run, r, c)[0].id === best(runs[0], r, c)[0].id ? 1 : -1) * best(run, r, c)[0].chance,
    text: (r, c) => visible(best(run, r, c)[0].text), says, onpick: (r, c) => pick(r, c), least: 62, most: 90, highest: 26, left: 56, below: 24,
  });
  function pick(r, c) {
    at = { r, c };
    map.pick(r, c);
  }

  const board = element("div", { className: "heads-board", role: "group", ariaLabel: "Heads, a row for each layer; pressed is off" });
  board.style.gridTemplateColumns = `auto repeat(${heads}, minmax(0, 1fr))`;
  const buttons = [];
  function button(one, label) {
    const made = element("button", { type: "button", textContent: label, onclick: () => show(run === one ? runs[0] : one) });
    buttons.push({ made, one });
    return made;
  }
  for (let layer = layers - 1; layer >= 0; layer--) {
    board.append(element("span", { textContent: layer, title: `layer ${layer}` }));
    for (let head = 0; head < heads; head++) {
      const one = runs.find(({ off }) => off.length === 1 && off[0][0] === layer && off[0][1] === head);
      const made = button(one, `${layer}.${head}`);
      made.ariaLabel = `switch off layer ${layer}, head ${head}`;
      board.append(made);
    }
  }
  const several = runs.filter(({ off }) => off.length > 1).map((one) => button(one, `both ${key(one.off)}`));

  function show(one) {
    run = one;
    for (const { made, one } of buttons) made.ariaPressed = String(one === run);
    title.textContent = run.off.length ? `without ${key(run.off)}; orange: another word than with all heads` : "with all heads";
    pick(at.r, at.c);
  }

  const title = element("h4");
  show(runs[0]);
  return element("div", { className: "switches" },
    element("div", {}, element("h4", { textContent: "heads (layer.head): press one, and it is off" }), board, element("div", { className: "buttons" }, ...several)),
    element("div", {}, title, map.node));
}
