"""Checks and measures the cuda transport on a machine that has a GPU and PyTorch; Node is not needed.

    cmake -S . -B build/kv -DMILLRACE_KV=ON && cmake --build build/kv
    PYTHONPATH=transfer/python python3 -m millrace_kv.gpu_check --out gpu.json

First every path with torch tensors, bytes compared: host to device, device to host, on one device, from one process to another
by a handle and by descriptor, layouts that differ, integrity. Then rates, each against a plain copy of as many bytes by torch
(cudaMemcpyAsync) in the same rounds, with medians and both figures. Exits with 0 when all bytes were right, 1 when not, and
77 where there is no GPU or no PyTorch, with the reason. The figures are written, not judged: `ratio` is to be read with `goal`.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time

from . import Agent, TransferError, opaque, paged_kv

SKIP = 77
TIMEOUT_S = 60
MIB = 1 << 20
_ROUNDS = 9
_BULK_BYTES = 256 * MIB


def skip(why):
    print(f"skipped: {why}", file=sys.stderr)
    sys.exit(SKIP)


def torch_with_gpu():
    try:
        import torch
    except ImportError as error:
        skip(f"PyTorch is not here: {error}")
    if not torch.cuda.is_available():
        skip("PyTorch sees no CUDA device")
    return torch


def pattern(torch, seed, size):
    """The same bytes in every process."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)


class Memory:
    """Bytes of a pool, with a tensor over them."""

    def __init__(self, torch, agent, kind, layout, size):
        self.kind = kind
        if kind == "torch":
            self.tensor = torch.zeros(size, dtype=torch.uint8, device="cuda:0")
            torch.cuda.synchronize()
            self.pool = agent.register_pool(layout, self.tensor)
        elif kind == "own":
            self.pool = agent.create_pool(layout, size, device=0)
            self.tensor = torch.as_tensor(self.pool, device="cuda:0")
        else:
            self.pool = agent.create_pool(layout, size)
            self.tensor = torch.frombuffer(self.pool.view(), dtype=torch.uint8)

    def put(self, torch, values):
        self.tensor.copy_(values)
        torch.cuda.synchronize()

    def get(self, torch):
        torch.cuda.synchronize()
        return self.tensor.cpu().clone()


# ---- the other process: makes pools, fills them and compares them, as it is told by lines of JSON

def child():
    torch = torch_with_gpu()
    memories = {}
    with Agent("gpu child", transports=["cuda"]) as agent:
        for line in sys.stdin:
            told = json.loads(line)
            answer = {}
            if told["do"] == "pool":
                layout = layout_of(told["layout"])
                memory = Memory(torch, agent, told["kind"], layout, told["bytes"])
                memory.put(torch, pattern(torch, told["seed"], told["bytes"]))
                memories[memory.pool.id] = memory
                answer = {"pool": memory.pool.id, "metadata": agent.metadata().hex()}
            elif told["do"] == "meet":
                agent.connect(bytes.fromhex(told["metadata"]))
            elif told["do"] == "compare":
                start, size = told["start"], told["bytes"]
                expected = pattern(torch, told["seed"], told["of"])[told["from"]: told["from"] + size]
                got = memories[told["pool"]].get(torch)[start: start + size]
                answer = {"same": bool(torch.equal(expected, got))}
            elif told["do"] == "close":
                memories.pop(told["pool"]).pool.close()
            print(json.dumps(answer), flush=True)


def layout_of(given):
    kind, fields = given
    return opaque(**fields) if kind == "opaque" else paged_kv(**fields)


class Child:
    def __init__(self):
        self.process = subprocess.Popen([sys.executable, "-m", "millrace_kv.gpu_check", "--child"], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)

    def tell(self, **words):
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError("the other process has ended")
        return json.loads(answer)

    def end(self):
        self.process.stdin.close()
        self.process.wait(TIMEOUT_S)


# ---- correctness

def expect(name, is_right, findings):
    print(f"{'right' if is_right else 'WRONG'}: {name}", file=sys.stderr)
    findings.append({"check": name, "right": bool(is_right)})


def shuffled(torch, seed, count):
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


def move_check(torch, agent, kinds, block_bytes, blocks, integrity, findings):
    """A read within this process, of shuffled blocks; the agent is its own peer."""
    layout = opaque(blocks=blocks, block_bytes=block_bytes)
    size = blocks * block_bytes
    source, target = (Memory(torch, agent, kind, layout, size) for kind in kinds)
    values = pattern(torch, block_bytes + blocks, size)
    source.put(torch, values)
    peer = agent.connect(agent.metadata())
    here, there = shuffled(torch, 1, blocks), shuffled(torch, 2, blocks)
    done = peer.read(target.pool, here, source.pool.id, there, integrity=integrity).wait(TIMEOUT_S)
    expected = torch.empty_like(values).view(blocks, block_bytes)
    expected[here] = values.view(blocks, block_bytes)[there]
    is_right = torch.equal(expected.flatten(), target.get(torch)) and done.transport == "cuda"
    expect(f"{kinds[0]} to {kinds[1]}, {blocks} x {block_bytes}, integrity {integrity}", is_right, findings)
    for memory in (source, target):
        memory.pool.close()


def layout_check(torch, agent, findings):
    """NHD of 8 heads to HND of the upper 4, on the device: a permute and a split in one."""
    blocks, layers, tokens, heads, dim = 16, 3, 16, 8, 64
    shape = {"blocks": blocks, "layers": layers, "block_tokens": tokens, "head_dim": dim, "element_bytes": 2, "heads_total": heads}
    whole = paged_kv(**shape, heads=heads)
    upper = paged_kv(**shape, heads=heads // 2, tp_rank=1, tp_size=2, inner_order="hnd")
    size = layers * 2 * blocks * tokens * heads * dim * 2
    source = Memory(torch, agent, "torch", whole, size)
    target = Memory(torch, agent, "own", upper, size // 2)
    values = pattern(torch, 5, size)
    source.put(torch, values)
    peer = agent.connect(agent.metadata())
    everything = list(range(blocks))
    peer.read(target.pool, everything, source.pool.id, everything, integrity="full").wait(TIMEOUT_S)
    planes = values.view(layers * 2, blocks, tokens, heads, dim * 2)
    expected = planes[:, :, :, heads // 2:].permute(0, 1, 3, 2, 4).contiguous().flatten()
    expect("NHD to HND, the upper half of the heads", torch.equal(expected, target.get(torch)), findings)
    for memory in (source, target):
        memory.pool.close()


def process_check(torch, agent, other, kinds, findings):
    """Reads from a pool of another process, and writes into it."""
    blocks, block_bytes = 64, 24 * 1024
    size = blocks * block_bytes
    layout = opaque(blocks=blocks, block_bytes=block_bytes)
    told = other.tell(do="pool", kind=kinds[1], layout=["opaque", {"blocks": blocks, "block_bytes": block_bytes}], bytes=size, seed=7)
    memory = Memory(torch, agent, kinds[0], layout, size)
    other.tell(do="meet", metadata=agent.metadata().hex())
    peer = agent.connect(bytes.fromhex(told["metadata"]))
    name = f"{kinds[0]} here, {kinds[1]} in another process"
    try:
        order = shuffled(torch, 3, blocks)
        peer.read(memory.pool, order, told["pool"], order, integrity="full").wait(TIMEOUT_S)
        expect(f"{name}: read", torch.equal(memory.get(torch), pattern(torch, 7, size)), findings)
        memory.put(torch, pattern(torch, 8, size))
        half = list(range(blocks // 2))
        peer.write(memory.pool, half, told["pool"], half, integrity="full").wait(TIMEOUT_S)
        middle = size // 2
        written = {"do": "compare", "pool": told["pool"], "of": size}
        is_written = other.tell(**written, seed=8, start=0, bytes=middle, **{"from": 0})["same"]
        is_kept = other.tell(**written, seed=7, start=middle, bytes=middle, **{"from": middle})["same"]
        expect(f"{name}: write, and no byte beside it", is_written and is_kept, findings)
    except TransferError as error:
        expect(f"{name}: {error}", False, findings)
    memory.pool.close()
    other.tell(do="close", pool=told["pool"])


# ---- rates

def seconds(torch, work):
    torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def rate_row(torch, name, goal, block_bytes, blocks, transfer, yardstick):
    """Both in turns; medians. Ours is from post to completion by the engine's clock, as turning Python's lists into arrays
    takes longer than some transfers. The yardstick moves the same bytes in one piece."""
    ours, theirs = [], []
    for _ in range(_ROUNDS + 2):
        done = transfer()
        ours.append((done.done_ns - done.posted_ns) / 1e9)
        theirs.append(seconds(torch, yardstick))
    size = block_bytes * blocks
    mine, plain = (size / statistics.median(times[2:]) / 1e9 for times in (ours, theirs))
    row = {"op": name, "blockBytes": block_bytes, "blocks": blocks, "gbPerSecond": mine, "yardstick": "cudaMemcpyAsync, one piece",
           "yardstickGbPerSecond": plain, "ratio": mine / plain, "goal": goal}
    print(f"{name:28} {block_bytes:8} x {blocks:6}: {mine:8.1f} GB/s, {row['ratio']:.2f} x plain (goal {goal})", file=sys.stderr)
    return row


def local_rows(torch, agent):
    """Between pinned host memory and the device, and on the device."""
    rows = []
    pinned = torch.empty(_BULK_BYTES, dtype=torch.uint8).pin_memory()
    spare = [torch.empty(_BULK_BYTES, dtype=torch.uint8, device="cuda:0") for _ in range(2)]
    plain = {"h2d": lambda: spare[0].copy_(pinned, non_blocking=True), "d2h": lambda: pinned.copy_(spare[0], non_blocking=True),
             "d2d": lambda: spare[1].copy_(spare[0], non_blocking=True)}
    kinds = {"h2d": ("host", "torch"), "d2h": ("torch", "host"), "d2d": ("torch", "torch")}
    for block_bytes in (2 * MIB, MIB // 2, 16 * 1024, 4 * 1024):
        blocks = _BULK_BYTES // block_bytes
        layout = opaque(blocks=blocks, block_bytes=block_bytes)
        for op, (source_kind, target_kind) in kinds.items():
            source = Memory(torch, agent, source_kind, layout, _BULK_BYTES)
            target = Memory(torch, agent, target_kind, layout, _BULK_BYTES)
            peer = agent.connect(agent.metadata())
            here, there = shuffled(torch, 1, blocks), shuffled(torch, 2, blocks)
            goal = 0.95 if op == "d2d" else 0.97 if block_bytes >= MIB // 2 else 0.85
            rows.append(rate_row(torch, op, goal, block_bytes, blocks,
                                 lambda: peer.read(target.pool, here, source.pool.id, there).wait(TIMEOUT_S), plain[op]))
            for memory in (source, target):
                memory.pool.close()
    return rows


def process_rows(torch, agent, other):
    """On one device, from the memory of another process."""
    rows = []
    spare = [torch.empty(_BULK_BYTES, dtype=torch.uint8, device="cuda:0") for _ in range(2)]
    for kind in ("torch", "own"):
        for block_bytes in (2 * MIB, 16 * 1024):
            blocks = _BULK_BYTES // block_bytes
            layout = opaque(blocks=blocks, block_bytes=block_bytes)
            told = other.tell(do="pool", kind=kind, layout=["opaque", {"blocks": blocks, "block_bytes": block_bytes}],
                              bytes=_BULK_BYTES, seed=9)
            memory = Memory(torch, agent, "torch", layout, _BULK_BYTES)
            peer = agent.connect(bytes.fromhex(told["metadata"]))
            here, there = shuffled(torch, 1, blocks), shuffled(torch, 2, blocks)
            rows.append(rate_row(torch, f"d2d, two processes, {kind}", 0.95, block_bytes, blocks,
                                 lambda: peer.read(memory.pool, here, told["pool"], there).wait(TIMEOUT_S),
                                 lambda: spare[1].copy_(spare[0], non_blocking=True)))
            memory.pool.close()
            other.tell(do="close", pool=told["pool"])
    return rows


def driver_version():
    try:
        asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, timeout=TIMEOUT_S).stdout.strip().splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return []


def main():
    parser = argparse.ArgumentParser(prog="millrace_kv.gpu_check")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", help="file for the result, as JSON; default: stdout")
    parser.add_argument("--no-rates", action="store_true", help="only the bytes")
    options = parser.parse_args()
    if options.child:
        return child()
    torch = torch_with_gpu()
    findings, rows = [], []
    other = Child()
    with Agent("gpu check", transports=["cuda"]) as agent:
        for integrity in ("off", "full"):
            for kinds in (("host", "torch"), ("torch", "host"), ("torch", "own"), ("own", "torch")):
                for block_bytes, blocks in ((4096, 300), (640 * 1024, 20), (1000, 77)):
                    move_check(torch, agent, kinds, block_bytes, blocks, integrity, findings)
        layout_check(torch, agent, findings)
        for kinds in (("torch", "torch"), ("torch", "own"), ("host", "torch"), ("own", "host")):
            process_check(torch, agent, other, kinds, findings)
        if not options.no_rates:
            rows = local_rows(torch, agent) + process_rows(torch, agent, other)
        other.end()
    result = {"bench": "gpu", "host": platform.node(), "python": platform.python_version(), "torch": torch.__version__,
              "cuda": torch.version.cuda, "devices": driver_version(), "device": torch.cuda.get_device_name(0),
              "rounds": _ROUNDS, "checks": findings, "rows": rows}
    text = json.dumps(result, indent=1)
    if options.out is None:
        print(text)
    else:
        with open(options.out, "w", encoding="utf-8") as file:
            file.write(text + "\n")
    sys.exit(0 if all(finding["right"] for finding in findings) else 1)


if __name__ == "__main__":
    main()
