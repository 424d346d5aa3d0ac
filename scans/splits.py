"""Which subject is in which part: train, val or test."""

import os
from collections import defaultdict

import numpy as np

from scans.formats import natural
from scans.listing import ScanFile
from scans.subjects import person_key
from utils import DataError


def split_subjects(
    scans: list[ScanFile], seed: int, validate: float = 0.1, test: float = 0.15, seen=()
) -> dict:
    """Assign every subject to `train`, `val` or `test`: {subject: split}.

    The data set's own `train`, `val` and `test` folders are kept; what is missing is taken out of
    the rest by a seeded shuffle of subjects, the same share of each class, at least one subject.
    seen: people who change places with others of train, as far as there are some of their class.
    Raises DataError if a subject is in two of the folders or there are too few subjects.
    """
    where = os.path.commonpath([scan.path for scan in scans]) or "."
    given, groups = defaultdict(set), defaultdict(dict)
    for scan in scans:
        given[scan.subject].add(scan.split)
        groups[scan.group][scan.subject] = None  # an ordered set: thousands of subjects are quick
    both = sorted((s for s, splits in given.items() if len(splits) > 1), key=natural)
    if both:
        places = [p or "neither" for p in ("train", "val", "test", "") if p in given[both[0]]]
        raise DataError(
            f"{where}: {len(both)} subject(s) are in {' and in '.join(places)} too "
            f"({', '.join(both[:5])}); keep each in one of them"
        )
    split = {s: splits.copy().pop() or "train" for s, splits in given.items()}
    wanted = {"val": validate, "test": test}
    wanted = {k: share for k, share in wanted.items() if share and k not in split.values()}
    if "val" in split.values() and "train" in [scan.split for scan in scans]:
        wanted.pop("test", None)  # a data set with folders of its own for both has no test part
    if set(split.values()) == {"test"}:
        return split  # a data set to evaluate on
    left = list(split.values()).count("train")
    if left <= len(wanted) and (wanted or validate):
        raise DataError(
            f"{where}: {left} subject(s){'' if 'test' in wanted else ' outside test'} are too few "
            f"for {' and '.join(('train', *wanted))}; if there are more, --subjects FILE says who "
            "is who (evaluate.py --split all needs no split)"
        )
    rng = np.random.default_rng(seed)
    order = {g: rng.permutation(sorted(s, key=natural)).tolist() for g, s in sorted(groups.items())}
    for name, share in wanted.items():
        # Deal subjects class by class, so that every class gives its share.
        pools = [[s for s in subjects if split[s] == "train"] for subjects in order.values()]
        take = [round(share * len(pool)) for pool in pools]
        if not any(take):
            take[int(np.argmax([len(pool) for pool in pools]))] = 1
        for pool, n in zip(pools, take):
            split |= dict.fromkeys(pool[:n], name)
    # Who was seen leaves test for train, then val; whoever takes the place was not seen.
    seen = {person_key(person) for person in seen}
    for name in [name for name in ("test", "val") if name in wanted]:
        for subjects in order.values():
            leaving = [s for s in subjects if split[s] == name and person_key(s) in seen]
            free = [s for s in subjects if split[s] in {"train", *wanted} - {"test", name}]
            free = [s for s in free if person_key(s) not in seen]
            for gone, new in zip(leaving, free):
                split[gone], split[new] = split[new], name
    return split
