/** A dropped density file: its way to the server, what came out, and adding it to the store. */

import { el, errorPanel, getJson, HttpError, postJson, unit } from "./http.js";
import { bytes, densityPanels, downloads, facts, head, loadStyle, neighbourTable, propertyTable, ratio, structureOf } from "./panels.js";

const POLL = 250;

/** The file that was sent last, to be sent again with what it does not tell. */
let sent = null;

/** Sends a file to the server and goes to its page; a dialog shows the progress meanwhile. */
export function startUpload(file, ctx, species = "") {
  sent = file;
  const request = new XMLHttpRequest();
  const bar = el("progress", { max: 1, value: 0, "aria-label": "Upload" });
  const line = el("p", { class: "muted small" }, bytes(file.size));
  const dialog = el("dialog", { class: "upload-dialog", "aria-label": `Opening ${file.name}`, oncancel: () => request.abort(), onclose: () => dialog.remove() },
    el("h2", {}, file.name), bar, line, el("div", { class: "row" }, el("button", { type: "button", onclick: () => {
      request.abort();
      dialog.close();
    } }, "Cancel")));
  document.body.append(dialog);
  dialog.showModal();

  return new Promise((resolve) => {
    const fail = (text) => {
      dialog.replaceChildren(el("h2", {}, file.name), errorPanel(new Error(text)), el("div", { class: "row" }, anotherFile(() => dialog.close()),
        el("button", { type: "button", onclick: () => dialog.close() }, "Close")));
      ctx.announce(text);
      resolve();
    };
    const most = ctx.store.max_upload_bytes;
    if (most && file.size > most) {
      fail(`${file.name} has ${bytes(file.size)}: this server takes ${bytes(most)} at most`);
      return;
    }
    request.upload.onprogress = ({ loaded, total }) => {
      bar.value = total ? loaded / total : 0;
      line.textContent = `${bytes(loaded)} of ${bytes(total)} sent`;
    };
    request.onload = () => {
      const answer = parsed(request.responseText);
      if (request.status >= 300 || !answer?.id) fail(answer?.error ?? `the server answered ${request.status}`);
      else {
        dialog.close();
        ctx.navigate(`#/upload/${encodeURIComponent(answer.id)}`);
        resolve();
      }
    };
    request.onerror = () => fail("the server does not answer; is chgdb ui still running?");
    request.onabort = resolve;
    request.open("POST", `/api/uploads?${new URLSearchParams({ name: file.name, species })}`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.send(file);
  });
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function anotherFile(before) {
  return el("button", { type: "button", class: "primary", onclick: () => {
    before?.();
    document.getElementById("open-file").click();
  } }, "Choose another file");
}

/** Shows the upload `params.id`; returns what cleans up. */
export async function show(root, params, ctx) {
  loadStyle();
  const base = `/api/uploads/${encodeURIComponent(params.id)}`;
  const abort = new AbortController();
  let panels = null;
  root.classList.add("material");
  (async () => {
    try {
      const upload = await followed(root, base, ctx, abort.signal);
      if (upload?.report) panels = await report(root, base, upload, ctx, abort.signal);
    } catch (error) {
      if (error.name !== "AbortError" && !abort.signal.aborted) root.replaceChildren(errorPanel(error, el("div", { class: "row" }, anotherFile())));
    }
  })();
  return () => {
    abort.abort();
    panels?.destroy();
  };
}

/** The state of an upload, asked again until `done` says so. */
async function polled(base, signal, done) {
  for (;;) {
    const upload = await getJson(base, { signal });
    if (done(upload)) return upload;
    await new Promise((resolve) => { setTimeout(resolve, POLL); });
    signal.throwIfAborted();
  }
}

/** Shows the steps of the server until it is done; null where it failed. */
async function followed(root, base, ctx, signal) {
  const title = el("h1", {}, "Opening the file");
  const bar = el("progress", { "aria-label": "Progress" });
  const step = el("p", { class: "muted", "aria-live": "polite" });
  const cancel = el("button", { type: "button", onclick: async () => {
    await postJson(base, undefined, { method: "DELETE" }).catch(() => {});
    ctx.navigate(ctx.list);
  } }, "Cancel");
  root.append(el("section", { class: "card working" }, title, bar, step, cancel));
  const upload = await polled(base, signal, (now) => {
    title.textContent = now.name;
    bar.max = now.steps || 1;
    if (now.state === "waiting") bar.removeAttribute("value");
    else bar.value = now.done;
    const told = now.state === "waiting" ? "waiting for its turn" : now.step;
    if (step.textContent !== told) step.textContent = told;
    return now.state === "done" || now.state === "failed";
  });
  if (upload.state === "done") return upload;
  root.replaceChildren(el("section", { class: "card" }, el("h1", {}, upload.name), errorPanel(new Error(upload.error)), namesElements(upload, ctx), el("div", { class: "row" }, anotherFile(), el("a", { class: "button", href: ctx.list }, "To the list"))));
  root.dataset.state = "failed";
  ctx.announce(upload.error);
  return null;
}

/** Asks for the elements that the header of a CHGCAR of VASP 4 does not name. */
function namesElements(upload, ctx) {
  if (!upload.error.includes("--species") || sent?.name !== upload.name) return null;
  const species = el("input", { name: "species", required: true, placeholder: "Ti O", autocomplete: "off", spellcheck: false });
  return el("form", { class: "row", onsubmit: (event) => {
    event.preventDefault();
    startUpload(sent, ctx, species.value);
  } }, el("label", {}, "Elements, one per group of atoms ", species), el("button", { class: "primary" }, "Read it with these"));
}

async function report(root, base, upload, ctx, signal) {
  const found = upload.report;
  const { record, errors, sources } = found;
  const structure = structureOf(record);
  document.title = `${upload.name} · chgdb`;
  const pictures = el("div", { class: "pictures" });
  const stored = errors.payload?.bytes;
  const tiles = [
    ["electrons", record.n_electrons?.toFixed(4)],
    typeof record.magnetization === "number" && [`${unit("mu_B")} in the cell`, record.magnetization.toFixed(3).replace("-", "−")],
    ["in the file", bytes(upload.bytes)],
    stored && [`payload, ${ratio(upload.bytes / stored)} times smaller`, bytes(stored)],
    errors.payload && ["NMAE of the payload", `${Number(errors.payload.nmae.toPrecision(3))} %`],
    errors.latent && ["NMAE of the latent", `${Number(errors.latent.nmae.toPrecision(3))} %`],
  ].filter(Boolean);
  const badge = el("span", { class: "badge" });
  const tellStored = (id) => badge.replaceChildren(id ? `in the store as ${id}` : "not in the store");
  tellStored(found.stored_as);
  root.replaceChildren(
    el("div", { class: "material-top" },
      head(record, el("b", {}, upload.name), badge),
      downloads(base, { density: true, structure: Boolean(structure) })),
    el("div", { class: "tiles" }, tiles.map(([name, value]) => el("div", { class: "tile" }, el("b", {}, value), el("span", {}, name)))),
    addCard(base, upload, ctx, signal, tellStored),
    pictures,
    el("div", { class: "cards" },
      el("section", { class: "card" }, el("h2", {}, "Predicted properties"),
        found.predicted ? propertyTable({}, found.predicted, ctx.store.columns) : el("p", { class: "muted" }, found.predicted_error ?? "No prediction.")),
      el("div", { class: "card-column" }, el("section", { class: "card" }, el("h2", {}, "Structure and file"), facts(record, errors, upload.bytes)),
      el("section", { class: "card" }, el("h2", {}, "Nearest materials by density"),
        found.similar ? neighbourTable(found.similar) : el("p", { class: "muted" }, found.similar_error ?? "No neighbours.")))));
  root.dataset.state = "done";
  ctx.announce(`${upload.name}: ${record.formula}, read`);
  const panels = densityPanels(pictures, { record, structure, base, sources, errors });
  panels.ready.then(() => !signal.aborted && panels.showLate()).then(() => { root.dataset.complete = "true"; });
  return panels;
}

/** The form that adds the upload to the store, or why that cannot be. */
function addCard(base, upload, ctx, signal, tellStored) {
  const { record, stored_as: storedAs } = upload.report;
  const card = el("section", { class: "card add" }, el("h2", {}, "Add to my store"));
  if (storedAs) card.append(el("p", {}, "The store holds this very file already, as ", materialLink(storedAs), "."));
  const id = el("input", { name: "id", value: record.id ?? "", required: true, autocomplete: "off", spellcheck: false });
  const conflict = el("select", { name: "on_conflict" }, [["error", "stop and say so"], ["skip", "keep the one in the store"], ["replace", "replace it"]].map(([value, text]) => el("option", { value }, text)));
  const why = !ctx.store.writable ? "This store cannot be written to."
    : !ctx.token ? "This page was opened without the token that chgdb ui prints with its address, so it only reads." : null;
  const told = el("div", { role: "status" });
  if (why) {
    card.append(el("p", {}, why, ctx.store.writable ? " Open that address, or run " : " Where you have one of your own, run ", el("code", {}, `chgdb add ${upload.name} --id ${record.id}`), "."));
    return card;
  }
  const button = el("button", { class: "primary" }, "Add");
  card.append(el("form", { class: "row", onsubmit: async (event) => {
    event.preventDefault();
    button.disabled = true;
    told.replaceChildren(el("p", { class: "muted" }, "Adding…"), el("progress", { "aria-label": "Adding" }));
    try {
      await postJson(`${base}/add`, { id: id.value.trim(), on_conflict: conflict.value }, { token: ctx.token, signal });
      const now = await polled(base, signal, (state) => !state.adding);
      if (now.add_error) throw new HttpError(now.add_error);
      told.replaceChildren(el("div", { class: "alert good" }, el("p", {}, "In the store as ", materialLink(now.added), ".")));
      tellStored(now.added);
      dispatchEvent(new Event("chgdb:stored"));
      ctx.announce(`added as ${now.added}`);
    } catch (error) {
      if (error.name === "AbortError") return;
      told.replaceChildren(errorPanel(error));
    }
    button.disabled = false;
  } }, el("label", { class: "field" }, "Id", id), el("label", { class: "field" }, "If the id is taken", conflict), el("div", { class: "field submit" }, button)), told);
  return card;
}

function materialLink(id) {
  return el("a", { href: `#/material/${encodeURIComponent(id)}` }, id);
}
