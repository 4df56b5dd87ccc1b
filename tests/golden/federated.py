"""What averaging must give, in numpy and f64: the expected numbers of tests/federated/modes.rs.

Clients' numbers come from SplitMix64, here as there. Run by `make golden`.
"""

import json
import struct

import numpy as np

RANK, SCALING = 4, 2.0
SHAPES = {"q": (48, 32), "v": (16, 32)}
FACTORS = [("q", "A"), ("q", "B"), ("v", "A"), ("v", "B")]


def uniform(seed, n, size):
    """n numbers in [-size, size), f32."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    whole = (z >> np.uint64(40)).astype(np.float32)
    return (whole / np.float32(1 << 23) - np.float32(1)) * np.float32(size)


def shape(module, factor, rank):
    n, k = SHAPES[module]
    return (rank, k) if factor == "A" else (n, rank)


def parent():
    size = {"A": 0.5, "B": 0.2}
    return {
        (m, f): uniform(10 + i, np.prod(shape(m, f, RANK)), size[f]).reshape(shape(m, f, RANK))
        for i, (m, f) in enumerate(FACTORS)
    }


def prefix(values, factor, rank):
    return values[:rank] if factor == "A" else values[:, :rank]


def delta(old, client, factors, rank=RANK, offset=0):
    """What a client sends: the f32 difference of f32 factors."""
    out = {}
    for i, (m, f) in enumerate(FACTORS):
        if f not in factors:
            continue
        before = prefix(old[m, f], f, rank)
        change = uniform(1000 + 10 * client + i + offset, before.size, 0.05).reshape(before.shape)
        trained = (before + change).astype(np.float32)
        out[m, f] = (trained - before).astype(np.float64)
    return out


def weight(client):
    return min(1 << (client % 5), 8)


def mean(old, clients, factors, offset=0):
    total = sum(weight(c) for c in range(clients))
    sums = {}
    for c in range(clients):
        for key, values in delta(old, c, factors, offset=offset).items():
            sums[key] = sums.get(key, 0) + weight(c) * values
    return {key: values / total for key, values in sums.items()}


def moved(old, changes):
    return {key: values.astype(np.float64) + changes.get(key, 0) for key, values in old.items()}


def products(old, clients):
    """Each client's B A, of its own rank, in f64."""
    for c in range(clients):
        rank = 1 + c % RANK
        d = delta(old, c, "AB", rank)
        full = {k: prefix(old[k], k[1], rank).astype(np.float64) + d[k] for k in FACTORS}
        yield {m: full[m, "B"] @ full[m, "A"] for m in SHAPES}


def mean_product(old, clients):
    total = sum(weight(c) for c in range(clients))
    means = {m: np.zeros(SHAPES[m]) for m in SHAPES}
    for c, product in enumerate(products(old, clients)):
        for m in SHAPES:
            means[m] += weight(c) / total * product[m]
    return means


def truncated(matrix):
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :RANK] * s[:RANK]) @ v[:RANK]


def cross_term(old, clients):
    """The error of fedavg, relative to the mean change of B A."""
    total = sum(weight(c) for c in range(clients))
    new = moved(old, mean(old, clients, "AB"))
    error = exact = 0.0
    for m in SHAPES:
        base = old[m, "B"].astype(np.float64) @ old[m, "A"].astype(np.float64)
        changes = np.zeros(SHAPES[m])
        for c in range(clients):
            d = delta(old, c, "AB")
            product = (old[m, "B"] + d[m, "B"]) @ (old[m, "A"] + d[m, "A"])
            changes += weight(c) / total * (product - base)
        error += np.sum((changes - (new[m, "B"] @ new[m, "A"] - base)) ** 2)
        exact += np.sum(changes**2)
    return np.sqrt(error / exact)


def robust(old, clients, which):
    changes = {}
    for key in [k for k in FACTORS if k[1] == "B"]:
        rows = np.sort(np.stack([delta(old, c, "B")[key] for c in range(clients)]), axis=0)
        cut = int(0.2 * clients) if which == "trimmed" else (clients - 1) // 2
        changes[key] = rows[cut : clients - cut].mean(axis=0)
    return moved(old, changes)


def optimised(old, which):
    """Two rounds of B: momentum .9, or Adam as Flower has it."""
    m = v = 0
    for offset in (0, 500):
        changes = {}
        g = mean(old, 7, "B", offset)
        flat = np.concatenate([g[key].ravel() for key in g])
        if which == "momentum":
            m = 0.9 * m + flat
            step = m
        else:
            m, v = 0.9 * m + 0.1 * flat, 0.99 * v + 0.01 * flat**2
            step = 0.1 * m / (np.sqrt(v) + 1e-3)
        for key in g:
            changes[key], step = step[: g[key].size].reshape(g[key].shape), step[g[key].size :]
        old = {k: x.astype(np.float32) for k, x in moved(old, changes).items()}
    return old


def write(path, tensors):
    header, data = {}, b""
    for name, values in sorted(tensors.items()):
        bytes_ = np.ascontiguousarray(values, dtype="<f8").tobytes()
        header[name] = {
            "dtype": "F64",
            "shape": list(np.shape(values)),
            "data_offsets": [len(data), len(data) + len(bytes_)],
        }
        data += bytes_
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def main():
    old, out = parent(), {}

    def put(case, factors):
        out.update({f"{case}.{m}.{f}": factors[m, f] for m, f in FACTORS})

    for clients in (2, 7, 100):
        put(f"fedavg.{clients}", moved(old, mean(old, clients, "AB")))
        put(f"rolora.{clients}", moved(old, mean(old, clients, "A")))
        put(f"ffa.{clients}", moved(old, mean(old, clients, "B")))
        out[f"cross.{clients}"] = np.array([cross_term(old, clients)])
        for m, product in mean_product(old, clients).items():
            out[f"stack.{clients}.{m}"] = product
            out[f"svd.{clients}.{m}"] = truncated(product)
    for which in ("trimmed", "median"):
        put(f"{which}.7", robust(old, 7, which))
    for which in ("momentum", "adam"):
        put(f"{which}.7", optimised(old, which))
    write("federated.safetensors", out)


if __name__ == "__main__":
    main()
