"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  const key = (row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.sort !== undefined) return Number(cell.dataset.sort);
    return cell.classList.contains("number") || cell.textContent === "–" ? null : cell.textContent;
  };
  const compare = (one, other) =>
    typeof one === "number" ? one - other : one.localeCompare(other, undefined, { numeric: true });
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      headings.forEach((other) => other.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows].map((row) => [key(row, column), row]);
      const missing = rows.filter(([value]) => value === null);
      const sorted = rows.filter(([value]) => value !== null).sort(([one], [other]) => compare(one, other));
      if (down) sorted.reverse();
      table.tBodies[0].append(...[...sorted, ...missing].map(([, row]) => row));
    });
  });
  const reason = table.parentElement.nextElementSibling;
  table.addEventListener("click", (event) => {
    const cell = event.target.closest("td[title]");
    if (cell) reason.textContent = `${headings[cell.cellIndex].innerText.trim()}: ${cell.title}`;
  });
}
