"use strict";
// Slices drawn by NiiVue on the graphics card, one drawing for each panel.

async function loadNiivue() {
  const packed = document.getElementById("niivue");
  const script = document.createElement("script");
  // The page's policy lets this very text run, known by its hash, and no other.
  script.textContent = new TextDecoder().decode(await unpacked(packed.textContent.trim()));
  document.head.append(script);
  return globalThis.niivue;
}

// Whether there is a graphics card. WebGL2 on the processor, as on remote desktops, takes many
// seconds to prepare volumes that the canvas shows at once.
function hasGraphicsCard() {
  const context = document.createElement("canvas").getContext("webgl2", { failIfMajorPerformanceCaveat: true });
  if (!context) return false;
  const info = context.getExtension("WEBGL_debug_renderer_info");
  const name = info ? context.getParameter(info.UNMASKED_RENDERER_WEBGL) : "";
  context.getExtension("WEBGL_lose_context")?.loseContext();
  return !/swiftshader|llvmpipe|software|basic render/i.test(name);
}

async function niivuePainter(data, onLost) {
  if (!hasGraphicsCard()) return null;
  const { Niivue, NVImage, SLICE_TYPE } = await loadNiivue();
  // An outline's voxels reach this; below it NiiVue colours with the square of the share.
  const FULL = 0.99;
  const TRANSLUCENT_BELOW_THRESHOLD = 1;
  const planes = { axial: SLICE_TYPE.AXIAL, coronal: SLICE_TYPE.CORONAL, sagittal: SLICE_TYPE.SAGITTAL };
  const options = {
    interactive: false, dragAndDropEnabled: false, isResizeCanvas: false, logLevel: "error", loadingText: "",
    isRadiologicalConvention: true, sagittalNoseLeft: true, isOrientationTextVisible: false,
    crosshairWidth: 0, isColorbar: false, isRuler: false, isNearestInterpolation: false,
    backColor: [0, 0, 0, 1], tileMargin: 0, multiplanarPadPixels: 0,
  };

  function colours([red, green, blue]) {
    const same = (value) => [value, value, value];
    return { R: same(red), G: same(green), B: same(blue), A: [0, 255, 255], I: [0, 1, 255] };
  }

  function image(name, more) {
    return NVImage.loadFromBase64({ base64: data[name], name: `${name}.nii.gz`, colorbarVisible: false, ...more });
  }

  // The first of these sets how much NiiVue tells; only then are images read.
  const screens = {};
  for (const panel of ["prior", "current", "change"]) {
    const canvas = document.createElement("canvas");
    // NiiVue colours the parent of its canvas; what it draws is copied to the page.
    document.createElement("div").append(canvas);
    canvas.addEventListener("webglcontextlost", onLost);
    const drawing = new Niivue(options);
    await drawing.attachToCanvas(canvas, false);
    drawing.addColormap("appearing", colours(data.tint.appearing));
    drawing.addColormap("resolving", colours(data.tint.resolving));
    screens[panel] = { drawing, canvas, shown: { low: data.low, high: data.high, opacity: 1 } };
  }
  const grey = { colormap: "gray", cal_min: data.low, cal_max: data.high };
  const current = await image("current", grey);
  const change = await image("change", {
    colormap: "appearing", colormapNegative: "resolving",
    cal_min: FULL, cal_max: 1, cal_minNeg: -1, cal_maxNeg: -FULL,
  });
  change.colormapType = TRANSLUCENT_BELOW_THRESHOLD;
  screens.prior.drawing.addVolume(await image("prior", grey));
  screens.current.drawing.addVolume(current);
  screens.change.drawing.addVolume(current.clone());
  screens.change.drawing.addVolume(change);

  function paint(panel, size, tiles, state) {
    const { drawing, canvas, shown } = screens[panel];
    if (canvas.width !== size.width || canvas.height !== size.height) {
      [canvas.width, canvas.height] = [size.width, size.height];
    }
    if (shown.low !== state.low || shown.high !== state.high || shown.opacity !== state.opacity) {
      Object.assign(shown, { low: state.low, high: state.high, opacity: state.opacity });
      [drawing.volumes[0].cal_min, drawing.volumes[0].cal_max] = [state.low, state.high];
      if (panel === "change") drawing.volumes[1].opacity = state.opacity;
      drawing.updateGLVolume();
    }
    drawing.scene.crosshairPos = state.at;
    drawing.setCustomLayout(tiles.map((tile) => ({
      sliceType: planes[tile.plane],
      position: [tile.x / size.width, tile.y / size.height, tile.width / size.width, tile.height / size.height],
    })));
    return canvas;
  }

  return { name: "niivue", paint };
}
