"""Which way to run the shipped encoder on a CPU is the fastest, and how near is it to the machine's peak?

    python bench/encoder_speed.py [--size 72] [--rivals PYTHON]

`mr-ct-3d` on one input of its own size, one thread, processor seconds: eager,
channels-last, bfloat16, traced and frozen, torch.compile, ONNX Runtime, OpenVINO. Every way takes its
turn in each of ROUNDS rounds, so a busy machine slows all of them; ratios are within a round. The peak
is that of a product of two float32 matrices, by torch or by numpy, in the same rounds. The last two
run in another environment, whose interpreter is given by --rivals or MEDSIAM_RIVALS; the export needs
onnx and onnxscript beside torch, from a folder given by --export or MEDSIAM_EXPORT:

    python3 -m venv rivals && rivals/bin/pip install numpy onnxruntime openvino
    pip install --no-deps --target export onnx onnxscript onnx_ir ml_dtypes protobuf typing_extensions

A way that cannot run here is left out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from medsiam.bench.scores import Score, Scores
from medsiam.encoding.weights import load_encoder

ROUNDS = 15
MATRIX = 2048

Way = Callable[[], np.ndarray]

# Of a runtime in another environment: loads the model, then a line in, seconds and the embedding out.
_RIVAL = """
import sys, time
import numpy as np
kind, model, image = sys.argv[1:]
image = np.load(image)
if kind == "onnxruntime":
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    run = lambda: session.run(None, {name: image})[0]
else:
    import openvino
    compiled = openvino.Core().compile_model(
        model, "CPU", {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"})
    run = lambda: compiled([image])[0]
for _ in sys.stdin:
    began = time.process_time()
    found = run()
    np.save(image_out := sys.argv[3] + "." + kind + ".npy", found)
    print(time.process_time() - began, flush=True)
"""


class Embedding(nn.Module):
    """The network without its pyramid, which an exchange format need not carry."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, D)."""
        embedding: torch.Tensor = self.network(images).embedding
        return embedding


def picture(count: int, size: int) -> torch.Tensor:
    """Made-up heads (count, 1, size, size, size), 0..1: a smooth body in air, with noise."""
    random = torch.Generator().manual_seed(0)
    line = torch.linspace(-1, 1, size)
    radius = (line[:, None, None] ** 2 + line[None, :, None] ** 2 + line[None, None] ** 2).sqrt()
    body = torch.where(radius < 0.8, 0.6 + 0.2 * torch.sin(9 * radius), torch.zeros(()))
    noise = torch.rand((count, size, size, size), generator=random)
    return (body + 0.1 * noise).clamp(0, 1)[:, None]


def torch_ways(network: nn.Module, image: torch.Tensor) -> Iterator[tuple[str, Callable[[], torch.Tensor]]]:
    """Name and call of each way that torch has by itself."""
    model = Embedding(network).eval()
    last = Embedding(load_encoder("mr-ct-3d").network).eval().to(memory_format=torch.channels_last_3d)
    swapped = image.to(memory_format=torch.channels_last_3d)
    yield "eager", lambda: model(image)
    yield "channels-last", lambda: last(swapped)

    def half() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(image)

    def half_last() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return last(swapped)

    yield "bfloat16", half
    yield "bfloat16, channels-last", half_last
    frozen = torch.jit.freeze(torch.jit.trace(model, image))
    yield "traced and frozen", lambda: frozen(image)
    compiled = torch.compile(model)
    yield "torch.compile", lambda: compiled(image)


@contextmanager
def rival(kind: str, interpreter: str, model: Path, image: Path) -> Iterator[Callable[[], float]]:
    """Processor seconds of one run, as often as it is asked."""
    command = [interpreter, "-c", _RIVAL, kind, str(model), str(image)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None and child.stdout is not None

        def run() -> float:
            child.stdin.write("\n")
            child.stdin.flush()
            return float(child.stdout.readline())

        yield run
        child.stdin.close()


def timed(call: Callable[[], torch.Tensor]) -> float:
    """Processor seconds of one call of this process."""
    began = time.process_time()
    call()
    return time.process_time() - began


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    """Of two embeddings."""
    one, other = first.ravel().astype(np.float64), second.ravel().astype(np.float64)
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def exported(model: nn.Module, image: torch.Tensor, place: Path) -> Path | None:
    """The network as ONNX, None where that cannot be made here."""
    path = place / "encoder.onnx"
    # The exporter does not know the adaptive kind; over two cells they are one.
    adaptive = functional.adaptive_avg_pool3d

    def pooled(values: torch.Tensor, cells: int) -> torch.Tensor:
        size, stride = values.shape[-1], values.shape[-1] // cells
        return functional.avg_pool3d(values, size - (cells - 1) * stride, stride)

    functional.adaptive_avg_pool3d = pooled
    try:
        torch.onnx.export(model, (image,), str(path), dynamo=True, verbose=False)
    except Exception as error:
        print(f"no ONNX: {type(error).__name__}: {error}", file=sys.stderr)
        return None
    finally:
        functional.adaptive_avg_pool3d = adaptive
    return path


def measure(rivals: str | None, size: int) -> Scores:
    """Every way that runs here."""
    torch.set_num_threads(1)
    encoder = load_encoder("mr-ct-3d")
    image = picture(1, size)
    with torch.no_grad(), tempfile.TemporaryDirectory() as place:
        runs, found = _warm(encoder.network, image)
        path = exported(Embedding(encoder.network).eval(), image, Path(place)) if rivals else None
        np.save(Path(place, "image.npy"), image.numpy())
        children = []
        for kind in ("onnxruntime", "openvino") if rivals and path else ():
            child = rival(kind, rivals, path, Path(place, "image.npy"))
            children.append(child)
            runs[kind] = child.__enter__()
            runs[kind]()
            found[kind] = np.load(Path(place, f"image.npy.{kind}.npy"))
        square = torch.rand(MATRIX, MATRIX)
        # Two libraries: on some processors one of them leaves half of the peak.
        runs["matrix product, torch"] = lambda: timed(lambda: square @ square)
        runs["matrix product, numpy"] = lambda: timed(lambda: square.numpy() @ square.numpy())
        runs["twins in one batch"], runs["twins in turns"] = _twins(encoder.network, size)
        seconds = {name: [] for name in runs}
        for _ in range(ROUNDS):
            for name, run in runs.items():
                seconds[name].append(run())
        for child in children:
            child.__exit__(None, None, None)
    return Scores("encoder", f"mr-ct-3d, {size}^3, one thread", 0, tuple(_rows(seconds, found, image)))


def _warm(
    network: nn.Module, image: torch.Tensor
) -> tuple[dict[str, Callable[[], float]], dict[str, np.ndarray]]:
    runs: dict[str, Callable[[], float]] = {}
    found: dict[str, np.ndarray] = {}
    for name, call in torch_ways(network, image):
        began = time.process_time()
        try:
            found[name] = call().float().numpy()
        except Exception as error:
            print(f"no {name}: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        print(f"{name}: {time.process_time() - began:.1f} s the first time", file=sys.stderr)
        call()
        runs[name] = lambda call=call: timed(call)
    return runs, found


def _twins(network: nn.Module, size: int) -> tuple[Callable[[], float], Callable[[], float]]:
    twins = picture(2, size)
    return (
        lambda: timed(lambda: network(twins).embedding),
        lambda: timed(lambda: [network(twin[None]).embedding for twin in twins]),
    )


def _rows(
    seconds: dict[str, list[float]], found: dict[str, np.ndarray], image: torch.Tensor
) -> Iterator[Score]:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        load_encoder("mr-ct-3d").network(image)
    work = counter.get_total_flops()
    # A share of the peak is told of the best runs: others were disturbed, and the peak is what it is.
    products = [2 * MATRIX**3 / min(seconds[f"matrix product, {name}"]) for name in ("torch", "numpy")]
    peak = max(products)
    yield Score("matrix product by torch, by numpy: the better (GFLOP/s)", peak / 1e9)
    yield Score("one input (GFLOP)", work / 1e9)
    for name, values in seconds.items():
        if name in found:
            ratios = [a / b for a, b in zip(seconds["eager"], values, strict=True)]
            yield Score(f"{name}: processor (s)", statistics.median(values))
            yield Score(f"{name}: times as fast as eager", statistics.median(ratios))
            yield Score(f"{name}: share of the peak", work / min(values) / peak)
            yield Score(
                f"{name}: 1 - cosine to eager", 1.0 - cosine(found[name], found["eager"]), "", "< 1e-4"
            )
    pairs = zip(seconds["twins in turns"], seconds["twins in one batch"], strict=True)
    yield Score("twins in one batch: times as fast as in turns", statistics.median(a / b for a, b in pairs))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rivals", default=os.environ.get("MEDSIAM_RIVALS"))
    parser.add_argument("--export", default=os.environ.get("MEDSIAM_EXPORT"))
    parser.add_argument("--size", type=int, default=72)
    given = parser.parse_args()
    if given.export:
        sys.path.append(given.export)
    print(measure(given.rivals, given.size).table())
