// The interactive part of a report: a map of the grid, and the curves and spectra of one of its cells, as SVG.
// `lab.explore(place, variant, training, colours)` draws into a place of the page and returns a function that takes
// newer data; `training` is what lab/report/explore.py packs. What is chosen stands in the address after the #.
"use strict";
const lab = (() => {
  const SHAPES = new Set(["svg", "g", "rect", "path", "line", "text", "defs", "pattern", "linearGradient", "stop"]);
  const make = (name, attributes = {}, ...children) => {
    const node = SHAPES.has(name) ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes))
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value); else node.setAttribute(key, value);
    node.append(...children);
    return node;
  };
  const write = (x, y, text, anchor = "middle") => make("text", { x, y, "text-anchor": anchor }, text);

  // --- numbers ---

  // Each is a float32 without its lowest byte, little-endian, in base64: four characters.
  const numbers = entry => {
    if (!entry.numbers) {
      const bytes = atob(entry.data), whole = new Uint8Array(bytes.length / 3 * 4);
      for (let i = 0; i < bytes.length; i++) whole[Math.floor(i / 3) * 4 + i % 3 + 1] = bytes.charCodeAt(i);
      entry.numbers = new Float32Array(whole.buffer);
    }
    return entry.numbers;
  };
  const median = values => {
    const sorted = values.filter(Number.isFinite).sort((a, b) => a - b), n = sorted.length;
    return n ? (sorted[(n - 1) >> 1] + sorted[n >> 1]) / 2 : NaN;
  };
  const say = value => !Number.isFinite(value) ? "–" : value && (Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3)
    ? value.toExponential(3).replace(/\.?0+e/, "e").replace("e+", "e") : String(Number(value.toPrecision(4)));
  const whole = number => number.toLocaleString("en");
  const words = name => name === "gamma" ? "γ" : name.replaceAll("_", " ");
  const nearest = (values, wanted) =>
    values.reduce((best, value, i) => Math.abs(value - wanted) < Math.abs(values[best] - wanted) ? i : best, 0);

  // As in the report's figures: 0 to 1 for shares, logarithmic over a factor of 30, else from the lowest to the highest.
  const DECADES = 5; // of an axis that is logarithmic whatever its values are
  const scaleOf = (values, logarithmic = false) => {
    let low = Infinity, high = -Infinity;
    for (const value of values) if (Number.isFinite(value) && !(logarithmic && value <= 0))
      [low, high] = [Math.min(low, value), Math.max(high, value)];
    const share = low > high || !logarithmic && low >= 0 && high <= 1, log = !share && low > 0 && (logarithmic || high > 30 * low);
    [low, high] = share ? [0, 1] : [logarithmic ? Math.max(low, high * 10 ** -DECADES) : low, high];
    const bend = log ? Math.log10 : value => value, span = bend(high) - bend(low);
    return { low, high, share, log, at: value => span > 0 ? (bend(value) - bend(low)) / span : 0.5 };
  };
  const lengthOf = steps => ({ low: 0, high: Math.max(...steps, 1), log: false, at: step => step / Math.max(...steps, 1) });
  const ticksOf = ({ low, high, log }, most) => {
    const found = [];
    if (log && high / low >= 10) {
      const skip = Math.ceil(Math.log10(high / low) / most);
      for (let power = Math.ceil(Math.log10(low) - 1e-9); 10 ** power <= high * 1.0001; power += skip) found.push(10 ** power);
    } else {
      const rough = (high - low) / most || 1, size = 10 ** Math.floor(Math.log10(rough));
      const step = size * [1, 2, 5, 10].find(factor => factor * size >= rough * 0.999);
      for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(i * step);
    }
    return found;
  };
  const shade = (colours, position) => {
    const place = Math.min(Math.max(position, 0), 1) * (colours.length - 1), i = Math.min(Math.floor(place), colours.length - 2);
    return colours[i].map((from, c) => Math.round(from + (colours[i + 1][c] - from) * (place - i)));
  };

  // `lines`: pairs of a class and ordinates; `lost`: abscissae of rows that diverged; `now`: the one that is marked;
  // `pick`: is told on which of xs was clicked.
  const chart = ({ label, xs, lines, across, up, xlabel, lost = [], now = null, pick = null }) => {
    const [W, H, left, width, height] = [460, 190, 52, 400, 148];
    const X = x => left + width * across.at(x), Y = y => 8 + height * (0.98 - 0.96 * up.at(y));
    const svg = make("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": label });
    for (const y of ticksOf(up, 4))
      svg.append(make("line", { class: "axis", x1: left, x2: left + width, y1: Y(y), y2: Y(y) }), write(left - 6, Y(y) + 4, say(y), "end"));
    for (const x of ticksOf(across, 5)) svg.append(write(X(x), H - 18, say(x)));
    svg.append(write(left + width / 2, H - 3, xlabel));
    if (now !== null) svg.append(make("line", { class: "now", x1: X(now), x2: X(now), y1: 8, y2: 8 + height }));
    for (const [kind, ys] of lines) {
      let path = "", begun = false;
      ys.forEach((y, i) => {
        const drawn = Number.isFinite(up.at(y)) && up.at(y) >= -0.001;
        if (drawn) path += `${begun ? "L" : "M"}${X(xs[i]).toFixed(1)} ${Y(y).toFixed(1)}${begun ? "" : "h0"}`;
        begun = drawn;
      });
      svg.append(make("path", { class: kind, d: path }));
    }
    for (const x of lost) svg.append(make("path", { class: "lost", d: `M${X(x) - 4} ${height}l8 8m0 -8l-8 8` }));
    if (pick) svg.addEventListener("click", event => {
      const box = svg.getBoundingClientRect();
      pick(nearest(xs.map(X), (event.clientX - box.left) / box.width * W));
    });
    if (pick) svg.style.cursor = "pointer";
    return svg;
  };

  // --- one variant ---

  const explore = (place, variant, training, colours) => {
    let data = training, known = "";
    const state = { x: "", y: "", metric: "", curve: "", spectrum: "", step: null, cell: null, fix: {}, same: false };
    const controls = make("form"), map = make("div"), reading = make("p", { class: "reading", "aria-live": "polite" });
    const details = make("div"), note = make("p", { class: "said" });
    place.replaceChildren(controls, make("div", {}, map, reading), details, note);
    place.addEventListener("submit", event => event.preventDefault());

    const metricOf = name => data.metrics.find(metric => metric.name === name);
    const timeOf = ({ steps }) => steps === null ? 0 : state.step === null ? steps.length - 1 : nearest(steps, state.step);
    const valueOf = (entry, row, time) => numbers(entry)[time * data.n_rows + row];
    const isLost = (row, step) => data.diverged_at[row] >= 0 && (step === undefined || data.diverged_at[row] <= step);
    const others = () => Object.keys(data.axes).filter(axis => axis !== state.x && axis !== state.y);
    const valuesOf = axis => axis ? data.axes[axis] : [0];
    const placesOf = cell => [[state.x, cell[0]], [state.y, cell[1]]].filter(([axis]) => axis).map(([axis, i]) => [axis, valuesOf(axis)[i]]);
    const nameOf = cell => placesOf(cell).map(([axis, value]) => `${words(axis)} ${say(value)}`).join(", ");
    const cells = () => { // "x,y" -> its rows
      const found = new Map(), fixed = others().filter(axis => state.fix[axis] >= 0);
      for (let row = 0; row < data.n_rows; row++) {
        if (fixed.some(axis => data.rows[axis][row] !== state.fix[axis])) continue;
        const key = `${data.rows[state.x][row]},${state.y ? data.rows[state.y][row] : 0}`;
        if (found.has(key)) found.get(key).push(row); else found.set(key, [row]);
      }
      return found;
    };

    // What was not chosen, or is not there, gives way to a default.
    const settle = () => {
      const axes = Object.keys(data.axes), knobs = axes.filter(axis => axis !== "seed");
      const first = (wanted, among) => among.includes(wanted) ? wanted : among[0];
      if (!axes.includes(state.x)) state.x = first("gamma", knobs) ?? axes[0];
      if (state.y === state.x || state.y !== null && !axes.includes(state.y))
        state.y = first("weight_decay", knobs.filter(axis => axis !== state.x)) ?? null;
      for (const axis of axes) if (!(state.fix[axis] < data.axes[axis].length)) state.fix[axis] = data.usual[axis] ?? -1;
      if (!metricOf(state.metric)) state.metric = (metricOf(data.target) ?? data.metrics[0]).name;
      if (!metricOf(state.curve)) state.curve = "";
      if (!data.spectra.some(entry => entry.name === state.spectrum)) state.spectrum = data.spectra[0]?.name ?? "";
      const keys = [...cells().keys()];
      if (!keys.includes(state.cell?.join())) state.cell = keys.length ? keys[keys.length >> 1].split(",").map(Number) : null;
    };

    const choice = (label, options, value, change) => { // options: pairs of value and text
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
    const control = () => {
      const axes = Object.keys(data.axes).map(axis => [axis, words(axis)]), { steps } = metricOf(state.metric);
      controls.replaceChildren(
        choice("colour", data.metrics.map(({ name }) => [name]), state.metric, name => { state.metric = name; }),
        choice("across", axes, state.x, axis => { if (axis === state.y) state.y = state.x; state.x = axis; }),
        choice("up", [["", "–"], ...axes.filter(([axis]) => axis !== state.x)], state.y ?? "", axis => { state.y = axis || null; }),
        ...others().map(axis => choice(words(axis), [["-1", "median of all"], ...data.axes[axis].map((value, i) => [String(i), say(value)])],
          String(state.fix[axis]), i => { state.fix[axis] = Number(i); })));
      if (!(steps?.length > 1)) return;
      const said = make("span"), slider = make("input", { type: "range", name: "step", min: 0, max: steps.length - 1, oninput: () => {
        state.step = Number(slider.value) === steps.length - 1 ? null : steps[slider.value];
        tell();
        chosen(false);
      } });
      const tell = () => slider.setAttribute("aria-valuetext", said.textContent = `step ${whole(steps[slider.value])}`);
      slider.value = timeOf({ steps });
      tell();
      const same = make("input", { type: "checkbox", name: "same", onchange: () => { state.same = same.checked; chosen(false); } });
      same.checked = state.same;
      controls.append(make("label", { class: "wide" }, said, slider), make("label", { class: "tick" }, same, "same colours at every step"));
    };

    const show = cell => {
      const rows = cells().get(cell?.join()) ?? [], entry = metricOf(state.metric), time = timeOf(entry), step = entry.steps?.[time];
      if (!rows.length) { reading.textContent = "The grid has no row here."; return details.replaceChildren(); }
      const values = rows.map(row => valueOf(entry, row, time)), finite = values.filter(Number.isFinite), lost = rows.filter(row => isLost(row, step));
      const spread = rows.length > 1 && finite.length ? `, median of ${finite.length} [${say(Math.min(...finite))}, ${say(Math.max(...finite))}]` : "";
      const each = rows.map((row, i) => isLost(row, step) ? "diverged" : say(values[i])).join(", ");
      reading.replaceChildren(make("b", {}, nameOf(cell)), make("br"), `${entry.name} ${say(median(values))}${spread}`,
        step === undefined ? "" : ` at step ${whole(step)}`, lost.length ? `; ${lost.length} of ${rows.length} diverged` : "",
        rows.length > 1 && rows.length <= 12 ? `. One by one: ${each}` : "", ".");
      details.replaceChildren(...curves(rows), ...spectra(rows));
    };
    const curves = rows => {
      const entry = metricOf(state.curve || state.metric), xs = entry.steps, over = data.metrics.filter(metric => metric.steps);
      const head = choice("over training", [["", "the colour's metric"], ...over.map(({ name }) => [name])], state.curve, name => { state.curve = name; });
      if (xs === null) return [head, make("p", { class: "said" }, `${entry.name} was measured once.`)];
      const lines = rows.map(row => ["row", xs.map((_, time) => valueOf(entry, row, time))]);
      lines.push(["median", xs.map((_, time) => median(rows.map(row => valueOf(entry, row, time))))]);
      return [head, chart({
        label: `${entry.name} over training, ${rows.length} rows`, xs, lines, across: lengthOf(xs), up: scaleOf(numbers(entry)), now: xs[timeOf(entry)],
        lost: rows.filter(row => isLost(row, xs.at(-1))).map(row => data.diverged_at[row]),
        xlabel: entry.of ? `step (${xs.length} of ${whole(entry.of)} are drawn)` : "step",
        pick: i => { state.step = i === xs.length - 1 ? null : xs[i]; chosen(); },
      })];
    };
    const spectra = rows => {
      const entry = data.spectra.find(({ name }) => name === state.spectrum);
      if (!entry) return [];
      const values = numbers(entry), time = timeOf(entry), K = entry.index.length;
      const at = (t, row) => values.subarray((t * data.n_rows + row) * K, (t * data.n_rows + row + 1) * K);
      const middle = t => entry.index.map((_, k) => median(rows.map(row => at(t, row)[k])));
      const lines = [...rows.map(row => ["row", [...at(time, row)]]), ["median", middle(time)]];
      if (time > 0) lines.unshift(["before", middle(0)]);
      const when = entry.steps ? ` at step ${whole(entry.steps[time])}${time > 0 ? `; dashed: at step ${whole(entry.steps[0])}` : ""}` : "";
      return [
        choice("singular values of", data.spectra.map(({ name }) => [name]), state.spectrum, name => { state.spectrum = name; }),
        chart({ label: `${entry.name}${when}`, xs: entry.index, lines, across: lengthOf(entry.index), up: scaleOf(values, true), xlabel: `index${when}` }),
      ];
    };

    const draw = () => {
      const there = cells(), entry = metricOf(state.metric), time = timeOf(entry), step = entry.steps?.[time];
      const across = valuesOf(state.x), up = valuesOf(state.y), focused = map.contains(document.activeElement);
      const medians = t => [...there.values()].map(rows => median(rows.map(row => valueOf(entry, row, t))));
      const shown = medians(time), scale = scaleOf(state.same && entry.steps ? entry.steps.flatMap((_, t) => medians(t)) : shown);
      const palette = scale.share ? colours.share : colours.other, hatch = `hatch-${variant}`.replace(/\W/g, "-");
      const wide = Math.min(Math.max(520 / across.length, 7), 76), high = Math.min(Math.max(320 / up.length, 7), 50, wide);
      const [left, bottom] = [64, 6 + high * up.length], W = Math.max(left + wide * across.length + 6, 260);
      const svg = make("svg", { viewBox: `0 0 ${W} ${bottom + 78}`, role: "group", "aria-label": `${entry.name} over the grid` });
      svg.style.maxWidth = `${1.15 * W}px`;
      svg.append(make("defs", {},
        make("pattern", { id: hatch, width: 7, height: 7, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
          make("line", { class: "lost", x1: 0, x2: 0, y1: 0, y2: 7 })),
        make("linearGradient", { id: `${hatch}-bar` },
          ...palette.map((colour, i) => make("stop", { offset: i / (palette.length - 1), "stop-color": `rgb(${colour})` })))));
      [...there].forEach(([key, rows], i) => svg.append(cellOf(key.split(",").map(Number), rows, shown[i])));

      const written = (values, room) => [...values.keys()].filter(i => i % Math.ceil(values.length * room) === 0);
      for (const i of written(across, 40 / 520)) svg.append(write(left + wide * (i + 0.5), bottom + 15, say(across[i])));
      for (const i of state.y ? written(up, 16 / 320) : []) svg.append(write(left - 7, bottom - high * (i + 0.5) + 4, say(up[i]), "end"));
      svg.append(write(left + wide * across.length / 2, bottom + 32, state.x === "gamma" ? "init rate γ" : words(state.x)));
      const title = write(0, 0, state.y ? words(state.y) : "");
      title.setAttribute("transform", `translate(12 ${bottom / 2}) rotate(-90)`);
      const bar = Math.min(W - left - 6, 300);
      svg.append(title, make("rect", { x: left, y: bottom + 46, width: bar, height: 9, rx: 2, fill: `url(#${hatch}-bar)` }));
      svg.append(write(left, bottom + 70, say(scale.low), "start"), write(left + bar, bottom + 70, say(scale.high), "end"));
      svg.append(write(left + bar / 2, bottom + 70, scale.log ? "logarithmic" : ""));
      map.replaceChildren(svg);
      if (focused) map.querySelector("[tabindex='0']")?.focus({ preventScroll: true });

      function cellOf(cell, rows, value) {
        const lost = rows.filter(row => isLost(row, step)).length, finite = Number.isFinite(value), pinned = cell.join() === state.cell?.join();
        const box = { x: left + wide * cell[0], y: bottom - high * (cell[1] + 1), width: wide, height: high }, middle = box.x + wide / 2;
        const colour = finite ? shade(palette, scale.at(value)) : null, light = finite && 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] > 128;
        const size = Math.abs(value), tiny = value && size < 0.01 && !scale.share;
        const texts = finite ? [tiny ? value.toExponential(0) : value.toFixed(size >= 100 ? 0 : scale.high >= 10 ? 1 : 2)] : lost ? [] : ["n/a"];
        if (lost) texts.push(`${lost}/${rows.length} ×`);
        const node = make("g", {
          class: "cell", role: "button", tabindex: pinned ? 0 : -1, "aria-pressed": pinned, color: !finite ? "var(--ink)" : light ? "#000" : "#fff",
          "aria-label": `${nameOf(cell)}: ${say(value)}${lost ? `, ${lost} of ${rows.length} diverged` : ""}`,
          onpointerenter: () => show(cell), onpointerleave: () => show(state.cell), onkeydown: event => move(event, cell, there),
          onclick: () => { state.cell = cell; chosen(false); },
        }, make("rect", { class: "shade", ...box, fill: finite ? `rgb(${colour})` : "var(--bad)" }));
        if (lost) node.append(make("rect", { ...box, fill: `url(#${hatch})`, "pointer-events": "none" }));
        if (wide >= 30 && high >= 14 * texts.length)
          texts.forEach((text, i) => node.append(write(middle, box.y + high / 2 + 4 + 13 * (i - (texts.length - 1) / 2), text)));
        node.append(make("rect", { class: "ring", x: box.x + 1.5, y: box.y + 1.5, width: wide - 3, height: high - 3 }));
        return node;
      }
    };
    const move = (event, [i, j], there) => {
      const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
      if (!by) return;
      event.preventDefault();
      for (let n = 1; n <= Math.max(valuesOf(state.x).length, valuesOf(state.y).length); n++) {
        const cell = [i + n * by[0], j + n * by[1]];
        if (there.has(cell.join())) { state.cell = cell; return chosen(false); }
      }
    };

    // --- the address, and newer data ---

    const link = () => {
      const parts = { explore: variant, x: state.x, y: state.y ?? "", metric: state.metric };
      if (state.step !== null) parts.step = state.step;
      if (state.cell) parts.cell = placesOf(state.cell).map(([, value]) => value).join();
      for (const name of ["curve", "spectrum"]) if (state[name]) parts[name] = state[name];
      for (const axis of others()) parts[axis] = state.fix[axis] < 0 ? "median" : valuesOf(axis)[state.fix[axis]];
      history.replaceState(null, "", `#${new URLSearchParams(parts)}`);
    };
    const follow = () => {
      const parts = new URLSearchParams(location.hash.slice(1));
      if (parts.get("explore") !== variant) return false;
      for (const name of ["x", "y", "metric", "curve", "spectrum"]) if (parts.has(name)) state[name] = parts.get(name);
      if (parts.get("y") === "") state.y = null;
      state.step = parts.has("step") ? Number(parts.get("step")) : null;
      for (const [axis, values] of Object.entries(data.axes)) if (parts.has(axis))
        state.fix[axis] = parts.get(axis) === "median" ? -1 : nearest(values, Number(parts.get(axis)));
      settle();
      const wanted = parts.get("cell")?.split(",").map(Number);
      const cell = wanted && [nearest(valuesOf(state.x), wanted[0]), state.y ? nearest(valuesOf(state.y), wanted[1]) : 0];
      if (cell && cells().has(cell.join())) state.cell = cell;
      return true;
    };
    const refresh = (all = true) => {
      const at = place.contains(document.activeElement) && document.activeElement.name;
      settle();
      if (all) control();
      draw();
      show(state.cell);
      if (at && document.activeElement.name !== at) place.querySelector(`[name="${at}"]`)?.focus();
    };
    const chosen = all => { refresh(all); link(); };
    const update = fresh => {
      data = fresh;
      note.textContent = data.note;
      if (!data.metrics.length) return;
      const names = JSON.stringify([data.axes, data.metrics.map(({ name, steps }) => [name, steps?.at(-1)])]);
      refresh(names !== known);
      known = names;
    };
    const led = follow();
    update(training);
    if (led) (place.closest("section") ?? place).scrollIntoView();
    addEventListener("hashchange", () => { if (follow()) refresh(); });
    return update;
  };
  return { explore, make, whole };
})();
