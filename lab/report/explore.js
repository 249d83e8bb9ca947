// The interactive part of a report: a map of the grid, and the curves and spectra of one of its cells.
// `explore(place, variant, training, colours)` draws into a place of the page and returns a function that takes newer
// data; `training` is what lab/report/explore.py gives. What is chosen stands in the address after the #.
"use strict";
const explore = (place, variant, training, colours) => {
  const { make, write, numbers, median, nearest, whole, say, scaleOf, fromZero, shade } = charts;
  let data = training, known = "";
  // By values, not places, which newer data move. `fix`: axis -> value, null: the median of all; `cell`: axis -> value.
  const state = { fix: {}, step: null, same: false }; // x, y, metric, curve, spectrum, cell: `settle` chooses
  const controls = make("form"), map = make("div"), details = make("div"), note = make("p", { class: "said" });
  const reading = make("p", { class: "reading", "aria-live": "polite" });
  place.replaceChildren(controls, make("div", {}, map, reading), details, note);
  place.addEventListener("submit", event => event.preventDefault());

  const words = name => name === "gamma" ? "γ" : name.replaceAll("_", " ");
  const metricOf = name => data.metrics.find(metric => metric.name === name);
  const timeOf = ({ steps }) => steps === null ? 0 : state.step === null ? steps.length - 1 : nearest(steps, state.step);
  const valueOf = (entry, row, time) => numbers(entry)[time * data.n_rows + row];
  const hasDiverged = (row, step) => data.diverged_at[row] >= 0 && (step === undefined || data.diverged_at[row] <= step);
  const others = () => Object.keys(data.axes).filter(axis => axis !== state.x && axis !== state.y);
  const valuesOf = axis => axis ? data.axes[axis] : [0];
  const placesOf = ([i, j]) => [[state.x, valuesOf(state.x)[i]], ...(state.y ? [[state.y, valuesOf(state.y)[j]]] : [])];
  const nameOf = cell => placesOf(cell).map(([axis, value]) => `${words(axis)} ${say(value)}`).join(", ");
  const placeOf = axis => axis ? data.axes[axis].indexOf(state.cell?.[axis]) : 0;
  const pinned = () => [placeOf(state.x), placeOf(state.y)]; // a place of -1 is of no cell
  const pin = cell => { state.cell = Object.fromEntries(placesOf(cell)); };
  const cells = () => { // places "x,y" -> its rows
    const found = new Map(), fixed = others().filter(axis => state.fix[axis] !== null);
    for (let row = 0; row < data.n_rows; row++) {
      if (fixed.some(axis => data.axes[axis][data.rows[axis][row]] !== state.fix[axis])) continue;
      const key = `${data.rows[state.x][row]},${state.y ? data.rows[state.y][row] : 0}`;
      if (found.has(key)) found.get(key).push(row); else found.set(key, [row]);
    }
    return found;
  };

  // What was not chosen, or is not there, gives way to a default.
  const settle = () => {
    const axes = Object.keys(data.axes), hyperparameters = axes.filter(axis => axis !== "seed");
    const first = (wanted, among) => among.includes(wanted) ? wanted : among[0];
    if (!axes.includes(state.x)) state.x = first("gamma", hyperparameters) ?? axes[0];
    if (state.y === state.x || state.y !== null && !axes.includes(state.y))
      state.y = first("weight_decay", hyperparameters.filter(axis => axis !== state.x)) ?? null;
    for (const axis of axes) if (state.fix[axis] !== null && !data.axes[axis].includes(state.fix[axis]))
      state.fix[axis] = data.axes[axis][data.usual[axis]] ?? null;
    if (!metricOf(state.metric)) state.metric = (metricOf(data.target) ?? data.metrics[0]).name;
    if (!metricOf(state.curve)) state.curve = "";
    if (!data.spectra.some(({ name }) => name === state.spectrum)) state.spectrum = data.spectra[0]?.name ?? "";
    const keys = [...cells().keys()];
    if (!keys.includes(pinned().join())) pin((keys[keys.length >> 1] ?? "0,0").split(",").map(Number));
  };

  // --- controls ---

  const choice = (label, options, value, change) => { // options: pairs of value and text, grouped by what is before a dot
    const select = make("select", { name: label, onchange: event => { change(event.target.value); chosen(); } });
    let group = select, title = null;
    for (const [key, text = key] of options) {
      const before = /^\w+(?=[.])/.exec(text)?.[0];
      if (before && before !== title) select.append(group = make("optgroup", { label: title = before }));
      (before ? group : select).append(make("option", { value: key }, text));
    }
    select.value = value;
    return make("label", {}, label, select);
  };
  const named = entries => entries.map(({ name }) => [name]);
  const control = () => {
    const axes = Object.keys(data.axes).map(axis => [axis, words(axis)]), { steps } = metricOf(state.metric);
    const free = axis => [["-1", "median of all"], ...data.axes[axis].map((value, i) => [String(i), say(value)])];
    controls.replaceChildren(
      choice("colour", named(data.metrics), state.metric, name => { state.metric = name; }),
      choice("across", axes, state.x, axis => { if (axis === state.y) state.y = state.x; state.x = axis; }),
      choice("up", [["", "–"], ...axes.filter(([axis]) => axis !== state.x)], state.y ?? "", axis => { state.y = axis || null; }),
      ...others().map(axis => choice(words(axis), free(axis), String(data.axes[axis].indexOf(state.fix[axis])),
        i => { state.fix[axis] = data.axes[axis][i] ?? null; })));
    if (!(steps?.length > 1)) return;
    const last = steps.length - 1, said = make("span"), same = make("input", { type: "checkbox", name: "same" });
    const slider = make("input", { type: "range", name: "step", min: 0, max: last });
    const tell = () => slider.setAttribute("aria-valuetext", said.textContent = `step ${whole(steps[slider.value])}`);
    slider.value = timeOf({ steps });
    same.checked = state.same;
    tell();
    slider.addEventListener("input", () => {
      state.step = Number(slider.value) === last ? null : steps[slider.value]; // the last one stays the last
      tell();
      chosen(false);
    });
    same.addEventListener("change", () => { state.same = same.checked; chosen(false); });
    controls.append(make("label", { class: "wide" }, said, slider),
      make("label", { class: "tick" }, same, "same colours at every step"));
  };

  // --- one cell ---

  const show = cell => {
    const rows = cells().get(cell.join()) ?? [], entry = metricOf(state.metric), time = timeOf(entry), step = entry.steps?.[time];
    if (!rows.length) { reading.textContent = "The grid has no row here."; return details.replaceChildren(); }
    const values = rows.map(row => valueOf(entry, row, time)), finite = values.filter(Number.isFinite);
    const range = finite.length ? `, median of ${finite.length} [${say(Math.min(...finite))}, ${say(Math.max(...finite))}]` : "";
    const diverged = rows.filter(row => hasDiverged(row, step)).length;
    const each = rows.map((row, i) => hasDiverged(row, step) ? "diverged" : say(values[i]));
    reading.replaceChildren(make("b", {}, nameOf(cell)), make("br"), `${entry.name} ${say(median(values))}`,
      rows.length > 1 ? range : "", step === undefined ? "" : ` at step ${whole(step)}`, diverged ? `; ${diverged} of ${rows.length} diverged` : "",
      rows.length > 1 && rows.length <= 12 ? `. One by one: ${each.join(", ")}` : "", ".");
    details.replaceChildren(...curves(rows), ...spectra(rows));
  };
  const curves = rows => {
    const entry = metricOf(state.curve || state.metric), xs = entry.steps, over = data.metrics.filter(metric => metric.steps);
    const options = [["", "the colour's metric"], ...named(over)];
    const head = choice("over training", options, state.curve, name => { state.curve = name; });
    if (xs === null) return [head, make("p", { class: "said" }, `${entry.name} was measured once.`)];
    const lines = rows.map(row => ["row", xs.map((_, time) => valueOf(entry, row, time))]);
    lines.push(["median", xs.map((_, time) => median(rows.map(row => valueOf(entry, row, time))))]);
    return [head, charts.draw({
      label: `${entry.name} over training, ${rows.length} rows`, xs, lines, across: fromZero(xs),
      up: scaleOf(numbers(entry)), // of all rows: the axis stays while one looks from cell to cell
      diverged: rows.filter(row => hasDiverged(row, xs.at(-1))).map(row => data.diverged_at[row]), now: xs[timeOf(entry)],
      xlabel: entry.of ? `step (${xs.length} of ${whole(entry.of)} are drawn)` : "step",
      pick: i => { state.step = i === xs.length - 1 ? null : xs[i]; chosen(); },
    })];
  };
  const spectra = rows => {
    const entry = data.spectra.find(({ name }) => name === state.spectrum);
    if (!entry) return [];
    const values = numbers(entry), time = timeOf(entry), { index, steps } = entry, K = index.length;
    const at = (t, row) => values.subarray((t * data.n_rows + row) * K, (t * data.n_rows + row + 1) * K);
    const middle = t => index.map((_, k) => median(rows.map(row => at(t, row)[k])));
    const lines = [...rows.map(row => ["row", [...at(time, row)]]), ["median", middle(time)]];
    if (time > 0) lines.unshift(["before", middle(0)]);
    const when = steps ? ` at step ${whole(steps[time])}${time > 0 ? `; dashed: at step ${whole(steps[0])}` : ""}` : "";
    const head = choice("singular values of", named(data.spectra), state.spectrum, name => { state.spectrum = name; });
    const label = `${entry.name}${when}`, xlabel = `index${when}`;
    return [head, charts.draw({ label, xs: index, lines, across: fromZero(index), up: scaleOf(values, { logarithmic: true }), xlabel })];
  };

  // --- the map ---

  const draw = () => {
    const there = cells(), entry = metricOf(state.metric), time = timeOf(entry), step = entry.steps?.[time];
    const across = valuesOf(state.x), up = valuesOf(state.y), focused = map.contains(document.activeElement);
    const medians = t => [...there.values()].map(rows => median(rows.map(row => valueOf(entry, row, t))));
    const shown = medians(time), coloured = state.same && entry.steps ? entry.steps.flatMap((_, t) => medians(t)) : shown;
    const scale = scaleOf(coloured, { shares: scaleOf(numbers(entry)).share }); // a loss that has fallen below 1 is no share
    const palette = scale.share ? colours.share : colours.other, hatch = `hatch-${variant}`.replace(/\W/g, "-");
    const wide = Math.min(Math.max(520 / across.length, 7), 76), high = Math.min(Math.max(320 / up.length, 7), 50, wide);
    const [left, bottom] = [70, 6 + high * up.length], W = Math.max(left + wide * across.length + 6, 260);
    const svg = make("svg", { viewBox: `0 0 ${W} ${bottom + 78}`, role: "group", "aria-label": `${entry.name} over the grid` });
    svg.style.maxWidth = `${1.15 * W}px`;
    const stops = palette.map((colour, i) => make("stop", { offset: i / (palette.length - 1), "stop-color": `rgb(${colour})` }));
    svg.append(make("defs", {}, make("linearGradient", { id: `${hatch}-bar` }, ...stops),
      make("pattern", { id: hatch, width: 7, height: 7, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
        make("line", { class: "diverged", x1: 0, x2: 0, y1: 0, y2: 7 }))));
    const draft = { there, step, scale, palette, hatch, wide, high, left, bottom };
    [...there].forEach(([key, rows], i) => svg.append(drawCell(draft, key.split(",").map(Number), rows, shown[i])));

    const written = (values, room) => [...values.keys()].filter(i => i % Math.ceil(values.length * room) === 0);
    for (const i of written(across, 40 / 520)) svg.append(write(left + wide * (i + 0.5), bottom + 15, say(across[i], 3)));
    for (const i of state.y ? written(up, 16 / 320) : [])
      svg.append(write(left - 7, bottom - high * (i + 0.5) + 4, say(up[i], 3), "end"));
    const title = write(0, 0, state.y ? words(state.y) : ""), bar = Math.min(W - left - 6, 300);
    title.setAttribute("transform", `translate(10 ${bottom / 2}) rotate(-90)`);
    svg.append(title, write(left + wide * across.length / 2, bottom + 32, state.x === "gamma" ? "init rate γ" : words(state.x)),
      make("rect", { x: left, y: bottom + 46, width: bar, height: 9, rx: 2, fill: `url(#${hatch}-bar)` }),
      write(left, bottom + 70, say(scale.low), "start"), write(left + bar, bottom + 70, say(scale.high), "end"),
      write(left + bar / 2, bottom + 70, scale.log ? "logarithmic" : ""));
    map.replaceChildren(svg);
    if (focused) map.querySelector("[tabindex='0']")?.focus({ preventScroll: true });
  };
  const drawCell = ({ there, step, scale, palette, hatch, wide, high, left, bottom }, cell, rows, value) => {
    const diverged = rows.filter(row => hasDiverged(row, step)).length, finite = Number.isFinite(value);
    const isPinned = cell.join() === pinned().join();
    const box = { x: left + wide * cell[0], y: bottom - high * (cell[1] + 1), width: wide, height: high };
    const colour = finite ? shade(palette, scale.at(value)) : null, size = Math.abs(value);
    const ink = !finite ? "var(--ink)" : 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] > 128 ? "#000" : "#fff";
    const number = size && size < 0.01 && !scale.share ? value.toExponential(0) : value.toFixed(size >= 100 ? 0 : scale.high >= 10 ? 1 : 2);
    const texts = [...(finite ? [number] : diverged ? [] : ["n/a"]), ...(diverged ? [`${diverged}/${rows.length} ×`] : [])];
    const node = make("g", {
      class: "cell", role: "button", tabindex: isPinned ? 0 : -1, "aria-pressed": isPinned, color: ink,
      "aria-label": `${nameOf(cell)}: ${say(value)}${diverged ? `, ${diverged} of ${rows.length} diverged` : ""}`,
      onpointerenter: () => show(cell), onpointerleave: () => show(pinned()),
      onclick: () => { pin(cell); chosen(false); }, onkeydown: event => move(event, cell, there),
    }, make("rect", { class: "shade", ...box, fill: finite ? `rgb(${colour})` : "var(--bad)" }));
    if (diverged) node.append(make("rect", { ...box, fill: `url(#${hatch})`, "pointer-events": "none" }));
    const middle = (i, n) => box.y + high / 2 + 4 + 13 * (i - (n - 1) / 2), room = texts.filter(text => wide >= 6.5 * text.length + 3);
    if (high >= 14 * room.length) room.forEach((text, i) => node.append(write(box.x + wide / 2, middle(i, room.length), text)));
    node.append(make("rect", { class: "ring", x: box.x + 1.5, y: box.y + 1.5, width: wide - 3, height: high - 3 }));
    return node;
  };
  const move = (event, [i, j], there) => { // to the next cell that there is
    const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (!by) return;
    event.preventDefault();
    for (let n = 1; n <= Math.max(valuesOf(state.x).length, valuesOf(state.y).length); n++) {
      const cell = [i + n * by[0], j + n * by[1]];
      if (there.has(cell.join())) { pin(cell); return chosen(false); }
    }
  };

  // --- the address, and newer data ---

  const link = () => {
    const parts = { explore: variant, x: state.x, y: state.y ?? "", metric: state.metric };
    if (state.step !== null) parts.step = state.step;
    parts.cell = placesOf(pinned()).map(([, value]) => value).join();
    for (const name of ["curve", "spectrum"]) if (state[name]) parts[name] = state[name];
    for (const axis of others()) parts[axis] = state.fix[axis] ?? "median";
    history.replaceState(null, "", `#${new URLSearchParams(parts)}`);
  };
  const follow = () => {
    const parts = new URLSearchParams(location.hash.slice(1));
    if (parts.get("explore") !== variant) return false;
    for (const name of ["x", "y", "metric", "curve", "spectrum"]) if (parts.has(name)) state[name] = parts.get(name) || null;
    state.step = parts.has("step") ? Number(parts.get("step")) : null;
    for (const [axis, values] of Object.entries(data.axes)) if (parts.has(axis))
      state.fix[axis] = parts.get(axis) === "median" ? null : values[nearest(values, Number(parts.get(axis)))];
    settle();
    const [x, y] = (parts.get("cell") ?? "").split(",").map(Number);
    const cell = [nearest(valuesOf(state.x), x), nearest(valuesOf(state.y), y)];
    if (parts.has("cell") && cells().has(cell.join())) pin(cell);
    return true;
  };
  const refresh = (all = true) => {
    const at = place.contains(document.activeElement) && document.activeElement.name;
    settle();
    if (all) control();
    draw();
    show(pinned());
    if (at && document.activeElement.name !== at) place.querySelector(`[name="${at}"]`)?.focus();
  };
  const chosen = all => { refresh(all); link(); };
  const update = fresh => {
    data = fresh;
    note.textContent = data.note;
    if (!data.metrics.length) return;
    const arrived = !known && follow(); // the address is of the first numbers, which may come late
    const names = JSON.stringify([data.axes, data.metrics.map(({ name, steps }) => [name, steps?.at(-1)])]);
    refresh(names !== known);
    known = names;
    if (arrived) (place.closest("section") ?? place).scrollIntoView();
  };
  update(training);
  addEventListener("hashchange", () => { if (known && follow()) refresh(); });
  return update;
};
