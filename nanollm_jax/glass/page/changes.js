// What is changed beside the plain text: heads switched off, a direction added, a value of another text put in, an adapter taken.
//   const part = changes({ onchange: () => ..., ask })
//   part.node     part.edits()  as the server takes them, null for none     part.fit(begin, about)  to a model of so many layers and heads
//   part.show()

import { grid } from "./grid.js";
import { element, percent, visible } from "./make.js";

const SOON = 400; // milliseconds in which further changes join one run

export function changes({ onchange, ask }) {
  let off = new Set(), layers = 0, heads = 0, prompt = "", soon = 0, steered = false;
  const later = () => {
    clearTimeout(soon);
    soon = setTimeout(onchange, SOON);
  };
  const field = (label, node) => element("label", {}, element("span", { textContent: label }), node);
  const input = (fields) => element("input", { onchange: later, ...fields });
  const select = (...options) => element("select", { onchange: later }, ...options.map(([value, textContent]) => element("option", { value, textContent })));

  const toward = input({ type: "text", value: "The monster was very angry" });
  const away = input({ type: "text", value: "The girl was very happy" });
  const layer = input({ type: "number", min: 0, value: 0 });
  const since = select(["answer", "what is written"], ["prompt", "the prompt too"]);
  const strength = input({ type: "range", min: -3, max: 3, step: 0.25, value: 0, ariaLabel: "Strength" });
  strength.id = "strength";
  const amount = element("output", { textContent: "0" });
  strength.oninput = () => {
    steered = true; // at strength 0 too, which shows that it gives the plain text
    amount.textContent = String(Number(strength.value)).replace("-", "−");
  };

  const other = element("input", { type: "text", placeholder: "another text of as many tokens" });
  const find = element("button", { type: "button", textContent: "Where is the difference kept?", onclick: compare });
  const found = element("div", { className: "compared" });
  const put = element("p", { className: "quiet" });
  let patch = null;

  const adapter = select(["", "none"]);
  const adapters = element("div", { className: "wide", hidden: true }, element("h3", { textContent: "An adapter: small matrices beside the weights" }),
    element("div", { className: "fields" }, field("Written with", adapter)));

  const board = element("div", { className: "board" });
  const everything = element("button", { type: "button", textContent: "Undo all changes", onclick: () => { clear(); onchange(); } });

  function clear() {
    off = new Set();
    strength.value = 0;
    strength.oninput();
    steered = false;
    patch = null;
    adapter.value = "";
    draw();
  }

  function flip(l, n) {
    const key = `${l} ${n}`;
    if (!off.delete(key)) off.add(key);
    draw();
    later();
  }

  function flipLayer(l) {
    const keys = Array.from({ length: heads }, (_, n) => `${l} ${n}`);
    const all = keys.every((key) => off.has(key));
    for (const key of keys) all ? off.delete(key) : off.add(key);
    draw();
    later();
  }

  function draw() {
    board.style.gridTemplateColumns = `auto repeat(${heads}, minmax(1.4rem, 2.4rem))`;
    const focused = document.activeElement?.dataset?.head;
    board.replaceChildren();
    for (let l = layers - 1; l >= 0; l--) {
      board.append(element("button", { type: "button", className: "layer", textContent: `layer ${l}`, title: "All heads of this layer", onclick: () => flipLayer(l) }));
      for (let n = 0; n < heads; n++) {
        const on = !off.has(`${l} ${n}`);
        const one = element("button", { type: "button", className: "head", role: "switch", ariaLabel: `layer ${l}, head ${n}`, title: `layer ${l}, head ${n}: ${on ? "on" : "off"}`, onclick: () => flip(l, n) });
        one.setAttribute("aria-checked", String(on));
        one.dataset.head = `${l} ${n}`;
        board.append(one);
        if (one.dataset.head === focused) one.focus();
      }
    }
    put.textContent = patch ? `Behind layer ${patch.layer}, token ${patch.position + 1} is what it is in the other text.` : "";
  }

  async function compare() {
    found.replaceChildren(element("p", { className: "quiet", textContent: "Looking ..." }));
    try {
      const told = await ask("patch", { clean: other.value, corrupted: prompt, ...(adapter.value && { adapter: adapter.value }) });
      const places = [...told.places].reverse(), values = [...told.recovered].reverse();
      const name = (r) => `layer ${places[r].split(".")[1]}`;
      const map = grid({
        label: "How much of the difference each place brings back", rows: places.length, columns: told.pieces.length,
        row: name, column: (c) => visible(told.pieces[c]), value: (r, c) => values[r][c], text: (r, c) => percent(Math.max(0, values[r][c])),
        says: (r, c) => (r === null ? "" : `${name(r)}, token ${c + 1} brings back ${percent(Math.max(0, values[r][c]))} of the difference; it is put in`),
        onpick: (r, c) => {
          patch = { text: other.value, layer: Number(places[r].split(".")[1]), position: c };
          map.pick(r, c);
          draw();
          later();
        },
        least: 52, most: 90, highest: 24, left: 62, below: 24,
      });
      found.replaceChildren(element("p", { className: "quiet", textContent: `${told.said}: ${told.clean.toFixed(2)} there, ${told.corrupted.toFixed(2)} here. Pick a place, and what the other text has there is put in.` }), map.node);
    } catch (error) {
      found.replaceChildren(element("p", { className: "wrong", role: "alert", textContent: error.message }));
    }
  }

  const node = element("div", { className: "changes" },
    element("div", {}, element("h3", { textContent: "Heads: a click switches one off" }), board),
    element("div", {}, element("h3", { textContent: "A direction: from one text to another" }),
      element("div", { className: "fields" }, field("Toward", toward), field("Away from", away), field("Behind layer", layer), field("Added to", since),
        element("label", { className: "wide" }, element("span", {}, "Strength ", amount), strength))),
    element("div", { className: "wide" }, element("h3", { textContent: "A value of another text" }),
      element("div", { className: "fields" }, field("Other text", other), find), found, put),
    adapters,
    element("div", { className: "wide" }, everything));

  return {
    node,
    show() {},
    fit(begin, about) {
      prompt = begin.tokens.join("").replace(/^ /, "");
      if (!other.value) other.value = prompt.replace(/girl/, "boy");
      if (layers === begin.layers && heads === begin.heads) return;
      [layers, heads] = [begin.layers, begin.heads];
      adapter.append(...about.adapters.map((value) => element("option", { value, textContent: value })));
      adapters.hidden = !about.adapters.length;
      layer.max = layers - 1;
      layer.value = Math.floor(layers / 3);
      draw();
    },
    /** What a run was changed by, for who has not changed anything yet. */
    take(edits) {
      clear();
      adapter.value = edits?.adapter ?? "";
      if (!edits?.steer) return;
      [toward.value, away.value, layer.value, since.value, strength.value] = ["toward", "away", "layer", "since", "strength"].map((name) => edits.steer[name]);
      strength.oninput();
    },
    edits() {
      const made = {};
      if (off.size) made.heads = [...off].map((key) => key.split(" ").map(Number));
      if (steered) made.steer = { toward: toward.value, away: away.value, layer: Number(layer.value), strength: Number(strength.value), since: since.value };
      if (patch) made.patch = patch;
      if (adapter.value) made.adapter = adapter.value;
      return Object.keys(made).length ? made : null;
    },
  };
}
