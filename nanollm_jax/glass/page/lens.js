// What the model would have said at each depth, the embedding at the bottom.
//   const part = lens(story, { onpick: (t) => ... })
//   part.node     part.show(t)     what was said in place of token t

import { grid } from "./grid.js";
import { percent, visible, word } from "./make.js";

export function lens(story, { onpick }) {
  const { depths } = story.head;
  const P = depths.length;
  let row = 0;
  const name = (r) => ({ embedding: "embedding", final_norm: "what it said" })[depths[P - 1 - r]] ?? `layer ${depths[P - 1 - r].split(".")[1]}`;
  const at = (r, c) => story.said(P - 1 - r, c + 1);
  const map = grid({
    label: "What the model would have said at each depth", rows: P, columns: story.size - 1,
    row: name, column: (c) => visible(story.head.tokens[c + 1] || story.head.names[c + 1]),
    value: (r, c) => at(r, c).best[0].chance, text: (r, c) => visible(at(r, c).best[0].word),
    says: (r, c) => (r === null ? "" : `${name(r)}: ${at(r, c).best.map((one) => `“${word(one.word)}” ${percent(one.chance)}`).join(", ")}${at(r, c).next >= 0 ? `; what followed had ${percent(at(r, c).next)}` : ""}`),
    onpick: (r, c) => {
      row = r;
      onpick(c + 1);
    },
    least: 66, most: 110, highest: 26, left: 92, below: 24, whole: true,
  });
  return {
    node: map.node,
    show(t) {
      if (t > 0) map.pick(row, t - 1);
      row = 0;
    },
  };
}
