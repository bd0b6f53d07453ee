// Plots as SVG, with axes that say what they count.
//   bars(node, { label })(rows)          horizontal: rows [{ label, value, said, strong }], as wide as the node
//   columns(node, { label, unit })(groups)     vertical, from zero up and down: groups [{ label, values: [{ value, series, title }] }]
//   line(node, { label, onpick })(values, at)     one value a place; NaN leaves a gap; at marks one
// The first call is made once for a node; the second draws into it, now and whenever its width changes.

import { element, fitted, svg } from "./make.js";

/** Round numbers from least to most, about `count` of them. */
export function ticks(least, most, count = 5) {
  const raw = (most - least || 1) / count;
  const size = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((times) => times * size >= raw) * size;
  const found = [];
  for (let n = Math.ceil(least / step - 1e-9); n * step <= most + 1e-9 * step; n++) found.push(Number((n * step).toPrecision(6)));
  return found;
}

const text = (content, x, y, fields = {}) => svg("text", { x, y, ...fields }, content);

const short = (label) => (label.length > 14 ? `${label.slice(0, 13)}…` : label);

function frame(node, width, height, label) {
  const drawing = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  node.replaceChildren(drawing);
  return drawing;
}

export function bars(node, { label = "", names = 110, height = 24 } = {}) {
  let rows = [];
  const again = fitted(node, (width) => {
    const most = Math.max(...rows.map(({ value }) => value), 1e-12);
    const drawing = frame(node, width, rows.length * height, label);
    const room = width - names - 14 - 7 * Math.max(...rows.map(({ said }) => said.length), 0);
    rows.forEach(({ label: name, value, said, strong }, n) => {
      const y = n * height;
      drawing.append(
        text(short(name), names - 8, y + height / 2, { class: strong ? "name strong" : "name", "text-anchor": "end" }),
        svg("rect", { class: strong ? "bar strong" : "bar", x: names, y: y + 4, width: Math.max(1, (room * value) / most), height: height - 8, rx: 3 }),
        text(said, names + Math.max(1, (room * value) / most) + 6, y + height / 2, { class: "number" }),
      );
    });
  });
  return (found) => {
    rows = found;
    again();
  };
}

export function columns(node, { label = "", unit = "", height = 190 } = {}) {
  let groups = [];
  const again = fitted(node, (width) => {
    const values = groups.flatMap((group) => group.values.map(({ value }) => value));
    const most = Math.max(...values, 0), least = Math.min(...values, 0);
    const drawing = frame(node, width, height, label);
    const left = 40, foot = 24, room = height - foot - 10;
    const y = (value) => 6 + (room * (most - value)) / (most - least || 1);
    for (const tick of ticks(least, most, 4)) {
      drawing.append(svg("line", { class: tick ? "rule" : "axis", x1: left, x2: width, y1: y(tick), y2: y(tick) }), text(tick, left - 6, y(tick), { class: "number", "text-anchor": "end" }));
    }
    if (unit) drawing.append(text(unit, left + 4, 8, { class: "number" }));
    const wide = (width - left) / groups.length;
    groups.forEach((group, g) => {
      const thin = Math.min(22, (wide * 0.8) / group.values.length);
      const first = left + wide * (g + 0.5) - (thin * group.values.length) / 2;
      group.values.forEach(({ value, series, title }, n) => {
        const bar = svg("rect", { class: `bar ${series}`, x: first + n * thin, y: Math.min(y(value), y(0)), width: Math.max(1, thin - 2), height: Math.max(0.5, Math.abs(y(value) - y(0))), rx: 1.5 });
        bar.append(svg("title", {}, title));
        drawing.append(bar);
      });
      const every = Math.ceil(26 / wide);
      if (g % every === 0) drawing.append(text(group.label, left + wide * (g + 0.5), height - 8, { class: "number", "text-anchor": "middle" }));
    });
  });
  return (found) => {
    groups = found;
    again();
  };
}

export function line(node, { label = "", height = 110, onpick } = {}) {
  let marked = -1, values = [];
  const again = fitted(node, (width) => {
    const most = values.reduce((most, value) => (value > most ? value : most), 1);
    const drawing = frame(node, width, height, label);
    const left = 32, foot = 16, room = height - foot - 8;
    const x = (n) => left + ((width - left - 6) * n) / Math.max(1, values.length - 1);
    const y = (value) => 6 + room * (1 - value / most);
    for (const tick of ticks(0, most, 3)) {
      drawing.append(svg("line", { class: tick ? "rule" : "axis", x1: left, x2: width, y1: y(tick), y2: y(tick) }), text(tick, left - 6, y(tick), { class: "number", "text-anchor": "end" }));
    }
    for (const tick of ticks(0, values.length - 1, width < 500 ? 4 : 8).filter(Number.isInteger)) drawing.append(text(tick, x(tick), height - 5, { class: "number", "text-anchor": "middle" }));
    let path = "", down = false;
    values.forEach((value, n) => {
      if (value >= 0) path += `${down ? "L" : "M"}${x(n).toFixed(1)} ${y(value).toFixed(1)}`;
      down = value >= 0;
    });
    drawing.append(svg("path", { class: "line", d: path }));
    if (values[marked] >= 0) drawing.append(svg("line", { class: "mark", x1: x(marked), x2: x(marked), y1: 4, y2: height - foot }), svg("circle", { class: "mark", cx: x(marked), cy: y(values[marked]), r: 4 }));
    drawing.onclick = (event) => {
      const n = Math.round(((event.clientX - drawing.getBoundingClientRect().left - left) / (width - left - 6)) * (values.length - 1));
      if (n >= 0 && n < values.length) onpick?.(n);
    };
  });
  return (found, at) => {
    values = found;
    marked = at;
    again();
  };
}

/** What the series of a plot are: [[class, words]]. */
export function legend(series) {
  return element("p", { className: "legend" }, ...series.map(([kind, words]) => element("span", {}, element("i", { className: kind }), words)));
}
