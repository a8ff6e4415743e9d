/** The page: what it shows for which address, the store, the token, and files dropped on it. */

import { el, errorPanel, getJson } from "./http.js";

const main = document.getElementById("main");
const announcer = document.getElementById("announce");
const toList = document.querySelectorAll("[data-list]");

const ctx = {
  store: null,
  token: takeToken(),
  /** Goes to a hash such as "#/material/mp-149". */
  navigate(hash) {
    location.hash = hash;
  },
  /** Tells people who do not see the page what changed on it. */
  announce(text) {
    announcer.textContent = text;
  },
  /** The way back to the list, which remembers its address here: it leads to the same search. */
  get list() {
    return toList[0].hash;
  },
  listAt(hash) {
    for (const link of toList) link.href = hash;
  },
};

/** The token of `chgdb ui`'s address, which then no longer shows it. */
function takeToken() {
  const [, token] = /^#token=([^&/]+)/.exec(location.hash) ?? [];
  if (token) {
    sessionStorage.setItem("chgdb-token", decodeURIComponent(token));
    history.replaceState(null, "", "#/");
  }
  return sessionStorage.getItem("chgdb-token");
}

/** The module that shows a hash, what it is given, and the title meanwhile. */
function route(hash) {
  const [path, query] = hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  const [view, name] = path.split("/").map(decodeURIComponent);
  const params = { id: name, query: new URLSearchParams(query ?? "") };
  if (!view) return { module: "./browse.js", params, title: "Materials" };
  if (view === "material" && name) return { module: "./material.js", params, title: name };
  if (view === "upload" && name) return { module: "./upload.js", params, title: "A CHGCAR" };
  return null;
}

let cleanup = null;
let shown = 0;

async function show() {
  const turn = ++shown;
  const previous = cleanup;
  cleanup = null;
  previous?.();
  const first = main.childElementCount === 0;
  const root = el("div", { class: "view" });
  try {
    const found = route(location.hash);
    if (!found) throw new Error("there is nothing at this address");
    document.title = `${found.title} · chgdb`;
    const loading = import(found.module).then((module) => {
      if (ctx.store === null) module.prepare?.(found.params);
      return module;
    });
    const [module] = await Promise.all([loading, loadStore()]);
    if (turn !== shown) return;
    main.replaceChildren(root);
    const done = await module.show(root, found.params, ctx);
    if (turn === shown) cleanup = done;
    else done?.();
  } catch (error) {
    if (turn !== shown) return;
    main.replaceChildren(errorPanel(error, el("p", {}, el("a", { href: ctx.list }, "To the list of materials"))));
    document.title = "Error · chgdb";
  }
  if (turn === shown && !first && !main.contains(document.activeElement)) main.focus({ preventScroll: true });
}

let loading = null;

/** What the store holds, asked once (again after a failure, or after `chgdb:stored`). */
function loadStore() {
  loading ??= getJson("/api/store").then(showStore, (error) => {
    loading = null;
    throw error;
  });
  return loading;
}

function showStore(store) {
  ctx.store = store;
  const path = String(store.place);
  const name = path.split("/").filter(Boolean).at(-1) ?? "";
  const line = document.getElementById("store-name");
  line.replaceChildren(el("b", {}, name), ` ${store.records.toLocaleString("en")}`, el("span", {}, " materials"));
  line.title = path;
}

async function open(file) {
  try {
    const [upload] = await Promise.all([import("./upload.js"), loadStore()]);
    await upload.startUpload(file, ctx);
  } catch (error) {
    main.prepend(errorPanel(error));
  }
}

function watchDrops() {
  const overlay = document.getElementById("drop");
  const input = document.getElementById("file");
  const holdsFile = (event) => event.dataTransfer?.types.includes("Files");
  document.getElementById("open-file").addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    if (input.files.length) open(input.files[0]);
    input.value = "";
  });
  addEventListener("dragenter", (event) => {
    if (holdsFile(event)) overlay.hidden = false;
  });
  addEventListener("dragover", (event) => {
    if (holdsFile(event)) event.preventDefault();
  });
  addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) overlay.hidden = true;
  });
  addEventListener("drop", (event) => {
    overlay.hidden = true;
    if (!holdsFile(event)) return;
    event.preventDefault();
    const [file, ...others] = event.dataTransfer.files;
    if (others.length) ctx.announce(`one file at a time: opening ${file.name}`);
    if (file) open(file);
  });
}

/** A view that changed the store dispatches this, so that the header counts again. */
addEventListener("chgdb:stored", () => {
  loading = null;
  loadStore().catch(() => {});
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
addEventListener("hashchange", () => {
  if (location.hash.startsWith("#token=")) {
    ctx.token = takeToken(); // of a server begun again, pasted into this tab
    loading = null;
  }
  show();
});
watchDrops();
show();
