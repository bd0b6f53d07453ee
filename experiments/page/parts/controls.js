// What parts are played with. All of it is the browser's own, so that the keyboard, fingers and screen readers can use it.
//   slider({ label, values, at, say, onmove })     one of a list of values, the one at index `at` first
//     .node  .value()  .show()  after what say() says has changed
//   steps({ label, count, say, onstep })           a place from 0 to count, by hand or played
//     .node  .go(n)  .to(count)  with another count, from the beginning
//   choice({ label, names, onpick })               one of a few names
//     .node  .pick(n)  without calling onpick; -1 for none

import { element } from "./make.js";

const PACE = 900; // milliseconds of a step that is played

export function slider({ label, values, at, say, onmove }) {
  const input = element("input", { type: "range", min: 0, max: values.length - 1, step: 1, value: at, ariaLabel: label });
  const output = element("output");
  const value = () => values[Number(input.value)];
  const show = () => {
    output.textContent = say(value());
    input.ariaValueText = output.textContent;
  };
  input.oninput = () => {
    show();
    onmove();
  };
  show();
  return { node: element("label", { className: "slider" }, element("span", { textContent: label }), input, output), value, show };
}

export function steps({ label, count, say, onstep }) {
  const input = element("input", { type: "range", min: 0, max: count, step: 1, value: 0, ariaLabel: label, oninput: () => go(Number(input.value)) });
  const button = (textContent, ariaLabel, onclick) => element("button", { type: "button", textContent, ariaLabel, onclick });
  const back = button("‹", "one step back", () => go(at - 1));
  const on = button("›", "one step on", () => go(at + 1));
  const play = button("▶", "play", () => (timer ? stop() : start()));
  const sentence = element("p", { className: "says", ariaLive: "polite" });
  let at = 0, most = count, timer = 0;

  function move(n) {
    at = Math.max(0, Math.min(most, n));
    input.value = at;
    sentence.textContent = say(at);
    input.ariaValueText = `${at} of ${most}`;
    back.disabled = at === 0;
    on.disabled = at === most;
    onstep(at);
  }
  function stop() {
    clearInterval(timer);
    timer = 0;
    play.textContent = "▶";
    play.ariaLabel = "play";
  }
  function start() {
    play.textContent = "❚❚";
    play.ariaLabel = "pause";
    move(at === most ? 0 : at + 1);
    timer = setInterval(() => (at < most ? move(at + 1) : stop()), PACE);
  }
  function go(n) {
    stop();
    move(n);
  }
  return {
    node: element("div", { className: "steps" }, element("div", { className: "buttons" }, back, play, on, input), sentence),
    go,
    to(count) {
      most = count;
      input.max = count;
      go(0);
    },
  };
}

export function choice({ label, names, onpick }) {
  const node = element("div", { className: "choice", role: "group", ariaLabel: label });
  const pick = (n) => [...node.children].forEach((one, at) => (one.ariaPressed = String(at === n)));
  node.append(...names.map((textContent, n) => element("button", { type: "button", textContent, onclick: () => (pick(n), onpick(n)) })));
  pick(0);
  return { node, pick };
}
