// SVG and numbers for explore.js: what lab/report/explore.py packs, scales as in the report's figures, line charts.
"use strict";
const charts = (() => {
  const SHAPES = new Set(["svg", "g", "rect", "path", "line", "text", "defs", "pattern", "linearGradient", "stop"]);
  const make = (name, attributes = {}, ...children) => {
    const svg = SHAPES.has(name) ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml";
    const node = document.createElementNS(svg, name);
    for (const [key, value] of Object.entries(attributes))
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value); else node.setAttribute(key, value);
    node.append(...children);
    return node;
  };
  const write = (x, y, text, anchor = "middle") => make("text", { x, y, "text-anchor": anchor }, text);

  // Each number is a float32 without its lowest byte, little-endian, in base64: four characters.
  const numbers = entry => {
    if (!entry.numbers) {
      const bytes = atob(entry.data), all = new Uint8Array(bytes.length / 3 * 4);
      for (let i = 0; i < bytes.length; i++) all[Math.floor(i / 3) * 4 + i % 3 + 1] = bytes.charCodeAt(i);
      entry.numbers = new Float32Array(all.buffer);
    }
    return entry.numbers;
  };
  const median = values => {
    const sorted = values.filter(Number.isFinite).sort((a, b) => a - b), n = sorted.length;
    return n ? (sorted[(n - 1) >> 1] + sorted[n >> 1]) / 2 : NaN;
  };
  const nearest = (values, wanted) =>
    values.reduce((best, value, i) => Math.abs(value - wanted) < Math.abs(values[best] - wanted) ? i : best, 0);
  const whole = number => number.toLocaleString("en");
  const say = (value, digits = 4) => {
    if (!Number.isFinite(value)) return "–";
    const far = value && (Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3);
    if (!far) return String(Number(value.toPrecision(digits)));
    return value.toExponential(digits - 1).replace(/\.?0+e/, "e").replace("e+", "e");
  };

  // 0 to 1 for shares, logarithmic over a factor of 30, else from the lowest to the highest.
  const DECADES = 5; // of a scale that is to be logarithmic in any case
  const scaleOf = (values, { logarithmic = false, shares = !logarithmic } = {}) => {
    let low = Infinity, high = -Infinity;
    for (const value of values) if (Number.isFinite(value) && !(logarithmic && value <= 0))
      [low, high] = [Math.min(low, value), Math.max(high, value)];
    const share = low > high || shares && low >= 0 && high <= 1;
    const log = !share && low > 0 && (logarithmic || high > 30 * low);
    [low, high] = share ? [0, 1] : [logarithmic ? Math.max(low, high * 10 ** -DECADES) : low, high];
    const bend = log ? Math.log10 : value => value, span = bend(high) - bend(low);
    return { low, high, share, log, at: value => span > 0 ? (bend(value) - bend(low)) / span : 0.5 };
  };
  const fromZero = values => {
    const high = Math.max(...values, 1);
    return { low: 0, high, log: false, at: value => value / high };
  };
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
    const place = Math.min(Math.max(position, 0), 1) * (colours.length - 1);
    const i = Math.min(Math.floor(place), colours.length - 2);
    return colours[i].map((from, c) => Math.round(from + (colours[i + 1][c] - from) * (place - i)));
  };

  // `lines`: pairs of a class and ordinates; `across` and `up`: scales; `diverged`: abscissae of rows that diverged;
  // `now`: the one that is marked; `pick`: is told on which of xs was clicked.
  const draw = ({ label, xs, lines, across, up, xlabel, diverged = [], now = null, pick = null }) => {
    const [W, H, left, width, height] = [460, 190, 52, 400, 148];
    const X = x => left + width * across.at(x), Y = y => 8 + height * (0.98 - 0.96 * up.at(y));
    const svg = make("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": label });
    for (const y of ticksOf(up, 4)) svg.append(
      make("line", { class: "axis", x1: left, x2: left + width, y1: Y(y), y2: Y(y) }), write(left - 6, Y(y) + 4, say(y), "end"));
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
    for (const x of diverged) svg.append(make("path", { class: "diverged", d: `M${X(x) - 4} ${height}l8 8m0 -8l-8 8` }));
    if (pick) {
      svg.style.cursor = "pointer";
      svg.addEventListener("click", event => {
        const box = svg.getBoundingClientRect();
        pick(nearest(xs.map(X), (event.clientX - box.left) / box.width * W));
      });
    }
    return svg;
  };
  return { make, write, numbers, median, nearest, whole, say, scaleOf, fromZero, shade, draw };
})();
