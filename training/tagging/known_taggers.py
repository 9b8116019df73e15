"""Taggers that can be fetched: SmilingWolf's, from small to large."""

from __future__ import annotations

from ..model_files import KnownFile, KnownModel
from .tagger import MODEL_FILE, TABLE_FILE

TABLE_V3 = KnownFile(
    TABLE_FILE, 308_468, "298633d94d0031d2081c0893f29c82eab7f0df00b08483ba8f29d1e979441217"
)
"""One for all models of the third version: 10,861 tags."""

TABLE_V2 = KnownFile(
    TABLE_FILE, 253_906, "8c8750600db36233a1b274ac88bd46289e588b338218c2e4c62bbc9f2b516368"
)


def _known(name: str, revision: str, size: int, sha256: str, table: KnownFile) -> KnownModel:
    files = (KnownFile(MODEL_FILE, size, sha256), table)
    return KnownModel(name, f"SmilingWolf/{name}", revision, files, "Apache-2.0")


KNOWN_TAGGERS = {
    model.name: model
    for model in (
        _known(
            "wd-vit-tagger-v3",
            "7f6b584d0bd3f55c4531f14ba3d4761b2bccdc0f",
            378_536_310,
            "35f23693620b668f4d53fd3c62bf65e40af739bc52c7eb0fbc49258b58d065b6",
            TABLE_V3,
        ),
        _known(
            "wd-convnext-tagger-v3",
            "d39e46de298d27340111b64965e20b8185c407e6",
            394_990_732,
            "1b8a7abf13d9b8368267df47501d523789c4aeae66b2296ad98483239dfa32eb",
            TABLE_V3,
        ),
        _known(
            "wd-swinv2-tagger-v3",
            "627aef95638667ddcaa3ac8ae625e88ea5b02f51",
            467_460_978,
            "e6774bff34d43bd49f75a47db4ef217dce701c9847b546523eb85ff6dbba1db1",
            TABLE_V3,
        ),
        _known(
            "wd-eva02-large-tagger-v3",
            "b25b82a03f7282e41aa2f257a52c7583b710bd1c",
            1_260_435_999,
            "9e768793060c7939b277ccb382783e8670e8a042d29d77aa736be0c8cc898bfc",
            TABLE_V3,
        ),
        _known(
            "wd-v1-4-moat-tagger-v2",
            "8452cddf280b952281b6e102411c50e981cb2908",
            326_197_340,
            "b8cef913be4c9e8d93f9f903e74271416502ce0b4b04df0ff1e2f00df488aa03",
            TABLE_V2,
        ),
    )
}
"""By name."""
