// A switch for each head and each MLP of a model.
//   board({ layers, heads, off, onchange })     off: the Set that model.js takes, changed before onchange is called

import { element } from "./make.js";

/** "3 1" or "3 mlp" in words. */
export function partName(name) {
  const [layer, part] = name.split(" ");
  return part === "mlp" ? `the MLP of layer ${layer}` : `head ${part} of layer ${layer}`;
}

export function board({ layers, heads, off, onchange }) {
  const parts = [...Array(heads).keys(), "mlp"];
  const rows = Array.from({ length: layers }, (_, layer) => parts.map((part) => {
    const name = `${layer} ${part}`, box = element("input", { type: "checkbox", checked: true, ariaLabel: partName(name) });
    box.onchange = () => {
      off[box.checked ? "delete" : "add"](name);
      onchange();
    };
    return box;
  }));
  const onclick = () => {
    off.clear();
    for (const box of rows.flat()) box.checked = true;
    onchange();
  };
  const cell = (textContent, className = "") => element("span", { textContent, className });
  return element("div", { className: "board" },
    cell("head", "layer"), ...parts.map((part) => cell(part === "mlp" ? "MLP" : part)),
    ...rows.flatMap((row, layer) => [cell(`layer ${layer}`, "layer"), ...row]),
    element("button", { type: "button", textContent: "All on", onclick }));
}
