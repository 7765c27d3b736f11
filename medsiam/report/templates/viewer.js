"use strict";
// Linked slices of prior, current and change: scroll, window, crosshair, blink.
(() => {
  const data = JSON.parse(document.getElementById("slices").textContent);
  const stage = document.getElementById("stage");
  const viewer = document.getElementById("viewer");
  const slider = document.getElementById("slice");
  const status = document.getElementById("status");
  const panels = [...stage.querySelectorAll("canvas")];
  const titles = { prior: "Prior", current: "Current", change: "Change on current" };
  // Outlines are stored at twice the slices' size, so the canvas has that size too.
  const SCALE = 2;
  const BLINK_MS = 600;
  const start = { black: data.black, white: data.white };
  const state = {
    slice: Math.floor(data.slices.length / 2), x: 0.5, y: 0.5, ...start,
    finding: null, crosshair: true, overlay: true, blinking: null, showsPrior: false,
  };
  const greys = new Map();
  const overlays = new Map();
  const scratch = document.createElement("canvas");
  scratch.width = data.width;
  scratch.height = data.height;
  const scratchContext = scratch.getContext("2d", { willReadFrequently: true });

  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  async function image(url) {
    const loaded = new Image();
    loaded.src = url;
    await loaded.decode();
    return loaded;
  }

  async function grey(which, slice) {
    const key = which + slice;
    if (!greys.has(key)) {
      const loaded = await image(data[which][slice]);
      scratchContext.drawImage(loaded, 0, 0, data.width, data.height);
      const pixels = scratchContext.getImageData(0, 0, data.width, data.height).data;
      greys.set(key, Uint8Array.from({ length: pixels.length / 4 }, (_, n) => pixels[4 * n]));
    }
    return greys.get(key);
  }

  async function overlay(slice) {
    if (!overlays.has(slice)) {
      overlays.set(slice, data.change[slice] ? await image(data.change[slice]) : null);
    }
    return overlays.get(slice);
  }

  function windowed(values) {
    const width = Math.max(1, state.white - state.black);
    const table = Uint8ClampedArray.from({ length: 256 }, (_, v) => (255 * (v - state.black)) / width);
    const pixels = scratchContext.createImageData(data.width, data.height);
    for (let n = 0; n < values.length; n += 1) {
      const shade = table[values[n]];
      pixels.data[4 * n] = pixels.data[4 * n + 1] = pixels.data[4 * n + 2] = shade;
      pixels.data[4 * n + 3] = 255;
    }
    return pixels;
  }

  function drawCrosshair(context, canvas) {
    const x = state.x * canvas.width;
    const y = state.y * canvas.height;
    const gap = 14 * SCALE;
    context.strokeStyle = "rgba(159, 211, 255, .7)";
    context.lineWidth = 1.5;
    context.beginPath();
    for (const [x0, y0, x1, y1] of [[0, y, x - gap, y], [x + gap, y, canvas.width, y], [x, 0, x, y - gap], [x, y + gap, x, canvas.height]]) {
      context.moveTo(x0, y0);
      context.lineTo(x1, y1);
    }
    context.stroke();
  }

  function drawScale(context, canvas) {
    const length = [200, 100, 50, 20, 10, 5, 2, 1].find((mm) => mm <= 0.3 * data.width_mm) || 1;
    const y = canvas.height - 9 * SCALE;
    const x = 7 * SCALE;
    const across = (length / data.width_mm) * canvas.width;
    const size = Math.max(8 * SCALE, canvas.width / 36);
    context.font = `${size}px sans-serif`;
    for (const [colour, width] of [["#000", 3 * SCALE], ["#ebeef2", SCALE]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.beginPath();
      context.moveTo(x, y);
      context.lineTo(x + across, y);
      context.stroke();
      if (colour === "#000") context.strokeText(`${length} ${data.length_unit}`, x, y - 4 * SCALE);
    }
    context.fillStyle = "#ebeef2";
    context.fillText(`${length} ${data.length_unit}`, x, y - 4 * SCALE);
  }

  async function paint(canvas, slice) {
    const panel = canvas.dataset.panel;
    const which = panel === "prior" || (panel === "current" && state.showsPrior) ? "prior" : "current";
    const values = await grey(which, slice);
    const marks = panel === "change" && state.overlay ? await overlay(slice) : null;
    if (slice !== state.slice) return;
    const context = canvas.getContext("2d");
    scratchContext.putImageData(windowed(values), 0, 0);
    context.imageSmoothingQuality = "high";
    context.drawImage(scratch, 0, 0, canvas.width, canvas.height);
    if (marks) context.drawImage(marks, 0, 0, canvas.width, canvas.height);
    if (state.crosshair) drawCrosshair(context, canvas);
    drawScale(context, canvas);
  }

  function tell() {
    const slice = data.slices[state.slice];
    const level = (share) => data.low + (share / 255) * (data.high - data.low);
    const width = level(state.white) - level(state.black);
    const centre = (level(state.white) + level(state.black)) / 2;
    const parts = [];
    const finding = data.findings.find((one) => one.label === state.finding);
    if (data.slices.length > 1) parts.push(`slice ${slice.number} of ${slice.of}`);
    if (finding) parts.push(`finding ${finding.label}, ${finding.kind}, ${finding.place}`);
    parts.push(`window ${width.toPrecision(3)}, level ${centre.toPrecision(3)} ${data.unit}`.trim());
    status.textContent = parts.join(" · ");
    document.getElementById("slice-number").textContent = `${slice.number}/${slice.of}`;
    slider.setAttribute("aria-valuetext", `slice ${slice.number} of ${slice.of}`);
    viewer.dataset.slice = slice.number;
    viewer.dataset.finding = state.finding === null ? "" : state.finding;
  }

  let isAsked = false;
  function show() {
    slider.value = state.slice;
    tell();
    if (isAsked) return;
    isAsked = true;
    requestAnimationFrame(async () => {
      isAsked = false;
      for (const canvas of panels) await paint(canvas, state.slice);
      viewer.dataset.painted = data.slices[state.slice].number;
    });
  }

  function goTo(slice) {
    state.slice = clamp(slice, 0, data.slices.length - 1);
    const finding = data.findings.find((one) => one.label === state.finding);
    if (finding && finding.slice !== state.slice) choose(null);
    show();
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
    Object.assign(state, { slice: finding.slice, x: finding.x, y: finding.y });
    choose(label);
    show();
  }

  function step(by) {
    if (!data.findings.length) return;
    const at = data.findings.findIndex((one) => one.label === state.finding);
    const next = at < 0 ? (by > 0 ? 0 : data.findings.length - 1) : (at + by + data.findings.length) % data.findings.length;
    goToFinding(data.findings[next].label);
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

  function reset() {
    Object.assign(state, start);
    if (state.blinking) blink();
    show();
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const last = data.slices.length - 1;
    const actions = {
      ArrowUp: () => goTo(state.slice - 1), ArrowLeft: () => goTo(state.slice - 1),
      ArrowDown: () => goTo(state.slice + 1), ArrowRight: () => goTo(state.slice + 1),
      PageUp: () => goTo(state.slice - 5), PageDown: () => goTo(state.slice + 5),
      Home: () => goTo(0), End: () => goTo(last),
      n: () => step(1), p: () => step(-1), b: blink, o: () => toggle("overlay"),
      c: () => toggle("crosshair"), r: reset,
    };
    const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  let turned = 0;
  function onWheel(event) {
    if (event.ctrlKey || data.slices.length < 2) return;
    event.preventDefault();
    // A touchpad sends many small turns, a mouse one large one per notch.
    turned += event.deltaMode ? event.deltaY * 40 : event.deltaY;
    const steps = Math.trunc(turned / 40);
    if (steps === 0) return;
    turned -= steps * 40;
    goTo(state.slice + clamp(steps, -3, 3));
  }

  function onPointer(canvas) {
    let from = null;
    canvas.addEventListener("pointerdown", (event) => {
      from = { x: event.clientX, y: event.clientY, black: state.black, white: state.white, moved: false };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!from) return;
      const dx = event.clientX - from.x;
      const dy = event.clientY - from.y;
      if (Math.hypot(dx, dy) < 4 && !from.moved) return;
      from.moved = true;
      const width = clamp((from.white - from.black) * Math.exp(dx / 200), 4, 510);
      const level = clamp((from.white + from.black) / 2 - dy * 0.5, 0, 255);
      Object.assign(state, { black: level - width / 2, white: level + width / 2 });
      show();
    });
    canvas.addEventListener("pointerup", (event) => {
      if (from && !from.moved) {
        const box = canvas.getBoundingClientRect();
        // The picture is centred in a canvas that may be wider or higher than it.
        const fit = Math.min(box.width / canvas.width, box.height / canvas.height);
        const x = (event.clientX - box.left - box.width / 2) / (fit * canvas.width) + 0.5;
        const y = (event.clientY - box.top - box.height / 2) / (fit * canvas.height) + 0.5;
        Object.assign(state, { x: clamp(x, 0, 1), y: clamp(y, 0, 1) });
        show();
      }
      from = null;
    });
    canvas.addEventListener("pointercancel", () => { from = null; });
  }

  function followHash() {
    const match = /^#finding-(\d+)$/.exec(location.hash);
    if (match) goToFinding(Number(match[1]));
  }

  function prepare() {
    for (const canvas of panels) {
      canvas.width = data.width * SCALE;
      // A displayed pixel may be higher than wide; the canvas is square in mm.
      canvas.height = Math.max(1, Math.round((canvas.width * data.height_mm) / data.width_mm));
      onPointer(canvas);
    }
    const sides = ["left", "right", "top", "bottom"];
    for (const edge of stage.querySelectorAll(".edge")) {
      edge.textContent = data.edges[sides.findIndex((side) => edge.classList.contains(`edge-${side}`))];
    }
    slider.max = data.slices.length - 1;
    slider.closest("label").hidden = data.slices.length < 2;
    for (const name of ["previous", "next"]) document.getElementById(name).hidden = data.findings.length === 0;
    viewer.hidden = false;
  }

  prepare();
  stage.addEventListener("keydown", onKey);
  stage.addEventListener("wheel", onWheel, { passive: false });
  slider.addEventListener("input", () => goTo(Number(slider.value)));
  document.getElementById("previous").addEventListener("click", () => step(-1));
  document.getElementById("next").addEventListener("click", () => step(1));
  document.getElementById("blink").addEventListener("click", blink);
  document.getElementById("overlay").addEventListener("click", () => toggle("overlay"));
  document.getElementById("crosshair").addEventListener("click", () => toggle("crosshair"));
  document.getElementById("reset").addEventListener("click", reset);
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
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
  if (data.findings.length) goToFinding(data.findings[0].label);
  followHash();
  show();
})();
