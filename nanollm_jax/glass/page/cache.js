// The cache: which token stands in which slot of each layer, and the bytes that are used and reserved.
//   const part = cacheView()
//   part.node     part.show(now, { row, t })

import { grid } from "./grid.js";
import { element, size, word } from "./make.js";
import { legend } from "./plot.js";

export function cacheView() {
  const facts = element("dl", { className: "facts" });
  const box = element("div");
  const key = legend([["prompted", "the prompt"], ["written", "what was written"], ["empty", "a free slot"]]);
  const node = element("div", {}, facts, box, key);
  let map = null, shape = "", held = [], tokens = [], given = 0;

  // which position each slot of each layer holds in a row, -1 for none
  function positions(cache, row) {
    const layers = [];
    for (const group of cache.layers) {
      const slots = new Int32Array(group.slots).fill(-1);
      for (const [slot, position, count] of group.rows[row]) for (let n = 0; n < count; n++) slots[slot + n] = position + n;
      for (const layer of group.layers) layers[layer] = { slots, kind: group.kind };
    }
    return layers;
  }

  return {
    node,
    show(now, { row, t }) {
      if (!now.cache) return;
      const { cache } = now;
      held = positions(cache, row);
      tokens = now.rows[row].tokens;
      given = now.begin.tokens.length;
      const slots = Math.max(...held.map(({ slots }) => slots.length)), rings = held.filter(({ kind }) => kind === "ring").length;
      const figures = [
        [size(cache.used), `used, of ${size(cache.bytes)} that are reserved`],
        [`${cache.length[row]}`, `positions of this row were read, of ${slots} slots`],
        [cache.dtype, `keys and values of ${held.length} layers${rings ? `, ${rings} of them rings that forget` : ""}`],
      ];
      facts.replaceChildren(...figures.map(([figure, words]) => element("div", {}, element("dt", { textContent: figure }), element("dd", { textContent: words }))));
      const wanted = `${held.length} ${slots}`;
      if (wanted !== shape) {
        shape = wanted;
        map = grid({
          label: "Slots of each layer", rows: held.length, columns: slots, row: (r) => `layer ${held.length - 1 - r}`, column: (c) => `${c}`,
          value: (r, c) => {
            const position = held[held.length - 1 - r].slots[c] ?? -2;
            return position >= given ? -0.75 : position >= 0 ? 0.6 : position === -1 ? 0.04 : 0;
          },
          says: (r, c) => {
            if (r === null || c === null) return "";
            const position = held[held.length - 1 - r].slots[c] ?? -1, token = tokens[position];
            return `layer ${held.length - 1 - r}, slot ${c} ${position < 0 ? "is free" : `holds position ${position}${token ? `, “${word(token.text || token.name)}”` : ""}`}`;
          },
          onpick: (r, c) => map.pick(r, c), least: 9, most: 18, highest: 20, left: 62, below: 20,
        });
        box.replaceChildren(map.node);
      }
      map.draw();
    },
  };
}
