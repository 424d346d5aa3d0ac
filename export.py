"""Write a network as ONNX, for programs without PyTorch.

python export.py weights/x4.pt x4.onnx

Input `lr`: float32 (slices, 1, height, width) of any size, 0 to 1. Output `sr`, not clamped to
[0, 1].
A network that is told how its input was made estimates it from all slices given together.
Needs the packages onnx and onnxscript.
"""

import io
import logging
import warnings
from contextlib import redirect_stderr, redirect_stdout

import torch

import modules
from degradation import scale_name
from inference import tiling
from inference.checkpoints import load_checkpoint
from utils import DataError, Parser, UsageError, atomic_write, one_line, run_main, version

USE = (
    "Enlarging slices of brain MRI for viewing, teaching and research on super-resolution. Not a "
    "medical device, not for diagnosis: details it adds are guesses."
)

TRIED = "2.14"  # the PyTorch whose exporter is known to leave all sizes free


def arguments(argv=None):
    """The command line."""
    parser = Parser(__doc__.split("\n\n")[0])
    parser.add_argument("checkpoint", metavar="WEIGHTS", help="weights, as weights/x4.pt")
    parser.add_argument("output", metavar="FILE.onnx", help="file to write")
    args = parser.parse_args(argv)
    if not args.output.endswith(".onnx"):
        parser.error(f"{args.output}: name a file that ends in .onnx")
    return args


class Upscaling(torch.nn.Module):
    """What `tiling.upscale` does with slices that need no tiles."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        description = None
        if self.network.told:  # one description for all: they are slices of one scan
            description = self.network.describe(lr).mean(0, keepdim=True)
        return tiling.limited(self.network(lr, description), lr, self.network.scale)


def onnx_bytes(network, about: dict) -> bytes:
    """The network as an ONNX file with free sizes. about: words to keep in it."""
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
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")  # they are about the exporter itself
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            Upscaling(network).eval(), (torch.rand(2, 1, 20, 24),), dynamo=True, opset_version=18,
            input_names=["lr"], output_names=["sr"], dynamic_shapes=(sizes,),
        )  # fmt: skip
    model = program.model_proto
    for part in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output):
        part.ClearField("metadata_props")  # places in PyTorch's source
    model.producer_name, model.doc_string = "", ""
    onnx.helper.set_model_props(model, about)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def main(argv=None):
    args = arguments(argv)
    checkpoint = load_checkpoint(args.checkpoint)
    network = modules.load_network(checkpoint, args.checkpoint)
    about = {
        "scale": scale_name(network.scale),
        "degradation": checkpoint["degradation"],
        "trained_on": checkpoint["trained_on"],
        "licence": "MIT",
        "intended_use": USE,
        "version": version(),
    }
    try:
        packed = onnx_bytes(network, {key: one_line(str(value)) for key, value in about.items()})
    except torch.onnx.errors.OnnxExporterError as error:
        raise DataError(f"{args.checkpoint}: cannot be exported ({error})") from None
    with atomic_write(args.output) as file:
        file.write(packed)
    print(one_line(f"written: {args.output}, {len(packed) / 1e6:.1f} MB"))


if __name__ == "__main__":
    run_main(main)
