"""Make a release with Keras: the published network, its weights in every layout, latents.

Run by tests in a process of its own, as `python keras_release.py FOLDER`; nothing of chgdb is
imported. FOLDER holds densities, `{formula}_{spacegroup}.npy` of float32 (n, n, n), n a multiple of
8. What comes out:

    FOLDER/latents/{formula}_{spacegroup}_latent.npy    what its encoder makes of them
    FOLDER/decoded/{formula}_{spacegroup}.npy           what its decoder makes of those
    FOLDER/weights/{encoder,decoder,both,nested,attributes}[.weights].h5
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
from keras import layers

WIDTHS = (16, 32, 32)
CHANNELS = 16


def encoder_layers() -> list[Any]:
    stages = []
    for width in WIDTHS:
        stages += [
            layers.Conv3D(width, 3, padding="same", activation="relu"),
            layers.MaxPooling3D(2, padding="same"),
        ]
    return [*stages, layers.Conv3D(CHANNELS, 3, padding="same", activation="relu", name="latent")]


def decoder_layers() -> list[Any]:
    stages = []
    for width in reversed(WIDTHS):
        stages += [
            layers.Conv3D(width, 3, padding="same", activation="relu"),
            layers.UpSampling3D(2),
        ]
    return [*stages, layers.Conv3D(1, 3, padding="same")]


def model(stages: list[Any], channels: int, name: str) -> Any:
    """The functional model of a chain of layers."""
    entry = keras.Input((None, None, None, channels))
    x = entry
    for stage in stages:
        x = stage(x)
    return keras.Model(entry, x, name=name)


def random_weight(rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
    """A bias or a kernel that, after a ReLU, keeps values as large as they were (1502.01852)."""
    spread = 0.1 if len(shape) == 1 else np.sqrt(2 / np.prod(shape[:-1]))
    return rng.normal(0, spread, shape)


class Attributes(keras.Model):  # type: ignore[misc]
    """An autoencoder as a class: its file holds the decoder before the encoder."""

    def __init__(self, encoder: Any, decoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def call(self, x: Any) -> Any:
        return self.decoder(self.encoder(x))


def main(folder: Path) -> None:
    for name in ("latents", "decoded", "weights"):
        (folder / name).mkdir()
    down, up = encoder_layers(), decoder_layers()
    encoder, decoder = model(down, 1, "encoder"), model(up, CHANNELS, "decoder")
    rng = np.random.default_rng(0)
    for part in (encoder, decoder):
        part.set_weights([random_weight(rng, weight.shape) for weight in part.get_weights()])

    entry = keras.Input((None, None, None, 1))
    nested = keras.Model(entry, decoder(encoder(entry)))
    nested.compile("sgd", "mse")
    nested.optimizer.build(nested.trainable_variables)  # whose weights are in the file too
    attributes = Attributes(encoder, decoder)
    attributes(np.zeros((1, 8, 8, 8, 1), dtype=np.float32))
    both = model([*down, *up], 1, "both")
    models = {"encoder": encoder, "decoder": decoder, "both": both, "nested": nested}
    for name, one in models.items():
        one.save(folder / "weights" / f"{name}.h5")
        one.save_weights(folder / "weights" / f"{name}.weights.h5")
    attributes.save_weights(folder / "weights" / "attributes.weights.h5")

    for path in sorted(folder.glob("*.npy")):
        density = np.load(path)[None, ..., None]
        latent = encoder.predict(density, verbose=0)
        np.save(folder / "latents" / f"{path.stem}_latent.npy", latent[0])
        np.save(folder / "decoded" / path.name, decoder.predict(latent, verbose=0)[0, ..., 0])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
