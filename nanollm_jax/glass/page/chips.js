// A text as one chip a token, in the colour of its surprise. The chips' text is the text.
//   const text = chips({ label: "Tokens", onpick: (t) => ... })
//   onlook: (t) => ...        a mouse is over a chip; null where it has left the text
//   text.node                 to be put into a page
//   text.show(tokens)         [{ text, name, surprise, given }]: name is shown where a token prints nothing
//   text.add(token)           one more, while a model writes; text.set(t, token) another in the place of token t
//   text.pick(t)              marks a chip (and calls nobody); -1 for none
//   text.shade(weights)       colours by these instead, 0 to 1 for each token; null for surprise again
// Keys: left and right, Home, End; a click or a tap.

import { element } from "./make.js";

const TURNS = /[\u202a-\u202e\u2066-\u2069]/; // characters that turn the writing direction, also of what follows
const MOST = 8; // nats: what is this surprising is as warm as it gets

export function chips({ label, onpick, onlook }) {
  const node = element("div", { className: "chips", role: "listbox", ariaLabel: label });
  let picked = -1;
  let tokens = [];
  const warmth = (token) => (token.surprise >= 0 ? Math.min(token.surprise / MOST, 1) : 0);

  function chip(token, t) {
    const [, space, rest] = /^( *)([^]*)$/.exec(token.text);
    // what has the colour begins behind the space: at the end of a line nothing is left of the token that begins the next one
    const word = element("span", { className: "word", textContent: rest || space });
    const made = element("span", { className: "chip", role: "option", tabIndex: -1 }, rest ? space : "", word);
    made.dataset.t = t;
    made.ariaSelected = "false";
    if (TURNS.test(token.text)) made.classList.add("alone");
    if (token.given) made.classList.add("given");
    if (token.name) word.dataset.name = token.name;
    else if (token.text.startsWith("\n")) word.dataset.name = "↵";
    made.style.setProperty("--heat", warmth(token));
    return made;
  }

  function pick(t) {
    node.children[picked]?.setAttribute("aria-selected", "false");
    if (node.children[picked]) node.children[picked].tabIndex = -1;
    picked = t;
    const now = node.children[t];
    if (!now) return;
    now.ariaSelected = "true";
    now.tabIndex = 0;
  }

  const choose = (t) => {
    const to = Math.max(0, Math.min(tokens.length - 1, t));
    pick(to);
    node.children[to]?.focus({ preventScroll: false });
    onpick?.(to);
  };
  node.onclick = (event) => {
    const t = event.target.closest(".chip")?.dataset.t;
    if (t !== undefined) choose(Number(t));
  };
  if (onlook) {
    node.onpointerover = (event) => {
      const t = event.target.closest(".chip")?.dataset.t;
      if (event.pointerType === "mouse" && t !== undefined) onlook(Number(t));
    };
    node.onpointerleave = () => onlook(null);
  }
  node.onkeydown = (event) => {
    const to = { ArrowLeft: picked - 1, ArrowRight: picked + 1, Home: 0, End: tokens.length - 1 }[event.key];
    if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    choose(to);
  };
  return {
    node,
    pick,
    show(found) {
      tokens = [...found];
      node.replaceChildren(...tokens.map(chip));
      if (node.firstChild) node.firstChild.tabIndex = 0;
    },
    add(token) {
      tokens.push(token);
      node.append(chip(token, tokens.length - 1));
    },
    set(t, token) {
      tokens[t] = token;
      node.children[t].replaceWith(chip(token, t));
    },
    shade(weights) {
      node.classList.toggle("shaded", weights !== null);
      tokens.forEach((token, t) => node.children[t].style.setProperty("--heat", weights === null ? warmth(token) : (weights[t] ?? 0)));
    },
  };
}
