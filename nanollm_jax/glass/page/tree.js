// What could have been said behind a token, as a tree: the likelier, the wider its branch.
//   const part = treeView({ ask, ongo: (text) => ... })      ongo: somebody picks a branch, and the text goes on from there
//   part.node     part.show(now, { row, t })

import { element, fitted, percent, svg, visible, word } from "./make.js";

const WIDTH = 3, DEPTH = 4;
const LEAST = 0.004; // in all: what is less likely is not drawn
const HIGH = 24;

export function treeView({ ask, ongo }) {
  const drawing = element("div", { className: "plot tree" });
  const says = element("p", { className: "says", ariaLive: "polite" });
  const node = element("div", {}, drawing, says);
  let root = null, text = "", asked = "", stop = null;

  const again = fitted(drawing, (width) => {
    drawing.replaceChildren();
    if (!root) return;
    const column = Math.max(112, Math.min(190, (width - 40) / (DEPTH + 1)));
    const leaves = [];
    (function place(branch, depth, said) {
      branch.x = depth * column;
      branch.said = said;
      branch.seen = branch.children.filter(({ total }) => total >= LEAST);
      if (!branch.seen.length) branch.y = HIGH * (leaves.push(branch) - 0.5);
      else {
        for (const child of branch.seen) place(child, depth + 1, said + child.text);
        branch.y = (branch.seen[0].y + branch.seen.at(-1).y) / 2;
      }
    })(root, 0, "");
    const picture = svg("svg", { width: column * (DEPTH + 1) + 20, height: leaves.length * HIGH + 4, role: "group", "aria-label": "What could have been said" });
    const lines = svg("g", {}), words = svg("g", {});
    (function paint(branch) {
      for (const child of branch.seen) {
        const from = branch.x + column - 14, to = child.x - 4, middle = (from + to) / 2;
        lines.append(svg("path", { class: "branch", d: `M${from} ${branch.y}C${middle} ${branch.y} ${middle} ${child.y} ${to} ${child.y}`, "stroke-width": Math.max(1, 11 * Math.sqrt(child.total)).toFixed(1) }));
        const label = visible(child.text), room = column < 130 ? 9 : 14;
        const one = svg("g", { class: "leaf", tabindex: 0, role: "button", "aria-label": `go on with ${child.said}` },
          svg("rect", { x: child.x - 4, y: child.y - 10, width: column - 10, height: 20, rx: 5 }),
          svg("text", { x: child.x, y: child.y, class: "name" }, label.length > room ? `${label.slice(0, room - 1)}…` : label),
          svg("text", { x: child.x + column - 20, y: child.y, class: "number", "text-anchor": "end" }, percent(child.probability)));
        const tell = () => (says.textContent = `“${word(child.said)}”: ${percent(child.total)} in all`);
        one.onclick = () => ongo(text + child.said);
        one.onmouseenter = one.onfocus = tell;
        one.onkeydown = (event) => {
          if (event.key !== "Enter" && event.key !== " ") return;
          event.preventDefault();
          ongo(text + child.said);
        };
        words.append(one);
        paint(child);
      }
    })(root);
    picture.append(lines, svg("text", { x: 0, y: root.y, class: "name strong" }, visible(root.text).slice(0, 14)), words);
    drawing.append(picture);
  });

  return {
    node,
    async show(now, { row, t }) {
      const tokens = now.rows[row].tokens;
      const key = `${now.id} ${row} ${t}`;
      if (key === asked) return again();
      asked = key;
      stop?.abort();
      stop = new AbortController();
      says.textContent = "Looking ...";
      try {
        const ids = tokens.slice(0, t + 1).map(({ id }) => id);
        const found = await ask("tree", { prompt: ids, width: WIDTH, depth: DEPTH }, stop.signal);
        if (key !== asked) return;
        root = { ...found, text: tokens[t].text };
        text = tokens.slice(0, t + 1).map(({ text }) => text).join("").replace(/^ /, "");
        says.textContent = "How likely each is behind what is before it. Pick one, and the text goes on from there.";
        again();
      } catch (error) {
        if (error.name !== "AbortError") says.textContent = error.message;
      }
    },
  };
}
