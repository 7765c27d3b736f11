"use strict";
// Slices drawn without a graphics card: for browsers that have no WebGL2, or lose it.

async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

async function canvasPainter(data) {
  // A NIfTI-1 header with its empty extension ends here; slope and intercept stand within.
  const VOXELS_FROM = 352;
  const stored = {};
  for (const name of ["prior", "current", "change"]) {
    const buffer = await unpacked(data[name]);
    const header = new DataView(buffer);
    const codes = new (name === "change" ? Int8Array : Int16Array)(buffer, VOXELS_FROM);
    stored[name] = { codes, slope: header.getFloat32(112, true), inter: header.getFloat32(116, true) };
  }
  const strides = [1, data.dims[0], data.dims[0] * data.dims[1]];
  const sheet = document.createElement("canvas");
  const scratch = document.createElement("canvas");

  // A code of the change volume as its colour and its strength 0..1.
  function mark(code) {
    return [code > 0 ? data.tint.appearing : data.tint.resolving, Math.min(1, (code / data.tint.full) ** 2)];
  }

  function slice(scan, plane, state, isMarked) {
    const { across, down, through } = PLANES[plane];
    const [columns, rows] = [data.dims[across], data.dims[down]];
    const at = voxelOf(data, state.at, through) * strides[through];
    const scale = 255 / (state.high - state.low);
    [scratch.width, scratch.height] = [columns, rows];
    const context = scratch.getContext("2d");
    const image = context.createImageData(columns, rows);
    for (let row = 0, n = 0; row < rows; row += 1) {
      for (let column = 0; column < columns; column += 1, n += 4) {
        // Right is the patient's left (or back), down is back (or feet): both run against RAS.
        const place = at + (rows - 1 - row) * strides[down] + (columns - 1 - column) * strides[across];
        const grey = Math.min(255, Math.max(0, (scan.codes[place] * scan.slope + scan.inter - state.low) * scale));
        const code = isMarked ? stored.change.codes[place] : 0;
        const [colour, strength] = code ? mark(code) : [[0, 0, 0], 0];
        const share = strength * state.opacity;
        for (let channel = 0; channel < 3; channel += 1) {
          image.data[n + channel] = grey * (1 - share) + colour[channel] * share;
        }
        image.data[n + 3] = 255;
      }
    }
    context.putImageData(image, 0, 0);
    return scratch;
  }

  function paint(panel, size, tiles, state) {
    [sheet.width, sheet.height] = [size.width, size.height];
    const context = sheet.getContext("2d");
    context.imageSmoothingQuality = "high";
    const scan = panel === "prior" ? stored.prior : stored.current;
    for (const tile of tiles) {
      const drawn = slice(scan, tile.plane, state, panel === "change" && state.opacity > 0);
      context.drawImage(drawn, tile.x, tile.y, tile.width, tile.height);
    }
    return sheet;
  }

  return { name: "canvas", paint };
}
