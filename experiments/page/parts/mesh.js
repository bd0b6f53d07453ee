// A mesh of devices, and what they say to each other in the order of the compiled program.
//   mesh({ meshes: [{ data, tensor, texts, share, steps: [{ name, groups: [[devices]], bytes }] }] })

import { choice, steps } from "./controls.js";
import { element } from "./make.js";

export function mesh({ meshes }) {
  const grid = element("ol", { className: "devices" }), program = element("ol", { className: "program" });
  let now = meshes.find(({ steps }) => steps.length);
  const plural = (count, one) => `${count} ${one}${count === 1 ? "" : "s"}`;
  const names = meshes.map(({ data, tensor }) => `${data} x ${tensor}`);
  const which = choice({ label: "data x tensor", names, onpick: (n) => ((now = meshes[n]), control.to(now.steps.length)) });
  const control = steps({ label: "exchanges", count: 0, say, onstep: show });

  function say(n) {
    const own = `each device has ${(100 * now.share).toFixed(1)} % of the weights and ${plural(now.texts, "text")}`;
    if (!now.steps.length) return `No device ever talks to another: ${own}.`;
    if (!n) return `Before the pass: ${own}. ${now.steps.length} exchanges will follow.`;
    const { name, groups, bytes } = now.steps[n - 1], last = n === now.steps.length;
    const who = groups.length === 1 ? `all ${groups[0].length} devices` : `${groups.length} groups of ${groups[0].length} devices`;
    return `All-reduce ${n} of ${now.steps.length}, behind the ${name}: ${who}. Each device brings in ${bytes.toLocaleString("en")} bytes of its own part, and has the sum of its group's parts afterwards.${last ? " Then each scores its own part of the vocabulary." : ""}`;
  }

  function show(n) {
    const groups = n ? now.steps[n - 1].groups : [];
    grid.style.gridTemplateColumns = `repeat(${now.tensor}, minmax(0, 1fr))`;
    grid.style.maxWidth = `${Math.max(9, now.tensor * 5.2)}rem`;
    grid.replaceChildren(...Array.from({ length: now.data * now.tensor }, (_, device) => {
      const group = groups.findIndex((one) => one.includes(device));
      const cell = element("li", { className: group < 0 ? "" : `talks g${group % 4}` }, element("b", { textContent: device }));
      cell.title = `device ${device}: texts of row ${Math.floor(device / now.tensor)}, part ${device % now.tensor} of the weights`;
      cell.dataset.group = group;
      return cell;
    }));
    program.replaceChildren(...now.steps.map(({ name }, at) => element("li", { className: at + 1 === n ? "now" : at + 1 < n ? "past" : "", textContent: name })));
  }

  which.pick(meshes.indexOf(now));
  control.to(now.steps.length);
  return element("div", { className: "mesh" }, which.node, control.node,
    element("h4", { textContent: "the devices: a row has the same texts, a column the same part of the weights" }), grid,
    element("h4", { textContent: "the program: behind each of these, a sum" }), program);
}
