// The planner on a page: adds up the sums that stand beside it, which `handbook plan` gave the coefficients of.
"use strict";

for (const form of document.querySelectorAll("form.planner")) {
  const data = JSON.parse(form.querySelector(".planner-data").textContent);
  const at = (name) => form.querySelector(`.planner-${name}`);
  const numbers = [...form.querySelectorAll("input")];

  // MiB of each part at the highest moment of a step, in the order in which parts are named
  function partsOf(model, stage, method, rows, length) {
    const entry = data.entries[`${model}|${stage}|${method}`];
    const terms = [1, rows, rows * length, rows * length ** 2, Math.min(data.learned[stage] * rows * length, data.tile)];
    const scaled = (coefficients) => coefficients.reduce((sum, each, place) => sum + each * terms[place], 0);
    const total = (parts) => Object.values(parts).reduce((sum, size) => sum + size, 0);
    const moments = Object.values(entry.moments).map((parts) =>
      Object.fromEntries(Object.entries(parts).map(([name, coefficients]) => [name, scaled(coefficients)])));
    const highest = moments.reduce((best, parts) => (total(parts) > total(best) ? parts : best));
    const counted = { ...entry.held, ...highest };
    const margin = total(counted) * data.margin.share + data.margin.gib * 1024;
    const all = { ...counted, "margin, not measured": margin };
    return Object.keys(data.fills).filter((name) => all[name] > 0.5).map((name) => [name, all[name]]);
  }

  function made(tag, text, style) {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (style) Object.assign(element.style, style);
    return element;
  }

  const size = (mib) => (mib < 102.4 ? `${mib.toFixed(0)} MiB` : `${(mib / 1024).toFixed(2)} GiB`);

  function complaint(input) {
    const kind = input.step === "2" ? "an even number" : "a whole number";
    return `${input.parentElement.firstChild.textContent}: ${kind} from ${input.min} to ${input.max}.`;
  }

  function show() {
    const wrong = numbers.find((input) => !input.checkValidity());
    for (const input of numbers) input.setAttribute("aria-invalid", String(!input.checkValidity()));
    at("answer").hidden = Boolean(wrong);
    at("error").textContent = wrong ? complaint(wrong) : "";
    if (wrong) return;
    const { model, stage, method, rows, tokens } = form.elements;
    const parts = partsOf(model.value, stage.value, method.value, Number(rows.value), Number(tokens.value));
    const total = parts.reduce((sum, [, mib]) => sum + mib, 0);
    at("total").replaceChildren(made("strong", `${(total / 1024).toFixed(2)} GiB`), " on one GPU");
    at("total").dataset.gib = String(total / 1024);
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
      : "Fits no single GPU of the list: `handbook plan` says which changes or how many GPUs make it fit.";
  }

  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  show();
}
