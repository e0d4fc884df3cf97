/* Filters and sorts the cases of qc.html by what the table of all cases holds. The form is the state, and the fragment
   of the address a copy of it, so that a view can be kept and sent: qc.html#status=failed&sort=motion_mm */
"use strict";
(() => {
  const form = document.getElementById("choose");
  const list = document.getElementById("cases");
  const table = document.getElementById("overview");
  const heads = [...table.tHead.rows[0].cells];
  const column = new Map(heads.map((head, index) => [head.dataset.key, index]));
  const fields = [...form.elements].filter((field) => field.name);
  const filters = [...new Set(fields.map((field) => field.name))].filter((name) => column.has(name));
  const searched = ["case", "subject", "reasons"].filter((name) => column.has(name));
  const cases = [...table.tBodies[0].rows].map((row, rank) => {
    const cells = [...row.cells].map((cell) => cell.textContent.trim());
    const words = searched.map((name) => cells[column.get(name)]).join("\n").toLowerCase();
    return { row, rank, cells, words, card: list.children[rank] };
  });

  function readAddress() {
    const given = new URLSearchParams(location.hash.slice(1));
    form.reset();
    for (const field of fields) {
      const values = given.getAll(field.name);
      if (field.type === "checkbox") field.checked = values.includes(field.value);
      else if (values.length) field.value = values[0];
      if (field.selectedIndex === -1) field.selectedIndex = 0; // a value that this cohort does not have
    }
  }

  function writeAddress() {
    const state = [...new FormData(form)].filter(([, value]) => value);
    history.replaceState(null, "", `#${new URLSearchParams(state)}`);
  }

  function ordered(key, reversed) {
    const index = column.get(key);
    const use = key ? heads[index].dataset.use : "rank";
    const sign = reversed ? -1 : 1;
    const number = (one) => parseFloat(one.cells[index]); // NaN where there is none
    const compare = {
      rank: (a, b) => sign * (a.rank - b.rank),
      sort: (a, b) => sign * a.cells[index].localeCompare(b.cells[index], undefined, { numeric: true }),
      min: (a, b) => isNaN(number(a)) - isNaN(number(b)) || sign * (number(a) - number(b)),
      max: (a, b) => isNaN(number(a)) - isNaN(number(b)) || sign * (number(b) - number(a)),
    }[use];
    return [...cases].sort((a, b) => compare(a, b) || a.rank - b.rank);
  }

  function show() {
    const state = new FormData(form);
    const key = state.get("sort");
    const wanted = state.get("find").trim().toLowerCase();
    const chosen = filters.map((name) => [column.get(name), state.getAll(name).filter(Boolean)]);
    let count = 0;
    for (const one of cases) {
      const fits = chosen.every(([index, values]) => !values.length || values.includes(one.cells[index]));
      one.card.hidden = one.row.hidden = !(fits && one.words.includes(wanted));
      count += !one.card.hidden;
    }
    const order = ordered(key, state.has("reverse"));
    if (order.some((one, place) => list.children[place] !== one.card)) {
      list.replaceChildren(...order.map((one) => one.card));
      table.tBodies[0].replaceChildren(...order.map((one) => one.row));
    }
    for (const head of heads) {
      const falls = (head.dataset.use === "max") !== state.has("reverse");
      if (head.dataset.key === key) head.setAttribute("aria-sort", falls ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    list.dataset.pictures = state.get("pictures");
    document.getElementById("shown").textContent = `${count} of ${cases.length} cases`;
  }

  function changed() {
    writeAddress();
    show();
    if (list.getBoundingClientRect().top < 0) list.scrollIntoView();
  }

  for (const head of heads.filter((head) => [...form.elements.sort.options].some((o) => o.value === head.dataset.key))) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => {
      const { sort, reverse } = form.elements;
      reverse.checked = sort.value === head.dataset.key && !reverse.checked;
      sort.value = head.dataset.key;
      changed();
    });
    head.replaceChildren(button);
  }
  form.addEventListener("input", changed);
  form.addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("clear").addEventListener("click", () => {
    form.reset();
    changed();
  });
  addEventListener("hashchange", () => {
    if (!location.hash.startsWith("#case-")) {
      readAddress();
      show();
    }
  });
  form.hidden = false;
  if (!location.hash.startsWith("#case-")) readAddress();
  show();
})();
