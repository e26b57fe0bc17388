// The planner on a page: looks up what `handbook plan` said of each choice; the figures stand beside the form.
"use strict";

for (const form of document.querySelectorAll("form.planner")) {
  const data = JSON.parse(form.querySelector(".planner-data").textContent);
  const at = (name) => form.querySelector(`.planner-${name}`);

  function made(tag, text, style) {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (style) Object.assign(element.style, style);
    return element;
  }

  const size = (mib) => (mib < 102.4 ? `${mib.toFixed(0)} MiB` : `${(mib / 1024).toFixed(1)} GiB`);

  function show() {
    const { model, stage, method, rows, tokens } = form.elements;
    const entry = data.entries[`${model.value}|${stage.value}|${method.value}`];
    const cell = entry.cells[rows.selectedIndex * data.tokens.length + tokens.selectedIndex];
    const parts = entry.parts.map((name, place) => [name, cell[place]]).filter(([, mib]) => mib > 0);
    const total = parts.reduce((sum, [, mib]) => sum + mib, 0);
    at("total").replaceChildren(made("strong", size(total)), " on one GPU");
    at("total").dataset.mib = String(total);
    at("bar").replaceChildren(...parts.map(([name, mib]) =>
      made("span", undefined, { width: `${(100 * mib) / total}%`, background: data.fills[name] })));
    at("parts").replaceChildren(...parts.map(([name, mib]) => {
      const line = made("li");
      line.append(made("span", undefined, { background: data.fills[name] }), made("b", name), made("i", size(mib)));
      return line;
    }));
    const fits = Object.entries(data.gpus).filter(([, gib]) => total <= gib * 1024).map(([name]) => name);
    at("gpus").textContent = fits.length
      ? `Fits: ${fits.join(", ")}.`
      : "Fits no single GPU of the list: `handbook plan` says which changes, or how many GPUs, make it fit.";
  }

  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  show();
}
