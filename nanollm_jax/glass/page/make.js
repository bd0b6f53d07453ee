// Elements, from text alone: nothing that a model writes is ever read as markup.
//   element("p", { className: "quiet" }, "text", child)      svg("rect", { x: 1, width: 2 })
//   fitted(node, draw)   calls draw(width in pixels) now and whenever the node's width or the colours change
//   ink("--warm")        a colour of style.css as it is now, for a canvas
//   size(3145728) "3.15 MB"      percent(0.421) "42%"      signed(1.5) "+1.50"
//   visible(" a\n") " a↵": a token as a label, whole; ◇ is what would turn the direction of writing
//   word(" a") "a": the same in a sentence, without spaces around it

export function element(name, fields = {}, ...children) {
  const made = Object.assign(document.createElement(name), fields);
  made.append(...children);
  return made;
}

export function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export function fitted(node, draw) {
  let width = 0;
  const again = () => width && draw(width);
  new ResizeObserver(() => {
    const now = Math.floor(node.clientWidth);
    if (now === width) return;
    width = now;
    again();
  }).observe(node);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  return again;
}

const probe = element("i", { hidden: true });

export function ink(name) {
  if (!probe.isConnected) document.body.append(probe);
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color;
}

export function percent(chance) {
  if (!(chance >= 0)) return "";
  const shown = 100 * chance;
  return shown >= 9.95 ? `${Math.round(shown)}%` : shown >= 0.1 ? `${shown.toFixed(1)}%` : shown > 0 ? "<0.1%" : "0%";
}

export function size(bytes) {
  const step = bytes < 1e3 ? 0 : bytes < 1e6 ? 1 : bytes < 1e9 ? 2 : 3;
  return `${(bytes / 1000 ** step).toPrecision(3)} ${["B", "kB", "MB", "GB"][step]}`;
}

export function signed(number, digits = 2) {
  return `${number < 0 ? "−" : "+"}${Math.abs(number).toFixed(digits)}`;
}

export function visible(text) {
  const marked = text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/[\u202a-\u202e\u2066-\u2069]/g, "◇");
  return marked.trim() === "" ? marked.replaceAll(" ", "␣") || "∅" : marked.replace(/^ +| +$/g, (spaces) => "\u00a0".repeat(spaces.length));
}

export function word(text) {
  return visible(text).replace(/^\u00a0+|\u00a0+$/g, "");
}
