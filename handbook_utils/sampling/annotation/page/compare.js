"use strict";
// all texts of people and models are set as text, never as HTML

const part = id => document.getElementById(id);
const TOKEN = document.querySelector("meta[name=page-token]").content;
const KEYS = {"1": "left", "2": "right", "3": "tie", t: "tie", s: "skip"};
const KEPT_NAME = "handbook-compare-name";
// what is pressed sooner was meant for the pair before
const SETTLING_MS = 300;
const WAITING_MS = 15000;
const LEAST_SHARED = 2;
let person = "", pair = null, said = 0, since = 0, isBusy = false, last = null, timer = 0;

async function ask(path, more) {
  const response = await fetch(path, {
    method: "POST",
    headers: {"Content-Type": "application/json", "X-Handbook-Token": TOKEN},
    body: JSON.stringify({person, ...more}),
  });
  const content = await response.json();
  if (!response.ok) throw new Error(content.error || `the server said ${response.status}`);
  return content;
}

async function request(path, more) {
  if (isBusy) return;
  clearTimeout(timer);
  last = [path, more];
  setBusy(true);
  try {
    const shown = await ask(path, more);
    part("trouble").hidden = true;
    show(shown);
  } catch (error) {
    const lost = error instanceof TypeError || error instanceof SyntaxError;
    say(lost ? "The server cannot be reached. Try again: what you chose last is then kept, once." : error.message);
    setBusy(false);
  }
}

function say(why) {
  part("why").textContent = why.endsWith(".") ? why : `${why}.`;
  part("again").textContent = why.endsWith("Reload the page.") ? "Reload" : "Try again";
  part("trouble").hidden = false;
  if (part("work").hidden && part("done").hidden) part("enter").hidden = false;
}

function setBusy(busy) {
  isBusy = busy;
  document.body.setAttribute("aria-busy", String(busy));
  for (const button of part("choices").querySelectorAll("button"))
    button.disabled = busy || (button.dataset.choice !== undefined && pair === null);
}

function show(shown) {
  person = shown.person;
  localStorage.setItem(KEPT_NAME, person);
  pair = shown.pair;
  said = shown.said;
  if (shown.guideline) showGuideline(shown.guideline);
  part("enter").hidden = true;
  part("leave").hidden = false;
  part("choices").hidden = false;
  part("note").textContent = shown.note || "";
  part("note").hidden = !shown.note;
  showProgress(shown.progress);
  showAgreement(shown.agreement);
  part("work").hidden = pair === null;
  part("done").hidden = pair !== null;
  if (pair === null) showDone(shown.progress);
  else showPair();
  window.scrollTo(0, 0);
  setTimeout(() => setBusy(false), SETTLING_MS);
}

function showPair() {
  const messages = pair.prompt.map(message => {
    const box = made("div", "", "message");
    box.append(made("div", message.role, "role"), made("div", message.content, "text"));
    box.lastChild.dir = "auto";
    return box;
  });
  part("prompt").replaceChildren(...messages);
  part("left").textContent = pair.left;
  part("right").textContent = pair.right;
  part("work").dataset.pair = pair.id;
  part("heading").focus({preventScroll: true});
  since = performance.now();
}

function showDone(progress) {
  const isAll = progress.done >= progress.needed;
  part("done-title").textContent = isAll ? "All pairs are judged. Thank you." : "Nothing is left for you now.";
  part("done-text").textContent = isAll ? "You can close this page." :
    `${progress.needed - progress.done} judgements are still to be made by other people` +
    (progress.held ? `, who look at ${progress.held} pairs now. This page looks again by itself.` : ".");
  part("done-title").focus({preventScroll: true});
  if (!isAll) timer = setTimeout(() => request("/api/show", {}), WAITING_MS);
}

function showProgress(progress) {
  part("progress").textContent =
    `${person}: ${progress.mine} judged by you; ${progress.done} of ${progress.needed} in all`;
  part("bar").hidden = false;
  part("bar").max = progress.needed;
  part("bar").value = progress.done;
}

function showAgreement(found) {
  const names = {alpha: "Krippendorff's alpha", alpha_ordered: "alpha, a tie halfway", agreement: "equal judgements"};
  const rows = Object.entries(names).filter(([key]) => found.metrics[key])
    .map(([key, name]) => [name, figure(found.metrics[key])]);
  for (const each of found.kappas) rows.push([`Cohen's kappa: ${each.people.join(", ")}`, figure(each.kappa)]);
  part("agreement").hidden = found.shared < LEAST_SHARED;
  part("agreement-title").textContent = `Agreement on ${found.shared} pairs that several people judged`;
  const table = made("table", "");
  for (const row of rows) {
    const line = made("tr", "");
    line.append(...row.map(cell => made("td", cell)));
    table.append(line);
  }
  part("figures").replaceChildren(table);
}

function figure(estimate) {
  const digits = value => value === null ? "unbounded" : value.toFixed(2);
  return `${digits(estimate.value)} [${digits(estimate.low)}, ${digits(estimate.high)}], ${estimate.n} pairs`;
}

function showGuideline(blocks) {
  part("guideline").hidden = blocks.length === 0;
  const made_blocks = [];
  for (const block of blocks) {
    const box = made(block.kind, "");
    for (const [style, text] of block.spans) box.append(style ? made(style, text) : text);
    const before = made_blocks[made_blocks.length - 1];
    if (block.kind !== "li") made_blocks.push(box);
    else if (before && before.tagName === "UL") before.append(box);
    else {
      const list = made("ul", "");
      list.append(box);
      made_blocks.push(list);
    }
  }
  part("rules").replaceChildren(...made_blocks);
  part("guideline").open = window.matchMedia("(min-width: 70rem)").matches;
}

function made(tag, text, kind) {
  const element = document.createElement(tag);
  element.textContent = text;
  if (kind) element.className = kind;
  return element;
}

function choose(choice) {
  if (isBusy || pair === null) return;
  request("/api/judge", {pair: pair.id, choice, seconds: (performance.now() - since) / 1000});
}

function undo() {
  if (person && !part("choices").hidden) request("/api/undo", {said});
}

document.addEventListener("keydown", event => {
  const isTyping = event.target instanceof HTMLInputElement;
  if (isTyping || event.repeat || event.ctrlKey || event.metaKey || event.altKey || part("choices").hidden) return;
  const key = event.key.toLowerCase();
  if (KEYS[key]) choose(KEYS[key]);
  else if (key === "u") undo();
  else return;
  event.preventDefault();
});
part("choices").addEventListener("click", event => {
  const button = event.target.closest("button");
  if (button && button.dataset.choice) choose(button.dataset.choice);
});
part("undo").addEventListener("click", undo);
part("again").addEventListener("click", () => {
  if (part("again").textContent === "Reload") location.reload();
  else if (last) request(...last);
});
part("leave").addEventListener("click", () => {
  localStorage.removeItem(KEPT_NAME);
  location.reload();
});
part("enter").addEventListener("submit", event => {
  event.preventDefault();
  person = part("name").value;
  request("/api/show", {});
});

person = localStorage.getItem(KEPT_NAME) || "";
if (person) request("/api/show", {});
else {
  part("enter").hidden = false;
  part("name").focus();
}
