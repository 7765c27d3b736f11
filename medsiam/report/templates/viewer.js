"use strict";
// Linked planes of prior, current and change: scroll, window, crosshair, blink, findings.

// The axes of a volume (right, anterior, head) that lie across, down and through each plane.
const PLANES = {
  axial: { across: 0, down: 1, through: 2, edges: ["R", "L", "A", "P"] },
  coronal: { across: 0, down: 2, through: 1, edges: ["R", "L", "H", "F"] },
  sagittal: { across: 1, down: 2, through: 0, edges: ["A", "P", "H", "F"] },
};

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

function voxelOf(data, at, axis) {
  return clamp(Math.floor(at[axis] * data.dims[axis]), 0, data.dims[axis] - 1);
}

(async () => {
  const data = JSON.parse(document.getElementById("volumes").textContent);
  const stage = document.getElementById("stage");
  const viewer = document.getElementById("viewer");
  const slider = document.getElementById("slice");
  const opacity = document.getElementById("opacity");
  const status = document.getElementById("status");
  const panels = [...stage.querySelectorAll("canvas")];
  const titles = { prior: "Prior", current: "Current", change: "Change on current" };
  const BLINK_MS = 600;
  const NARROW_PX = 720;
  const GAP = 2;
  const isFlat = data.dims.some((size) => size < 2);
  const own = data.plane === "projection" ? "axial" : data.plane;
  const isWide = innerWidth > NARROW_PX;
  const start = { low: data.low, high: data.high };
  const state = {
    at: [0.5, 0.5, 0.5], ...start, opacity: 1, view: isFlat || !isWide ? own : "three", active: own,
    finding: null, crosshair: true, overlay: true, blinking: null, showsPrior: false,
  };
  let painter = null;
  let tilesOf = new Map();

  const sizeMm = data.dims.map((count, axis) => count * data.spacing[axis]);

  // Where the planes lie on a canvas, in its own pixels, each with its true proportions.
  function layout(width, most) {
    const order = state.view === "three" ? [own, ...Object.keys(PLANES).filter((plane) => plane !== own)] : [state.view];
    const rows = order.length === 1 ? [order] : [[order[0]], order.slice(1)];
    const measured = rows.map((row) => {
      const wide = row.reduce((sum, plane) => sum + sizeMm[PLANES[plane].across], 0);
      const scale = (width - GAP * (row.length - 1)) / wide;
      return { row, scale, height: scale * Math.max(...row.map((plane) => sizeMm[PLANES[plane].down])) };
    });
    const full = measured.reduce((sum, one) => sum + one.height, GAP * (rows.length - 1));
    const shrink = Math.min(1, most / full);
    const tiles = [];
    let y = 0;
    for (const { row, scale, height } of measured) {
      const widths = row.map((plane) => sizeMm[PLANES[plane].across] * scale * shrink);
      let x = (width - widths.reduce((sum, one) => sum + one, GAP * (row.length - 1))) / 2;
      row.forEach((plane, n) => {
        const tall = sizeMm[PLANES[plane].down] * scale * shrink;
        tiles.push({ plane, x, y: y + (height * shrink - tall) / 2, width: widths[n], height: tall, perMm: scale * shrink });
        x += widths[n] + GAP;
      });
      y += height * shrink + GAP;
    }
    return { tiles, size: { width: Math.round(width), height: Math.max(1, Math.round(full * shrink)) } };
  }

  function drawCrosshair(context, tile, ratio) {
    const { across, down } = PLANES[tile.plane];
    const x = tile.x + (1 - state.at[across]) * tile.width;
    const y = tile.y + (1 - state.at[down]) * tile.height;
    const [right, bottom] = [tile.x + tile.width, tile.y + tile.height];
    const gap = 12 * ratio;
    context.strokeStyle = "rgba(159, 211, 255, .75)";
    context.lineWidth = ratio;
    context.beginPath();
    for (const [x0, y0, x1, y1] of [
      [tile.x, y, Math.max(tile.x, x - gap), y], [Math.min(right, x + gap), y, right, y],
      [x, tile.y, x, Math.max(tile.y, y - gap)], [x, Math.min(bottom, y + gap), x, bottom],
    ]) {
      context.moveTo(x0, y0);
      context.lineTo(x1, y1);
    }
    context.stroke();
  }

  function write(context, text, x, y, ratio, align, baseline) {
    context.font = `${13 * ratio}px system-ui, sans-serif`;
    context.textAlign = align;
    context.textBaseline = baseline;
    context.lineWidth = 3 * ratio;
    context.strokeStyle = "#000";
    context.fillStyle = "#ebeef2";
    context.strokeText(text, x, y);
    context.fillText(text, x, y);
  }

  function drawEdges(context, tile, ratio) {
    const [left, right, top, bottom] = tile.plane === own ? data.edges : PLANES[tile.plane].edges;
    const [middle, centre, pad] = [tile.y + tile.height / 2, tile.x + tile.width / 2, 5 * ratio];
    write(context, left, tile.x + pad, middle, ratio, "left", "middle");
    write(context, right, tile.x + tile.width - pad, middle, ratio, "right", "middle");
    write(context, top, centre, tile.y + pad, ratio, "center", "top");
    write(context, bottom, centre, tile.y + tile.height - pad, ratio, "center", "bottom");
  }

  function drawScale(context, tile, ratio) {
    const length = [200, 100, 50, 20, 10, 5, 2, 1].find((mm) => mm * tile.perMm <= 0.3 * tile.width) || 1;
    const [x, y] = [tile.x + 8 * ratio, tile.y + tile.height - 9 * ratio];
    for (const [colour, width] of [["#000", 4], ["#ebeef2", 1.5]]) {
      context.strokeStyle = colour;
      context.lineWidth = width * ratio;
      context.beginPath();
      context.moveTo(x, y);
      context.lineTo(x + length * tile.perMm, y);
      context.stroke();
    }
    write(context, `${length} ${data.length_unit}`, x, y - 4 * ratio, ratio, "left", "bottom");
  }

  function paint(canvas) {
    const ratio = devicePixelRatio || 1;
    const most = Math.max(260, 0.8 * innerHeight) * ratio;
    const { tiles, size } = layout(canvas.parentElement.clientWidth * ratio, most);
    const panel = canvas.dataset.panel === "current" && state.showsPrior ? "prior" : canvas.dataset.panel;
    const drawn = painter.paint(panel, size, tiles, { ...state, opacity: state.overlay ? state.opacity : 0 });
    [canvas.width, canvas.height] = [size.width, size.height];
    const context = canvas.getContext("2d");
    context.drawImage(drawn, 0, 0);
    for (const tile of tiles) {
      if (state.crosshair) drawCrosshair(context, tile, ratio);
      drawEdges(context, tile, ratio);
    }
    drawScale(context, tiles[0], ratio);
    tilesOf.set(canvas, { tiles, ratio });
    // Where each plane stands on the canvas, in CSS pixels, for whoever steers the page from outside.
    canvas.dataset.tiles = JSON.stringify(tiles.map(({ plane, x, y, width, height }) => (
      { plane, x: x / ratio, y: y / ratio, width: width / ratio, height: height / ratio })));
  }

  // The number of the scan's own slice at the crosshair, counted from one.
  function sliceNumber() {
    const { axis, is_reversed: isReversed, first, count } = data.slices;
    const share = isReversed ? 1 - state.at[axis] : state.at[axis];
    return first + clamp(Math.floor(share * count), 0, count - 1);
  }

  function placeLps() {
    const voxel = state.at.map((share, axis) => share * data.dims[axis] - 0.5);
    return data.lps_from_voxel.slice(0, 3).map((row) => row[3] + voxel.reduce((sum, v, n) => sum + v * row[n], 0));
  }

  function placeText() {
    const place = placeLps();
    if (data.plane === "projection") {
      return `${place[0].toFixed(0)} ${data.length_unit} from the left, ${place[1].toFixed(0)} ${data.length_unit} from the top`;
    }
    return `${[["L", "R"], ["P", "A"], ["H", "F"]].map(([plus, minus], n) => `${place[n] >= 0 ? plus : minus} ${Math.abs(Math.round(place[n]))}`).join(", ")} mm`;
  }

  function tell() {
    const parts = [];
    const finding = data.findings.find((one) => one.label === state.finding);
    const number = sliceNumber();
    const image = data.slices.images?.[number - data.slices.first] ?? null;
    const name = `slice ${number} of ${data.slices.of}${image === null ? "" : ` (image ${image})`}`;
    if (data.slices.count > 1) parts.push(name);
    if (finding) parts.push(`finding ${finding.label}, ${finding.kind}`);
    const level = (state.high + state.low) / 2;
    const plain = (value) => (Math.abs(value) >= 100 ? String(Math.round(value)) : value.toPrecision(3));
    parts.push(placeText(), `window ${plain(state.high - state.low)}, level ${plain(level)} ${data.unit}`.trim());
    status.textContent = parts.join(" · ");
    document.getElementById("slice-number").textContent = `${number}/${data.slices.of}`;
    slider.setAttribute("aria-valuetext", name);
    viewer.dataset.slice = number;
    viewer.dataset.finding = state.finding === null ? "" : state.finding;
    viewer.dataset.place = placeLps().map((mm) => mm.toFixed(2)).join(" ");
  }

  let isAsked = false;
  function show() {
    const { axis, is_reversed: isReversed } = data.slices;
    const voxel = voxelOf(data, state.at, axis);
    slider.value = isReversed ? data.dims[axis] - 1 - voxel : voxel;
    tell();
    if (isAsked) return;
    isAsked = true;
    requestAnimationFrame(() => {
      isAsked = false;
      panels.forEach(paint);
      viewer.dataset.painted = sliceNumber();
    });
  }

  function goTo(axis, voxel) {
    state.at[axis] = (clamp(voxel, 0, data.dims[axis] - 1) + 0.5) / data.dims[axis];
    choose(null);
    show();
  }

  // On through the slices of a plane, in the scan's own order where they are its own.
  function scroll(by, plane = state.active) {
    const axis = PLANES[plane].through;
    const direction = axis === data.slices.axis && data.slices.is_reversed ? -1 : 1;
    goTo(axis, voxelOf(data, state.at, axis) + by * direction);
  }

  function choose(label) {
    state.finding = label;
    for (const row of document.querySelectorAll("[data-finding]:not(#viewer)")) {
      if (Number(row.dataset.finding) === label) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    }
  }

  function goToFinding(label) {
    const finding = data.findings.find((one) => one.label === label);
    if (!finding) return;
    state.at = [...finding.at];
    choose(label);
    show();
  }

  function step(by) {
    const all = data.findings;
    if (!all.length) return;
    const at = all.findIndex((one) => one.label === state.finding);
    const next = at < 0 ? (by > 0 ? 0 : all.length - 1) : (at + by + all.length) % all.length;
    goToFinding(all[next].label);
  }

  function press(name, isOn) {
    document.getElementById(name).setAttribute("aria-pressed", String(isOn));
  }

  function toggle(name) {
    state[name] = !state[name];
    press(name, state[name]);
    show();
  }

  function showPrior(isPrior) {
    state.showsPrior = isPrior;
    stage.querySelector('[data-title="current"]').textContent = isPrior ? titles.prior : titles.current;
    show();
  }

  function blink() {
    if (state.blinking) {
      clearInterval(state.blinking);
      state.blinking = null;
      showPrior(false);
    } else {
      state.blinking = setInterval(() => showPrior(!state.showsPrior), BLINK_MS);
    }
    press("blink", Boolean(state.blinking));
    stage.querySelector(".panel-current").classList.toggle("blinking", Boolean(state.blinking));
  }

  function view(name) {
    state.view = name;
    if (name !== "three") state.active = name;
    for (const button of document.querySelectorAll("[data-view]")) {
      button.setAttribute("aria-pressed", String(button.dataset.view === name));
    }
    show();
  }

  function nextView() {
    if (isFlat) return;
    const all = ["three", "axial", "coronal", "sagittal"];
    view(all[(all.indexOf(state.view) + 1) % all.length]);
  }

  function reset() {
    Object.assign(state, start, { opacity: 1 });
    opacity.value = 100;
    if (state.blinking) blink();
    show();
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const actions = {
      ArrowUp: () => scroll(-1), ArrowLeft: () => scroll(-1), ArrowDown: () => scroll(1), ArrowRight: () => scroll(1),
      PageUp: () => scroll(-5), PageDown: () => scroll(5), Home: () => scroll(-1e6), End: () => scroll(1e6),
      n: () => step(1), p: () => step(-1), b: blink, o: () => toggle("overlay"),
      c: () => toggle("crosshair"), v: nextView, r: reset,
    };
    const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  // The plane under the pointer, and where in it, in shares of its width and height.
  function under(event) {
    const canvas = event.target.closest("canvas");
    const placed = canvas && tilesOf.get(canvas);
    if (!placed) return null;
    const box = canvas.getBoundingClientRect();
    const x = (event.clientX - box.left) * placed.ratio;
    const y = (event.clientY - box.top) * placed.ratio;
    const tile = placed.tiles.find((one) => x >= one.x && x < one.x + one.width && y >= one.y && y < one.y + one.height);
    return tile ? { plane: tile.plane, x: (x - tile.x) / tile.width, y: (y - tile.y) / tile.height } : null;
  }

  let turned = 0;
  function onWheel(event) {
    const place = under(event);
    if (event.ctrlKey || !place || data.dims[PLANES[place.plane].through] < 2) return;
    event.preventDefault();
    // A touchpad sends many small turns, a mouse one large one per notch.
    turned += event.deltaMode ? event.deltaY * 40 : event.deltaY;
    const steps = Math.trunc(turned / 40);
    if (steps === 0) return;
    turned -= steps * 40;
    scroll(clamp(steps, -3, 3), place.plane);
  }

  function putCrosshair(event) {
    const place = under(event);
    if (!place) return;
    const { across, down } = PLANES[place.plane];
    state.active = place.plane;
    state.at[across] = clamp(1 - place.x, 0, 1);
    state.at[down] = clamp(1 - place.y, 0, 1);
    choose(null);
    show();
  }

  function onPointer(canvas) {
    let from = null;
    canvas.addEventListener("pointerdown", (event) => {
      from = { x: event.clientX, y: event.clientY, low: state.low, high: state.high, moved: false };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!from) return;
      const dx = event.clientX - from.x;
      const dy = event.clientY - from.y;
      if (Math.hypot(dx, dy) < 4 && !from.moved) return;
      from.moved = true;
      const whole = data.high - data.low;
      const width = clamp((from.high - from.low) * Math.exp(dx / 200), whole / 50, whole * 20);
      const level = (from.high + from.low) / 2 - (dy / 400) * (from.high - from.low);
      Object.assign(state, { low: level - width / 2, high: level + width / 2 });
      show();
    });
    canvas.addEventListener("pointerup", (event) => {
      if (from && !from.moved) putCrosshair(event);
      from = null;
    });
    canvas.addEventListener("pointercancel", () => { from = null; });
  }

  function followHash() {
    const match = /^#finding-(\d+)$/.exec(location.hash);
    if (match) goToFinding(Number(match[1]));
  }

  async function paintWithCanvas() {
    painter = await canvasPainter(data);
    viewer.dataset.painter = painter.name;
    show();
  }

  async function choosePainter() {
    try {
      painter = await niivuePainter(data, paintWithCanvas);
    } catch (error) {
      // A graphics card that promises WebGL2 and fails: the other way shows the same.
      painter = null;
    }
    if (!painter) painter = await canvasPainter(data);
    viewer.dataset.painter = painter.name;
  }

  function prepare() {
    panels.forEach(onPointer);
    slider.max = data.dims[data.slices.axis] - 1;
    slider.closest("label").hidden = data.slices.count < 2;
    document.getElementById("views").hidden = isFlat;
    for (const name of ["previous", "next"]) document.getElementById(name).hidden = data.findings.length === 0;
    viewer.hidden = false;
    for (const button of document.querySelectorAll("[data-view]")) {
      button.setAttribute("aria-pressed", String(button.dataset.view === state.view));
      button.addEventListener("click", () => view(button.dataset.view));
    }
    for (const [name, action] of [
      ["previous", () => step(-1)], ["next", () => step(1)], ["blink", blink], ["reset", reset],
      ["overlay", () => toggle("overlay")], ["crosshair", () => toggle("crosshair")],
    ]) document.getElementById(name).addEventListener("click", action);
    slider.addEventListener("input", () => {
      const { axis, is_reversed: isReversed } = data.slices;
      goTo(axis, isReversed ? data.dims[axis] - 1 - Number(slider.value) : Number(slider.value));
    });
    opacity.addEventListener("input", () => { state.opacity = Number(opacity.value) / 100; show(); });
    stage.addEventListener("keydown", onKey);
    stage.addEventListener("wheel", onWheel, { passive: false });
    new ResizeObserver(show).observe(stage);
  }

  function linkFindings() {
    for (const link of document.querySelectorAll('.findings a[href^="#finding-"]')) {
      link.addEventListener("click", (event) => {
        event.preventDefault();
        history.replaceState(null, "", link.getAttribute("href"));
        followHash();
        viewer.scrollIntoView();
        stage.focus({ preventScroll: true });
      });
    }
    addEventListener("hashchange", followHash);
  }

  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
  await choosePainter();
  prepare();
  linkFindings();
  if (data.findings.length) goToFinding(data.findings[0].label);
  followHash();
  show();
})();
