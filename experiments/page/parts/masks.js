// What one head reads, over the text and as a map with the words on its axes; with a window, what is left to it.
//   masks({ tokens: [T texts], weights: [L][N][T][those up to it], costs: [L][N], null where not measured, group: heads that share keys })

import { chips } from "./chips.js";
import { slider } from "./controls.js";
import { grid } from "./grid.js";
import { element, percent, signed, visible, word } from "./make.js";

export function masks({ tokens, weights, costs, group }) {
  const T = tokens.length, N = weights[0].length;
  const most = Math.max(...costs.flat());
  const text = chips({ label: "The text, token by token", onpick: (t) => show(chosen, t) });
  const sentence = element("p", { className: "says", ariaLive: "polite" });
  const board = element("div", { className: "heads-board", role: "group", ariaLabel: "All heads, a row for each layer" });
  board.style.gridTemplateColumns = `auto repeat(${N}, minmax(0, 1fr))`;
  const sees = slider({ label: "window", values: tokens.map((_, n) => n + 1), at: T - 1, say: (n) => (n === T ? "off" : String(n)), onmove: () => show(chosen, now) });
  let chosen = [0, 0], now = T - 1;

  /** The softmax of the scores that the window leaves: the same powers, divided by their own sum. */
  function row(t) {
    const left = weights[chosen[0]][chosen[1]][t].map((weight, place) => (place > t - sees.value() ? weight : 0));
    const sum = left.reduce((one, other) => one + other, 0);
    return left.map((weight) => weight / sum);
  }

  const map = grid({
    label: "This head: a row for each token that reads, a column for each that is read",
    rows: T, columns: T, row: (r) => visible(tokens[r]), column: (c) => visible(tokens[c]),
    least: 11, most: 22, highest: "square", left: 58, below: 20,
    value: (r, c) => (c > r ? 0 : Math.sqrt(row(r)[c])),
    says: (r, c) => (r === null || c === null ? "" : c > r ? `“${word(tokens[r])}” does not see “${word(tokens[c])}”, which comes later` :
      `from “${word(tokens[r])}”, ${percent(row(r)[c])} on “${word(tokens[c])}”${c === r ? ", itself" : ""}`),
    onpick: (r, c) => show(chosen, r, c),
  });

  const buttons = weights.flatMap((heads, layer) => {
    board.append(element("span", { textContent: layer, title: `layer ${layer}` }));
    return heads.map((_, head) => {
      const cost = costs[layer][head];
      const one = element("button", { type: "button", textContent: cost === null ? "–" : signed(cost), ariaLabel: `layer ${layer}, head ${head}` });
      one.onclick = one.onfocus = () => show([layer, head], now);
      one.onpointerenter = (event) => event.pointerType === "mouse" && show([layer, head], now);
      one.style.setProperty("--heat", most > 0 ? Math.max(0, cost / most) : 0);
      board.append(one);
      return { one, layer, head };
    });
  });

  function show(head, t, place) {
    [chosen, now] = [head, t];
    const [layer, n] = chosen, cost = costs[layer][n], begins = n - (n % group);
    const others = Array.from({ length: group }, (_, at) => begins + at).filter((other) => other !== n);
    for (const { one, layer: l, head: h } of buttons) one.ariaPressed = String(l === layer && h === n);
    const weights = row(t);
    text.shade(tokens.map((_, place) => Math.sqrt(weights[place] ?? 0)));
    text.pick(t);
    sentence.textContent = `Layer ${layer}, head ${n}, from “${word(tokens[t])}”.` +
      (others.length ? ` It has its keys and values together with head ${others.join(" and ")}.` : "") +
      (cost === null ? "" : ` Without it the surprise at the story ${cost < 0 ? "falls" : "grows"} by ${Math.abs(cost).toFixed(2)}.`);
    map.pick(t, place ?? weights.indexOf(Math.max(...weights)));
  }

  text.show(tokens.map((one) => ({ text: one, surprise: 0 })));
  text.node.addEventListener("pointerover", (event) => {
    const t = event.target.closest(".chip")?.dataset.t;
    if (event.pointerType === "mouse" && t !== undefined) show(chosen, Number(t));
  });
  show(chosen, now);
  return element("div", { className: "masks" }, text.node, sees.node,
    element("div", { className: "sides" }, element("div", {}, element("h4", { textContent: "heads, a row for each layer: what the story loses without it" }), board),
      element("div", {}, element("h4", { textContent: "a row for each word that reads, a column for each that is read" }), map.node)), sentence);
}
