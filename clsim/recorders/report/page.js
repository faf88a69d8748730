"use strict";
// sorting, and the choice of the reference; every figure was computed before
document.querySelectorAll("section.stream").forEach(function (stream) {
  const table = stream.querySelector("table.results");
  const body = table.tBodies[0];
  const headings = Array.from(table.tHead.rows[0].cells);
  const differences = JSON.parse(stream.querySelector("script.differences").textContent);
  const select = stream.querySelector("select");

  function compareTo() {
    Array.from(body.rows).forEach(function (row) {
      row.querySelectorAll("small").forEach(function (cell, metric) {
        const difference = differences[metric][select.value][row.dataset.row];
        cell.textContent = difference[0];
        cell.className = difference[1] ? "clear" : "unclear";
      });
    });
  }

  function sortBy(column) {
    const heading = headings[column];
    const isText = "text" in heading.dataset;
    const first = isText ? "ascending" : "descending";
    const second = isText ? "descending" : "ascending";
    const order = heading.getAttribute("aria-sort") === first ? second : first;
    const sign = order === "ascending" ? 1 : -1;
    headings.forEach(function (each) { each.removeAttribute("aria-sort"); });
    heading.setAttribute("aria-sort", order);
    const rows = Array.from(body.rows).sort(function (a, b) {
      const [left, right] = [a.cells[column], b.cells[column]];
      if (isText) return sign * left.textContent.localeCompare(right.textContent, undefined, { numeric: true });
      const [x, y] = [left.dataset.order, right.dataset.order];
      if (x === "" || y === "") return (x === "") - (y === ""); // rows without a value come last
      return sign * (Number(x) - Number(y));
    });
    body.append(...rows);
  }

  headings.forEach(function (heading, column) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", function () { sortBy(column); });
  });
  select.addEventListener("change", compareTo);
  stream.querySelector(".choice").hidden = false;
  stream.querySelector(".sorts").hidden = false;
  compareTo(); // a browser may have kept an earlier choice
});
