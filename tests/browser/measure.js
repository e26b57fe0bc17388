// What a reader with this screen would trip over, as a list of sentences; empty where nothing is wrong.
async () => {
  const article = document.querySelector("article");
  const faults = [];
  const shown = (element) => element.checkVisibility() && element.getBoundingClientRect().width > 0;
  const all = (selector) => [...article.querySelectorAll(selector)].filter(shown);
  const named = (element) => element.textContent.trim().replace(/\s+/g, " ").slice(0, 40);

  // a column of words is wide enough for words, and none is broken inside
  for (const table of all("table")) {
    const cells = [...table.querySelectorAll("td, th")];
    const words = cells.filter((cell) => prose(cell).length > 12);
    for (const [length, least] of [[12, 60], [40, 150]]) {
      const widths = words.filter((cell) => prose(cell).length > length).map((cell) => cell.getBoundingClientRect().width);
      const narrowest = Math.min(...widths);
      if (narrowest < least) faults.push(`table "${named(table)}": a column of ${Math.round(narrowest)} px`);
    }
    const broken = words.flatMap(brokenWords);
    if (broken.length) faults.push(`table "${named(table)}": breaks ${broken.slice(0, 3).join(", ")}`);
  }

  // what is wider than its box can be scrolled, and its edge says so
  for (const box of all("*")) {
    const hidden = box.scrollWidth - box.clientWidth;
    const style = getComputedStyle(box);
    if (hidden < 2 || !["auto", "scroll"].includes(style.overflowX)) continue;
    if (!style.backgroundAttachment.includes("local"))
      faults.push(`${hidden} px of <${box.localName}> "${named(box)}" are cut without a sign`);
  }

  // a formula is drawn, lies inside a box that shows it or scrolls it, and its number lies beside it
  const bad = all(".katex-error, merror");
  if (bad.length) faults.push(`formula not drawn: ${named(bad[0])}`);
  for (const formula of all(".katex-display, math[display=block]")) {
    let box = formula;
    while (box !== article && !["auto", "scroll"].includes(getComputedStyle(box).overflowX)) box = box.parentElement;
    const out = Math.max(...[...formula.querySelectorAll("*")].map((part) => part.getBoundingClientRect().right));
    const edge = box.getBoundingClientRect().right;
    if (box === article && out > edge + 1) faults.push(`formula ${Math.round(out - edge)} px beyond the page`);
    const number = box.parentElement.querySelector(".eqno");
    if (number && overlaps(number, box)) faults.push(`number ${named(number)} lies over its formula`);
  }

  // words in charts
  const readable = innerWidth < 600 ? 9 : 7;
  for (const chart of all("img")) {
    const size = await smallestFont(chart);
    if (size < readable) faults.push(`chart ${chart.currentSrc.slice(-40)}: words of ${size.toFixed(1)} px`);
  }

  // of two levels of headings the higher is the larger, and no lighter
  const [two, three] = ["h2", "h3"].map((level) => article.querySelector(level)).map((h) => h && getComputedStyle(h));
  if (two && three && parseFloat(two.fontSize) <= parseFloat(three.fontSize)) faults.push("h2 is not larger than h3");
  if (two && three && two.fontWeight < three.fontWeight) faults.push("h2 is lighter than h3");
  return faults;

  // without formulas, which hold their TeX and their MathML as well
  function prose(cell) {
    const copy = cell.cloneNode(true);
    copy.querySelectorAll(".katex, math").forEach((formula) => formula.remove());
    return copy.textContent.trim();
  }

  function brokenWords(cell) {
    const broken = [];
    const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
    for (let text = texts.nextNode(); text; text = texts.nextNode()) {
      if (text.parentElement.closest(".katex, math")) continue;
      for (const { 0: word, index } of text.data.matchAll(/[\p{L}\d]+/gu)) {
        const range = document.createRange();
        range.setStart(text, index);
        range.setEnd(text, index + word.length);
        const lines = new Set([...range.getClientRects()].map((line) => Math.round(line.top)));
        if (lines.size > 1) broken.push(word);
      }
    }
    return broken;
  }

  function overlaps(one, other) {
    const [a, b] = [one.getBoundingClientRect(), other.getBoundingClientRect()];
    return a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
  }

  // Matplotlib writes a glyph of an SVG with a scale of a hundredth of its font size; its bitmaps have 10 points
  async function smallestFont(chart) {
    if (!chart.currentSrc.split("?")[0].endsWith(".svg"))
      return (10 / 72) * 100 * (chart.getBoundingClientRect().width / chart.naturalWidth);
    const drawn = new DOMParser().parseFromString(await (await fetch(chart.currentSrc)).text(), "image/svg+xml");
    const scales = [...drawn.querySelectorAll("g[transform*=scale]")]
      .map((glyphs) => /scale\(([\d.]+) -[\d.]+\)/.exec(glyphs.getAttribute("transform")))
      .filter(Boolean)
      .map((found) => 100 * found[1]);
    return (Math.min(...scales) * chart.getBoundingClientRect().width) / drawn.documentElement.viewBox.baseVal.width;
  }
}
