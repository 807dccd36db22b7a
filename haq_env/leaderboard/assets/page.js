
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const DASHES = ["", "7 3", "2 3", "9 3 2 3"];
  const hidden = new Set();
  const $ = (id) => document.getElementById(id);

  // Text is only ever set as text: names come from submissions.
  function el(parent, name, attributes = {}, text = null) {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== null) node.textContent = text;
    parent.appendChild(node);
    return node;
  }
  const colour = (index) => `var(--c${index % 8})`;
  const dash = (index) => DASHES[Math.floor(index / 8) % DASHES.length];
  const percent = (value) => `${value.toFixed(2)} %`;

  function engineering(value) {
    for (const [prefix, factor] of [["P", 1e15], ["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]])
      if (value >= factor) return `${Number((value / factor).toPrecision(3))} ${prefix}`;
    return `${Number(value.toPrecision(3))} `;
  }

  // -- axes --------------------------------------------------------------------------------------
  function linearTicks(low, high, most) {
    const rough = (high - low) / most || 1, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
    const ticks = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++)
      ticks.push(Number((k * step).toPrecision(12)));
    return ticks;
  }
  function logTicks(low, high, width) {
    const decades = Math.log10(high / low);
    const among = decades > width / 45 ? [1] : decades > width / 110 ? [1, 3] : [1, 2, 5];
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (const n of among) {
        const tick = Number((n * 10 ** power).toPrecision(6));
        if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push(tick);
      }
    return ticks;
  }
  function scale([low, high], [from, to], log) {
    const f = log ? Math.log : (x) => x;
    return (x) => from + ((f(x) - f(low)) / (f(high) - f(low) || 1)) * (to - from);
  }

  /** Draw axes into a host, and return the drawing with its scales. */
  function axes(host, label, { x, y, height }) {
    host.replaceChildren();
    const width = Math.max(host.clientWidth, 260);
    const h = height || Math.min(400, Math.max(250, width * 0.42));
    const box = { left: y.left || 52, right: width - 14, top: 14, bottom: h - 44 };
    const svg = el(host, "svg",
      { viewBox: `0 0 ${width} ${h}`, height: h, role: "img", "aria-label": label });
    const sx = scale(x.domain, [box.left, box.right], x.log);
    const sy = scale(y.domain, [box.bottom, box.top], y.log);
    const room = box.right - box.left;
    const xs = x.ticks || (x.log ? logTicks(...x.domain, room) : linearTicks(...x.domain, room / 75));
    const ys = y.ticks || (y.log ? logTicks(...y.domain, (h - 58) * 2.4) : linearTicks(...y.domain, 6));
    for (const tick of ys) {
      el(svg, "line", { class: "grid", x1: box.left, x2: box.right, y1: sy(tick), y2: sy(tick) });
      el(svg, "text", { x: box.left - 7, y: sy(tick) + 4, "text-anchor": "end" },
        (y.format || String)(tick));
    }
    for (const tick of xs) {
      el(svg, "line", { class: "grid", x1: sx(tick), x2: sx(tick), y1: box.top, y2: box.bottom });
      el(svg, "text", { x: sx(tick), y: box.bottom + 17, "text-anchor": "middle" },
        (x.format || String)(tick));
    }
    el(svg, "path", { class: "frame", d: `M${box.left} ${box.top}V${box.bottom}H${box.right}` });
    el(svg, "text", { x: (box.left + box.right) / 2, y: h - 6, "text-anchor": "middle" }, x.label);
    el(svg, "text", { transform: `translate(13 ${(box.top + box.bottom) / 2}) rotate(-90)`,
      "text-anchor": "middle" }, y.label);
    return { svg, sx, sy, box };
  }
  function path(points, sx, sy, step) {
    let d = "", last = null;
    for (const [x, y] of points) {
      const px = sx(x).toFixed(1), py = sy(y).toFixed(1);
      d += last === null ? `M${px} ${py}` : step === "post" ? `H${px}V${py}`
        : step === "pre" ? `V${py}H${px}` : `L${px} ${py}`;
      last = py;
    }
    return d;
  }
  const MOST_BANDS = 8;  // of more, nobody sees which is whose
  function drawSeries({ svg, sx, sy }, lines, { step, dots, title }) {
    for (const line of lines.length > MOST_BANDS ? [] : lines) {
      const stroke = colour(line.index);
      if (line.low && line.low.every(Number.isFinite)) {
        const up = line.x.map((x, k) => [x, line.high[k]]);
        const down = line.x.map((x, k) => [x, line.low[k]]).reverse();
        const back = step === "post" ? "pre" : step === "pre" ? "post" : step;
        const start = path(up, sx, sy, step), end = path(down, sx, sy, back);
        el(svg, "path", { class: "band", fill: stroke, d: `${start}L${end.slice(1)}Z` });
      }
    }
    for (const line of lines) {
      const stroke = colour(line.index), points = line.x.map((x, k) => [x, line.y[k]]);
      const node = el(svg, "path", { class: "series", stroke, "stroke-dasharray": dash(line.index),
        d: path(points, sx, sy, step), "data-entry": line.index });
      el(node, "title", {}, data.entries[line.index]);
      if (dots) for (const [x, y] of points) {
        const dot = el(svg, "circle", { cx: sx(x), cy: sy(y), r: 3.4, fill: stroke });
        el(dot, "title", {}, `${data.entries[line.index]}: ${title(x, y)}`);
      }
    }
  }
  function reference({ svg, sy, box }, value, label, end) {
    el(svg, "line", { class: "reference", x1: box.left, x2: box.right, y1: sy(value), y2: sy(value) });
    el(svg, "text", { x: end ? box.right - 4 : box.left + 5, y: sy(value) - 5,
      "text-anchor": end ? "end" : "start" }, label);
  }
  function spread(values, least = 0) {
    const low = Math.min(...values), high = Math.max(...values);
    const margin = Math.max((high - low) * 0.06, least);
    return [low - margin, high + margin];
  }
  const shown = (lines) => lines.filter((line) => !hidden.has(line.index));
  const ends = (lines) => lines.flatMap((line) =>
    [...line.y, ...(line.low || []), ...(line.high || [])]).filter(Number.isFinite);

  // -- charts ------------------------------------------------------------------------------------
  function drawCurves() {
    const chosen = $("curve-track").value, all = data.curves[chosen], lines = shown(all.lines);
    const last = Math.max(...all.lines.flatMap((line) => line.x), 2);
    const values = [...ends(lines.length ? lines : all.lines), ...all.references.map((r) => r[0])];
    const domain = spread(values, 0.02);
    const first = Math.min(...all.lines.flatMap((line) => line.x));
    const plot = axes($("curves"), `Best so far, ${chosen}`, {
      x: { domain: [first, last], log: true, label: "policy evaluations", ticks: all.ticks },
      y: { domain, label: all.unit },
    });
    for (const [value, label, end] of all.references) reference(plot, value, label, end);
    const title = (x, y) => `${y.toFixed(3)} after ${x}`;
    drawSeries(plot, lines, { step: all.step ? "post" : "", dots: !all.step, title });
    $("curves-note").textContent = all.note;
  }
  function drawProfile() {
    const { lines: all, domain, count } = data.profile, lines = shown(all);
    const host = $("profile");
    if (!all.length) return void (host.textContent = "No entry has run on all tracks.");
    const plot = axes(host, "Performance profile", {
      x: { domain, label: `score τ after ${count} evaluations` },
      y: { domain: [0, 1], label: "share of runs ≥ τ" }, height: 330,
    });
    for (const mark of [0, 1]) if (mark >= domain[0] && mark <= domain[1])
      el(plot.svg, "line", { class: "reference", x1: plot.sx(mark), x2: plot.sx(mark),
        y1: plot.box.top, y2: plot.box.bottom });
    drawSeries(plot, lines, { step: "pre" });
  }
  function drawPareto() {
    const device = data.pareto[$("pareto-device").value], lines = shown(device.lines);
    const all = [...device.lines, ...device.fixed];
    const plot = axes($("pareto"), "Cost against test error", {
      x: { domain: spread(all.flatMap((l) => l.x), 0.01), label: "cost, share of 8 bits" },
      y: { domain: spread(ends(all), 2.5), label: "test error, %" }, height: 330,
    });
    for (const line of device.fixed) {
      const points = line.x.map((x, k) => [x, line.y[k]]);
      el(plot.svg, "path", { class: "reference", d: path(points, plot.sx, plot.sy, "") });
      for (const [px, py] of points)
        el(plot.svg, "circle", { class: "frame", cx: plot.sx(px), cy: plot.sy(py), r: 3 });
      const [x, y] = points[points.length - 1];
      el(plot.svg, "text", { x: Math.min(plot.sx(x) + 8, plot.box.right), "text-anchor": "end",
        y: plot.sy(y) + (line.above ? -9 : 18) }, line.name);
    }
    drawSeries(plot, lines, { step: "", dots: true,
      title: (x, y) => `${percent(y)} error at ${x.toFixed(3)} of the 8-bit cost` });
  }

  // -- one policy --------------------------------------------------------------------------------
  const MARKS = { s: "M-4-4H4V4H-4Z", o: "M-4.4 0A4.4 4.4 0 1 1 4.4 0A4.4 4.4 0 1 1-4.4 0Z",
    "^": "M0-5L4.8 4H-4.8Z", D: "M0-5.4L5.4 0L0 5.4L-5.4 0Z",
    P: "M-1.6-5H1.6V-1.6H5V1.6H1.6V5H-1.6V1.6H-5V-1.6H-1.6Z" };
  function options(select, values, keep = true) {
    const before = select.value;
    select.replaceChildren(...values.map(([value, text]) => {
      const option = document.createElement("option");
      option.value = String(value); option.textContent = text;
      return option;
    }));
    if (keep && values.some(([value]) => String(value) === before)) select.value = before;
  }
  const runsOf = (track, entry) =>
    data.runs.filter((run) => run.track === track && (entry === null || run.entry === entry));
  function fillPolicy() {
    const track = Number($("policy-track").value);
    const entries = [...new Set(runsOf(track, null).map((run) => run.entry))];
    options($("policy-entry"), data.order.filter((e) => entries.includes(e))
      .map((entry) => [entry, data.entries[entry]]));
    const runs = runsOf(track, Number($("policy-entry").value));
    options($("policy-seed"), runs.map((run) => [run.seed, String(run.seed)]));
    const run = runs.find((each) => each.seed === Number($("policy-seed").value));
    const steps = run.judged.map(([count]) => count);
    const before = $("policy-count").value;
    options($("policy-count"), [["0", "uniform"], ...steps.map((n) => [n, `${n} evaluations`])]);
    if (!before || !steps.includes(Number(before)) && before !== "0")
      $("policy-count").value = String(steps[steps.length - 1]);
    drawPolicy(run);
  }
  function drawPolicy(run) {
    const track = data.tracks[run.track], machine = data.machines[track.machine];
    const count = Number($("policy-count").value);
    const uniform = data.policies[run.uniform];
    const index = count ? run.judged.find(([n]) => n === count)[1] : run.uniform;
    const policy = data.policies[index];
    facts(track, policy, uniform);
    const kinds = [...new Set(machine.layers.map(([, look]) => look))].sort();
    $("kinds").replaceChildren(...kinds.map((k) => {
      const span = document.createElement("span");
      const mark = el(span, "svg", { viewBox: "-6 -6 12 12", "aria-hidden": "true" });
      el(mark, "path", { d: MARKS[data.looks[k].marker], fill: colour(data.looks[k].colour) });
      span.append(data.looks[k].label);
      return span;
    }));
    drawBits(machine, policy, uniform);
    drawRoofline(machine, policy);
  }
  function facts(track, policy, uniform) {
    const [w, a, ratio, accuracy, test] = policy;
    const rows = [["test accuracy", test === null ? "not scored" : percent(test)],
      ["uniform, test", percent(uniform[4])], ["held-out accuracy", percent(accuracy)],
      [`${track.metric}, share of 8 bits`, `${ratio.toFixed(4)} of ${track.ratio.toFixed(4)}`],
      ["weight bits", w], ["activation bits", a]];
    $("facts").replaceChildren(...rows.map(([name, value]) => {
      const div = document.createElement("div"), dt = document.createElement("dt");
      const dd = document.createElement("dd");
      dt.textContent = name; dd.textContent = value;
      if (value === w || value === a) div.className = "code";
      div.append(dt, dd);
      return div;
    }));
  }
  function drawBits(machine, policy, uniform) {
    const layers = machine.layers, n = layers.length;
    const plot = axes($("bits"), "Bits of each layer", {
      x: { domain: [-0.5, n - 0.5], label: "layer", format: (k) => String(k + 1),
        ticks: linearTicks(0, n - 1, Math.max(3, $("bits").clientWidth / 60)) },
      y: { domain: [-8.4, 8.4], ticks: [-8, -4, 0, 4, 8], format: (b) => String(Math.abs(b)),
        label: "activations · weights" }, height: 280,
    });
    const { svg, sx, sy } = plot, width = (sx(1) - sx(0)) * 0.78;
    layers.forEach(([name, look], k) => {
      const bits = [Number(policy[0][k]), Number(policy[1][k])];
      bits.forEach((b, side) => {
        const bar = el(svg, "rect", { x: sx(k) - width / 2, width, fill: colour(data.looks[look].colour),
          y: side ? sy(0) + 1 : sy(b), height: Math.abs(sy(b) - sy(0)) - 1, rx: 1.5,
          opacity: side ? 0.6 : 1, class: "bar", "data-bits": b });
        el(bar, "title", {}, `${name}: weights ${bits[0]} bits, activations ${bits[1]} bits`);
      });
    });
    for (const [side, sign] of [[0, 1], [1, -1]]) {
      const points = layers.map((_, k) => [k - 0.5, sign * Number(uniform[side][k])]);
      points.push([n - 0.5, points[n - 1][1]]);
      el(svg, "path", { class: "uniform", d: path(points, sx, sy, "post") });
    }
    el(svg, "line", { class: "roof", x1: sx(-0.5), x2: sx(n - 0.5), y1: sy(0), y2: sy(0) });
  }
  /** Intensity (MACs per byte) and performance (MACs per second) of each layer. */
  function points(machine, policy) {
    return machine.layers.map(([, , macs], k) => {
      const cell = k * 64 + (policy[0][k] - 1) * 8 + (policy[1][k] - 1);
      return [macs / machine.traffic[cell], macs / (machine.latency[cell] / 1e3)];
    });
  }
  function drawRoofline(machine, policy) {
    const host = $("roofline"), n = machine.layers.length;
    if (!machine.roofs) return void (host.textContent = "This machine has no roofline.");
    const eight = points(machine, ["8".repeat(n), "8".repeat(n)]), now = points(machine, policy);
    const { bandwidth, peaks } = machine.roofs, top = Math.max(...peaks.map((p) => p[1]));
    const xs = [...eight, ...now].map((p) => p[0]), ys = [...eight, ...now].map((p) => p[1]);
    const left = Math.min(...xs) / 1.6;
    const right = Math.max(...xs, top / bandwidth) * 4;
    const plot = axes(host, "Roofline", {
      x: { domain: [left, right], log: true, label: "MACs per byte of DRAM traffic" },
      y: { domain: [Math.min(...ys) / 2, Math.max(top, ...ys) * 2], log: true, label: "MACs per second",
        format: (v) => engineering(v).replace(" ", ""), left: 64 }, height: 380,
    });
    const { svg, sx, sy, box } = plot, bottom = Math.min(...ys) / 2;
    const start = Math.max(left, bottom / bandwidth);
    el(svg, "path", { class: "roof", d: path(
      [[start, start * bandwidth], [top / bandwidth, top]], sx, sy, "") });
    for (const [names, peak] of peaks) {
      el(svg, "path", { class: "roof", d: path([[peak / bandwidth, peak], [right, peak]], sx, sy, "") });
      el(svg, "text", { class: "strong", x: box.right, y: sy(peak) - 5, "text-anchor": "end" },
        box.right > 520 ? `${names}: ${engineering(peak)}MAC/s` : names);
    }
    machine.layers.forEach(([name, look], k) => {
      const [a, b] = [eight[k], now[k]], ink = colour(data.looks[look].colour);
      const d = MARKS[data.looks[look].marker];
      el(svg, "line", { class: "move", x1: sx(a[0]), y1: sy(a[1]), x2: sx(b[0]), y2: sy(b[1]) });
      for (const [p, full] of [[a, false], [b, true]]) {
        const mark = el(svg, "path", { d, transform: `translate(${sx(p[0])} ${sy(p[1])})`,
          fill: full ? ink : "none", stroke: ink, class: full ? "layer" : "before",
          "data-intensity": p[0], "data-performance": p[1] });
        el(mark, "title", {}, `${name}: ${p[0].toPrecision(3)} MACs per byte, ` +
          `${engineering(p[1])}MAC/s${full ? "" : " at 8 bits"}`);
      }
    });
  }

  // -- start -------------------------------------------------------------------------------------
  function draw() { drawCurves(); drawProfile(); drawPareto(); }
  $("legend").append(...data.order.map((index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    const line = el(button, "svg", { viewBox: "0 0 24 10", "aria-hidden": "true" });
    el(line, "line", { x1: 0, x2: 24, y1: 5, y2: 5, stroke: colour(index), "stroke-width": 3,
      "stroke-dasharray": dash(index) });
    button.append(data.entries[index]);
    button.addEventListener("click", () => {
      hidden.has(index) ? hidden.delete(index) : hidden.add(index);
      button.setAttribute("aria-pressed", String(!hidden.has(index)));
      draw();
    });
    return button;
  }));
  options($("curve-track"), Object.keys(data.curves).map((name) => [name, name]));
  options($("pareto-device"), Object.keys(data.pareto).map((name) => [name, name]));
  options($("policy-track"), data.tracks.map((track, index) => [index, track.name]));
  $("curve-track").addEventListener("change", drawCurves);
  $("pareto-device").addEventListener("change", drawPareto);
  for (const id of ["policy-track", "policy-entry", "policy-seed", "policy-count"])
    $(id).addEventListener("change", fillPolicy);
  let width = 0;
  new ResizeObserver(() => {
    if (document.body.clientWidth === width) return;
    width = document.body.clientWidth;
    draw(); fillPolicy();
  }).observe(document.body);
})();
