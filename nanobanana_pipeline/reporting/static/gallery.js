// The gallery: a wall of every item that stays quick at many thousands, filters, search, and a look into one item.
// Only the tiles in sight are in the page. Data come in scripts that are loaded one after the other (the wall's) or when
// they are needed (an item's details).
"use strict";

(() => {
  const nb = globalThis.nanobanana;
  const { el, fill, usd, exactUsd, count, seconds, words } = nb;
  const index = nb.data?.gallery;
  const wall = document.getElementById("wall");
  const found = document.querySelector(".found");
  const nothing = document.querySelector(".nothing");
  const form = document.querySelector(".filters form");
  const dialog = document.querySelector("dialog");
  if (!index) {
    fill(found, "The gallery's data are not there: write it again with `nanobanana report`.");
    return;
  }
  nb.frame(index);

  // --- data -------------------------------------------------------------------------------------------------------

  // The places of a wall entry, in the order in which gallery.py writes them.
  const [ID, PROMPT, PROMPT_ID, SAMPLE, CATALOGUE, CAMPAIGN, STATUS, RATIO, RESOLUTION, WIDTH, HEIGHT, THUMBNAIL, IMAGES, COST, STORED_AT, ACTIVE] =
    Array(16).keys();
  const FACETS = { catalogue: CATALOGUE, campaign: CAMPAIGN, status: STATUS, ratio: RATIO, resolution: RESOLUTION };
  const facet = (name, entry) => index.facets[name][entry[FACETS[name]]][0];

  // The one kind of script that this page may add to itself: its own data, by name.
  const OWN_DATA = /^data\/gallery-(?:items|details)-\d+-[0-9a-f]{12}\.js$/;
  const own = (path) => {
    if (!OWN_DATA.test(path)) throw new TypeError(`not a data script: ${path}`);
    return index.links[path] ?? path;
  };
  const policy = globalThis.trustedTypes?.createPolicy("nanobanana", { createScriptURL: own }) ?? { createScriptURL: own };

  /** The value that a data script holds; it is kept by whoever asks. */
  const load = (path) =>
    new Promise((resolve, reject) => {
      const script = el("script", {
        onload: () => {
          const name = path.slice("data/".length, -"-123456789abc.js".length);
          resolve(nb.data[name]);
          delete nb.data[name];
          script.remove();
        },
        onerror: () => reject(new Error(`${path} can't be loaded: reload the page, it may have been written anew`)),
      });
      script.src = policy.createScriptURL(path);
      document.head.append(script);
    });

  const entries = [];
  const haystacks = [];
  const siblings = new Map(); // catalogue and prompt id → numbers of entries
  const byId = new Map();
  const plain = (text) => text.normalize("NFKD").replaceAll(/\p{M}/gu, "").toLowerCase();

  const take = (chunk) => {
    for (const entry of chunk) {
      const number = entries.push(entry) - 1;
      haystacks.push(plain(`${entry[PROMPT]}\n${entry[PROMPT_ID]}`));
      byId.set(entry[ID], number);
      const prompt = `${entry[CATALOGUE]} ${entry[PROMPT_ID]}`;
      if (siblings.has(prompt)) siblings.get(prompt).push(number);
      else siblings.set(prompt, [number]);
    }
  };

  const detailChunks = new Map();
  const detailsOf = async (number) => {
    const chunk = Math.floor(number / index.details_a_chunk);
    if (!detailChunks.has(chunk)) {
      detailChunks.set(chunk, load(index.details[chunk]));
      detailChunks.get(chunk).catch(() => detailChunks.delete(chunk));
      // The last few are enough: whoever looks at neighbours looks at one or two chunks.
      if (detailChunks.size > 8) detailChunks.delete(detailChunks.keys().next().value);
    }
    return (await detailChunks.get(chunk))[number % index.details_a_chunk];
  };

  // --- filters ----------------------------------------------------------------------------------------------------

  const NONE = "(none)";
  const LABELS = { catalogue: "catalogues", campaign: "campaigns", status: "statuses", ratio: "ratios", resolution: "resolutions" };
  const filters = { q: "", catalogue: "", campaign: "", status: "", ratio: "", resolution: "", order: "", removed: "" };
  const hasRemoved = Object.values(index.facets.status).reduce((total, [, n]) => total + n, 0) < index.items;

  const select = (name, label, options) =>
    el("select", { name, "aria-label": label, onchange: (event) => { filters[name] = event.target.value; apply(); } },
      options.map(([value, text]) => el("option", { value }, text)));
  const facetSelect = (name) => {
    const values = index.facets[name].map(([value, n]) => [value ?? NONE, value === null ? (name === "ratio" ? "ratio not set" : `no ${name}`) : words(value), n]);
    values.sort((a, b) => (name === "catalogue" || name === "campaign" ? a[1].localeCompare(b[1]) : b[2] - a[2]));
    return values.length > 1 && select(name, name, [["", `All ${LABELS[name]}`], ...values.map(([value, text, n]) => [value, `${text} (${count(n)})`])]);
  };
  let waiting = 0;
  const search = el("input", {
    type: "search", name: "q", placeholder: "Search prompts  ( / )", "aria-label": "Search prompts", autocomplete: "off", spellcheck: "false",
    oninput: () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => { filters.q = search.value; apply(); }, 80);
    },
  });
  const more = el("button", { type: "button", class: "button more", "aria-expanded": "false", onclick: () => {
    const open = form.classList.toggle("open");
    more.setAttribute("aria-expanded", String(open));
  } }, "Filters");
  form.append(...[
    search, more, ...Object.keys(FACETS).map(facetSelect),
    hasRemoved && select("removed", "Removed items", [["", "In the catalogues"], ["too", "Removed ones too"], ["only", "Removed ones only"]]),
    select("order", "Order", [["", "In catalogue order"], ["new", "Newest first"], ["cost", "Costliest first"]]),
    el("button", { type: "button", class: "button clear", onclick: () => clear() }, "Clear"),
  ].filter(Boolean));
  const clear = () => {
    for (const name of Object.keys(filters)) filters[name] = "";
    showFilters();
    apply();
    search.focus();
  };
  form.closest(".filters").hidden = !index.items;
  form.addEventListener("submit", (event) => event.preventDefault());
  const showFilters = () => {
    for (const [name, value] of Object.entries(filters)) {
      const control = form.elements.namedItem(name);
      if (control) control.value = value;
    }
  };

  /** The numbers of the entries that the filters let through, in the wanted order. */
  const matching = () => {
    const wanted = Object.keys(FACETS).filter((name) => filters[name] !== "").map((name) => {
      const value = filters[name] === NONE ? null : filters[name];
      return [FACETS[name], index.facets[name].findIndex(([known]) => known === value)];
    });
    const terms = plain(filters.q).split(/\s+/).filter(Boolean);
    const numbers = [];
    entries.forEach((entry, number) => {
      if (filters.removed === "" && !entry[ACTIVE]) return;
      if (filters.removed === "only" && entry[ACTIVE]) return;
      if (wanted.every(([place, value]) => entry[place] === value) && terms.every((term) => haystacks[number].includes(term))) numbers.push(number);
    });
    if (filters.order === "new") numbers.sort((a, b) => entries[b][STORED_AT] - entries[a][STORED_AT]);
    if (filters.order === "cost") numbers.sort((a, b) => entries[b][COST] - entries[a][COST]);
    return numbers;
  };

  // --- the wall ---------------------------------------------------------------------------------------------------

  const GAP = 8;
  let shown = []; // numbers of entries, in order
  let tops, lefts, widths, heights; // of the tiles, in pixels
  let rowStarts = []; // the place in `shown` that each row begins with
  let rowTops = [];
  const tiles = new Map(); // place in `shown` → element
  let current = 0; // the place that the keyboard is at

  const ratioOf = (entry) => (entry[THUMBNAIL] ? Math.min(2.6, Math.max(0.6, entry[WIDTH] / entry[HEIGHT])) : 1);

  /** Place tiles in rows of equal width: as many as fit at about the wanted height, then stretched to fill the row. */
  const arrange = () => {
    const room = wall.clientWidth;
    const wanted = room < 560 ? 150 : room < 1100 ? 200 : 236;
    tops = new Float32Array(shown.length);
    lefts = new Float32Array(shown.length);
    widths = new Float32Array(shown.length);
    heights = new Float32Array(shown.length);
    rowStarts = [];
    rowTops = [];
    let top = 0;
    let start = 0;
    while (start < shown.length) {
      let end = start;
      let ratios = 0;
      while (end < shown.length && ratios * wanted + (end - start) * GAP < room) ratios += ratioOf(entries[shown[end++]]);
      const full = (room - (end - start - 1) * GAP) / ratios;
      const height = Math.min(full, wanted * 1.25);
      let left = 0;
      for (let place = start; place < end; place++) {
        const width = height * ratioOf(entries[shown[place]]);
        tops[place] = top;
        lefts[place] = left;
        widths[place] = width;
        heights[place] = height;
        left += width + GAP;
      }
      rowStarts.push(start);
      rowTops.push(top);
      top += height + GAP;
      start = end;
    }
    wall.style.height = `${Math.max(0, top - GAP)}px`;
  };

  /** The row at a distance from the wall's top. */
  const rowAt = (top) => {
    let low = 0;
    let high = rowTops.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (rowTops[middle] <= top) low = middle;
      else high = middle - 1;
    }
    return low;
  };

  // In a bucket every file has a signed link; beside a folder's page its path is enough.
  const thumbnail = (entry) => entry[THUMBNAIL].includes("/") ? entry[THUMBNAIL] : `../thumbnails/${entry[THUMBNAIL].slice(0, 2)}/${entry[THUMBNAIL]}.webp`;
  const statusBadge = (entry) => el("span", { class: `badge ${facet("status", entry)}` }, words(facet("status", entry)));
  const named = (entry) => {
    const sample = siblings.get(`${entry[CATALOGUE]} ${entry[PROMPT_ID]}`).length > 1 ? ` (sample ${entry[SAMPLE]})` : "";
    return `${entry[PROMPT]}${sample}`;
  };

  const makeTile = (place) => {
    const number = shown[place];
    const entry = entries[number];
    const content = entry[THUMBNAIL]
      ? [el("img", { src: thumbnail(entry), alt: "", decoding: "async" }), el("span", { class: "label" }, named(entry).slice(0, 300)),
        entry[IMAGES] > 1 && el("span", { class: "badge many" }, `${entry[IMAGES]} images`)]
      : [statusBadge(entry), " ", el("span", {}, named(entry).slice(0, 300))];
    const link = el("a", {
      href: address({ item: entry[ID] }), class: entry[THUMBNAIL] ? null : "card-item", tabindex: place === current ? "0" : "-1",
      onclick: (event) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        current = place;
        open(number);
      },
      onfocus: () => setCurrent(place),
    }, content);
    return el("li", {
      "aria-setsize": shown.length, "aria-posinset": place + 1,
      style: { width: `${widths[place]}px`, height: `${heights[place]}px`, transform: `translate(${lefts[place]}px, ${tops[place]}px)` },
    }, link);
  };

  const setCurrent = (place) => {
    tiles.get(current)?.firstChild.setAttribute("tabindex", "-1");
    current = place;
    tiles.get(current)?.firstChild.setAttribute("tabindex", "0");
  };

  /** Put the tiles in sight into the page, and take out the others. */
  const render = () => {
    if (!shown.length) {
      for (const tile of tiles.values()) tile.remove();
      tiles.clear();
      return;
    }
    const above = -wall.getBoundingClientRect().top;
    const from = rowStarts[rowAt(above - 500)];
    const after = rowAt(above + innerHeight + 500) + 1;
    const to = after < rowStarts.length ? rowStarts[after] : shown.length;
    for (const [place, tile] of tiles) {
      // The tile that the keyboard is at stays, or the focus would be lost.
      if ((place < from || place >= to) && place !== current) {
        tile.remove();
        tiles.delete(place);
      }
    }
    for (const place of [...Array(to - from).keys()].map((i) => from + i).concat(current < shown.length ? [current] : [])) {
      if (tiles.has(place)) continue;
      const tile = makeTile(place);
      const next = [...tiles.keys()].filter((other) => other > place).reduce((low, other) => Math.min(low, other), Infinity);
      wall.insertBefore(tile, tiles.get(next) ?? null);
      tiles.set(place, tile);
    }
  };

  const rebuild = () => {
    for (const tile of tiles.values()) tile.remove();
    tiles.clear();
    arrange();
    render();
  };

  const say = () => {
    const loading = entries.length < index.items;
    fill(found,
      index.items > 0 && el("span", {}, shown.length === 1 ? "1 item" : `${count(shown.length)} items`,
        Object.entries(filters).some(([name, value]) => value && name !== "order") && ` of ${count(index.items)}`),
      loading && el("progress", { max: index.items, value: entries.length, "aria-label": "Loading" }),
      index.left_out > 0 && el("span", {}, `The first ${count(index.items)} items are here; ${count(index.left_out)} more are in the tables.`),
    );
    fill(nothing, !loading && !shown.length && (index.items
      ? [el("h2", {}, "Nothing matches"), el("p", {}, "No item has all of these at once."), el("button", { type: "button", class: "button", onclick: clear }, "Clear search and filters")]
      : [el("h2", {}, "Nothing was made yet"), el("p", {}, "Images appear here once a run has made some: ", el("code", {}, "nanobanana run"), ", or in Dagster materialise ", el("code", {}, "images"), "."), el("p", {}, "Each run brings this page up to date at its end.")]));
  };

  const apply = ({ keepPlace = false } = {}) => {
    shown = matching();
    if (!keepPlace) current = 0;
    current = Math.min(current, Math.max(0, shown.length - 1));
    say();
    rebuild();
    if (!keepPlace) history.replaceState(null, "", address(asked()));
  };

  let scheduled = false;
  const soon = (action) => () => {
    if (scheduled) return;
    scheduled = true;
    requestAnimationFrame(() => { scheduled = false; action(); });
  };
  addEventListener("scroll", soon(render), { passive: true });
  let width = 0;
  new ResizeObserver(soon(() => {
    if (wall.clientWidth !== width) {
      width = wall.clientWidth;
      rebuild();
    }
  })).observe(wall);

  // --- keyboard ---------------------------------------------------------------------------------------------------

  const moveTo = (place) => {
    if (place < 0 || place >= shown.length) return;
    setCurrent(place);
    const top = wall.getBoundingClientRect().top + tops[place];
    const head = document.querySelector(".filters").offsetHeight + 8;
    if (top < head) scrollBy({ top: top - head });
    else if (top + heights[place] > innerHeight) scrollBy({ top: top + heights[place] - innerHeight + 8 });
    render();
    tiles.get(place).firstChild.focus({ preventScroll: true });
  };
  /** The tile above or below whose middle is nearest. */
  const beside = (place, rows) => {
    const row = rowAt(tops[place] + 1) + rows;
    if (row < 0 || row >= rowStarts.length) return place;
    const middle = lefts[place] + widths[place] / 2;
    let best = rowStarts[row];
    for (let other = best; other < (rowStarts[row + 1] ?? shown.length); other++) {
      if (Math.abs(lefts[other] + widths[other] / 2 - middle) < Math.abs(lefts[best] + widths[best] / 2 - middle)) best = other;
    }
    return best;
  };
  wall.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const target = { ArrowRight: () => current + 1, ArrowLeft: () => current - 1, ArrowDown: () => beside(current, 1), ArrowUp: () => beside(current, -1), Home: () => 0, End: () => shown.length - 1 }[event.key];
    if (target && shown.length) {
      event.preventDefault();
      moveTo(target());
    }
  });
  addEventListener("keydown", (event) => {
    if (event.key === "/" && !dialog.open && !/^(?:INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName)) {
      event.preventDefault();
      search.focus();
      search.select();
    }
  });

  // --- the address: what is looked at can be sent to someone -------------------------------------------------------

  const address = (parts) => {
    const wanted = new URLSearchParams(Object.entries({ ...filters, ...parts }).filter(([, value]) => value));
    return `#${wanted}`;
  };
  const asked = () => (dialog.open ? { item: dialog.dataset.item } : {});
  const readAddress = () => {
    const wanted = new URLSearchParams(location.hash.slice(1));
    for (const name of Object.keys(filters)) filters[name] = wanted.get(name) ?? "";
    showFilters();
    return wanted.get("item");
  };
  addEventListener("popstate", () => {
    const item = readAddress();
    apply({ keepPlace: true });
    if (item && byId.has(item)) look(byId.get(item));
    else if (dialog.open) dialog.close();
  });

  // --- one item ---------------------------------------------------------------------------------------------------

  const open = (number) => {
    history.pushState(null, "", address({ item: entries[number][ID] }));
    look(number);
  };
  const step = (by) => {
    const place = shown.indexOf(byId.get(dialog.dataset.item));
    const next = shown[place + by];
    if (next === undefined) return;
    current = place + by;
    history.replaceState(null, "", address({ item: entries[next][ID] }));
    look(next);
  };
  dialog.addEventListener("close", () => {
    history.replaceState(null, "", address({}));
    fill(dialog);
    // The browser has given the focus back to the tile that was opened; it belongs to the one that was looked at last.
    const place = shown.indexOf(byId.get(dialog.dataset.item));
    moveTo(place >= 0 ? place : current);
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("pre")) return;
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by) {
      event.preventDefault();
      step(by);
    }
  });

  const look = async (number) => {
    const entry = entries[number];
    dialog.dataset.item = entry[ID];
    const place = shown.indexOf(number);
    const bar = el("div", { class: "bar" },
      el("button", { type: "button", class: "button icon", "aria-label": "Previous item", disabled: place <= 0, onclick: () => step(-1) }, "←"),
      el("button", { type: "button", class: "button icon", "aria-label": "Next item", disabled: place < 0 || place >= shown.length - 1, onclick: () => step(1) }, "→"),
      el("span", { class: "place" }, place >= 0 ? `${count(place + 1)} of ${count(shown.length)}` : ""),
      el("button", { type: "button", class: "button icon close", "aria-label": "Close", onclick: () => dialog.close() }, "✕"));
    const stage = el("div", { class: "stage" }, entry[THUMBNAIL] && el("img", { src: thumbnail(entry), alt: "" }));
    const facts = el("div", { class: "facts", tabindex: "0", role: "region", "aria-label": "About this item" }, statusBadge(entry), el("p", { class: "prompt" }, entry[PROMPT]));
    // Keeps what has the focus, so that a key held down goes on through the items.
    const focused = dialog.open && dialog.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
    fill(dialog, el("div", { class: "frame" }, bar, stage, facts));
    if (!dialog.open) dialog.showModal();
    const again = focused && bar.querySelector(`[aria-label="${focused}"]:not(:disabled)`);
    (again || bar.querySelector(".close")).focus();
    let detail;
    try {
      detail = await detailsOf(number);
    } catch (error) {
      facts.append(el("p", { class: "quiet", role: "alert" }, error.message));
      return;
    }
    if (dialog.dataset.item !== entry[ID] || !dialog.open) return;
    fill(stage, pictures(entry, detail));
    facts.append(...sections(number, entry, detail).filter(Boolean));
  };

  const href = (path, detail) => detail.links[path] ?? `../${path.split("/").map(encodeURIComponent).join("/")}`;

  const pictures = (entry, detail) => {
    if (!detail.images.length) {
      const last = detail.attempts.at(-1);
      return [statusBadge(entry), el("p", {}, detail.note ?? last?.error_message ?? "There is no image of this item yet.")];
    }
    const shownImages = detail.images.map((image) => el("img", {
      src: href(image.path, detail), alt: entry[PROMPT].slice(0, 300), width: image.width, height: image.height,
      onerror: (event) => event.target.replaceWith(el("p", {}, Date.now() > (index.links_until ?? Infinity)
        ? "The links of this page have ended: write it anew with `nanobanana report`." : `The file is not there: ${image.path}`)),
    }));
    return shownImages.length > 1 ? el("div", { class: "several", tabindex: "0", role: "group", "aria-label": "Images" }, shownImages) : shownImages;
  };

  const list = (pairs) => el("dl", {}, pairs.filter(([, value]) => value !== null && value !== undefined && value !== "").map(([term, value]) => [el("dt", {}, term), el("dd", {}, value)]));
  const section = (title, ...content) => el("section", {}, el("h3", {}, title), content);
  const bytes = (n) => (n < 1e6 ? `${Math.round(n / 1e3)} kB` : `${(n / 1e6).toFixed(1)} MB`);

  const sections = (number, entry, detail) => {
    const others = siblings.get(`${entry[CATALOGUE]} ${entry[PROMPT_ID]}`);
    const labels = Object.entries(detail.labels ?? {});
    const unexpected = (image) => image.expected_width && (image.expected_width !== image.width || image.expected_height !== image.height);
    return [
      others.length > 1 && section(`Samples of this prompt (${others.length})`, el("ul", { class: "siblings" }, others.map((other) => el("li", {}, el("a", {
        href: address({ item: entries[other][ID] }), "aria-label": `Sample ${entries[other][SAMPLE]}`, "aria-current": other === number ? "true" : null,
        onclick: (event) => { event.preventDefault(); history.replaceState(null, "", address({ item: entries[other][ID] })); look(other); },
      }, entries[other][THUMBNAIL] ? el("img", { src: thumbnail(entries[other]), alt: "" }) : words(facet("status", entries[other]))))))),
      detail.text && section("What the model said", el("p", { class: "said" }, detail.text)),
      section("Request", list([
        ["Catalogue", facet("catalogue", entry)], ["Prompt id", el("code", {}, entry[PROMPT_ID])], ["Sample", String(entry[SAMPLE])], ["Campaign", facet("campaign", entry)],
        ["Ratio", facet("ratio", entry) ?? "not set"], ["Resolution", facet("resolution", entry)], ["Modalities", detail.response_modalities.join(", ") || "not set"], ["Model", detail.model],
        ["Shard", detail.shard], ["Catalogue now", entry[ACTIVE] ? null : "removed from it"],
      ])),
      detail.image_urls.length > 0 && section(`Input images (${detail.image_urls.length})`, el("p", { class: "quiet" }, "Shown as text: this page asks nobody for anything."),
        el("ul", { class: "urls" }, detail.image_urls.map((url) => el("li", {}, el("code", {}, url))))),
      section("Cost and tokens", list([
        ["Spent", exactUsd(entry[COST])], ["At risk", detail.at_risk_micros ? exactUsd(detail.at_risk_micros) : null],
        ["Tokens", detail.total_tokens ? `${count(detail.total_tokens)} (${count(detail.prompt_tokens)} in, ${count(detail.completion_tokens)} out)` : "none reported"], ["Attempts", String(detail.attempts.length)],
      ])),
      detail.images.length > 0 && section(detail.images.length > 1 ? "Files" : "File", detail.images.map((image) => list([
        ["Path", el("a", { href: href(image.path, detail) }, image.path)], ["Size", `${image.width} × ${image.height}, ${image.format}, ${bytes(image.bytes)}`],
        ["Expected", unexpected(image) ? `${image.expected_width} × ${image.expected_height}` : null], ["Credentials", image.has_c2pa ? "C2PA content credentials" : "none"], ["SHA-256", el("code", {}, image.sha256)],
      ]))),
      labels.length > 0 && section("Labels", list(labels.map(([name, value]) => [name, typeof value === "string" ? value : JSON.stringify(value)]))),
      detail.attempts.length > 0 && section("Attempts", detail.attempts.map((one) => attempt(one, detail)),
        el("p", { class: "quiet story" }, "Told in sentences: ", el("code", {}, `nanobanana explain ${entry[ID].slice(0, 12)}`))),
      detail.metadata && section("From the provider", el("pre", { tabindex: "0" }, JSON.stringify(detail.metadata, null, 2))),
    ];
  };

  const attempt = (one, detail) => el("div", { class: "try" },
    el("h4", {}, `Attempt ${one.attempt}`, el("span", { class: `badge ${one.state}` }, words(one.state)), one.cause !== "new" && el("span", { class: "quiet" }, words(one.cause))),
    list([
      ["Reserved", nb.instant(one.created_at)], ["Took", one.completed_at && one.submitted_at ? seconds((one.completed_at - one.submitted_at) / 1000) : null],
      ["Cost", one.cost_micros ? `${exactUsd(one.cost_micros)} (${words(one.cost_source ?? "")}${one.price_version && one.cost_source !== "provider" ? `, ${one.price_version}` : ""})` : null],
      ["At risk", one.at_risk_micros ? exactUsd(one.at_risk_micros) : null],
      ["Error", one.error_message && [one.error_kind && words(one.error_kind), one.error_code, one.error_message].filter(Boolean).join(" · ")],
      ["Task", one.task_id && el("code", {}, one.task_id)], ["Run", el("code", {}, one.run_id)],
      ["Image", one.images.length ? one.images.map((path) => el("div", {}, el("a", { href: href(path, detail) }, path))) : null],
    ]));

  // --- begin ------------------------------------------------------------------------------------------------------

  const begin = async () => {
    const item = readAddress();
    say();
    for (const path of index.walls) {
      try {
        take(await load(path));
      } catch (error) {
        fill(found, el("span", { role: "alert" }, error.message));
        return;
      }
      apply({ keepPlace: true });
      if (item && byId.has(item) && !dialog.open) {
        current = Math.max(0, shown.indexOf(byId.get(item)));
        look(byId.get(item));
      }
      // The browser draws, and takes keys, between two of them.
      await new Promise((resolve) => { setTimeout(resolve, 0); });
    }
    apply({ keepPlace: true });
    document.documentElement.dataset.loaded = "true";
  };
  begin();
})();
