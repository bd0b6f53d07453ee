// The texts side by side while they are written: plain, and with what was changed; and what else each token could have been.
//   const part = texts({ onpick: (row, t) => ... })
//   part.node     part.begin(rows, edits)     part.grow(rows, row)     part.pick(rows, row, t)
// rows are [{ tokens: [{ text, name, surprise, chance, given, tops }] }]; tops [[word, chance, id]] or null.

import { chips } from "./chips.js";
import { element, percent, visible } from "./make.js";
import { bars } from "./plot.js";

const NAMES = ["Plain", "Changed"];

/** Where the changed text leaves the plain one, -1 for nowhere. */
export function forked(rows) {
  if (rows.length < 2) return -1;
  const [plain, changed] = rows.map(({ tokens }) => tokens);
  return changed.findIndex((token, t) => t < plain.length && token.text !== plain[t].text);
}

/** What was changed, in words. */
function inWords(edits) {
  const found = [];
  if (edits?.heads.length) found.push(`without ${edits.heads.length === 1 ? "head" : "heads"} ${edits.heads.map(([layer, head]) => `${layer}.${head}`).join(", ")}`);
  if (edits?.steer) found.push(`${edits.steer.strength} × (“${edits.steer.toward}” − “${edits.steer.away}”) behind layer ${edits.steer.layer}`);
  if (edits?.patch) found.push(`token ${edits.patch.position + 1} behind layer ${edits.patch.layer} as in “${edits.patch.text}”`);
  if (edits?.adapter) found.push(`with the adapter ${edits.adapter}`);
  return found.join(", ");
}

export function texts({ onpick }) {
  const pair = element("div", { className: "pair" });
  const word = element("p", { className: "picked" });
  const list = element("div", { className: "plot" });
  const plot = bars(list, { label: "The likeliest tokens in its place" });
  const key = element("p", { className: "legend" }, element("span", {}, element("i", { className: "scale" }), "expected to surprising"), element("span", { className: "given", textContent: "the prompt" }));
  const node = element("div", { className: "text" }, element("div", {}, pair, key), element("aside", {}, word, list));
  let columns = [];

  function fork(rows) {
    if (rows.length < 2) return;
    const t = forked(rows);
    for (const [n, chip] of [...columns[1].text.node.children].entries()) chip.classList.toggle("fork", n === t);
    columns[1].says.textContent = t < 0 ? "the same until here" : `another text from token ${t + 1} on`;
  }

  return {
    node,
    begin(rows, edits) {
      columns = rows.map((_, row) => {
        const text = chips({ label: `${NAMES[row]} text, a chip for each token`, onpick: (t) => onpick(row, t) });
        const says = element("span", { className: "quiet" });
        const head = [element("h3", {}, NAMES[row], " ", says), element("p", { className: "quiet", textContent: row ? inWords(edits) : "as it is, with the same seed" })];
        const box = element("article", {}, ...(rows.length > 1 ? head : []), text.node);
        return { text, says, box };
      });
      pair.classList.toggle("two", rows.length > 1);
      pair.replaceChildren(...columns.map(({ box }) => box));
      rows.forEach(({ tokens }, row) => columns[row].text.show(tokens));
      word.replaceChildren();
      plot([]);
      fork(rows);
    },
    grow(rows, row) {
      const { text } = columns[row], { tokens } = rows[row];
      for (const token of tokens.slice(text.node.children.length)) text.add(token);
      fork(rows);
    },
    pick(rows, row, t) {
      columns.forEach(({ text }, n) => text.pick(n === row ? t : -1));
      const token = rows[row].tokens[t];
      const said = element("b", { textContent: visible(token.text || token.name) });
      const how = t === 0 ? " is the first token: nothing came before it." : token.given ? (token.surprise >= 0 ? ` was given; the model gave it ${percent(Math.exp(-token.surprise))}.` : " was given.") : ` was drawn with ${percent(Math.exp(-token.surprise))}.`;
      word.replaceChildren(said, how);
      const found = (token.tops ?? []).map(([said, chance, id]) => ({ label: visible(said), value: chance, said: percent(chance), strong: id === token.id }));
      if (token.tops && !found.some(({ strong }) => strong)) found.push({ label: visible(token.text || token.name), value: Math.exp(-token.surprise), said: percent(Math.exp(-token.surprise)), strong: true });
      plot(found);
    },
  };
}
