"""Write a network as ONNX, for programs without PyTorch.

    python export.py weights/brain.pt web/weights --error-map    for the page, all scales
    python export.py weights/brain.pt . --scale 4                one of them

Leaves NAME-describe.onnx, which finds out how slices were made (of weights that hold several
networks one for each, as NAME-describe-x4.onnx), and NAME-x4.onnx, NAME-through-x4.onnx ..., which
enlarge them; of several scales NAME.weights, too, with what they have in common, to lie beside
them. NAME.json says what else a program must know, as web/ does. Needs onnx and onnxscript.

describe: `lr` (slices, 1, height, width) -> `found` (slices, 21). Of a scan the mean over some
slices of its middle counts.
enlarge: `lr` (slices, 1 + 2 neighbours, height, width), each slice in the middle of its
neighbours, a missing one black, their number in NAME.json; `description` (1, 26): what was found,
then 1 for each of four neighbours that is there, then log2(distance of slices in widths of their
pixels) / 3, or 0 where there are none -> `sr` (slices, 1, rows height, columns width), not
clamped to [0, 1]; with --error-map also `errors`, not calibrated (NAME.json has the calibration).
All float32; values are 0 (black) to 1 (white).
"""

import io
import logging
import warnings
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch

import modules
from degradation import (
    AXIS,
    DENOISED,
    ENTRIES,
    FOUND,
    JPEG,
    NOISE,
    Scale,
    candidates,
    parse_scale,
    scale_name,
)
from inference.checkpoints import load_checkpoint
from inference.error_map import calibration_of
from inference.sidecar import weights_digest
from inference.tiling import clamp_to_neighbourhood
from utils import (
    DataError,
    Parser,
    UsageError,
    atomic_write,
    name_of_program,
    note,
    one_line,
    run_main,
    version,
    write_json,
)

USE = (
    "Enlarging slices of brain MRI for viewing, teaching and research on super-resolution. Not a "
    "medical device, not for diagnosis: details it adds are guesses."
)
SMALL = 256  # bytes: tensors such as sizes stay in an ONNX file, which cannot be checked without
TRIED = "2.14"  # the PyTorch whose exporter is known to leave all sizes free


def arguments(argv=None):
    """The command line."""
    text, examples, rest, *_ = __doc__.split("\n\n")
    parser = Parser(f"{text} {rest}", examples=examples)
    parser.add_argument("weights", metavar="WEIGHTS", help="weights, as weights/brain.pt")
    parser.add_argument("output", metavar="FOLDER", help="folder to write to")
    parser.add_argument("--scale", type=parse_scale, nargs="+", help="scales  (default: all)")
    parser.add_argument("--error-map", action="store_true", help="with the expected errors")
    return parser.parse_args(argv)


class Describe(torch.nn.Module):
    """What `Upscaler.describe_each` does."""

    def __init__(self, network, scale: Scale):
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        return self.network.describe(lr, scale=self.scale)


class Enlarge(torch.nn.Module):
    """What `tiling.upscale` does with slices that need no tiles."""

    def __init__(self, network, scale: Scale, error_map: bool):
        super().__init__()
        self.network, self.scale, self.error_map = network, scale, error_map

    def forward(self, lr: torch.Tensor, description: torch.Tensor):
        found = self.network(lr, self.scale, description, self.error_map)
        if not self.network.conditioned:
            found = found + 0 * description.sum()  # else the file would lack this input
        sr = clamp_to_neighbourhood(found[:, :1], modules.middle_of(lr), self.scale)
        return (sr, found[:, 1:]) if self.error_map else sr


def onnx_bytes(module, inputs: dict, outputs: list[str], about: dict) -> bytes:
    """A module as an ONNX file with free numbers and sizes of slices. inputs: {name: example};
    those of two dimensions keep their sizes. about: words to keep in it."""
    try:
        import onnx
        import onnxscript  # noqa: F401  torch.onnx uses it, and names it only in a long traceback
    except ImportError as error:
        raise UsageError(f"needs the package {error.name}: pip install onnx onnxscript") from None
    if torch.__version__ < TRIED:
        raise UsageError(
            f"needs PyTorch {TRIED} or newer, this is {torch.__version__}; files written by 2.6 "
            "work at one size only, versions between were not tried"
        )
    free = torch.export.Dim
    sizes = {0: free("slices"), 2: free("height"), 3: free("width")}
    shapes = tuple(sizes if x.ndim == 4 else None for x in inputs.values())
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")  # they are about the exporter itself
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module.eval(), tuple(inputs.values()), dynamo=True, opset_version=18,
            input_names=list(inputs), output_names=outputs, dynamic_shapes=shapes,
        )  # fmt: skip
    model = program.model_proto
    for part in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output):
        part.ClearField("metadata_props")  # places in PyTorch's source
    model.producer_name, model.doc_string = "", ""
    onnx.helper.set_model_props(model, {key: one_line(str(value)) for key, value in about.items()})
    onnx.checker.check_model(model)
    return model.SerializeToString()


def exports(network, scales, error_map: bool, about: dict):
    """Yield (end of the name, ONNX file) of each estimator and of each scale."""
    lr = torch.rand(2, 1 + 2 * network.neighbours, 20, 24)
    for name, scale in {end: scale for scale, end in estimators(network, scales).items()}.items():
        yield name, onnx_bytes(Describe(network, scale), {"lr": lr[:, :1]}, ["found"], about)
    description = torch.rand(1, ENTRIES)
    for scale in scales:
        name = end_of_name(scale)
        module = Enlarge(network, scale, error_map)
        outputs = ["sr", "errors"] if error_map else ["sr"]
        inputs = {"lr": lr, "description": description}
        yield name, onnx_bytes(module, inputs, outputs, about | {"scale": scale_name(scale)})


def with_shared_weights(files: dict, name: str) -> dict:
    """ONNX files ({name: bytes}), what several of them hold moved into one more of this name."""
    import onnx
    from onnx.external_data_helper import set_external_data

    models = {file: onnx.load_from_string(packed) for file, packed in files.items()}
    tensors = [tensor for model in models.values() for tensor in model.graph.initializer]
    uses, places, shared = Counter(tensor.raw_data for tensor in tensors), {}, bytearray()
    for tensor in tensors:
        raw = tensor.raw_data
        if len(raw) < SMALL or uses[raw] < 2:
            continue
        if raw not in places:
            places[raw] = len(shared)
            shared += raw
        set_external_data(tensor, name, places[raw], len(raw))
        tensor.ClearField("raw_data")
    files = {file: model.SerializeToString() for file, model in models.items()}
    return files | {name: bytes(shared)}


def estimators(network, scales) -> dict[Scale, str]:
    """{scale: how the name of the file of its estimator ends}, empty without one."""
    if network.estimator is None:
        return {}
    bodies = getattr(network, "body_of", None)
    if bodies is None:
        return dict.fromkeys(scales, "describe")
    return {scale: f"describe-{end_of_name(bodies[scale].scales[0])}" for scale in scales}


def end_of_name(scale: Scale) -> str:
    """How the name of a scale's file ends: x4, or through-x4 of thick slices."""
    return f"through-x{scale[0]}" if scale[1] == 1 else f"x{scale_name(scale)}"


def facts(path: Path, checkpoint: dict, network, scales, error_map: bool) -> dict:
    """What a program must know beside the ONNX files, as plain types for a JSON file.

    receptive_radius: pixels around a pixel that its result depends on. entries: the places of a
    description that words are made of, and its sizes. candidates: words and descriptions of point
    spreads, a line of numbers each, as `degradation.words_of` compares them. calibration: of the
    expected errors.
    """
    spreads = {scale_name(scale): candidates(scale) for scale in scales}
    about = {
        "weights": path.name,
        "sha256": weights_digest(path),
        "trained_on": checkpoint["trained_on"],
        "program": name_of_program(),
        "version": version(),
        "files": {scale_name(scale): f"{path.stem}-{end_of_name(scale)}.onnx" for scale in scales},
        "scales": [list(scale) for scale in scales],
        "neighbours": network.neighbours,
        "receptive_radius": network.receptive_radius,
        "entries": {"axis": AXIS, "noise": NOISE, "jpeg": JPEG, "denoised": DENOISED,
                    "found": FOUND, "all": ENTRIES},
        "candidates": {
            name: {
                "words": words,
                "described": [" ".join(f"{x:.4f}" for x in row) for row in described],
            }
            for name, (words, described) in spreads.items()
        },
    }  # fmt: skip
    if network.estimator is not None:
        found = estimators(network, scales).items()
        about["describe"] = {scale_name(s): f"{path.stem}-{end}.onnx" for s, end in found}
    if len(scales) > 1:
        about["shared"] = f"{path.stem}.weights"
    if error_map:
        found = {scale_name(s): calibration_of(checkpoint, path, s) for s in scales}
        about["calibration"] = found
    return about


def main(argv=None):
    args = arguments(argv)
    checkpoint = load_checkpoint(args.weights)
    network = modules.load_network(checkpoint, args.weights)
    missing = [scale for scale in args.scale or () if scale not in network.scales]
    if missing:
        raise UsageError(f"{args.weights}: was not made for --scale {scale_name(missing[0])}")
    about = {
        "degradation": checkpoint["degradation"],
        "trained_on": checkpoint["trained_on"],
        "licence": "MIT",
        "intended_use": USE,
        "version": version(),
    }
    folder, stem, scales = Path(args.output), Path(args.weights).stem, args.scale or network.scales
    known = facts(Path(args.weights), checkpoint, network, scales, args.error_map)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        made = dict(exports(network, scales, args.error_map, about))
    except torch.onnx.errors.OnnxExporterError as error:
        raise DataError(f"{args.weights}: cannot be exported ({error})") from None
    made = {f"{stem}-{end}.onnx": packed for end, packed in made.items()}
    if "shared" in known:
        made = with_shared_weights(made, known["shared"])
    for name, packed in made.items():
        with atomic_write(folder / name) as file:
            file.write(packed)
        note(f"written: {folder / name}, {len(packed) / 1e6:.2f} MB")
    note(f"written: {write_json(folder / f'{stem}.json', known)}")


if __name__ == "__main__":
    run_main(main)
