// A heat map on a canvas, of any size: only what is in sight is drawn.
//   const map = grid({
//     label: "Lens",  rows: 7,  columns: 300,  row: (r) => "layer 3",  column: (c) => " girl",
//     value: (r, c) => -1 to 1 (below 0 in the other colour),   text: (r, c) => what stands in a wide cell,
//     says: (r, c) => a sentence about a cell,   onpick: (r, c) => ...,   paint: (context, r, c, x, y, w, h) => own drawing,
//     least: 64, highest: 24,    // pixels: the narrowest a cell may be, how high it is ("square": as wide)
//     left: 70, below: 22,       // pixels for labels of rows and columns, 0 for none
//     whole: true,               // marks the column of a picked cell, too
//   })
//   map.node     map.pick(r, c) marks a cell, null for a whole column or row, and brings it into sight     map.draw()
// Keys: the arrows move the mark; a click or a tap; a mouse only looks.

import { element, fitted, ink } from "./make.js";

export function grid(asked) {
  const { label, rows, columns, row, column, value, text, says, onpick, paint } = asked;
  const { least = 12, highest = 24, most = Infinity, left = 0, below = 0, whole = false } = asked;
  const canvas = element("canvas");
  const extent = element("div", { className: "extent" }, canvas);
  const scroller = element("div", { className: "scroller", tabIndex: 0, role: "img", ariaLabel: label }, extent);
  const sentence = element("p", { className: "says", ariaLive: "polite" });
  const node = element("div", { className: "grid" }, scroller, sentence);
  let at = { r: null, c: null }, w = least, h = 24, asks = 0;

  function shape() {
    const inside = node.clientWidth - left;
    w = Math.max(least, Math.min(most, Math.floor(inside / columns)));
    h = highest === "square" ? w : highest;
    extent.style.width = `${left + columns * w}px`;
    extent.style.height = `${rows * h + below}px`;
  }

  function draw() {
    const width = Math.min(scroller.clientWidth, left + columns * w);
    const height = Math.min(scroller.clientHeight, rows * h + below);
    if (!width || !height) return;
    const sharp = devicePixelRatio || 1;
    canvas.width = width * sharp;
    canvas.height = height * sharp;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const context = canvas.getContext("2d");
    context.scale(sharp, sharp);
    context.textBaseline = "middle";
    context.font = "12px system-ui, sans-serif";
    const colours = { more: ink("--cool"), less: ink("--warm"), ink: ink("--ink"), quiet: ink("--quiet"), paper: ink("--paper"), mark: ink("--mark") };
    const dx = scroller.scrollLeft, dy = scroller.scrollTop;
    const span = (from, length, size, count) => [Math.max(0, Math.floor(from / size)), Math.min(count, Math.ceil((from + length) / size))];
    const [c0, c1] = span(dx, width - left, w, columns);
    const [r0, r1] = span(dy, height - below, h, rows);
    const gap = w > 6 ? 1 : 0;
    context.save();
    context.beginPath();
    context.rect(left, 0, width - left, height - below);
    context.clip();
    for (let r = r0; r < r1; r++) {
      for (let c = c0; c < c1; c++) {
        const x = left + c * w - dx, y = r * h - dy;
        if (paint) {
          paint(context, r, c, x, y, w - gap, h - gap, colours);
          continue;
        }
        const amount = value(r, c);
        if (amount) {
          context.globalAlpha = Math.min(1, Math.abs(amount));
          context.fillStyle = amount > 0 ? colours.more : colours.less;
          context.fillRect(x, y, w - gap, h - gap);
          context.globalAlpha = 1;
        }
        const words = w >= 30 && text?.(r, c);
        if (words) {
          context.fillStyle = Math.abs(amount) > 0.55 ? colours.paper : colours.ink;
          context.save();
          context.beginPath();
          context.rect(x, y, w - 3, h);
          context.clip();
          context.fillText(words, x + 5, y + h / 2);
          context.restore();
        }
      }
    }
    if (at.r !== null || at.c !== null) {
      const x = left + (at.c ?? 0) * w - dx, y = (at.r ?? 0) * h - dy;
      context.strokeStyle = colours.mark;
      const wide = at.c === null ? columns * w : w, high = at.r === null ? rows * h : h, thick = Math.min(w, h) < 10 ? 1 : 2;
      context.lineWidth = thick;
      if (whole && at.c !== null) {
        context.lineWidth = 1;
        context.strokeRect(x - 0.5, -dy + 0.5, w, rows * h - 1);
        context.lineWidth = thick;
      }
      context.strokeRect(x - gap + thick / 2, y - gap + thick / 2, wide + gap - thick, high + gap - thick);
    }
    context.restore();
    context.fillStyle = colours.quiet;
    if (left) {
      context.textAlign = "right";
      for (let r = r0; r < r1; r++) if (h >= 14 || r % Math.ceil(14 / h) === 0) context.fillText(row(r), left - 8, r * h - dy + h / 2);
    }
    if (below) {
      context.textAlign = "left";
      context.save();
      context.beginPath();
      context.rect(left, height - below, width - left, below);
      context.clip();
      for (let c = c0; c < c1; c++) {
        if (w < 30 && c % Math.ceil(30 / w)) continue;
        context.fillStyle = c === at.c ? colours.mark : colours.quiet;
        context.save();
        context.beginPath();
        context.rect(left + c * w - dx, height - below, w < 30 ? 30 : w - 4, below);
        context.clip();
        context.fillText(column(c), left + c * w - dx + (w < 30 ? 0 : 5), height - below / 2);
        context.restore();
      }
      context.restore();
    }
  }

  const soon = () => {
    if (!asks) asks = requestAnimationFrame(() => ((asks = 0), draw()));
  };
  const under = (event) => {
    const box = canvas.getBoundingClientRect();
    const c = Math.floor((event.clientX - box.left - left + scroller.scrollLeft) / w);
    const r = Math.floor((event.clientY - box.top + scroller.scrollTop) / h);
    return r >= 0 && r < rows && c >= 0 && c < columns && event.clientX - box.left >= left ? { r, c } : null;
  };
  const tell = (cell) => {
    if (says) sentence.textContent = cell ? says(cell.r, cell.c) : "";
  };

  function reveal({ r, c }) {
    if (c !== null && scroller.scrollWidth > scroller.clientWidth) {
      const x = c * w, room = scroller.clientWidth - left;
      if (x < scroller.scrollLeft || x + w > scroller.scrollLeft + room) scroller.scrollLeft = x - room / 2;
    }
    if (r !== null && scroller.scrollHeight > scroller.clientHeight) {
      const y = r * h, room = scroller.clientHeight - below;
      if (y < scroller.scrollTop || y + h > scroller.scrollTop + room) scroller.scrollTop = y - room / 2;
    }
  }

  function pick(r, c) {
    at = { r, c };
    reveal(at);
    if (says) sentence.textContent = says(r, c);
    soon();
  }

  scroller.onscroll = soon;
  canvas.onclick = (event) => {
    const cell = under(event);
    if (!cell) return;
    tell(cell);
    onpick?.(cell.r, cell.c);
  };
  canvas.onpointermove = (event) => {
    if (event.pointerType === "mouse") tell(under(event) ?? (at.r === null && at.c === null ? null : at));
  };
  canvas.onpointerleave = () => tell(at.r === null && at.c === null ? null : at);
  scroller.onkeydown = (event) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    const r = Math.max(0, Math.min(rows - 1, (at.r ?? 0) + step[0])), c = Math.max(0, Math.min(columns - 1, (at.c ?? 0) + step[1]));
    pick(r, c);
    onpick?.(r, c);
  };
  fitted(node, () => {
    shape();
    reveal(at);
    draw();
  });
  return { node, pick, draw: soon };
}
