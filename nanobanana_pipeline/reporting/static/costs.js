// The cost report: adds up what `data/costs-….js` holds, and draws it. Money is in whole micro-dollars until it is shown.
"use strict";

(() => {
  const nb = globalThis.nanobanana;
  const { el, fill, usd, usdColumn, exactUsd, count, share, seconds, words } = nb;
  const data = nb.data?.costs;
  const report = document.getElementById("report");
  if (!data) {
    fill(report, el("p", { class: "card" }, "The report's data are not there: write it again with `nanobanana report`."));
    return;
  }
  nb.frame(data);

  // --- the rows ---------------------------------------------------------------------------------------------------

  const { dimensions, measures } = data.spending;
  const names = Object.keys(dimensions);
  const rows = data.spending.rows.map((numbers) => {
    const row = {};
    names.forEach((name, i) => { row[name] = dimensions[name][numbers[i]]; });
    measures.forEach((name, i) => { row[name] = numbers[names.length + i]; });
    return row;
  });
  const OTHERS = "(all others)"; // what campaigns beyond the costliest are summed up as
  const WASTE = new Set(["superseded", "unusable", "failed"]);
  const NAMES = {
    in_use: "Images in use", removed: "Images removed from their catalogue", superseded: "Images superseded by an edit or a new try",
    unusable: "Paid, but no usable image came", failed: "Failed, yet billed", delivering: "Paid, images still to be fetched",
    in_flight: "In flight", at_risk: "At risk: the outcome is unknown",
  };

  const sums = () => ({ attempts: 0, images: 0, in_use: 0, tokens: 0, cost: 0, useful: 0, wasted: 0, risk: 0, deferred: 0 });
  const add = (held, row) => {
    held.attempts += row.attempts;
    held.images += row.images;
    held.tokens += row.tokens;
    held.cost += row.cost_micros;
    held.risk += row.at_risk_micros;
    if (row.outcome === "in_use") held.in_use += row.images;
    if (WASTE.has(row.outcome)) held.wasted += row.cost_micros;
    held.useful = held.cost - held.wasted;
    return held;
  };
  const grouped = (chosen, name) => {
    const groups = new Map();
    for (const row of chosen) {
      if (!groups.has(row[name])) groups.set(row[name], { key: row[name], ...sums() });
      add(groups.get(row[name]), row);
    }
    return [...groups.values()];
  };
  /** The groups with how many items each has put off, and those that have nothing else yet. A deferred item has no day and no outcome. */
  const withDeferred = (groups, deferred, name) => {
    const known = new Map(groups.map((held) => [held.key, held]));
    for (const row of deferred) {
      if (!(name in row)) continue;
      const beyond = name === "campaign" && !known.has(row.campaign) && known.has(OTHERS);
      const key = beyond ? OTHERS : row[name];
      if (!known.has(key)) known.set(key, { key, ...sums() });
      known.get(key).deferred += row.items;
    }
    return [...known.values()];
  };
  const everything = rows.reduce(add, sums());

  // --- pieces -----------------------------------------------------------------------------------------------------

  const card = (title, { note = null, end = null } = {}, ...content) => {
    const id = `h-${title.toLowerCase().replaceAll(/[^a-z]+/g, "-")}`;
    return el("section", { class: "card", "aria-labelledby": id },
      el("header", {}, el("h2", { id }, title), end && el("div", { class: "end" }, end), note && el("p", {}, note)), content);
  };
  const swatch = (kind) => el("span", { class: `swatch c-${kind}` });
  const legend = (entries) => el("ul", { class: "legend" }, entries.map(([kind, text, value]) =>
    el("li", {}, swatch(kind), text, value !== undefined && el("b", {}, value))));
  /** A bar of parts `[kind, value]`, as long as their sum is of `all`. */
  const bar = (parts, all) => el("div", { "aria-hidden": "true" }, parts.filter(([, value]) => value > 0).map(([kind, value]) =>
    el("span", { class: `c-${kind}`, style: { width: `${(100 * value) / all}%` } })));
  const hidden = (text) => el("span", { class: "visually-hidden" }, text);
  const choice = (label, options, onchange) => {
    const select = el("select", { "aria-label": label, onchange: () => onchange(select.value) },
      options.map(([value, text]) => el("option", { value }, text)));
    return select;
  };
  const tile = (term, value, note) => el("dl", { class: "card tile" }, el("dt", {}, term), el("dd", {}, value), note && el("dd", { class: "note" }, note));

  const HEIGHT = 300;

  // --- charts -----------------------------------------------------------------------------------------------------

  /** A uPlot in `host`, made anew when the theme changes, as wide as there is room. `options(colours)` describes it. */
  const chart = (host, label, options, series, tip) => {
    const canvas = el("div", { class: "chart", role: "img", "aria-label": label });
    const note = el("div", { class: "tip", hidden: true });
    host.append(canvas);
    let plot = null;
    const draw = () => {
      plot?.destroy();
      const colours = Object.fromEntries(["spent", "risk", "cap", "quiet", "line", "surface"].map((name) => [name, nb.colour(name)]));
      const font = '12px system-ui, "DejaVu Sans", sans-serif';
      const axis = { stroke: colours.quiet, grid: { stroke: colours.line, width: 1 }, ticks: { show: false }, font, labelFont: font, labelSize: 20, labelGap: 4 };
      const described = options(colours, axis);
      plot = new uPlot({
        width: Math.max(240, canvas.clientWidth), height: HEIGHT, legend: { show: false }, padding: [12, 28, 0, 0],
        cursor: { points: { show: false }, y: false, drag: { x: false, y: false } },
        ...described,
        hooks: {
          setCursor: [(u) => {
            const i = u.cursor.idx;
            note.hidden = i === null || i === undefined || u.cursor.left < 0;
            if (note.hidden) return;
            fill(note, tip(i));
            const room = canvas.clientWidth;
            const at = u.cursor.left + u.bbox.left / devicePixelRatio;
            note.style.left = `${Math.max(0, Math.min(at + 12, room - note.offsetWidth - 4))}px`;
            note.style.top = "8px";
          }],
        },
      }, series, canvas);
      canvas.append(note);
    };
    requestAnimationFrame(() => {
      draw();
      new ResizeObserver(() => plot.setSize({ width: Math.max(240, canvas.clientWidth), height: HEIGHT })).observe(canvas);
    });
    globalThis.addEventListener("nanobanana:theme", draw);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  };

  const dollars = (_, splits) => splits.map((micros) => {
    const value = micros / 1e6;
    return value >= 10 || Number.isInteger(value) ? `$${count(value)}` : `$${value.toFixed(Math.max(...splits) < 5e4 ? 4 : 2)}`;
  });
  const stripes = (colour) => {
    const tilePattern = document.createElement("canvas");
    tilePattern.width = tilePattern.height = 8;
    const ink = tilePattern.getContext("2d");
    ink.strokeStyle = colour;
    ink.lineWidth = 3;
    ink.beginPath();
    for (const x of [-8, 0, 8]) { ink.moveTo(x, 8); ink.lineTo(x + 8, 0); }
    ink.stroke();
    return ink.createPattern(tilePattern, "repeat");
  };

  // --- spending over time -----------------------------------------------------------------------------------------

  const DAY_MS = 86_400_000;

  /** Points in time with what was spent and put at risk in each, none left out. */
  const overTime = () => {
    if (data.moments) {
      const { step_ms: step, rows: listed } = data.moments;
      return { step, points: listed.map(([at, images, cost, risk]) => ({ at, images, cost, risk })) };
    }
    const days = new Map(grouped(rows, "day").map((day) => [day.key, day]));
    const keys = [...days.keys()].sort();
    const points = [];
    for (let at = Date.parse(keys[0]); at <= Date.parse(keys.at(-1)); at += DAY_MS) {
      const held = days.get(new Date(at).toISOString().slice(0, 10)) ?? sums();
      points.push({ at, images: held.images, cost: held.cost, risk: held.risk });
    }
    return { step: DAY_MS, points };
  };

  const spendingCard = () => {
    const host = el("div");
    const cap = data.caps.find((one) => one.kind === "day").cap;
    const { step, points } = overTime();
    const daily = step === DAY_MS;
    const when = (at) => new Date(at).toISOString().slice(0, daily ? 10 : step < 60_000 ? 19 : 16).replace("T", " ");
    // Within few days the sum so far says more than a row of minutes.
    const drawn = daily ? [] : [{ at: points[0].at, images: 0, cost: 0, risk: 0 }];
    for (const point of points) {
      const before = daily ? { cost: 0, risk: 0 } : drawn.at(-1);
      // Flat where nothing was spent, and not a slope from one run to the next.
      if (!daily && before.at < point.at) drawn.push({ ...before, at: point.at, images: 0 });
      // A sum so far is that of the end of its step.
      drawn.push({ ...point, at: point.at + (daily ? 0 : step), cost: before.cost + point.cost, risk: before.risk + point.risk });
    }
    // All within moments would be a single step: what came after, up to this report, belongs to the picture.
    const seen = Math.min(data.generated_at, drawn[0].at + 12 * step);
    if (!daily && drawn.at(-1).at < seen) drawn.push({ ...drawn.at(-1), at: seen, images: 0 });
    const oneDay = new Date(points[0].at).toISOString().slice(0, 10) === new Date(points.at(-1).at).toISOString().slice(0, 10);
    const highest = Math.max(...drawn.map((point) => point.cost + point.risk), 0);
    const capFits = (daily || oneDay) && cap <= 4 * highest;
    const label = `${daily ? "Spending by day" : "Sum of spending over time"}: at most ${usd(highest)}${daily ? " in a day" : ""}`;
    chart(host, label, (colours, axis) => ({
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
      scales: { x: daily ? { range: (_, low, high) => [low - 43_200, high + 43_200] } : {}, y: { range: [0, Math.max(highest, capFits ? cap : 0) * 1.08 || 1e6] } },
      axes: [
        { ...axis, label: daily ? "UTC day" : "time (UTC)", grid: { show: false }, size: 34, gap: 9, space: 80, incrs: daily ? [1, 2, 5, 7, 14, 30, 61, 91, 182, 365].map((days) => days * 86_400) : [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 43_200, 86_400],
          values: (_, splits) => splits.map((at) => (daily
            ? new Date(at * 1000).toLocaleDateString("en-GB", { day: "numeric", month: "short", timeZone: "UTC" })
            : new Date(at * 1000).toISOString().slice(11, step < 60_000 ? 19 : 16))) },
        { ...axis, label: daily ? "US dollars a day" : "US dollars", size: 60, values: dollars },
      ],
      // Bars stand behind one another; of areas, only what lies between the two is striped.
      bands: daily ? [] : [{ series: [1, 2], fill: () => stripes(colours.risk) }],
      series: [
        {},
        { show: everything.risk > 0, fill: daily ? () => stripes(colours.risk) : undefined, stroke: colours.risk, width: daily ? 0 : 1, points: { show: false }, paths: daily ? uPlot.paths.bars({ size: [0.72, 56], radius: 0.12 }) : uPlot.paths.linear() },
        { fill: daily ? colours.spent : `color-mix(in srgb, ${colours.spent} 30%, ${colours.surface})`, stroke: colours.spent, width: daily ? 0 : 2, points: { show: false }, paths: daily ? uPlot.paths.bars({ size: [0.72, 56], radius: 0.12 }) : uPlot.paths.linear() },
        { stroke: colours.cap, width: 2, dash: [6, 4], points: { show: false }, show: capFits },
      ],
    }), [
      drawn.map((point) => point.at / 1000), drawn.map((point) => point.cost + point.risk), drawn.map((point) => point.cost), drawn.map(() => cap),
    ], (i) => [
      el("b", {}, when(drawn[i].at)), `${usd(drawn[i].cost)} spent${daily ? "" : " so far"}`,
      drawn[i].risk > 0 && el("div", {}, `${usd(drawn[i].risk)} at risk`),
      el("div", {}, `${count(drawn[i].images)} images${daily ? "" : " in this step"}`),
    ]);
    const columns = [
      { title: daily ? "Day (UTC)" : "From (UTC)", of: (point) => when(point.at), head: true },
      { title: "Images", of: (point) => count(point.images), num: true },
      { title: "Spent", of: (point) => exactUsd(point.cost), num: true },
      { title: "At risk", of: (point) => exactUsd(point.risk), num: true },
    ];
    const capNote = capFits ? "" : ` The cap of ${usd(cap)} a day lies far above.`;
    return card("Spending over time", { note: (daily ? "By UTC day." : "The sum so far.") + capNote }, host,
      legend([["spent", "spent"], ["risk", "at risk"]].slice(0, everything.risk > 0 ? 2 : 1).concat(capFits ? [["cap line", "cap of the day"]] : [])),
      nb.asTable(columns, points, daily ? "Spending by day" : "Spending by step of time"));
  };

  // --- caps -------------------------------------------------------------------------------------------------------

  const SHOWN_CAPS = 5;

  const capsCard = () => {
    const used = (one) => one.spent + one.reserved + one.at_risk;
    const [today, ...others] = data.caps.map(oneCap);
    // Of many catalogues, those that are nearest to their cap.
    const nearest = data.caps.slice(1).map((one, i) => [used(one) / Math.max(one.cap, 1), others[i]]).sort((a, b) => b[0] - a[0]).map(([, element]) => element);
    const rest = nearest.slice(SHOWN_CAPS - 1);
    return card("Budget", { note: "A hard cap: what is spent, reserved for requests in flight, and at risk all count against it." },
      today, nearest.slice(0, SHOWN_CAPS - 1),
      rest.length > 0 && el("details", { class: "data" }, el("summary", {}, `Show ${count(rest.length)} more`), rest));
  };

  const oneCap = (one) => {
    const used = one.spent + one.reserved + one.at_risk;
    const all = Math.max(one.cap, used, 1);
    const parts = [["spent", one.spent], ["reserved", one.reserved], ["risk", one.at_risk]];
    return el("div", { class: "budget" },
      el("h3", {}, `${one.name}: ${usd(used)} of ${usd(one.cap)} (${share(used, one.cap)})`),
      el("div", { class: "meter", "aria-hidden": "true" }, parts.filter(([, value]) => value > 0).map(([kind, value]) =>
        el("span", { class: `c-${kind}`, style: { width: `${(100 * value) / all}%` } }))),
      legend([...parts.filter(([kind, value]) => kind === "spent" || value > 0), ["free", Math.max(0, one.cap - used)]].map(([kind, value]) => [kind, ACCOUNTS[kind], usd(value)])));
  };
  const ACCOUNTS = { spent: "spent", reserved: "reserved", risk: "at risk", free: "free" };

  // --- what it bought ---------------------------------------------------------------------------------------------

  const boughtCard = () => {
    const outcomes = grouped(rows, "outcome").map((held) => ({ ...held, money: held.cost + held.risk })).filter((held) => held.money > 0).sort((a, b) => b.money - a.money);
    const all = outcomes.reduce((total, held) => total + held.money, 0);
    const money = usdColumn(outcomes.map((held) => held.money));
    return card("What the money bought", {},
      outcomes.length
        ? [
          el("div", { class: "meter", "aria-hidden": "true" }, outcomes.map((held) => el("span", { class: `c-${held.key}`, style: { width: `${(100 * held.money) / all}%` } }))),
          nb.table([
            { title: "Outcome", of: (held) => el("span", { class: "named" }, swatch(held.key), NAMES[held.key]), head: true },
            { title: "Attempts", of: (held) => count(held.attempts), num: true },
            { title: "Money", of: (held) => el("span", { title: exactUsd(held.money) }, money(held.money)), num: true },
            { title: "Share", of: (held) => share(held.money, all), num: true },
          ], outcomes, { label: "Money by outcome" }),
        ]
        : el("p", { class: "empty" }, "Nothing was spent yet."));
  };

  const ORDER = ["succeeded", "failed", "unknown", "deferred", "in_flight", "pending"];
  const MEANING = {
    succeeded: "an image is there", failed: "no image, and no further try by itself", unknown: "sent, and no answer: a person decides",
    deferred: "waits for a later run", in_flight: "at the provider now", pending: "not tried yet",
  };
  const statusCard = () => {
    const all = Object.values(data.statuses).reduce((total, n) => total + n, 0);
    const standing = ORDER.filter((name) => data.statuses[name]);
    return card("Items", { note: "Every image wanted, by where it stands." },
      all ? [el("div", { class: "meter", "aria-hidden": "true" }, standing.map((name) => el("span", { class: `s-${name}`, style: { width: `${(100 * data.statuses[name]) / all}%` } }))), nb.table([
        { title: "Status", of: (name) => el("span", { class: `badge ${name}` }, words(name)), head: true },
        { title: "Items", of: (name) => count(data.statuses[name]), num: true },
        { title: "Share", of: (name) => share(data.statuses[name], all), num: true },
        { title: "Meaning", of: (name) => MEANING[name], class: "quiet roomy" },
      ], standing, { label: "Items by status" })] : el("p", { class: "empty" }, "No items yet."));
  };

  // --- breakdown --------------------------------------------------------------------------------------------------

  const breakdownCard = () => {
    const host = el("div");
    const labels = data.labels.map((label, i) => [`label:${i}`, `label “${label.name}”`]);
    let by = "campaign";
    let within = "";
    const draw = () => {
      let groups;
      if (by.startsWith("label:")) {
        groups = data.labels[Number(by.slice(6))].values.map((held) => ({
          key: held.value, attempts: held.attempts, images: held.images, in_use: held.in_use ?? 0, tokens: held.tokens, cost: held.cost_micros,
          wasted: held.wasted_micros ?? 0, useful: held.cost_micros - (held.wasted_micros ?? 0), risk: held.at_risk_micros, deferred: held.deferred ?? 0,
        }));
      } else {
        const only = (listed) => (within === "" ? listed : listed.filter((row) => row.catalogue === dimensions.catalogue[Number(within)]));
        groups = withDeferred(grouped(only(rows), by), only(data.deferred), by);
      }
      catalogue.hidden = by.startsWith("label:") || dimensions.catalogue.length < 2;
      if (by === "day") groups.sort((a, b) => (a.key < b.key ? 1 : -1));
      else groups.sort((a, b) => b.cost + b.risk - (a.cost + a.risk));
      const highest = Math.max(...groups.map((held) => held.cost + held.risk), 1);
      const all = groups.reduce((total, held) => { for (const name of Object.keys(total)) total[name] += held[name]; return total; }, sums());
      const [spent, wasted, risk] = ["cost", "wasted", "risk"].map((name) => usdColumn(groups.map((held) => held[name])));
      const shown = (held) => (held.key === null ? el("span", { class: "quiet" }, "none") : by === "outcome" ? NAMES[held.key] : held.key);
      fill(host, groups.length ? nb.table([
        { title: words(by.startsWith("label:") ? data.labels[Number(by.slice(6))].name : by), of: shown, head: true },
        { title: hidden("Bar"), of: (held) => bar([["spent", held.useful], ["failed", held.wasted], ["risk", held.risk]], highest), class: "barcell" },
        { title: "Spent", of: (held) => el("span", { title: exactUsd(held.cost) }, spent(held.cost)), num: true },
        { title: "Share", of: (held) => share(held.cost, all.cost), num: true },
        { title: "Images in use", of: (held) => count(held.in_use), num: true },
        { title: "Per image in use", of: (held) => (held.in_use ? usd(nb.perImage(held.cost, held.in_use)) : "–"), num: true },
        { title: "Waste", of: (held) => el("span", { title: exactUsd(held.wasted) }, wasted(held.wasted)), num: true },
        { title: "At risk", of: (held) => el("span", { title: exactUsd(held.risk) }, risk(held.risk)), num: true },
        { title: "Tokens", of: (held) => count(held.tokens), num: true },
        ...(all.deferred > 0 ? [{ title: "Deferred", of: (held) => count(held.deferred), num: true }] : []),
      ], groups, {
        caption: `Spending by ${words(by.startsWith("label:") ? `label ${data.labels[Number(by.slice(6))].name}` : by)}`,
        foot: ["All", "", exactUsd(all.cost), "", count(all.in_use), all.in_use ? usd(nb.perImage(all.cost, all.in_use)) : "–", exactUsd(all.wasted), exactUsd(all.risk), count(all.tokens), ...(all.deferred > 0 ? [count(all.deferred)] : [])],
      }) : el("p", { class: "empty" }, "Nothing was spent yet."));
    };
    const catalogue = choice("In catalogue", [["", "all catalogues"], ...dimensions.catalogue.map((name, i) => [String(i), name])], (value) => { within = value; draw(); });
    const dimension = choice("By", [["campaign", "by campaign"], ["catalogue", "by catalogue"], ["resolution", "by resolution"], ["day", "by day"], ["model", "by model"], ["outcome", "by outcome"],
      ...labels.map(([value, text]) => [value, `by ${text}`])], (value) => { by = value; draw(); });
    draw();
    return card("Where it went", { end: [dimension, catalogue], note: "The cost of an image in use holds what its failed and superseded siblings cost." }, host,
      legend([["spent", "of use"], ["failed", "waste"], ["risk", "at risk"]]));
  };

  // --- plan against actual ----------------------------------------------------------------------------------------

  const plansCard = () => {
    const range = (plan) => {
      const all = Math.max(plan.forecast[2], plan.held_micros, 1) * 1.04;
      const at = (micros) => `${(100 * micros) / all}%`;
      return el("div", { class: "range", "aria-hidden": "true" },
        el("span", { class: "likely", style: { left: at(plan.forecast[0]), width: at(plan.forecast[2] - plan.forecast[0]) } }),
        el("span", { class: "actual", style: { left: at(plan.held_micros) } }));
    };
    const verdict = (plan) => {
      if (plan.images < plan.to_make && plan.held_micros < plan.forecast[0]) return `${count(plan.images)} of ${count(plan.to_make)} made so far`;
      return plan.held_micros < plan.forecast[0] ? "below" : plan.held_micros > plan.forecast[2] ? "above" : "within";
    };
    return card("Plan against actual", { note: "What each plan forecast (tenth to ninetieth percentile), and what came of it until the next." }, nb.table([
      { title: "Plan", of: (plan) => el("code", {}, plan.hash), head: true },
      { title: "Made", of: (plan) => nb.instant(plan.created_at), class: "nowrap" },
      { title: "Images", of: (plan) => `${count(plan.images)} of ${count(plan.to_make)}`, num: true },
      { title: "Forecast", of: (plan) => `${usd(plan.forecast[0])} – ${usd(plan.forecast[2])}`, num: true },
      { title: hidden("Bar"), of: range, class: "barcell" },
      { title: "Actual", of: (plan) => el("span", { title: exactUsd(plan.held_micros) }, usd(plan.held_micros)), num: true },
      { title: "Actual is", of: verdict },
    ], data.plans.toReversed(), { label: "Plans against actual" }));
  };

  // --- failures ---------------------------------------------------------------------------------------------------

  const failuresCard = () => {
    const kinds = new Map();
    for (const row of data.failures) {
      if (!kinds.has(row.kind)) kinds.set(row.kind, 0);
      kinds.set(row.kind, kinds.get(row.kind) + row.attempts);
    }
    const highest = Math.max(...data.failures.map((row) => row.attempts), 1);
    const [spent, risk] = ["cost_micros", "at_risk_micros"].map((name) => usdColumn(data.failures.map((row) => row[name])));
    return card("Failures", { note: "Attempts that ended without an image, by kind of error; their items may have succeeded since." },
      data.failures.length ? nb.table([
        { title: "Kind", of: (row) => words(row.kind), head: true },
        { title: hidden("Bar"), of: (row) => bar([["failed", row.attempts]], highest), class: "barcell" },
        { title: "Attempts", of: (row) => count(row.attempts), num: true },
        { title: "Items", of: (row) => count(row.items), num: true },
        { title: "Code", of: (row) => (row.code ? el("code", {}, row.code) : "–") },
        { title: "For instance", of: (row) => row.message ?? "–", class: "long" },
        { title: "Spent", of: (row) => spent(row.cost_micros), num: true },
        { title: "At risk", of: (row) => risk(row.at_risk_micros), num: true },
      ], data.failures, { caption: `Failed attempts by kind: ${[...kinds].map(([kind, n]) => `${words(kind)} ${count(n)}`).join(", ")}` })
        : el("p", { class: "empty" }, "No attempt has failed."));
  };

  // --- latency ----------------------------------------------------------------------------------------------------

  const BINS = 36;

  const latencyCard = () => {
    const resolutions = Object.keys(data.latencies.by_resolution);
    const host = el("div");
    const pairsOf = (resolution) => (resolution === "" ? resolutions.flatMap((name) => data.latencies.by_resolution[name]) : data.latencies.by_resolution[resolution])
      .map(([ms, n]) => [ms / 1000, n]).sort((a, b) => a[0] - b[0]);
    const percentile = (pairs, all, part) => {
      let seen = 0;
      for (const [at, n] of pairs) {
        seen += n;
        if (seen >= part * all) return at;
      }
      return pairs.at(-1)[0];
    };
    const draw = (resolution) => {
      const pairs = pairsOf(resolution);
      const all = pairs.reduce((total, [, n]) => total + n, 0);
      const [p10, p50, p90, p99] = [0.1, 0.5, 0.9, 0.99].map((part) => percentile(pairs, all, part));
      const longest = pairs.at(-1)[0];
      const end = Math.max(Math.min(longest, 1.5 * p99), 0.1);
      const width = end / BINS;
      const bins = Array.from({ length: BINS }, (_, i) => ({ from: i * width, to: (i + 1) * width, n: 0 }));
      for (const [at, n] of pairs) bins[Math.min(BINS - 1, Math.floor(at / width))].n += n;
      const range = (bin, i) => (i === BINS - 1 && longest > end ? `${seconds(bin.from)} and more` : `${seconds(bin.from)} – ${seconds(bin.to)}`);
      const plotHost = el("div");
      fill(host, plotHost,
        el("ul", { class: "legend" }, [["P10", p10], ["median", p50], ["P90", p90], ["P99", p99], ["longest", longest]].map(([name, value]) => el("li", {}, name, el("b", {}, seconds(value)))), el("li", {}, "tasks", el("b", {}, count(all)))),
        nb.asTable([
          { title: "Latency", of: (bin) => range(bin, bins.indexOf(bin)), head: true }, { title: "Tasks", of: (bin) => count(bin.n), num: true }, { title: "Share", of: (bin) => share(bin.n, all), num: true },
        ], bins.filter((bin) => bin.n > 0), "Tasks by latency"));
      chart(plotHost, `Latency of ${count(all)} tasks: median ${seconds(p50)}, nine tenths within ${seconds(p90)}`, (colours, axis) => ({
        scales: { x: { time: false, range: [0, end] }, y: { range: (_, __, high) => [0, Math.max(1, high) * 1.08] } },
        axes: [
          { ...axis, label: "latency in seconds", grid: { show: false }, size: 34, gap: 9, space: 60, values: (_, splits) => splits.map((at) => String(Number(at.toFixed(3)))) },
          { ...axis, label: "tasks", size: 44, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 1e6] },
        ],
        series: [{}, { fill: colours.spent, stroke: colours.spent, width: 0, points: { show: false }, paths: uPlot.paths.bars({ size: [0.9, 60], radius: 0.1 }) }],
      }), [bins.map((bin) => (bin.from + bin.to) / 2), bins.map((bin) => bin.n)], (i) => [el("b", {}, range(bins[i], i)), `${count(bins[i].n)} tasks (${share(bins[i].n, all)})`]);
    };
    if (!resolutions.length) return card("Latency", {}, el("p", { class: "empty" }, "No task has completed yet."));
    const select = choice("Resolution", [["", "all resolutions"], ...resolutions.map((name) => [name, name])], draw);
    draw("");
    return card("Latency", { end: resolutions.length > 1 && select, note: "From the provider's acceptance until the task was seen to have completed." }, host);
  };

  // --- the page ---------------------------------------------------------------------------------------------------

  const totals = data.totals;
  if (totals.cost_micros !== everything.cost || totals.at_risk_micros !== everything.risk) {
    throw new Error("the report's rows do not add up to its totals");
  }
  fill(document.getElementById("lead"), totals.attempts
    ? `${exactUsd(totals.cost_micros)} spent on ${count(totals.attempts)} attempts, ${count(totals.images)} images made`
    : "Nothing was run yet.");
  const tiles = el("div", { class: "tiles" },
    tile("Spent", usd(everything.cost), `${count(totals.total_tokens)} tokens`),
    tile("Images in use", count(everything.in_use), `${count(totals.images)} made`),
    tile("Per image in use", everything.in_use ? usd(nb.perImage(everything.cost, everything.in_use)) : "–", "failures and waste included"),
    tile("Waste", usd(everything.wasted), `${share(everything.wasted, everything.cost)} of what was spent`),
    tile("At risk", usd(everything.risk), "outcome unknown, may be billed"),
  );
  fill(report, tiles, totals.attempts ? spendingCard() : null, el("div", { class: "grid two" }, capsCard(), statusCard()), breakdownCard(),
    el("div", { class: "grid two" }, boughtCard(), latencyCard()), data.plans.length > 0 && plansCard(), failuresCard());
})();
