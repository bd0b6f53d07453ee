// A cache that keeps everything beside a ring that forgets, while tokens come one by one.
//   ring({ tokens: [T texts], plain: [T+1][T], ring: [T+1][S] })   which position each slot holds after 0 to T tokens, -1 for none

import { steps } from "./controls.js";
import { element, word } from "./make.js";

function lane(title, held, after, tokens, visibleFrom) {
  const [before, now] = [held[Math.max(0, after - 1)], held[after]];
  const cells = now.map((position, slot) => {
    const fresh = position >= 0 && position !== before[slot];
    const kind = position < 0 ? "free" : fresh ? "new" : position < visibleFrom ? "unseen" : "held";
    const cell = element("li", { className: kind }, element("small", { textContent: position < 0 ? "" : position }), element("b", { textContent: position < 0 ? "" : word(tokens[position]) }));
    cell.dataset.position = position;
    return cell;
  });
  return element("div", {}, element("h4", { textContent: title }), element("ol", { className: "slots", ariaLabel: title }, ...cells));
}

export function ring({ tokens, plain, ring }) {
  const size = ring[0].length, lanes = element("div");
  const quoted = (position) => `“${word(tokens[position])}”, position ${position},`;

  function say(after) {
    if (!after) return "Nothing is kept yet.";
    const position = after - 1, slot = ring[after].indexOf(position), gone = ring[after - 1][slot];
    const over = gone < 0 ? "which was free" : `over ${quoted(gone)} which has just left the window`;
    const sees = Math.min(after, size);
    return `The key and the value of ${quoted(position)} go to slot ${plain[after].indexOf(position)} above, and to slot ${slot} of the ring, ${over}. The token sees ${sees === 1 ? "itself" : `the last ${sees} positions`}: both have ${sees === 1 ? "it" : "them"}.`;
  }

  const control = steps({
    label: "tokens so far", count: tokens.length, say,
    onstep: (after) => lanes.replaceChildren(
      lane(`a slot for each of ${tokens.length} tokens; faded: kept, and never looked at again`, plain, after, tokens, after - size),
      lane(`a ring of ${size} slots`, ring, after, tokens, 0),
    ),
  });
  control.go(0);
  return element("div", { className: "ring" }, control.node, lanes);
}
