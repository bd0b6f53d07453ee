// What the engine did: a lane for each row; prompts that are read in pieces, tokens that are written in chunks, what was cached,
// guesses that were right or not; and how many bytes its chunks read a second, beside what this machine can.
//   const part = engineView({ ask })
//   part.node     part.show(now, picked, about)     of this run, or of the engine that serves others

import { element, fitted, percent, size, svg } from "./make.js";
import { legend, ticks } from "./plot.js";

const EVERY = 1000; // milliseconds between two looks at the engine that serves
const clock = (time, of) => (of < 2 ? `${Math.round(1000 * time)} ms` : `${time.toFixed(1)} s`);
const LANE = 46, LEFT = 56, FOOT = 22, RATES = 76;

export function engineView({ ask }) {
  const which = element("div", { className: "switch", role: "group", ariaLabel: "Which engine" });
  const facts = element("dl", { className: "facts" });
  const drawing = element("div", { className: "plot lanes" });
  const scroller = element("div", { className: "scroller", tabIndex: 0, role: "region", ariaLabel: "Steps over time" }, drawing);
  const kinds = [["piece", "a piece of the prompt"], ["hit", "read before"], ["chunk", "tokens written"], ["right", "guessed right"], ["wrong", "guessed wrong"], ["rate", "bytes read a second, at least"]];
  const key = legend(kinds);
  const node = element("div", {}, which, facts, scroller, key);
  let steps = [], rows = 1, limit = null, serving = false, timer = 0, next = 0, served = [], servedRows = 1;

  const again = fitted(node, (width) => {
    const first = steps.length ? steps[0].from : 0, last = steps.length ? steps.at(-1).to : 1;
    const wide = Math.max(width - LEFT - 8, Math.min(6000, steps.length * 16));
    const x = (seconds) => LEFT + (wide * (seconds - first)) / (last - first || 1);
    const picture = svg("svg", { width: LEFT + wide + 8, height: rows * LANE + FOOT + RATES, role: "img", "aria-label": "Steps of the engine over time" });
    for (let row = 0; row < rows; row++) {
      picture.append(svg("line", { class: "rule", x1: LEFT, x2: LEFT + wide, y1: (row + 1) * LANE - 6, y2: (row + 1) * LANE - 6 }), svg("text", { x: LEFT - 8, y: row * LANE + 22, class: "number", "text-anchor": "end" }, `row ${row}`));
    }
    const seated = new Set();
    for (const { from, to, events } of steps) {
      const count = events.filter(([what]) => ["piece", "hit", "chunk"].includes(what)).length || 1;
      let n = 0;
      for (const [what, , row, amount] of events) {
        if (what === "admitted") seated.add(row);
        if (["piece", "hit", "chunk"].includes(what)) {
          // the parts of a step, one behind the other: how long each took is not known
          const left = x(from + ((to - from) * n) / count), right = x(from + ((to - from) * (n + 1)) / count);
          n += 1;
          for (const lane of what === "chunk" ? seated : [row]) {
            const bar = svg("rect", { class: what, x: left, y: lane * LANE + 10, width: Math.max(1.5, right - left - 1), height: 24, rx: 2 });
            bar.append(svg("title", {}, what === "chunk" ? `a chunk of ${amount} steps` : `${amount} tokens ${what === "hit" ? "that were read before" : "of the prompt read"}`));
            picture.append(bar);
            if (right - left > 26) picture.append(svg("text", { class: `inside of-${what}`, x: (left + right) / 2, y: lane * LANE + 22, "text-anchor": "middle" }, amount));
          }
        }
        if (what === "drafted") {
          const right = events.find(([other, , lane]) => other === "accepted" && lane === row)?.[3] ?? 0;
          for (let guess = 0; guess < Math.min(amount, 40); guess++) picture.append(svg("rect", { class: guess < right ? "right" : "wrong", x: x(to) - 4 - 4 * (guess % 10), y: row * LANE + 2 + 4 * Math.floor(guess / 10), width: 3, height: 3 }));
        }
        if (what === "freed") seated.delete(row);
      }
    }
    const base = rows * LANE + FOOT + RATES - 4, room = RATES - 22;
    const found = steps.map(({ from, to, read, events }) => ({ from, to, rate: (read && !events.some(([what]) => what === "piece") && read / (to - from)) || 0 }));
    const most = Math.max(limit ?? 0, ...found.map(({ rate }) => rate));
    for (const { from, to, rate } of found.filter(({ rate }) => rate)) {
      const bar = svg("rect", { class: "rate", x: x(from), y: base - (room * rate) / most, width: Math.max(1, x(to) - x(from) - 1), height: (room * rate) / most });
      bar.append(svg("title", {}, `${size(rate)} a second${limit ? `, ${percent(rate / limit)} of what this machine reads` : ""}`));
      picture.append(bar);
    }
    if (most) picture.append(svg("line", { class: "rule", x1: LEFT, x2: LEFT + wide, y1: base, y2: base }), svg("text", { x: LEFT - 8, y: base - 4, class: "number", "text-anchor": "end" }, "bytes/s"));
    if (limit) {
      const y = base - (room * limit) / most;
      picture.append(svg("line", { class: "limit", x1: LEFT, x2: LEFT + wide, y1: y, y2: y }), svg("text", { x: LEFT + 4, y: y - 8, class: "number" }, `${size(limit)}/s: as fast as this machine reads`));
    }
    for (const time of ticks(0, last - first, wide / 120)) {
      const at = x(first + time), anchor = at > LEFT + wide - 24 ? "end" : time ? "middle" : "start";
      picture.append(svg("text", { x: at, y: rows * LANE + 12, class: "number", "text-anchor": anchor }, clock(time, last - first)));
    }
    drawing.replaceChildren(picture);
    const total = (what) => steps.reduce((sum, { events }) => sum + events.reduce((sum, event) => sum + (event[0] === what ? event[3] : 0), 0), 0);
    const [drafted, accepted, compiling] = [total("drafted"), total("accepted"), steps.reduce((sum, step) => sum + (step.compiling ?? 0), 0)];
    const figures = [
      [`${steps.length}`, "steps of the engine"],
      [`${total("piece")} + ${total("hit")}`, "tokens of prompts read, and found read before"],
      [clock(last - first, last - first), compiling > 0.05 ? `from the first to the last, and ${compiling.toFixed(1)} s of making programs ready` : "from the first to the last"],
      ...rateFigure(found),
      ...(drafted ? [[`${accepted} of ${drafted}`, "guesses were right"]] : []),
    ];
    facts.replaceChildren(...figures.map(([figure, words]) => element("div", {}, element("dt", { textContent: figure }), element("dd", { textContent: words }))));
  });

  function rateFigure(found) {
    const timed = found.filter(({ rate }) => rate), seconds = timed.reduce((sum, { from, to }) => sum + to - from, 0);
    if (!seconds) return [];
    const rate = timed.reduce((sum, { from, to, rate }) => sum + rate * (to - from), 0) / seconds;
    return [[`${size(rate)}/s`, `read while it wrote, at least${limit ? `: ${percent(rate / limit)} of what this machine reads` : ""}`]];
  }

  async function look() {
    clearTimeout(timer);
    if (!serving || !node.isConnected) return;
    try {
      const found = await ask(`engine?since=${next}`);
      next = found.next;
      served = [...served, ...found.steps].slice(-300);
      servedRows = found.rows;
      if (serving) {
        [steps, rows] = [served, servedRows];
        again();
      }
    } catch {} // it is looked at again in a second
    timer = setTimeout(look, EVERY);
  }

  return {
    node,
    show(now, picked, about) {
      const choose = (label, on) => {
        const made = element("button", { type: "button", textContent: label, onclick: () => { serving = on; this.show(now, picked, about); } });
        made.setAttribute("aria-pressed", String(serving === on));
        return made;
      };
      which.replaceChildren(...(about?.engine ? [choose("This text", false), choose("The server", true)] : []));
      limit = now.begin.limit;
      if (serving) return look();
      [steps, rows] = [now.steps, now.begin.rows.length];
      again();
    },
  };
}
