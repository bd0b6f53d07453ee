// Weights of a row in few bits, and what the whole model says to it.
//   bits({ weights: [I], models: [{ bits, group, bytes, perplexity }], exact: { bytes, perplexity } })   group 0: a scale for all of a row

import { slider } from "./controls.js";
import { element, fitted, size, svg } from "./make.js";

const DRAWN = 48; // weights
const TALL = 220, MARGIN = 6;
const MOST_LEVELS = 31; // more lines than these are a grey field

/** As quantise() of the chapter: {whole numbers, the scale of each weight}. */
function rounded(weights, bits, group) {
  const most = 2 ** (bits - 1) - 1, width = group || weights.length, scales = [];
  for (let at = 0; at < weights.length; at += width) {
    const scale = Math.max(...weights.slice(at, at + width).map(Math.abs)) / most || 1;
    for (let n = at; n < at + width; n++) scales.push(scale);
  }
  return { q: weights.map((weight, n) => Math.max(-most, Math.min(most, Math.round(weight / scales[n])))), scales, most };
}

export function bits({ weights, models, exact }) {
  const sorted = (values) => [...new Set(values)].sort((a, b) => a - b);
  const groups = sorted(models.map(({ group }) => group || Infinity)).map((group) => (group === Infinity ? 0 : group));
  const shared = (group) => (group ? `${group} weights` : "a row");
  const width = slider({ label: "bits", values: sorted(models.map(({ bits }) => bits)), at: 1, say: String, onmove: show });
  const alike = slider({ label: "a scale for", values: groups, at: groups.length - 1, say: shared, onmove: show });
  const sentence = element("p", { className: "says", ariaLive: "polite" }), plot = element("div", { className: "plot" });
  const node = element("div", { className: "bits" }, element("div", { className: "sliders" }, width.node, alike.node), plot, sentence,
    element("p", { className: "quiet", textContent: `The first ${DRAWN} weights of a row. Grey: the weight. Orange: what it is rounded to. Lines: all it can be rounded to, where they are few.` }));
  const square = (numbers) => numbers.reduce((sum, number) => sum + number * number, 0);
  let kept = null;

  const again = fitted(plot, (wide) => {
    const { q, scales, most } = kept, shown = weights.slice(0, DRAWN), group = alike.value() || DRAWN;
    const top = Math.max(...weights.map(Math.abs)), step = (wide - 2 * MARGIN) / DRAWN;
    const x = (n) => MARGIN + step * (n + 0.5), y = (value) => TALL / 2 - ((TALL / 2 - MARGIN) * value) / top;
    const drawing = svg("svg", { width: wide, height: TALL, role: "img", "aria-label": sentence.textContent });
    for (let at = 0; at < DRAWN; at += group)
      for (let level = -most; level <= most && 2 * most + 1 <= MOST_LEVELS; level++)
        drawing.append(svg("line", { class: "rule", x1: MARGIN + step * at, x2: MARGIN + step * Math.min(DRAWN, at + group) - 2, y1: y(level * scales[at]), y2: y(level * scales[at]) }));
    shown.forEach((weight, n) => drawing.append(
      svg("line", { class: "mark", x1: x(n), x2: x(n), y1: y(weight), y2: y(q[n] * scales[n]) }),
      svg("circle", { class: "weight", cx: x(n), cy: y(weight), r: 2.5 }),
      svg("circle", { class: "mark", cx: x(n), cy: y(q[n] * scales[n]), r: 2.5 }),
    ));
    plot.replaceChildren(drawing);
  });

  function show() {
    const [b, group] = [width.value(), alike.value()], model = models.find((one) => one.bits === b && one.group === group);
    kept = rounded(weights, b, group);
    const lost = Math.sqrt(square(weights.map((weight, n) => weight - kept.q[n] * kept.scales[n])) / square(weights));
    Object.assign(node.dataset, { lost, whole: kept.q.join(" "), perplexity: model.perplexity });
    const each = b + 32 / (group || weights.length), zeros = kept.q.filter((one) => one === 0).length / kept.q.length;
    sentence.textContent = `${b} bits and a scale for ${group ? `each ${group} weights` : "the row"}: ${Number(each.toFixed(2))} bits a weight with the scale. Of this row ${(100 * lost).toFixed(1)}% is lost (root mean square), and ${Math.round(100 * zeros)}% of it is 0. All matrices like this: ${size(model.bytes)} in place of ${size(exact.bytes)}, perplexity ${Number(model.perplexity.toPrecision(3)).toLocaleString("en")} in place of ${exact.perplexity.toPrecision(3)}.`;
    again();
  }

  show();
  return node;
}
