// Rows of a server that texts sit in, from one moment at which something happens to the next.
//   rows({ rows, requests: [{ arrival, length }], ways: [{ name, visits: [[row, begin, end]] }] })   in steps, a token each

import { choice, steps } from "./controls.js";
import { element } from "./make.js";

export function rows({ rows, requests, ways }) {
  const last = Math.max(...ways.flatMap(({ visits }) => visits.map(([, , end]) => end)));
  const tracks = element("div", { className: "tracks" }), queue = element("p", { className: "queue" });
  const all = (numbers) => (numbers.length ? `${numbers.length > 1 ? "requests" : "request"} ${numbers.join(", ")}` : "nobody");
  let way = ways[ways.length - 1], moments = [];
  const which = choice({ label: "how rows are filled", names: ways.map(({ name }) => name), onpick: (n) => begin(ways[n]) });
  const control = steps({ label: "what happens", count: 0, say, onstep: show });
  const those = (test) => requests.flatMap((one, n) => (test(one, ...way.visits[n]) ? [n] : []));
  const waiting = (now) => those(({ arrival }, _, begins) => arrival <= now && begins > now);

  function begin(one) {
    way = one;
    moments = [...new Set([0, ...requests.map(({ arrival }) => arrival), ...way.visits.flatMap(([, begins, end]) => [begins, end])])].sort((a, b) => a - b);
    control.to(moments.length - 1);
  }

  function say(at) {
    const now = moments[at], happened = [];
    const come = those(({ arrival }) => arrival === now), ended = those((_, row, begins, end) => end === now), sat = those((_, row, begins) => begins === now);
    if (come.length) happened.push(`${all(come)} ${come.length > 1 ? "come" : "comes"}`);
    if (ended.length) happened.push(`${all(ended)} ${ended.length > 1 ? "end" : "ends"}`);
    for (const n of sat) happened.push(`row ${way.visits[n][0]} takes ${n}${now > requests[n].arrival ? `, which has waited ${now - requests[n].arrival} steps` : ""}`);
    const busy = those((_, row, begins, end) => begins <= now && now < end).length, done = those((_, row, begins, end) => end <= now).length;
    return `Step ${now}: ${happened.join("; ") || "nobody is there yet"}. ${busy} of ${rows} rows write, ${done} of ${requests.length} answers are complete.`;
  }

  function show(at) {
    const now = moments[at], share = (steps) => `${(100 * steps) / last}%`;
    tracks.replaceChildren(...Array.from({ length: rows }, (_, row) => {
      const track = element("div", { className: "track" });
      let sitting = -1;
      way.visits.forEach(([its, begins, end], n) => {
        if (its !== row || begins > now) return;
        const there = now < end, bar = element("span", { className: `visit c${n % 4}${there ? " there" : ""}`, textContent: n });
        Object.assign(bar.style, { left: share(begins), width: share(Math.min(end, now) - begins) });
        bar.title = `request ${n}: ${Math.min(end, now) - begins} of ${end - begins} tokens`;
        if (there) sitting = n;
        track.append(bar);
      });
      track.dataset.request = sitting;
      return element("div", { className: "lane" }, element("small", { textContent: `row ${row}` }), track, element("small", { textContent: sitting < 0 ? "free" : `${now - way.visits[sitting][1]} of ${requests[sitting].length}` }));
    }));
    queue.textContent = `waiting: ${all(waiting(now))}`;
    queue.dataset.waiting = waiting(now).join(" ");
    queue.dataset.now = now;
  }

  which.pick(ways.length - 1);
  begin(way);
  return element("div", { className: "rows" }, which.node, control.node, tracks, queue);
}
