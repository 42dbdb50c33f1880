"""Gluon kernels for Hopper on the CPU: what Triton's interpreter does for plain kernels.

Every partition of a kernel is a thread. Barriers in shared memory block as the card's do, and a product reads its operands not when it
is issued but when it is waited for, so that a buffer handed back too early, a wrong phase or a missing arrival shows as a wrong result
or as a deadlock. Tensors are torch's; layouts mean nothing here, and neither does the order in which threads run.
"""

from __future__ import annotations

import re
import threading
import types
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

PATIENCE = 20.0
"""Seconds after which a barrier that nobody completes is a deadlock."""


class DeadlockError(Exception):
    """A barrier was waited for that nobody completed."""


class Barrier:
    """An mbarrier: a phase is over when `count` arrivals and all announced bytes have come."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.count = self.missing = self.bytes = self.phase = 0

    def init(self, count: int) -> None:
        self.count = self.missing = count

    def progress(self, arrivals: int, more_bytes: int) -> None:
        with self.changed:
            self.missing -= arrivals
            self.bytes += more_bytes
            if self.missing == 0 and self.bytes == 0:
                self.phase ^= 1
                self.missing = self.count
                self.changed.notify_all()

    def cross(self, waits: bool) -> None:
        """Arrive, as at a named barrier of two warpgroups, and wait for the other."""
        with self.changed:
            before = self.phase
            self.progress(1, 0)
        if waits:
            self.wait(before)

    def wait(self, phase: int) -> None:
        with self.changed:
            if not self.changed.wait_for(lambda: self.phase != int(phase), PATIENCE):
                raise DeadlockError


@dataclass
class Shared:
    """Shared memory: a tensor and views of it."""

    data: Any
    layout: Any = None

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    def index(self, place: Any) -> Any:
        return self.data[int(place)] if isinstance(self.data, list) else Shared(self.data[int(place)])

    def reshape(self, shape: list[int]) -> Shared:
        return Shared(self.data.view(shape))

    def permute(self, order: tuple[int, ...]) -> Shared:
        return Shared(self.data.permute(order))

    def load(self, _: Any = None) -> torch.Tensor:
        return self.data.clone()

    def store(self, value: torch.Tensor) -> None:
        self.data.copy_(value)


@dataclass
class Product:
    """A product under way. The operands are read when it is waited for."""

    left: Any
    right: Shared
    start: Any
    result: torch.Tensor | None = None

    def finish(self) -> None:
        left = self.left.data if isinstance(self.left, Shared) else self.left
        start = self.start.result if isinstance(self.start, Product) else self.start
        self.result = start + left.float() @ self.right.data.float()


_under_way = threading.local()


def _multiply(left: Any, right: Shared, start: Any, *, use_acc: bool = True, is_async: bool = False) -> Any:
    product = Product(left, right, start if use_acc else 0.0)
    if not is_async:
        product.finish()
        return product.result
    _under_way.products.append(product)
    return product


def _wait(outstanding: int, deps: tuple[Any, ...]) -> Any:
    products = _under_way.products
    while len(products) > outstanding:
        products.pop(0).finish()
    done = tuple(each.result if isinstance(each, Product) and each.result is not None else each for each in deps)
    return done[0] if len(done) == 1 else done


@dataclass
class Box:
    """A tensor descriptor."""

    host: Any
    view: torch.Tensor = field(init=False)
    layout: Any = None

    def __post_init__(self) -> None:
        self.view = torch.as_strided(self.host.base, self.host.shape, self.host.strides, self.host.base.storage_offset())
        size = self.view.element_size()
        for length in self.host.block_shape:
            size *= length
        self.block_type = types.SimpleNamespace(nbytes=size)

    @property
    def dtype(self) -> torch.dtype:
        return self.view.dtype

    def part(self, corner: list[Any]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Where the box at `corner` meets the tensor: in the tensor, and in the box."""
        inside, own = [], []
        for start, length, size in zip(map(int, corner), self.host.block_shape, self.view.shape, strict=True):
            low, high = max(0, start), max(0, min(size, start + length))
            inside.append(slice(low, max(low, high)))
            own.append(slice(low - start, max(low, high) - start))
        return tuple(inside), tuple(own)


def _bring(box: Box, corner: list[Any], barrier: Barrier, target: Shared) -> None:
    inside, own = box.part(corner)
    target.data.zero_()
    target.data[own] = box.view[inside]
    barrier.progress(0, -box.block_type.nbytes)


def _send(box: Box, corner: list[Any], source: Shared) -> None:
    inside, own = box.part(corner)
    box.view[inside] = source.data[own]


@dataclass
class Pointer:
    """Addresses in a contiguous tensor."""

    data: torch.Tensor
    offset: Any = 0

    @property
    def dtype(self) -> Any:
        return types.SimpleNamespace(element_ty=self.data.dtype)

    def __add__(self, more: Any) -> Pointer:
        return Pointer(self.data, self.offset + more)


def _load(pointer: Pointer, mask: Any = None, other: float = 0.0) -> torch.Tensor:
    offset = torch.as_tensor(pointer.offset)
    keep = torch.ones_like(offset, dtype=torch.bool) if mask is None else mask
    return torch.where(keep, pointer.data.reshape(-1)[torch.where(keep, offset, 0)], other)


def _store(pointer: Pointer, value: torch.Tensor, mask: torch.Tensor) -> None:
    keep = mask.expand_as(value)
    pointer.data.view(-1)[pointer.offset[keep]] = value[keep]


def _scalar(compute: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda *values, **named: compute(*(torch.as_tensor(each) for each in values), **named)


def _specialize(workers: list[tuple[Callable[..., None], tuple[Any, ...]]], *_: Any) -> None:
    errors: list[BaseException] = []

    def work(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        _under_way.products = []
        try:
            function(*arguments)
            assert not _under_way.products, "a product was never waited for"
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=each) for each in workers]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    if errors:
        raise errors[0]


def _shared(dtype: Any, shape: list[int], _: Any) -> Shared:
    # What shared memory holds before it is written must not matter: NaN shows it.
    return Shared([Barrier() for _ in range(shape[0])] if dtype is torch.int64 else torch.full(shape, torch.nan, dtype=dtype))


def _assembly() -> Callable[..., Any]:
    """What the kernels' assembly does: barriers that two warpgroups of 128 threads each meet at, or nothing to the numbers."""
    named: defaultdict[str, Barrier] = defaultdict(Barrier)
    creating = threading.Lock()

    def run(text: str, _: str, values: list[Any], **__: Any) -> Any:
        met = re.match(r"bar\.(sync|arrive) (\d+), 256;", text)
        if met is None:
            return values[0]
        with creating:
            barrier = named[met[2]]
            if barrier.count == 0:
                barrier.init(2)
        barrier.cross(met[1] == "sync")
        return None

    return run


def _languages(program: int, programs: int) -> tuple[types.SimpleNamespace, types.SimpleNamespace]:
    nothing = lambda *_, **__: None  # noqa: E731
    gl = types.SimpleNamespace(
        int32=torch.int32, int64=torch.int64, float32=torch.float32, program_id=lambda _: torch.tensor(program),
        num_programs=lambda _: torch.tensor(programs),
        cdiv=lambda a, b: -(-a // b), maximum=_scalar(torch.maximum), minimum=_scalar(torch.minimum), where=_scalar(torch.where),
        abs=torch.abs, exp2=torch.exp2, log2=torch.log2, max=lambda x, axis: x.amax(axis), sum=lambda x, axis: x.sum(axis),
        arange=lambda low, high, **_: torch.arange(low, high), zeros=lambda shape, dtype, _: torch.zeros(shape, dtype=dtype),
        full=lambda shape, value, dtype, _: torch.full(shape, value, dtype=dtype), convert_layout=lambda x, _: x, static_range=range,
        NVMMADistributedLayout=nothing, SliceLayout=nothing, DotOperandLayout=nothing, BlockedLayout=nothing,
        constexpr=lambda value: value, allocate_shared_memory=_shared, load=_load, store=_store, warp_specialize=_specialize,
        inline_asm_elementwise=_assembly(),
    )  # fmt: skip
    hopper = types.SimpleNamespace(
        mbarrier=types.SimpleNamespace(
            MBarrierLayout=nothing, init=lambda barrier, count: barrier.init(count), wait=lambda barrier, phase: barrier.wait(phase),
            expect=lambda barrier, size: barrier.progress(1, size), arrive=lambda barrier, count: barrier.progress(count, 0),
        ),
        tma=types.SimpleNamespace(async_copy_global_to_shared=_bring, async_copy_shared_to_global=_send, store_wait=nothing),
        warpgroup_mma=_multiply, warpgroup_mma_wait=_wait, fence_async_shared=nothing,
    )  # fmt: skip
    return gl, hopper


def launch_hopper(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    """Stands in for a generated module's `_launch_hopper`: runs the programs one after another. Warps mean nothing here."""
    del constants["warps"]
    taken = [Pointer(each) if isinstance(each, torch.Tensor) else Box(each) if hasattr(each, "block_shape") else each for each in arguments]
    for program in range(programs):
        gl, hopper = _languages(program, programs)
        names: dict[str, Any] = {"gl": gl, "hopper": hopper}
        for name, value in kernel.fn.__globals__.items():
            if hasattr(value, "is_gluon") and value.is_gluon():
                names[name] = types.FunctionType(value.fn.__code__, names, name, value.fn.__defaults__)
            elif name not in names:
                names[name] = getattr(value, "value", value)  # constants as numbers
        names[kernel.fn.__name__](*taken, **constants)


def tensors(*sizes: tuple[int, ...]) -> list[torch.Tensor]:
    """(batch, heads, tokens, dim) float16, token-major as models have them."""
    draw = torch.Generator().manual_seed(7)
    return [torch.randn(b, n, h, d, generator=draw).to(torch.float16).transpose(1, 2) for b, h, n, d in sizes]
