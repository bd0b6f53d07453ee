// What moves on the pages of the course. It is inlined when they are built: a page from disk loads nothing.
"use strict";
const store = {
  get: (key) => { try { return localStorage.getItem(`course:${key}`); } catch { return null; } },  // some browsers keep none of files
  set: (key, value) => { try { localStorage.setItem(`course:${key}`, value); } catch { /* then it is forgotten */ } },
};
const make = (tag, attributes = {}, ...children) => {
  const node = tag === "svg" || attributes.svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (name !== "svg") node.setAttribute(name, value);
  node.append(...children);
  return node;
};
const all = (query, root = document) => [...root.querySelectorAll(query)];

// Figures: a click shows one as large as the window, or larger, to be moved about.
function enlarge() {
  const dialog = make("dialog", { "aria-label": "figure" });
  dialog.addEventListener("click", () => dialog.close());
  document.body.append(dialog);
  for (const image of all(".text img")) {
    image.tabIndex = 0;
    const open = () => { dialog.replaceChildren(make("img", { src: image.src, alt: image.alt })); dialog.showModal(); };
    image.addEventListener("click", open);
    image.addEventListener("keydown", (event) => { if (event.key === "Enter") open(); });
  }
}

// Predictions: what follows a question, up to the next heading, waits for a guess.
function behind(question) {
  const hidden = [];
  for (let node = question.nextElementSibling; node; node = node.nextElementSibling) {
    const heading = node.matches("h2, h3") ? node : node.querySelector("h2, h3");
    if (!heading) { hidden.push(node); continue; }
    for (const child of node.children) { if (child === heading) break; hidden.push(child); }
    break;
  }
  return hidden;
}

// 1,048,576 or 6e-8 or 12.5: the first number of a text, or null.
function number(text) {
  const found = text.replace(/(\d)[,_ ](?=\d{3})/g, "$1").match(/-?\d+(?:\.\d+)?(?:e[+-]?\d+)?/i);
  return found ? Number(found[0]) : null;
}

// The guess and the truth as two marks on one line, by their ratio where both are above zero.
function line(guess, truth) {
  const log = guess > 0 && truth > 0, at = log ? Math.log10 : (x) => x;
  const [low, high] = [Math.min(at(guess), at(truth)), Math.max(at(guess), at(truth))];
  const room = Math.max(high - low, log ? 0.3 : 1) * 0.35, x = (value) => 40 + (620 * (at(value) - low + room)) / (high - low + 2 * room);
  const svg = make("svg", { viewBox: "0 0 700 74", role: "img", "aria-label": `your guess ${guess}, the run ${truth}` });
  svg.append(make("line", { svg: 1, x1: 40, x2: 660, y1: 38, y2: 38, stroke: "var(--line)", "stroke-width": 2 }));
  for (const [value, colour, y, word] of [[guess, "var(--orange)", 20, "your guess"], [truth, "var(--blue)", 66, "the run"]]) {
    svg.append(make("circle", { svg: 1, cx: x(value), cy: 38, r: 7, fill: colour }));
    svg.append(make("text", { svg: 1, x: x(value), y, fill: colour, "font-size": 15, "text-anchor": "middle" }, `${word} ${value.toLocaleString("en", { maximumSignificantDigits: 4 })}`));
  }
  return svg;
}

function predictions() {
  const chapter = document.body.dataset.name;
  all("pre.question").forEach((question, place) => {
    const hidden = behind(question), answer = hidden[0], key = `guess:${chapter}:${place}`;
    const form = make("form", { class: "guess" }), input = make("input", { "aria-label": "your guess", placeholder: "your guess", autocomplete: "off" });
    const reveal = (guess) => {
      for (const node of hidden) node.classList.remove("later");
      if (answer?.matches("details")) answer.open = true;
      const truth = answer?.textContent.match(/^The answer: (.*)$/m)?.[1];
      const said = [make("p", {}, `Your guess: ${guess || "none"}.`)];
      if (guess && truth && number(guess) !== null) said.push(line(number(guess), number(truth)));
      form.replaceChildren(...said);
    };
    form.append(input, make("button", {}, "See"), make("button", { type: "button", class: "skip" }, "without a guess"));
    form.addEventListener("submit", (event) => { event.preventDefault(); if (input.value.trim()) { store.set(key, input.value.trim()); reveal(input.value.trim()); } else input.focus(); });
    form.querySelector(".skip").addEventListener("click", () => { store.set(key, ""); reveal(""); });
    question.after(form);
    for (const node of hidden) node.classList.add("later");
    const before = store.get(key);
    if (before !== null) reveal(before);
  });
  // a link into a part that waits shows it
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let node = target; node; node = node.parentElement) node.classList.remove("later");
}

// Progress: a chapter whose end was seen is read; the bar says how far this one is.
function progress() {
  for (const item of all("[data-chapter]")) item.classList.toggle("read", store.get(`read:${item.dataset.chapter}`) === "1");
  const bar = document.querySelector(".bar i"), name = document.body.dataset.name;
  if (!bar) return;
  const move = () => {
    const room = document.documentElement.scrollHeight - innerHeight, share = room > 0 ? Math.min(1, scrollY / room) : 1;
    bar.style.width = `${100 * share}%`;
    if (share > 0.97 && !document.querySelector(".later")) { store.set(`read:${name}`, "1"); document.querySelector(`nav [data-chapter="${name}"]`)?.classList.add("read"); }
    const sections = all("h2[id]").filter((heading) => heading.getBoundingClientRect().top < 120);
    for (const link of all("nav li.here li")) link.classList.toggle("here", link.firstElementChild.hash === `#${sections.at(-1)?.id}`);
  };
  addEventListener("scroll", move, { passive: true });
  move();
  document.querySelector(".menu")?.addEventListener("click", () => document.querySelector("nav").classList.toggle("open"));
}

// The cover: the bundled model writes, as it wrote when the pages were built.
function story() {
  const data = JSON.parse(document.getElementById("story")?.textContent || "null"), typed = document.querySelector(".typed"), said = document.querySelector(".said");
  if (!data || !typed) return;
  typed.append(make("b", {}, data.prompt));
  const show = (token) => {
    const chance = (logprob) => `${Math.round(100 * Math.exp(logprob))} %`;
    said.textContent = `“${token.text.trim()}” had a chance of ${chance(token.logprob)}. The most probable pieces here: ` + token.others.map(([text, value]) => `“${text.trim() || "␣"}” ${chance(value)}`).join(", ") + ".";
  };
  const write = (token) => {
    const span = make("span", { tabindex: 0 }, token.text);
    span.style.background = `color-mix(in srgb, var(--orange) ${Math.round(Math.min(60, -12 * token.logprob))}%, transparent)`;
    for (const kind of ["mouseenter", "focus", "click"]) span.addEventListener(kind, () => show(token));
    typed.append(span);
  };
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) { data.tokens.forEach(write); return; }
  let n = 0;
  const timer = setInterval(() => { if (n < data.tokens.length) write(data.tokens[n++]); else clearInterval(timer); }, 60);
}

// Search: every section that has all words, first those that have them as they were typed, or in a heading.
function search() {
  const input = document.getElementById("words"), list = document.querySelector(".found");
  if (!input) return;
  const sections = JSON.parse(document.getElementById("sections").textContent);
  const look = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter((word) => word.length > 1);
    const phrase = input.value.trim().toLowerCase().replace(/\s+/g, " ");  // as it was typed: worth more than its words apart
    const hits = !words.length ? [] : sections.map((one) => {
      const heading = `${one.title} ${one.section}`.toLowerCase(), text = one.text.toLowerCase();
      const whole = words.length > 1 && (heading.includes(phrase) || text.includes(phrase)) ? words.length : 0;
      return { one, score: words.every((w) => heading.includes(w) || text.includes(w)) ? whole + words.filter((w) => heading.includes(w)).length + 0.01 * text.split(words[0]).length : -1 };
    }).filter((hit) => hit.score >= 0).sort((a, b) => b.score - a.score).slice(0, 20);
    list.replaceChildren(...hits.map(({ one }) => {
      const text = one.text.toLowerCase(), at = Math.max(0, text.indexOf(text.includes(phrase) ? phrase : words[0]) - 60);
      return make("li", {}, make("a", { href: `${one.page}.html#${one.id}` }, `${one.title}: ${one.section}`), make("small", {}, `… ${one.text.slice(at, at + 180)} …`));
    }));
    if (words.length && !hits.length) list.append(make("li", {}, "Nothing was found."));
  };
  input.addEventListener("input", look);
  input.form.addEventListener("submit", (event) => event.preventDefault());
  input.value = new URLSearchParams(location.search).get("q") || "";
  look();
}

enlarge(); predictions(); progress(); story(); search();
