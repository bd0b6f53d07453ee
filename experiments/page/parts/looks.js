// What each head looks at from a token: point at one, or go there by keys.
//   looks({ tokens: [T texts], weights: [L][N][T][those up to it] })

import { chips } from "./chips.js";
import { element, word } from "./make.js";

const NAMED = 3; // places that are said in words

export function looks({ tokens, weights }) {
  const text = chips({ label: "The text, token by token", onpick: look });
  const sentence = element("p", { className: "says", ariaLive: "polite" });
  const board = element("div", { className: "heads-board", role: "group", ariaLabel: "All heads, a row for each layer" });
  board.style.gridTemplateColumns = `auto repeat(${weights[0].length}, minmax(0, 1fr))`;
  let now = tokens.findLastIndex((one) => /\p{L}/u.test(one)), chosen = [0, 0];
  const share = (weight) => `${Math.round(100 * weight)} %`;
  const largest = (row) => row.map((weight, place) => ({ weight, place })).sort((a, b) => b.weight - a.weight);

  const buttons = weights.flatMap((heads, layer) => {
    board.append(element("span", { textContent: layer, title: `layer ${layer}` }));
    return heads.map((rows, head) => {
      const one = element("button", { type: "button", onclick: () => ((chosen = [layer, head]), show()) });
      board.append(one);
      return { one, layer, head, rows };
    });
  });

  function look(t) {
    now = t;
    text.pick(t);
    show();
  }

  function show() {
    for (const { one, layer, head, rows } of buttons) {
      const [{ weight, place }] = largest(rows[now]);
      one.replaceChildren(element("b", { textContent: word(tokens[place]) }), element("small", { textContent: share(weight) }));
      one.ariaLabel = `layer ${layer}, head ${head}: ${share(weight)} on ${word(tokens[place])}`;
      one.ariaPressed = String(layer === chosen[0] && head === chosen[1]);
      one.style.setProperty("--heat", weight);
      Object.assign(one.dataset, { place, weight });
    }
    const row = weights[chosen[0]][chosen[1]][now];
    text.shade(tokens.map((_, place) => Math.sqrt(row[place] ?? 0)));
    const named = largest(row).slice(0, NAMED).filter(({ weight }) => weight >= 0.01);
    sentence.textContent = `Layer ${chosen[0]}, head ${chosen[1]}, from “${word(tokens[now])}”: ${named.map(({ weight, place }) => `${share(weight)} on “${word(tokens[place])}”${place === now ? ", itself" : ""}`).join("; ")}.`;
  }

  text.show(tokens.map((one) => ({ text: one, surprise: 0 })));
  for (const kind of ["pointerover", "focusin"]) {
    text.node.addEventListener(kind, (event) => {
      const t = event.target.closest(".chip")?.dataset.t;
      if (t !== undefined && Number(t) !== now) look(Number(t));
    });
  }
  look(now);
  return element("div", { className: "looks" }, text.node, sentence, board);
}
