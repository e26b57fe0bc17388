// Draw every formula of the page; without scripts its TeX stays readable.
for (const place of document.querySelectorAll(".tex")) {
  const displayMode = place.tagName === "DIV";
  katex.render(place.textContent, place, { displayMode, throwOnError: false });
}
