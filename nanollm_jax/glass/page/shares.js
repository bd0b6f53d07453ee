// Who wrote a token: what each head and MLP added to how far its logit was above that of the best other one.
//   const part = shares(story)
//   part.node     part.show(t)     of token t

import { grid } from "./grid.js";
import { element, signed, word } from "./make.js";
import { columns, legend } from "./plot.js";

export function shares(story) {
  const sentence = element("p", { className: "sentence" });
  const drawing = element("div", { className: "plot" });
  const plot = columns(drawing, { label: "What each layer added", unit: "logits" });
  const most = element("ol", { className: "most" });
  const [, L, N] = story.array("shares.heads").shape;
  let found = null, largest = 1;
  const map = grid({
    label: "What each head added, a row for each layer",
    rows: L, columns: N, row: (r) => `${r}`, least: 14, most: 40, highest: 20, left: 24,
    value: (r, c) => (found ? found.heads[r][c] / largest : 0),
    says: (r, c) => (found && r !== null ? `layer ${r}, head ${c}: ${signed(found.heads[r][c])}` : ""),
    onpick: (r, c) => map.pick(r, c),
  });
  const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);

  function show(t) {
    found = story.shares(Math.max(1, t));
    const { text, name } = story.token(Math.max(1, t));
    const layers = found.heads.map(sum);
    const total = sum(layers) + sum(found.mlps) + found.embedding + found.bias + found.rest;
    const times = Math.exp(Math.abs(total));
    const much = times < 10 ? times.toFixed(1) : times < 1000 ? Math.round(times) : "over 1,000";
    sentence.replaceChildren(
      element("b", { textContent: word(text || name) }), ` was ${much} times as ${total < 0 ? "un" : ""}likely as `,
      element("b", { textContent: word(found.against) }), `: its logit is ${signed(total)} from the other's, which is the sum of all of these.`,
    );
    const one = (value, series, title) => ({ value, series, title: `${title}: ${signed(value)}` });
    const groups = found.mlps.map((mlp, l) => ({ label: `${l}`, values: [one(layers[l], "attention", `attention of layer ${l}`), one(mlp, "mlp", `MLP of layer ${l}`)] }));
    const more = [["embed", found.embedding, "embedding"], ["bias", found.bias, "biases"], ["edits", found.rest, "edits and rounding"]];
    const others = more.filter(([, value]) => Math.abs(value) > 0.005).map(([label, value, title]) => ({ label, values: [one(value, "other", title)] }));
    plot([...others, ...groups]);
    largest = Math.max(...found.heads.flat().map(Math.abs), 1e-6);
    map.draw();
    const named = [
      ...found.mlps.map((value, l) => [`MLP of layer ${l}`, value]),
      ...found.heads.flatMap((row, l) => row.map((value, n) => [alone ? `layer ${l}, head ${n}` : `attention of layer ${l}`, value])),
    ].sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
    most.replaceChildren(...named.slice(0, 6).map(([name, value]) => element("li", {}, element("span", { textContent: name }), element("b", { className: value < 0 ? "less" : "more", textContent: signed(value) }))));
  }

  const series = legend([["attention", "attention"], ["mlp", "MLP"], ["other", "everything else"]]);
  const alone = story.head.model.heads === N; // and not all heads of a layer together
  const node = element("div", { className: "shares" }, sentence,
    element("div", { className: "wide" }, drawing, series),
    ...(alone ? [element("div", {}, element("h3", { textContent: "Each head, a row for each layer: blue toward it, orange away" }), map.node)] : []),
    element("div", {}, element("h3", { textContent: "The six that counted most" }), most));
  return { node, show };
}
