# ruff: noqa: E501  a table, one fault a line
"""What the tests notice: small faults are put into the code, one at a time, and the tests of that
file run, then all. Prints the faults that no test notices, and their share.

    python benchmarks/mutate.py            all of them: some hours
    python benchmarks/mutate.py --only 15  so many of them, spread evenly
    python benchmarks/mutate.py train.py   those in this file
    python benchmarks/mutate.py --check    only whether each place is there, once
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EVALUATE, METRICS = "tests/evaluation/test_evaluate.py", "tests/evaluation/test_metrics.py"
TRAIN, STEP = "tests/training/test_train.py", "tests/training/test_step.py"

# (file, tests that look at it): (old text, new text), ...
MUTATIONS = {
    ("train.py", TRAIN): [
        ("decay = min(args.ema, (1 + iteration) / (10 + iteration))", "decay = 0.0"),
        ("decay = min(args.ema, (1 + iteration) / (10 + iteration))", "decay = args.ema"),
        ('"model": state.average.state_dict(), "metrics"', '"model": state.network.state_dict(), "metrics"'),
        ("is_chief() and psnr > state.best", "is_chief() and psnr != state.best"),
        ("rate = learning_rate(iteration, total, args.lr, args.schedule)", "rate = args.lr"),
        ("sr = networks[scale](lr, scale, description).float().clamp(0, 1)", "sr = networks[scale](lr, scale, description).float()"),
        ("if changed:", "if False:"),
        ("parser.error(f\"--run {args.run}: is a file", "print(f\"--run {args.run}: is a file"),
        ("if not unlisted:  # else", "if True:  # else"),
        ("return 128 + stopping", "return 0"),
        ("args.epochs * len(parts[\"train\"]) / args.batch_size", "args.epochs * len(parts[\"train\"])"),
        ("if k != \"error_head\"}", "}"),
    ],
    ("training/run_folder.py", TRAIN): [
        ('state.iteration, state.best = saved["iteration"], saved["best"]', 'state.iteration = saved["iteration"]'),
        ('if saved.get("fingerprint") != config["fingerprint"]:', "if False:"),
        ("optimiser.load_state_dict(values)", "pass"),
        ("if int(row[\"iteration\"]) <= state.iteration]", "]"),
        ("if total < state.iteration:", "if False:"),
        ("left.unlink()", "pass"),
        ("if used and not may_go_on:", "if False:"),
    ],
    ("training/step.py", STEP): [
        ("if self.clip:", "if False:"),
        ("torch._foreach_mul_(changes, 1 - self.keep)", "torch._foreach_mul_(changes, self.keep)"),
        ("self.state.network.zero_grad()", "pass"),
        ("value.zero_()", "pass"),
    ],
    ("training/optimiser.py", STEP): [
        ("if iteration < warm:", "if False:"),
        ("return peak * 0.5 * (1 + math.cos", "return peak * (0 + 0 * math.cos"),
        ("for head in heads for tail in head.tails.values()}", "for head in [] for tail in head.tails.values()}"),
        ('outer.add(id(getattr(network, "head", None)))', "pass"),
        ("step = kernel.grad.lerp(mean, momentum).flatten(1)", "step = mean.flatten(1)"),
        ("for _ in range(5):", "for _ in range(2):"),
    ],
    ("training/loss.py", "tests/training/test_loss.py"): [
        ("(share - 0.8).clamp(min=0)", "(share - 0.9).clamp(min=0)"),
        ("errors / (bicubic_errors + 1e-4)", "errors / (bicubic_errors + 1e-5)"),
        ("ESTIMATE_WEIGHT = 6.0", "ESTIMATE_WEIGHT = 5.0"),
        ("batch.truth[:, :-1])", "batch.truth[:, :-1] * 0)"),
        ("torch.where(batch.told[:, None], truth, found)", "truth"),
    ],
    ("training/error_head.py", "tests/training/test_error_head.py"): [
        ("error = (sr.detach().clamp(0, 1) - batch.hr).abs()", "error = (sr.detach() - batch.hr).abs()"),
        ("error = (sr.clamp(0, 1) - part.hr).abs()", "error = (sr - part.hr).abs()"),
        ("(error / expected + expected.log())", "(error / expected)"),
        ("WANTED * (1 + 1 / len(of_bin))", "0.5 * WANTED"),
    ],
    ("training/batches.py", "tests/training/test_batches.py"): [
        ("for _ in range(looks.thick - 1):", "for _ in range(looks.thick):"),
        ("upside_down, mirrored, turned = luck.T", "upside_down, mirrored, turned = luck.T * [[1], [0], [1]] > 0"),
        ("seen = seen * (inside & there[..., None, None])", "seen = seen * inside"),
        ("there = (place + steps >= 0) &", "there = (place + steps >= -1) &"),
        ("step = thick if rng.random() < 0.7", "step = 1 if rng.random() < 0.7"),
        ("present[luck < SHARE_ALONE + 0.1, :2] = False", "pass"),
        ("noise=d.noise * gain", "noise=d.noise"),
        ("hr = cut(hr, corner * scale, patch * scale, patch * scale)", "hr = cut(hr, corner * scale + 1, patch * scale, patch * scale)"),
        ("ways, noise = ways[mine], noise[:, mine]", "ways = ways[mine]; noise = noise[:, : len(ways)]"),
        ("upper &= clinical", "upper &= False"),
        ("np.where(rng.random((count, 1)) < 0.35, random_contrasts(rng, count), curves)", "curves"),
        ("turn, place = numbers // 4, numbers % 4", "turn, place = numbers // 4, numbers % 3"),
        ("[options.seed, 2, iteration]", "[options.seed, 2]"),
    ],
    ("evaluate.py", EVALUATE): [
        ("                upscaler.degradation = name if args.told else None\n            rows", "                pass\n            rows"),
        ("                upscaler.degradation = name if args.told else None\n            scores", "                pass\n            scores"),
        ("upscalers, slices, name, args.scale, consistent", 'upscalers, slices, "bicubic", args.scale, consistent'),
        ("upscalers, hr, sizes, name, args.scale[0], i)", 'upscalers, hr, sizes, "box", args.scale[0], i)'),
        ("if sizes[2] > 1.6 * min(sizes):", "if False:"),
        ("moved = args.data is not None", "moved = False"),
        ("if unlisted or people is None:", "if False:"),
        ('places = {"worst": order[0]}', 'places = {"worst": order[-1]}'),
    ],
    ("evaluation/scoring.py", EVALUATE): [
        ("middle = middle_slices(len(part.lr))", "middle = [0]"),
        ("{} if alone else lr", "lr"),
        ("sr = sr.clamp(0, 1)\n", "sr = sr + 0\n"),
        ("float(((again - lr) ** 2).mean() ** 0.5)", "0.0"),
        ("at = part.numbers.index(i)", "at = 0"),
    ],
    ("evaluation/metrics.py", METRICS): [
        ("(gains < -0.001)", "(gains < -0.1)"),
        ("error[hr > 0.05]", "error[hr > -1]"),
        (".double().clamp(0, 1) for x", ".double() for x"),
        ("np.std(means, ddof=1)", "np.std(means)"),
        ("abs(np.fft.fftfreq(n)) < 0.5 / m", "abs(np.fft.fftfreq(n)) < 0.6 / m"),
        (".sum() - abs(x[0, 0]) ** 2)", ".sum())"),
        ("use_sample_covariance=False", "use_sample_covariance=True"),
    ],
    ("evaluation/volume_scores.py", EVALUATE): [
        ("interpolate(thick, factor, 3)", "interpolate(thick, factor, 1)"),
        ("np.clip(sr, 0, 1) - hr", "sr - hr"),
        ("error[hr > 0.05]", "error[hr > -1]"),
        ("grid_mode=True", "grid_mode=False"),
    ],
    ("evaluation/pairs.py", EVALUATE): [
        ("antialias=False", "antialias=True"),
        ("in np.flatnonzero(covered)", "in range(len(covered))"),
        ("values * unit", "values"),
        ("begin = offset.round().astype(int)", "begin = 0 * offset.astype(int)"),
    ],
    ("evaluation/figures.py", "tests/evaluation/test_figures.py"): [
        ('"coronal": "LRSI"', '"coronal": "RLSI"'),
        ("np.clip((depth - 0.15) / 0.35, 1e-6, 1)", "1"),
        ('return f"{image.shape[1]} x {image.shape[0]}"', 'return f"{image.shape[0]} x {image.shape[1]}"'),
    ],
    ("modules.py", "tests/test_modules.py tests/test_descriptions.py " + EVALUATE): [
        ("torch.where(said, known, 0)", "known"),
        ("tail.weight.zero_()", "pass"),
        ("features = replicate(features, 1, 1, 1, 1)", "features = F.pad(features, (1, 1, 1, 1))"),
        ("missing = (mine", "missing = 0 * (mine"),
        ("near = torch.exp(", "near = 0 * torch.exp("),
        ("kernel = middle_of(kernel)", "kernel = kernel[:, :1]"),
        ("torch.tanh(self.condition(description) + self.of_scale[name])", "torch.tanh(self.condition(description))"),
        ("grad = torch.ops.aten.leaky_relu_backward(grad, result, 0.1, True)", "grad = torch.ops.aten.leaky_relu_backward(grad, result, 0.2, True)"),
        ("torch.lerp(self.safest.expand_as(found), found, sure)", "found"),
        ("features.reshape(n, rows, columns, h, w).permute(0, 3, 1, 4, 2)", "features.reshape(n, columns, rows, h, w).permute(0, 3, 2, 4, 1)"),
    ],
    ("degradation.py", "tests/test_degradation.py tests/test_descriptions.py"): [
        ("(distance / (factor * width)) ** 2).exp()", "(distance / width) ** 2).exp()"),
        ("torch.where(x.abs() < 3, x.sinc()", "torch.where(x.abs() < 2, x.sinc()"),
        ("kept = max(1, round(size // factor / width))", "kept = max(1, round(size // factor))"),
        ("lr = lr.clamp(0, 1).mul_(255).round_().div_(255)", "lr = lr.clamp(0, 1)"),
        (".median(-1).values", ".mean(-1)"),
        ("/ strength**2).exp()", "/ strength).exp()"),
        ("(detail.abs() > threshold)", "1"),
        ("torch.where(quality < 50, 5000 / quality.clamp(min=1), 200 - 2 * quality)", "(200 - 2 * quality)"),
        ("with_noise = slices + real", "with_noise = slices + 2 * real"),
        ("noise=noise, rician=bool(rng.random() < 0.6))\n    if through", "noise=noise)\n    if through"),
    ],
    ("dataset.py", "tests/test_dataset.py"): [
        ("find_copies(*(thumbnails[chosen] for chosen in sides))", "[]"),
        ("return stack if plane else stack[..., ::-1]", "return stack"),
        ("slice(max(0, a - 8), min(n, b + 9))", "slice(max(0, a - 8), min(n, b + 8))"),
        ("thick = z > 1.5 or z > 1.6 * min(x, y)", "thick = z > 1.5"),
        ("return apart / (pixel * scale[1]) if pixel else 0.0", "return apart / pixel if pixel else 0.0"),
    ],
    ("scans/formats.py", "tests/inference/test_finished.py"): [
        ('path.with_name("log.csv").exists()', "False"),
    ],
    ("scans/volumes.py", "tests/scans/test_odd_volumes.py"): [
        ("if longest > 100 * second and not force:", "if False:"),
        ("if has_no_size(path, image):", "if False:"),
        ("if not part.exists():", "if False:"),
    ],
    ("training/join_weights.py", "tests/training/test_join_weights.py"): [
        ("i = max(range(len(parts)), key=", "i = min(range(len(parts)), key="),
    ],
    ("predict.py", "tests/inference/test_labels.py tests/inference/test_scans.py tests/inference/test_upscaler.py"): [
        ('.strip("_") or "labels"', '.strip("_")'),
        ("left.setdefault(str(job.output), []).append(str(result))", "pass"),
        ("with closing(enlarge_all(jobs, upscaler, args, figure)) as found:", "for found in [enlarge_all(jobs, upscaler, args, figure)]:"),
    ],
    ("scans/splits.py", "tests/scans/test_splits.py"): [
        ("split[gone], split[new] = split[new], name", "pass"),
        ("if both:", "if False:"),
        ("sorted(s, key=natural)", "list(s)"),
    ],
    ("scans/cache.py", "tests/test_dataset.py"): [
        ("total > CACHE_LIMIT and now - used > 7 * DAY", "total > CACHE_LIMIT"),
        ('pixels_file.stat().st_size == index["bytes"]', "True"),
    ],
    ("inference/tiling.py", "tests/inference/test_tiling.py"): [
        ("margin += margin % 2\n    rows", "margin = 1\n    rows"),
        ("x.repeat_interleave(columns, -1)", "x.repeat_interleave(columns, -1).roll(1, -1)"),
        ("blocks.clamp_(least, most)", "blocks"),
    ],
    ("inference/error_map.py", "tests/training/test_error_head.py"): [
        ("factors + noise_share(description) * (noisy - factors)", "noisy"),
        ("np.interp(grid, edges, factors)", "np.full(STEPS, factors[0])"),
        ("(description[:, NOISE] != description[0, NOISE]).any()", "False"),
    ],
    ("inference/upscaler.py", "tests/inference " + EVALUATE): [
        ("sample = slices[middle_slices(len(slices)), y, x]", "sample = slices[:1, y, x]"),
        ("values = values + interpolated(beyond, scale)\n            values = values[:", "values = values[:"),
        ("& (abs(steps) <= n)", ""),
        ("errors.stored += resample(before, new.stored.shape[:3]).stored", "pass"),
        ("if apart > 0.25 else", "if False else"),
        ("alone = np.nonzero(far & (ordinary.sum((3, 4)) > 4))", "return inside, beyond"),
    ],
    ("inference/plan.py", "tests/inference"): [
        ("if pixel / s >= FINE and", "if"),
        ("1.25 * sorted(sizes)[1]", "9 * sorted(sizes)[1]"),
        ("if (abs(made - size) > 0.001 * size).any():", "if False:"),
        ("n <= THICK * distance / fine", "n <= 9 * distance / fine"),
    ],
    ("inference/through_plane.py", "tests/inference " + EVALUATE): [
        ("for k, view in enumerate(views):", "for k, view in enumerate(views[:1] * 2):"),
        ("values.clip(low, high)", "values"),
        ("thick < b)", "thick > b)"),
    ],
    ("inference/checkpoints.py", "tests/inference/test_checkpoints.py"): [
        ("weights_only=True", "weights_only=False"),
        ('if checkpoint["version"] != CHECKPOINT_VERSION:', "if False:"),
        ('checkpoint.pop("people", None)', "pass"),
    ],
    ("inference/inputs.py", "tests/inference"): [
        ("found == found | made", "True"),
        ("if there and not found and not overwrite:", "if False:"),
        ("if not Path(os.path.realpath(self.folder)).is_relative_to(os.path.realpath(self.output)):", "if False:"),
        ('used.add(str(place / name).casefold())', "pass"),
    ],
    ("inference/sidecar.py", "tests/inference"): [
        ("empty > 0.5 and litres < 2", "False"),
        ('if e.startswith("label-")]', 'if e.startswith("none-")]'),
    ],
    ("scans/intensity.py", "tests/scans tests/test_dataset.py"): [
        ("np.percentile(bright, 99.8)", "bright.max()"),
        ("sample = without_padding(whole)", "sample = whole"),
        ("float(floor) if floor < 0 or raised else 0.0", "0.0"),
    ],
    ("scans/scan.py", "tests/scans tests/inference"): [
        ("[(1 / f - 1) / 2 for f in factors]", "[0 for f in factors]"),
        ("np.rint(values, out=values)", "pass"),
        ("np.clip(values, limits.min, most, out=values)", "values"),
        (".swapaxes(1, 2)[:, ::-1]", ".swapaxes(1, 2)"),
        ("return self.sizes[rows] / self.sizes[columns]", "return self.sizes[columns] / self.sizes[rows]"),
        ('header["pixdim"][1:4] /= np.array(factors, float)', "pass"),
    ],
    ("scans/pictures.py", "tests/scans"): [
        ("if orientation in (5, 6, 7, 8):", "if False:"),
        ("if spread.mean() > COLOURED and not force:", "if False:"),
        ("raw[:-1] + \"L\"", "raw"),
        ("values.view(np.int8) if signed else values", "values"),
    ],
    ("scans/copies.py", "tests/scans/test_copies.py tests/test_dataset.py"): [
        ("for down in (1, -1) for across in (1, -1)]", "for down in (1,) for across in (1,)]"),
        ("small -= BLUR @ small @ BLUR.T", "pass"),
    ],
    ("scans/subjects.py", "tests/scans/test_subjects.py"): [
        ("len(set(pictures)) > 0.8 * len(pictures)", "False"),
        ('return "the names may say the class"', 'return ""'),
        ("setdefault(plain_id(given), subject) != subject:", "setdefault(plain_id(given), subject) is None:"),
        ("if missing:", "if False:"),
    ],
    ("scans/anatomy.py", "tests/scans/test_anatomy.py"): [
        ("same > 0.8 or values.size <= 6", "same > 0.99"),
        ("if code in (1002, 1003):", "if False:"),
        ('"ArterialSpinLabelingType" in tags', "False"),
        ("if any(map(WORDS[BOLD].search, sequence)):", "if False:"),
        ("if words or 2 <= code", "if 2 <= code"),
        ("STATISTIC_NAMES.fullmatch(stem(path))", "STATISTIC_NAMES.search(stem(path))"),
    ],
    ("utils.py", "tests/test_utils.py"): [
        ("os.replace(part, path)", "pass"),
        ('if " avx512_bf16" not in flags or not', "if not"),
        ("near[:1] if match)", "near[:0] if match)"),
        ("if least <= int(text) <= most:", "if least <= int(text):"),
    ],
    ("data/prepare.py", "tests/test_prepare.py"): [
        ("if first != group:", "if False:"),
        ("validate=0, test=args.test", "validate=0.1, test=args.test"),
        ("int(a + b) // 2 - want // 2", "0"),
        ("if out.exists() and (not", "if out.exists() and False and (not"),
    ],
}  # fmt: skip


def copy_of_clone(target: Path) -> None:
    """The files that git knows, as they are now, and the weights."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    names = [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    names += [p.relative_to(ROOT).as_posix() for p in (ROOT / "weights").glob("*.pt")]
    for name in dict.fromkeys(names):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target / name)


def tests_pass(clone: Path, tests: str) -> bool:
    """Whether these tests pass; a fault that makes them endless is noticed too."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:xdist", *tests.split()]
    try:
        done = subprocess.run(command, cwd=clone, capture_output=True, timeout=1800)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("files", nargs="*", help="only the faults in these  (default: all)")
    parser.add_argument("--only", type=int, help="so many of them, spread evenly")
    parser.add_argument("--check", action="store_true", help="only whether each place is there")
    args = parser.parse_args()
    faults = [(*key, *pair) for key, pairs in MUTATIONS.items() for pair in pairs]
    wrong = []
    for file, _, old, new in faults:
        text = (ROOT / file).read_text(encoding="utf-8")
        wrong += [f"{file}: {text.count(old)} times: {old}"] * (text.count(old) != 1)
        compile(text.replace(old, new), f"{file}: {new}", "exec")  # else each test would fail
    faults = [fault for fault in faults if not args.files or fault[0] in args.files]
    print(f"{len(faults)} faults", *wrong, sep="\n")
    if wrong or args.check:
        return len(wrong)
    if args.only:
        faults = [faults[i * len(faults) // args.only] for i in range(args.only)]
    with tempfile.TemporaryDirectory() as folder:
        clone, alive = Path(folder), []
        copy_of_clone(clone)
        for tests in dict.fromkeys(tests for _, tests, *_ in faults):
            if not tests_pass(clone, tests):
                print(f"left out, as they fail without any fault: {tests}", flush=True)
                faults = [fault for fault in faults if fault[1] != tests]
        whole = tests_pass(clone, "tests")
        if not whole:
            print(
                "all tests together fail without any fault: only those of a file count", flush=True
            )
        for number, (file, tests, old, new) in enumerate(faults, 1):
            place, text = clone / file, (clone / file).read_text(encoding="utf-8")
            place.write_text(text.replace(old, new), encoding="utf-8")
            survived = tests_pass(clone, tests) and (not whole or tests_pass(clone, "tests"))
            place.write_text(text, encoding="utf-8")
            alive += [f"{file}: {old!r} -> {new!r}"] * survived
            words = "SURVIVED" if survived else "noticed"
            print(f"{number}/{len(faults)} {words}: {file}: {new!r} for {old!r}", flush=True)
    print(
        f"{len(alive)} of {len(faults)} ({len(alive) / max(1, len(faults)):.0%}) survived",
        *alive,
        sep="\n",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
