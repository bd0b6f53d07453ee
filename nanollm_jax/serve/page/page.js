// The page: a conversation that is a list of messages, shown anew where it changes, and sent whole with every question.

import { answer, models, Refused } from "./stream.js";

const at = (id) => document.getElementById(id);
const talk = at("talk");
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];
const KEPT = [...NUMBERS, "system"];

let messages = []; // {role, content, thought, about, wrong}
let running = null; // the AbortController of the answer that is being written
let editing = null; // which message is being changed

function element(name, fields = {}, ...children) {
  const made = Object.assign(document.createElement(name), fields);
  made.append(...children);
  return made;
}

function button(label, action) {
  return element("button", { type: "button", textContent: label, onclick: action });
}

// Change what is seen; who has scrolled up to read stays there.
function changed(change) {
  const atEnd = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 80;
  change();
  if (atEnd) talk.scrollTop = talk.scrollHeight;
}

function show() {
  changed(() => talk.replaceChildren(...messages.map(shown)));
  at("send").textContent = running ? "Stop" : "Send";
}

function shown(message, n) {
  const last = n === messages.length - 1;
  const box = element("article", { className: message.role });
  if (editing === n) {
    const text = element("textarea", { value: message.content, rows: 3, ariaLabel: "Edited message" });
    box.append(text, element("div", { className: "about" }, button("Send", () => resend(n, text.value)), button("Leave", leave)));
    queueMicrotask(() => text.focus());
    return box;
  }
  if (running && last) box.classList.add("writing");
  if (message.thought) {
    const thought = element("div", { className: "thought", textContent: message.thought });
    box.append(element("details", { open: !message.content }, element("summary", { textContent: "Reasoning" }), thought));
  }
  if (message.content || !message.wrong) box.append(element("p", { textContent: message.content }));
  const about = element("div", { className: "about" });
  if (message.wrong) about.append(element("span", { className: "wrong", role: "alert", textContent: message.wrong }));
  if (message.about) about.append(element("span", { textContent: message.about }));
  if (!running && message.role === "user") about.append(button("Edit", () => edit(n)));
  if (!running && last && message.role === "assistant") about.append(button("Again", () => resend(n - 1, messages[n - 1].content)));
  box.append(about);
  return box;
}

function edit(n) {
  editing = n;
  show();
}

function leave() {
  editing = null;
  show();
}

function resend(n, content) {
  if (!content.trim()) return;
  editing = null;
  messages.length = n;
  say(content);
}

function body() {
  const system = at("system").value.trim();
  const said = messages.filter((one) => one.content).map(({ role, content }) => ({ role, content }));
  const made = { model: at("model").value || undefined, messages: [...(system ? [{ role: "system", content: system }] : []), ...said] };
  for (const name of NUMBERS) if (at(name).value !== "") made[name] = Number(at(name).value);
  return made;
}

async function say(content) {
  messages.push({ role: "user", content });
  const asked = body();
  const message = { role: "assistant", content: "" };
  messages.push(message);
  running = new AbortController();
  show();
  talk.scrollTop = talk.scrollHeight;
  const said = () => talk.lastElementChild.querySelector("p");
  const begun = performance.now();
  let first = null, seed = null, usage = null, reason = "stopped";
  try {
    for await (const part of answer(asked, at("key").value, running.signal)) {
      seed = part.seed ?? seed;
      usage = part.usage ?? usage;
      reason = part.reason ?? reason;
      if (part.text || part.thought) first ??= performance.now();
      if (part.thought) {
        message.thought = (message.thought ?? "") + part.thought;
        changed(() => {
          const thought = talk.lastElementChild.querySelector(".thought");
          if (thought) thought.textContent = message.thought;
          else talk.lastElementChild.replaceWith(shown(message, messages.length - 1));
        });
      }
      if (part.text) {
        message.content += part.text;
        changed(() => (said().textContent = message.content));
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") message.wrong = error instanceof Refused ? error.message : "the server cannot be reached";
  }
  const rate = usage && first ? ` at ${Math.round((usage.completion_tokens - 1) / Math.max((performance.now() - first) / 1000, 0.001))}/s` : "";
  const cost = usage ? [`${usage.completion_tokens} tokens${rate}`, `first after ${((first ?? begun) - begun).toFixed(0)} ms`] : [];
  const ended = { length: "cut at its longest", stopped: "stopped" }[reason];
  message.about = [...cost, ...(ended && !message.wrong ? [ended] : []), ...(seed ? [`seed ${seed}`] : [])].join(" · ");
  running = null;
  show();
}

at("ask").onsubmit = (event) => {
  event.preventDefault();
  if (running) return running.abort();
  const content = at("text").value;
  if (!content.trim()) return;
  at("text").value = "";
  say(content);
};

at("text").onkeydown = (event) => {
  const enter = event.key === "Enter" && !event.shiftKey && !event.isComposing;
  if (!enter) return;
  event.preventDefault();
  if (!running) at("ask").requestSubmit();
};

at("new").onclick = () => {
  running?.abort();
  messages = [];
  editing = null;
  show();
  at("text").focus();
};

at("open").onclick = () => {
  const settings = at("settings");
  settings.hidden = !settings.hidden;
  at("open").setAttribute("aria-expanded", String(!settings.hidden));
};

at("settings").onsubmit = (event) => event.preventDefault();

for (const name of KEPT) {
  at(name).value = localStorage.getItem(`nanollm.${name}`) ?? "";
  at(name).oninput = () => localStorage.setItem(`nanollm.${name}`, at(name).value);
}

async function list() {
  try {
    const found = await models(at("key").value);
    at("model").replaceChildren(...found.map(({ id }) => element("option", { value: id, textContent: id })));
    at("name").textContent = document.title = found[0].id;
  } catch (error) {
    at("name").textContent = error instanceof Refused ? error.message : "the server cannot be reached";
  }
}

at("key").value = sessionStorage.getItem("nanollm.key") ?? ""; // until the tab is closed; the page at /glass reads it too
at("key").onchange = () => {
  sessionStorage.setItem("nanollm.key", at("key").value);
  list();
};
await list();
at("text").focus();
