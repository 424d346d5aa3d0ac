"""On CUDA: the same results as on the CPU. Where there is a GPU: `python -m pytest -m cuda`."""

import numpy as np
import pytest
import torch

import modules
from degradation import CELLS, PROCESSED, degrade
from inference import Upscaler
from inference.checkpoints import save_checkpoint
from training import run_folder
from training.batches import Batch
from training.optimiser import optimisers_of
from training.step import Step

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
DEVICE = "cuda"
SCALES = ((4, 4), (2, 1))
ARCH = {"name": "deep", "channels": 16, "blocks": 4, "neighbours": 2, "estimator": True}


def network(arch=ARCH):
    torch.manual_seed(0)
    found = modules.build(arch, SCALES)
    for tail in found.tails.values():
        torch.nn.init.normal_(tail.weight, std=0.02)
    return found


@pytest.mark.parametrize("scale", [(4, 4), (4, 1)], ids=str)
@pytest.mark.parametrize("name", [*CELLS, *PROCESSED])
def test_degradations_are_those_of_the_cpu(name, scale, real_slices):
    hr = real_slices[:, :, :160]
    draws = torch.randn(2, 3, 1, 40, 160 // scale[1], generator=torch.Generator().manual_seed(0))
    here = degrade(hr, name, scale, seed=draws)
    there = degrade(hr.to(DEVICE), name, scale, seed=draws.to(DEVICE)).cpu()
    off = (255 * (here - there)).abs()
    # A pixel that lies between two grey levels can end as another block of a JPEG.
    assert (off > 0.5).float().mean() < (0.05 if "jpeg" in name else 0.002)


def batches(count: int, scale, device):
    """Batches of noise that is the same on every device."""
    dice = torch.Generator().manual_seed(scale[1])
    for _ in range(count):
        lr = torch.rand(4, 5, 16, 16, generator=dice)
        hr = torch.nn.functional.interpolate(lr[:, 2:3], scale_factor=scale, mode="bicubic")
        found = torch.rand(4, 21, generator=dice)
        told, present = torch.tensor([True, False] * 2), torch.ones(4, 4)
        parts = lr, hr.clamp(0, 1), lr[:, 2:3], found, told, present, torch.ones(4, 1)
        yield Batch(*(part.to(device) for part in parts), scale)


def losses(device, graphs: bool, amp: bool, steps: int = 8) -> np.ndarray:
    """The losses of some steps of training, scales in turns."""
    model = network().to(device)
    average = network().to(device)
    state = run_folder.State(model, average, optimisers_of(model, "muon", 1e-3))
    step = Step(state, model, SCALES, torch.device(device), amp=amp, clip=0.01, graphs=graphs)
    every = [list(batches(steps, scale, device)) for scale in SCALES]
    found = [step(batch, 1e-3, 0.9) for pair in zip(*every) for batch in pair]
    assert graphs is False or step.graphs, "no step was recorded"
    assert not torch.equal(next(average.parameters()), next(network().to(device).parameters()))
    return torch.stack(found).cpu().numpy()


def test_a_recorded_step_is_that_of_the_cpu():
    wanted = losses("cpu", graphs=False, amp=False)
    assert losses(DEVICE, graphs=False, amp=False) == pytest.approx(wanted, rel=0.01)
    assert losses(DEVICE, graphs=DEVICE == "cuda", amp=False) == pytest.approx(wanted, rel=0.01)


def test_bf16_is_near():
    wanted = losses("cpu", graphs=False, amp=False)
    assert losses(DEVICE, graphs=DEVICE == "cuda", amp=True) == pytest.approx(wanted, rel=0.1)


def test_training_is_recorded_stopped_and_resumed(tmp_path, no_figures):
    import train

    command = ["--device", DEVICE, "--batch-size", "4", "--patch-size", "8", "--channels", "8"]
    command += ["--blocks", "2", "--run", str(tmp_path / "run"), "--cache", str(tmp_path / "cache")]
    assert train.main([*command, "--iterations", "6"]) == 0
    assert train.main(["--resume", str(tmp_path / "run"), "--iterations", "12"]) == 0
    rows = (tmp_path / "run" / "log.csv").read_text().splitlines()
    assert len(rows) == 13 and float(rows[-1].split(",")[1]) < 0.01


@pytest.mark.parametrize("options", [{}, {"error_map": True}, {"degradation": "kspace"}], ids=str)
def test_results_are_those_of_the_cpu(tmp_path, options, real_slices):
    arch = ARCH | {"error_head": True}
    calibration = {"edges": [-7.0, 0.0], "factors": [1.0, 2.0], "noisy": [1.0, 2.0]}
    about = {"arch": arch, "scales": [list(s) for s in SCALES], "degradation": "wide"}
    about["calibration"] = {"4": calibration, "2x1": calibration}
    save_checkpoint(tmp_path / "w.pt", {**about, "model": network(arch).state_dict()})
    slices = real_slices[:, 0, ::4, ::4].numpy()
    found = []
    for device in ("cpu", DEVICE):
        upscaler = Upscaler(tmp_path / "w.pt", device, bf16=False, **options)
        found.append([upscaler(slices, 4), upscaler(slices, "2x1", distance=1.0)])
    for here, there in zip(*found):
        for one, other in zip(np.atleast_1d(here), np.atleast_1d(there)):
            assert (abs(one - other) > 1 / 255).mean() < 0.005


def test_bf16_changes_hardly_anything(tmp_path, real_slices):
    about = {"arch": ARCH, "scales": [list(s) for s in SCALES], "degradation": "wide"}
    save_checkpoint(tmp_path / "w.pt", {**about, "model": network().state_dict()})
    slices = real_slices[:, 0, ::4, ::4].numpy()
    exact, fast = (Upscaler(tmp_path / "w.pt", DEVICE, bf16=bf16)(slices) for bf16 in (False, True))
    assert (abs(exact - fast) > 2 / 255).mean() < 0.005
