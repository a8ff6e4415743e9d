/** Names of columns offered while a condition is typed. */

import { el, unit } from "./http.js";

const MOST = 8;

/** The word that ends at the cursor, if a name may stand there: not within quotes. */
export function wordBefore(text) {
  const open = /^(?:[^'"]|'[^']*'|"[^"]*")*$/.test(text);
  return open ? (/[A-Za-z_]\w+$/.exec(text)?.[0] ?? "") : "";
}

/** The columns that a word may become: those that begin with it, then those that hold it. */
export function candidates(word, columns) {
  const asked = word.toLowerCase();
  const names = columns.filter(({ name }) => name.toLowerCase().includes(asked));
  if (!asked || names.some(({ name }) => name.toLowerCase() === asked)) return [];
  const begins = ({ name }) => (name.toLowerCase().startsWith(asked) ? 0 : 1);
  return names.sort((a, b) => begins(a) - begins(b)).slice(0, MOST);
}

/**
 * Makes a combobox of an input: arrows choose a column, Enter or Tab takes it, Escape closes.
 *
 * @param input the text field; it receives an `input` event after a name was taken.
 * @param columns of /api/store.
 * @returns the element that holds the input and the list.
 */
export function completing(input, columns) {
  const list = el("ul", { id: `${input.id}-names`, role: "listbox", "aria-label": "Columns", class: "names", hidden: true });
  let chosen = -1;
  let offered = [];

  const mark = (next) => {
    chosen = next;
    for (const [i, option] of [...list.children].entries()) option.setAttribute("aria-selected", i === chosen);
    if (chosen < 0) input.removeAttribute("aria-activedescendant");
    else input.setAttribute("aria-activedescendant", list.children[chosen].id);
  };
  const close = () => {
    list.hidden = true;
    offered = [];
    mark(-1);
    input.setAttribute("aria-expanded", "false");
  };
  const before = () => input.value.slice(0, input.selectionStart);
  const take = (name) => {
    const end = input.selectionStart;
    input.setRangeText(`${name} `, end - wordBefore(before()).length, end, "end");
    close();
    input.dispatchEvent(new Event("input"));
  };
  const offer = () => {
    close();
    offered = candidates(wordBefore(before()), columns);
    list.replaceChildren(...offered.map(({ name, unit: unitName, description }, i) => el(
      "li", { id: `${input.id}-name-${i}`, role: "option", "aria-selected": "false", onpointerdown: (event) => event.preventDefault(), onclick: () => take(name) },
      el("code", {}, name), el("span", { class: "muted small" }, [unit(unitName), description].filter(Boolean).join(" · ")),
    )));
    list.hidden = offered.length === 0;
    input.setAttribute("aria-expanded", !list.hidden);
  };

  for (const [name, value] of Object.entries({ role: "combobox", "aria-autocomplete": "list", "aria-expanded": "false", "aria-controls": list.id })) input.setAttribute(name, value);
  input.addEventListener("input", (event) => {
    if (event.isTrusted) offer();
  });
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    if (!offered.length) return;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) mark(chosen < 0 ? (step > 0 ? 0 : offered.length - 1) : (chosen + step + offered.length) % offered.length);
    else if (event.key === "Tab" && !event.shiftKey) take(offered[Math.max(0, chosen)].name);
    else if (event.key === "Enter" && chosen >= 0) take(offered[chosen].name);
    else if (event.key === "Escape") close();
    else {
      if (event.key === "Enter") close();
      return;
    }
    event.preventDefault();
    event.stopImmediatePropagation();
  });
  return el("div", { class: "completing" }, input, list);
}
