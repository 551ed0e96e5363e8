"""Variational autoencoders with categorical latents on digits: one training for each gradient estimator.

The experiment of Liu et al. (arXiv 2304.08612, section 6.2), through examples/categorical_vae.py: the networks of all
seeds of an estimator are trained at once. Temperatures are those that the authors of ReinMax and of arXiv 2603.08257
tuned for 8 x 4 latents; the learning rate of each estimator is the one with the lower -ELBO on the validation images
after a quarter of the epochs, with other initial weights.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence

from base import Claim, Row, Store, load, main, markdown, pairs, parse, parser, shown, values, verdict
from categorical_vae import ESTIMATORS, Result, train
from digit_images import load_digits, split
from tqdm import tqdm

EXPERIMENT = "reinmax_autoencoders"
RATES = (1e-3, 3e-3)
NAMES = ("ReinMax", "ReinMax 1.3", "Gumbel-Softmax 0.5", "Gapped straight-through", "Straight-through 1.3",
         "Gumbel-Rao 0.5", "RLOO, 2 samples")  # fmt: skip


def table(content: Row) -> str:
    """-ELBO of the training and of unseen images."""
    rows = [row for row in content["rows"] if row["kind"] == "test"]
    lines = []
    for name in dict.fromkeys(row["estimator"] for row in rows):
        cells = [shown(values(rows, column, estimator=name), 2) for column in ("train", "held out")]
        lines.append([name, *cells, f"{values(rows, 'rate', estimator=name)[0]:g}"])
    return markdown(["estimator", "training -ELBO, nats", "held-out -ELBO, nats", "learning rate"], lines)


def claims(content: Row) -> list[Claim]:
    """What the paper says: ReinMax has the lowest training loss."""
    rows = [row for row in content["rows"] if row["kind"] == "test"]
    others = ("Straight-through 1.3", "Gumbel-Softmax 0.5", "Gapped straight-through", "Gumbel-Rao 0.5")
    # the authors' temperature for 8 x 4 latents
    return [
        Claim(f"ReinMax (1.3) has a lower training -ELBO than {other}", verdict(
            pairs(rows, "train", {"estimator": other}, {"estimator": "ReinMax 1.3"}, ("seed",)), " nats", 2))
        for other in others
    ]  # fmt: skip


def run(options: Namespace) -> str:
    """Everything that is not there yet."""
    digits = load_digits(options.data)
    training, validation, test = (part.pixels.flatten(1) for part in split(digits, 0))
    settings = {"data": str(options.data and options.data.name), "images": [len(x) for x in (training, test)],
                "epochs": options.epochs, "seeds": options.seeds, "latents": [8, 4], "rates": RATES}  # fmt: skip
    store = Store(options, EXPERIMENT, settings)
    common = Namespace(latents=8, classes=4, batch=100)

    def trained(name: str, rate: float, epochs: int, seeds: int, seed: int, unseen: bool) -> Result:
        setting = Namespace(**vars(common), lr=rate, epochs=epochs, seeds=seeds, seed=seed)
        make = ESTIMATORS[name]
        result = train(make, training, test if unseen else validation, setting, name)
        if result is None:
            raise KeyboardInterrupt
        return result

    for name in tqdm(options.estimators, desc="estimators", dynamic_ncols=True, disable=None):
        found: dict[float, float] = {}
        for rate in RATES:
            key = {"kind": "validation", "estimator": name, "rate": rate}

            def choose(name: str = name, rate: float = rate) -> Row:
                result = trained(name, rate, max(1, options.epochs // 4), 1, 1000, False)
                return {"held out": float(result.held_out.mean())}

            found[rate] = store.row(key, choose)["held out"]
        best = min(found, key=lambda rate: found[rate])
        if store.find({"kind": "test", "estimator": name, "seed": 0}) is None:
            result = trained(name, best, options.epochs, options.seeds, 0, True)
            # seed 0 last: it is the sign that all are there
            for seed in reversed(range(options.seeds)):
                row = {"train": float(result.curve[-1][seed]), "held out": float(result.held_out[seed])}
                row |= {"rate": best, "seconds": round(result.seconds / options.seeds, 1)}
                store.row({"kind": "test", "estimator": name, "seed": seed}, row.copy)
    content = load(options.out, EXPERIMENT)
    assert content is not None
    return table(content)


def options(argv: Sequence[str] | None) -> Namespace:
    folder = "folder of MNIST's idx files, of which t10k is enough; without it scikit-learn's 8x8 digits"
    arguments = parser("reinmax_autoencoders.py", __doc__, seeds=3, data=folder)
    arguments.add_argument("--epochs", type=int, default=8, help="of each training")
    arguments.add_argument("--estimators", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help="which")
    return parse(arguments, argv, epochs=2, seeds=2)


if __name__ == "__main__":
    sys.exit(main("reinmax_autoencoders.py", options(None), run))
