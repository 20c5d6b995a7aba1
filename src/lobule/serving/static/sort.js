// Tables sorted by a click on a heading; aria-sort says how.
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending";
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const text = (row) => row.cells[column].textContent.trim();
      // what is shown is rounded; <data> holds all digits
      const number = (row) => Number(row.cells[column].querySelector("data")?.value ?? text(row));
      const order = new Intl.Collator(undefined, { numeric: true }).compare;
      const by = heading.classList.contains("num") ? (a, b) => number(a) - number(b) : (a, b) => order(text(a), text(b));
      const rows = [...table.tBodies[0].rows].sort((a, b) => (down ? -by(a, b) : by(a, b)));
      table.tBodies[0].append(...rows);
    });
  });
}
