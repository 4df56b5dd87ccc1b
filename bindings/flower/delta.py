"""Reads Epiphyte's deltas: what a device sends after training.

The format is docs/formats.md, "Deltas". Needs numpy; `cryptography` for signatures.
"""

import hashlib
import json
import re
import struct

import numpy as np

FORMAT = "epiphyte.delta.1"
_DTYPES = {"F32": "<f4", "F16": "<f2", "I8": "i1", "U8": "u1", "U32": "<u4"}
_NAME = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(?:embedding_)?([AB])(?:\.weight)?")


class DeltaError(ValueError):
    """A file that is no delta, or can't be used."""


def _require(condition, what):
    if not condition:
        raise DeltaError(what)


def _twice(pairs):
    keys = dict(pairs)
    _require(len(keys) == len(pairs), "a key is given twice")
    return keys


class Delta:
    """A delta: `name`, `manifest`, and by factor (`model.layers.0.self_attn.q_proj.lora_A`) f32."""

    def __init__(self, data, verify=True):
        try:
            self._load(data, verify)
        except DeltaError:
            raise
        except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise DeltaError(f"damaged: {error!r}") from error

    def _load(self, data, verify):
        _require(len(data) >= 8, "cut short")
        (length,) = struct.unpack("<Q", data[:8])
        _require(length <= min(len(data) - 8, 16 << 20), "cut short")
        header = json.loads(data[8 : 8 + length], object_pairs_hook=_twice)
        self._metadata = header.pop("__metadata__", {})
        _require(self._metadata.get("epiphyte.format") == FORMAT, f"not of format {FORMAT}")
        self._tensors = self._read(header, data[8 + length :])
        self.name = self._hash()
        self.manifest = json.loads(self._metadata["epiphyte.manifest"], object_pairs_hook=_twice)
        critical = self.manifest.get("critical", [])
        _require(not critical, f"readers must know {critical}, and this one does not")
        if verify:
            self._verify()
        self.factors = self._factors()

    @classmethod
    def open(cls, path, verify=True):
        """Reads a file."""
        with open(path, "rb") as file:
            return cls(file.read(), verify)

    @staticmethod
    def _read(header, data):
        tensors, end = {}, 0
        for name, info in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            start, stop = info["data_offsets"]
            dtype = np.dtype(_DTYPES.get(info["dtype"], "V0"))
            count = int(np.prod(info["shape"], dtype=object))
            size = count * dtype.itemsize
            fits = start == end and 0 < size == stop - start <= len(data) - start
            _require(fits, f"{name}: type, shape or place")
            values = np.frombuffer(data[start:stop], dtype).reshape(info["shape"])
            tensors[name], end = (info, data[start:stop], values), stop
        _require(end == len(data), "bytes that belong to nothing")
        return tensors

    def _hash(self):
        pairs = {f"metadata.{k}": v for k, v in self._metadata.items() if k != "epiphyte.signature"}
        for name, (info, data, _) in self._tensors.items():
            shape = "x".join(map(str, info["shape"]))
            digest = hashlib.sha256(data).hexdigest()
            pairs[f"tensor.{name}"] = f"{info['dtype']} {shape} {digest}"
        pairs = sorted((key.encode(), value.encode()) for key, value in pairs.items())
        items = [FORMAT.encode()] + [part for pair in pairs for part in pair]
        hashed = b"".join(struct.pack("<Q", len(item)) + item for item in items)
        return f"{FORMAT}:{hashlib.sha256(hashed).hexdigest()}"

    def _verify(self):
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519
        from cryptography.hazmat.primitives.hashes import SHA256

        kind, _, key = self.manifest["signer"].partition(":")
        try:
            key, signature = bytes.fromhex(key), bytes.fromhex(self._metadata["epiphyte.signature"])
            if kind == "ed25519":
                public = ed25519.Ed25519PublicKey.from_public_bytes(key)
                public.verify(signature, self.name.encode())
            else:
                _require(kind == "p256", "an unknown kind of key")
                public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), key)
                public.verify(signature, self.name.encode(), ec.ECDSA(SHA256()))
        except (InvalidSignature, KeyError) as error:
            raise DeltaError("the signature is not that of its key") from error

    def _factors(self):
        kind = self.manifest["quantisation"]["kind"]
        scales = self._tensors.get("scales", (None, None, np.zeros(0, np.float32)))[2]
        factors, at = {}, 0
        for name in sorted(self._tensors):
            if name == "scales" or name.endswith(".index"):
                continue
            found = _NAME.fullmatch(name)
            _require(found, f"{name}: no factor")
            path, factor = found.groups()
            own = self.manifest.get("exceptions", {}).get(path, self.manifest)
            n, k = self.manifest["shapes"][path.rsplit(".", 1)[-1]]
            shape = (own["rank"], k) if factor == "A" else (n, own["rank"])
            values = self._numbers(kind, name, shape)
            if kind != "f32":
                scale = scales[at : at + own["rank"]]
                at += own["rank"]
                _require(len(scale) == own["rank"], "scales are missing")
                values = values * (scale[:, None] if factor == "A" else scale[None, :])
            _require(np.isfinite(values).all(), f"{name}: not finite")
            factors[f"{path}.lora_{factor}"] = values
        _require(at == len(scales), "scales that belong to nothing")
        return factors

    def _numbers(self, kind, name, shape):
        values = self._tensors[name][2]
        count = int(np.prod(shape, dtype=object))
        if kind == "ternary":
            codes = (values[:, None] >> np.array([0, 2, 4, 6], np.uint8) & 3).ravel()
            _require(len(values) == -(-count // 4) and (codes[:count] < 3).all(), f"{name}: codes")
            return np.array([0, 1, -1], np.float32)[codes[:count]].reshape(shape)
        if kind == "top_k":
            index = self._tensors[f"{name}.index"][2].astype(np.int64)
            ordered = (np.diff(index) > 0).all() and (index < count).all()
            _require(ordered and len(index) == len(values), f"{name}: indices")
            dense = np.zeros(count, np.float32)
            dense[index] = values
            return dense.reshape(shape)
        _require(kind in ("f32", "f16", "int8") and values.shape == shape, f"{name}: {kind}, shape")
        return values.astype(np.float32)
