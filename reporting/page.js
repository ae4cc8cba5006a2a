"use strict";
(() => {
  const all = (selector, root = document) => Array.from(root.querySelectorAll(selector));

  // Sorting: numbers by data-value, everything else by its text; cells without a number always come last.
  const key = (row, column) => {
    const cell = row.cells[column];
    if (!cell) return null;
    if (cell.dataset.value !== undefined) return cell.dataset.value === "" ? null : Number(cell.dataset.value);
    return cell.textContent.trim().toLowerCase();
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  const sort = (header) => {
    const body = header.closest("table").tBodies[0];
    // numbers are looked at from the best down, words from A on
    const first = header.classList.contains("number") ? "descending" : "ascending";
    const other = first === "descending" ? "ascending" : "descending";
    const order = header.getAttribute("aria-sort") === first ? other : first;
    all("th", header.parentNode).forEach((cell) => cell.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", order);
    const rows = Array.from(body.rows).map((row) => [key(row, header.cellIndex), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return order === "ascending" ? compare(a, b) : compare(b, a);
    });
    rows.forEach(([, row]) => body.append(row));
  };
  all("table.sortable thead th").forEach((header) =>
    header.querySelector("button").addEventListener("click", () => sort(header)));

  // Filters: an element with data-trainer (data-dataset) is shown while one of the numbers it lists is ticked.
  const kinds = ["trainer", "dataset"];
  const boxes = (kind) => all(`.filters input[name=${kind}]`);
  const status = document.querySelector(".filters output");
  const apply = () => {
    const ticked = {};
    kinds.forEach((kind) => {
      ticked[kind] = new Set(boxes(kind).filter((box) => box.checked).map((box) => box.value));
    });
    all("[data-trainer], [data-dataset]").forEach((element) => {
      element.hidden = !kinds.every((kind) => {
        const listed = element.dataset[kind];
        return listed === undefined || listed.split(" ").some((number) => ticked[kind].has(number));
      });
    });
    const rows = all("#runs tbody tr");
    status.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} runs shown`;
  };
  if (status) {
    kinds.forEach((kind) => boxes(kind).forEach((box) => box.addEventListener("change", apply)));
    all(".filters button[data-all]").forEach((button) => button.addEventListener("click", () => {
      boxes(button.dataset.all).forEach((box) => { box.checked = button.dataset.tick === "1"; });
      apply();
    }));
    apply();  // a browser may keep ticks over a reload
  }

  // A link to a folded configuration opens it.
  const open = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (target && target.tagName === "DETAILS") target.open = true;
  };
  window.addEventListener("hashchange", open);
  open();
})();
