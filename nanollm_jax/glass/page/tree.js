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
  let root = null, begun = "", asked = "", stop = null;

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
    const lines = svg("g", {}), words = svg("g", {});
    const picture = svg("svg", { width: column * (DEPTH + 1) + 20, height: leaves.length * HIGH + 4, role: "group", "aria-label": "What could have been said" }, lines, words);
    drawing.append(picture);
    const short = (text) => (text.length > column / 9 ? `${text.slice(0, Math.floor(column / 9) - 1)}…` : text);
    (function paint(branch) {
      const text = svg("text", { x: branch.x, y: branch.y, class: "name" }, short(visible(branch.text)));
      if (branch === root) text.setAttribute("class", "name strong");
      else text.append(svg("tspan", { dx: 6, class: "number" }, percent(branch.probability)));
      const one = svg("g", branch === root ? {} : { class: "leaf", tabindex: 0, role: "button", "aria-label": `go on with ${branch.said}` }, text);
      words.append(one);
      const wide = Math.min(text.getComputedTextLength(), column - 24);
      one.prepend(svg("rect", { x: branch.x - 5, y: branch.y - 10, width: wide + 10, height: 20, rx: 5 }));
      if (branch !== root) {
        const on = () => ongo(begun + branch.said);
        one.onclick = on;
        one.onmouseenter = one.onfocus = () => (says.textContent = `“${word(branch.said)}”: ${percent(branch.total)} in all`);
        one.onkeydown = (event) => {
          if (event.key !== "Enter" && event.key !== " ") return;
          event.preventDefault();
          on();
        };
      }
      for (const child of branch.seen) {
        const from = branch.x + wide + 8, to = child.x - 8, middle = (from + to) / 2;
        lines.append(svg("path", { class: "branch", d: `M${from} ${branch.y}C${middle} ${branch.y} ${middle} ${child.y} ${to} ${child.y}`, "stroke-width": Math.max(1, 11 * Math.sqrt(child.total)).toFixed(1) }));
        paint(child);
      }
    })(root);
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
      drawing.ariaBusy = "true"; // what stands there is of another place
      says.textContent = root ? "Looking ..." : "Looking ... The first time its programs are compiled.";
      try {
        const ids = tokens.slice(0, t + 1).map(({ id }) => id);
        const edits = row && now.begin.edits ? { edits: now.begin.edits, given: now.begin.tokens.length } : {};
        const found = await ask("tree", { prompt: ids, width: WIDTH, depth: DEPTH, ...edits }, stop.signal);
        if (key !== asked) return;
        root = { ...found, text: tokens[t].text };
        begun = tokens.slice(0, t + 1).map(({ text }) => text).join("").replace(/^ /, "");
        says.textContent = `How likely each is behind what is before it${row ? ", with what was changed" : ""}. Pick one, and the text goes on from there.`;
        drawing.ariaBusy = "false";
        again();
      } catch (error) {
        if (error.name !== "AbortError") says.textContent = error.message;
      }
    },
  };
}
