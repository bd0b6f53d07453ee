// A step of decode under the roofline, with the rates that the chapter measured or others.
//   roofline({ bandwidth, peak, models: [{ name, once, own, flops, length }] })
// bytes/s and FLOP/s; once: numbers that a step reads whatever the rows, own: those of each row, flops: of each row.
// Keys and values are kept in 16 bits where weights have fewer.

import { choice, slider } from "./controls.js";
import { element, fitted, size, svg } from "./make.js";

const LOW = -1, HIGH = 3; // powers of ten of FLOPs for each byte
const HEIGHT = 230, LEFT = 82, FOOT = 40, ROOM = 6;
const KEPT = 16; // bits

const rate = (number, unit) => {
  const step = Math.max(0, Math.min(4, Math.floor(Math.log10(number) / 3)));
  return `${Number((number / 1000 ** step).toPrecision(3))} ${["", "k", "M", "G", "T"][step]}${unit}`;
};

const duration = (seconds) => (seconds < 1 ? `${Number((1e3 * seconds).toPrecision(3))} ms` : `${Number(seconds.toPrecision(3))} s`);

/** Round numbers around one that was measured, and that one. */
function around(measured) {
  const power = Math.floor(Math.log10(measured)), found = [measured];
  for (let e = power - 1; e <= power + 3; e++) for (const n of [1, 2, 5]) found.push(n * 10 ** e);
  return found.sort((a, b) => a - b);
}

export function roofline({ bandwidth, peak, models }) {
  let model = models[0];
  const measured = (value, one, unit) => `${rate(value, unit)}${value === one ? " *" : ""}`;
  const rows = slider({ label: "rows", values: [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024], at: 0, say: String, onmove: show });
  const bits = slider({ label: "bits per weight", values: [4, 8, 16, 32], at: 3, say: String, onmove: show });
  const read = slider({ label: "bandwidth", values: around(bandwidth), at: around(bandwidth).indexOf(bandwidth), say: (one) => measured(one, bandwidth, "B/s"), onmove: show });
  const work = slider({ label: "peak", values: around(peak), at: around(peak).indexOf(peak), say: (one) => measured(one, peak, "FLOP/s"), onmove: show });
  const which = choice({ label: "model", names: models.map(({ name }) => name), onpick: (n) => ((model = models[n]), show()) });
  const sentence = element("p", { className: "says", ariaLive: "polite" });
  const plot = element("div", { className: "plot" });
  const node = element("div", { className: "roofline" }, which.node, element("div", { className: "sliders" }, rows.node, bits.node, read.node, work.node), plot, sentence, element("p", { className: "quiet", textContent: "* measured in the run of this page" }));
  let step = null;

  const again = fitted(plot, (width) => {
    const { bytes, flops } = step, roof = (x) => Math.min(x * read.value(), work.value());
    const top = Math.log10(work.value()) + 0.3, bottom = Math.min(Math.log10(roof(10 ** LOW)), top - 3);
    const x = (power) => LEFT + ((width - LEFT - 12) * (power - LOW)) / (HIGH - LOW), y = (power) => ROOM + ((HEIGHT - FOOT - ROOM) * (top - power)) / (top - bottom);
    const text = (content, at, down, fields) => svg("text", { x: at, y: down, ...fields }, content);
    const ridge = Math.max(LOW, Math.min(HIGH, Math.log10(work.value() / read.value()))), at = Math.log10(flops / bytes);
    const drawing = svg("svg", { width, height: HEIGHT, role: "img", "aria-label": sentence.textContent });
    for (let power = LOW; power <= HIGH; power++) drawing.append(svg("line", { class: "rule", x1: x(power), x2: x(power), y1: ROOM, y2: HEIGHT - FOOT }), text(`${10 ** power}`, x(power), HEIGHT - FOOT + 14, { class: "number", "text-anchor": "middle" }));
    for (let power = Math.ceil(bottom); power <= top; power++) drawing.append(svg("line", { class: "rule", x1: LEFT, x2: width - 12, y1: y(power), y2: y(power) }), text(rate(10 ** power, "FLOP/s"), LEFT - 6, y(power), { class: "number", "text-anchor": "end" }));
    drawing.append(
      text("FLOPs for each byte", (LEFT + width - 12) / 2, HEIGHT - 8, { class: "number", "text-anchor": "middle" }),
      svg("path", { class: "line", d: `M${x(LOW)} ${y(Math.log10(roof(10 ** LOW)))}L${x(ridge)} ${y(Math.log10(roof(10 ** ridge)))}L${x(HIGH)} ${y(Math.log10(roof(10 ** HIGH)))}` }),
      svg("line", { class: "mark", x1: x(at), x2: x(at), y1: y(Math.log10(roof(flops / bytes))), y2: HEIGHT - FOOT }),
      svg("circle", { class: "mark", cx: x(at), cy: y(Math.log10(roof(flops / bytes))), r: 6 }),
    );
    plot.replaceChildren(drawing);
  });

  function show() {
    const count = rows.value(), width = bits.value();
    const bytes = (model.once * width) / 8 + (count * model.own * Math.max(width, KEPT)) / 8, flops = count * model.flops;
    const byMemory = bytes / read.value(), byArithmetic = flops / work.value(), seconds = Math.max(byMemory, byArithmetic);
    step = { bytes, flops };
    Object.assign(node.dataset, { bytes, flops, seconds });
    sentence.textContent = `A step of ${count} ${count === 1 ? "row" : "rows"} that ${count === 1 ? "has" : "have"} ${model.length.toLocaleString("en")} tokens moves ${size(bytes)} for ${rate(flops, "FLOP")}, ${Number((flops / bytes).toPrecision(2))} for each byte. It takes at least ${duration(seconds)}, the limit of ${byMemory > byArithmetic ? "memory; arithmetic" : "arithmetic; memory"} alone would take ${duration(Math.min(byMemory, byArithmetic))}. At most ${rate(count / seconds, "").trim()} tokens a second.`;
    again();
  }

  show();
  return node;
}
