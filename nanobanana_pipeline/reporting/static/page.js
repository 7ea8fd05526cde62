// What both pages share: building elements, writing numbers, the frame around the page, and the theme.
// Text from outside (prompts, messages, names) only ever becomes text nodes: nothing here can make markup of it.
"use strict";

(() => {
  const nb = (globalThis.nanobanana ??= {});

  // --- elements ---------------------------------------------------------------------------------------------------

  const shown = (children) => children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);

  /** An element with properties and children. Lists of children are taken apart, empty ones left out; strings become text. */
  nb.el = (name, properties = {}, ...children) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(properties)) {
      if (value === null || value === undefined || value === false) continue;
      if (key === "class") element.className = value;
      else if (key === "style") Object.assign(element.style, value);
      else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
      else element.setAttribute(key, value === true ? "" : value);
    }
    element.append(...shown(children));
    return element;
  };

  nb.fill = (element, ...children) => element.replaceChildren(...shown(children));

  // --- numbers ----------------------------------------------------------------------------------------------------

  const whole = new Intl.NumberFormat("en-US");
  const cents = new Intl.NumberFormat("en-US", { style: "currency", currency: "USD" });
  const fine = new Intl.NumberFormat("en-US", { style: "currency", currency: "USD", minimumFractionDigits: 4 });

  nb.count = (value) => whole.format(value);
  /** Micro-dollars for reading: cents, or hundredths of a cent below a dollar. */
  nb.usd = (micros) => (micros === 0 || Math.abs(micros) >= 1e6 ? cents : fine).format(micros / 1e6);
  /** A writer of micro-dollars for a column: as many places for each as the largest asks for, so that they line up. */
  nb.usdColumn = (values) => {
    const places = Math.max(0, ...values.map(Math.abs)) >= 1e6 ? cents : fine;
    return (micros) => places.format(micros / 1e6);
  };
  /** Micro-dollars to the last one, from the digits themselves: what is added up must be what is shown. */
  nb.exactUsd = (micros) => {
    const digits = String(Math.abs(micros)).padStart(7, "0");
    return `${micros < 0 ? "-" : ""}$${whole.format(digits.slice(0, -6))}.${digits.slice(-6)}`;
  };
  nb.share = (part, all) => (part === 0 ? "0 %" : all > 0 ? `${((100 * part) / all).toFixed(part / all < 0.0995 ? 1 : 0)} %` : "–");
  nb.seconds = (s) => (s < 10 ? `${s.toFixed(2)} s` : s < 120 ? `${s.toFixed(1)} s` : `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`);
  nb.perImage = (micros, images) => (images > 0 ? Math.floor((2 * micros + images) / (2 * images)) : null);
  /** "2026-11-22 20:43 UTC" */
  nb.instant = (ms) => `${new Date(ms).toISOString().slice(0, 16).replace("T", " ")} UTC`;
  nb.words = (name) => name.replaceAll("_", " ");

  // --- tables -----------------------------------------------------------------------------------------------------

  /** A table, which has a `caption` or a `label`; a column is `{title, of: row => string or node, num, head}`. */
  nb.table = (columns, rows, { caption = null, label = caption, foot = null } = {}) =>
    nb.el(
      "div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
      nb.el(
        "table", {},
        caption && nb.el("caption", {}, caption),
        nb.el("thead", {}, nb.el("tr", {}, columns.map((c) => nb.el("th", { scope: "col", class: [c.num && "num", c.class].filter(Boolean).join(" ") || null }, c.title)))),
        nb.el("tbody", {}, rows.map((row) => nb.el("tr", {}, columns.map((c) => (
          c.head
            ? nb.el("th", { scope: "row" }, c.of(row))
            : nb.el("td", { class: [c.num && "num", c.class].filter(Boolean).join(" ") || null }, c.of(row))
        ))))),
        foot && nb.el("tfoot", {}, nb.el("tr", {}, foot.map((text, i) => nb.el("td", { class: columns[i].num ? "num" : null }, text)))),
      ),
    );

  /** The same figures as a table, folded under a chart. */
  nb.asTable = (columns, rows, caption) =>
    nb.el("details", { class: "data" }, nb.el("summary", {}, "Show as a table"), nb.table(columns, rows, { caption }));

  // --- frame ------------------------------------------------------------------------------------------------------

  const THEMES = ["auto", "light", "dark"];
  const remembered = () => {
    try {
      return THEMES.includes(localStorage.getItem("nanobanana.theme")) ? localStorage.getItem("nanobanana.theme") : "auto";
    } catch {
      return "auto"; // a browser may forbid storage to files
    }
  };

  const setTheme = (theme) => {
    document.documentElement.dataset.theme = theme;
    try {
      localStorage.setItem("nanobanana.theme", theme);
    } catch {
      // not remembered, then
    }
    globalThis.dispatchEvent(new Event("nanobanana:theme"));
  };

  /** The parts of the page that both pages have. `about` says whose work is shown, and as of when. */
  nb.frame = (about) => {
    const theme = nb.el("select", { id: "theme", "aria-label": "Colours", onchange: () => setTheme(theme.value) },
      THEMES.map((name) => nb.el("option", { value: name }, { auto: "Colours: system", light: "Light", dark: "Dark" }[name])));
    theme.value = remembered();
    document.querySelector(".top .end").append(...shown([
      nb.el("span", { class: "quiet as-of" }, "As of ", nb.el("time", { datetime: new Date(about.generated_at).toISOString() }, nb.instant(about.generated_at))),
      about.links_until && nb.el("span", { class: "quiet as-of" }, "Links until ", nb.el("time", { datetime: new Date(about.links_until).toISOString() }, nb.instant(about.links_until))),
      theme,
    ]));
    if (about.simulated) {
      document.querySelector(".banner").hidden = false;
    }
  };

  document.documentElement.dataset.theme = remembered();

  /** A colour of the sheet as the browser resolved it, for what is drawn and not styled. */
  nb.colour = (name) => {
    const probe = nb.el("span", { hidden: true, style: { color: `var(--${name})` } });
    document.body.append(probe);
    const resolved = getComputedStyle(probe).color;
    probe.remove();
    return resolved;
  };
})();
