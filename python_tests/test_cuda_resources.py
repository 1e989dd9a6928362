# SPDX-License-Identifier: Apache-2.0
"""What every kernel of the extension needs of a GPU, read from the machine code in its file."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cae_fast import _C

FATBIN_MAGIC = struct.pack("<I", 0xBA55ED50)
ELF = 2
# Attributes of .nv.info: pairs of a symbol's index and a number.
FRAME_BYTES, REGISTERS = 0x11, 0x2F
# Attribute of .nv.info.<kernel>: the threads that __launch_bounds__ promises, along x, y and z.
MOST_THREADS = 0x05
# How the value of an attribute is stored.
IN_HEADER, AFTER_HEADER = 0x03, 0x04
REGISTERS_OF_SM = 65536
STATIC_SHARED_BYTES = 48 * 1024


@dataclass
class Kernel:
    """One kernel for one architecture."""

    arch: int
    name: str
    registers: int = 0
    frame_bytes: int = 0  # of local memory: spilled registers, arrays indexed when running
    threads: int = 0
    shared_bytes: int = 0  # declared, not asked for at the launch


def machine_code(library: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (architecture, ELF file) for each embedded one."""
    position = -1
    while (position := library.find(FATBIN_MAGIC, position + 1)) >= 0:
        header, size = struct.unpack_from("<HQ", library, position + 6)
        entry, end = position + header, position + header + size
        while entry < end:
            kind, _, entry_header, entry_size = struct.unpack_from("<HHIQ", library, entry)
            if kind == ELF:
                arch = struct.unpack_from("<I", library, entry + 28)[0]
                code = library[entry + entry_header : entry + entry_header + entry_size]
                assert code.startswith(b"\x7fELF"), "device code is compressed"
                yield arch, code
            entry += entry_header + entry_size


def text_at(table: bytes, offset: int) -> str:
    return table[offset : table.index(b"\0", offset)].decode()


def sections(code: bytes) -> dict[str, bytes]:
    (table,) = struct.unpack_from("<Q", code, 0x28)
    entry_bytes, count, names_at = struct.unpack_from("<HHH", code, 0x3A)
    found = []
    for index in range(count):
        at = table + index * entry_bytes
        name, kind, _, _, offset, size = struct.unpack_from("<IIQQQQ", code, at)
        found.append((name, size, code[offset : offset + size] if kind != 8 else b"\0" * size))
    names = found[names_at][2]
    return {text_at(names, name): data for name, _, data in found}


def attributes(info: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, at)
        at += 4
        if form == AFTER_HEADER:
            yield attribute, info[at : at + size]
            at += size
        else:
            yield attribute, struct.pack("<H", size)


def read_kernels(library: bytes) -> list[Kernel]:
    kernels: list[Kernel] = []
    for arch, code in machine_code(library):
        parts = sections(code)
        symbols, names = parts[".symtab"], parts[".strtab"]
        named = [
            text_at(names, struct.unpack_from("<I", symbols, at)[0])
            for at in range(0, len(symbols), 24)
        ]
        own = {
            name.removeprefix(".text."): Kernel(arch, name.removeprefix(".text."))
            for name in parts
            if name.startswith(".text.")
        }
        for attribute, value in attributes(parts.get(".nv.info", b"")):
            if attribute in {FRAME_BYTES, REGISTERS}:
                symbol, number = struct.unpack("<II", value)
                kernel = own.get(named[symbol])  # none: a function that kernels call
                if kernel is not None and attribute == REGISTERS:
                    kernel.registers = number
                elif kernel is not None:
                    kernel.frame_bytes = number
        for name, kernel in own.items():
            kernel.shared_bytes = len(parts.get(f".nv.shared.{name}", b""))
            for attribute, value in attributes(parts.get(f".nv.info.{name}", b"")):
                if attribute == MOST_THREADS:
                    x, y, z = struct.unpack("<III", value)
                    kernel.threads = x * y * z
        kernels += own.values()
    return kernels


@pytest.fixture(scope="module")
def kernels() -> list[Kernel]:
    if not _C.build_config()["cuda"]:
        pytest.skip("the extension has no CUDA")
    found = read_kernels(Path(_C.__file__).read_bytes())
    assert found
    return found


def test_every_architecture_has_the_same_kernels(kernels: list[Kernel]) -> None:
    archs = {kernel.arch for kernel in kernels}
    names = {kernel.name for kernel in kernels}
    assert {(kernel.arch, kernel.name) for kernel in kernels} == {
        (arch, name) for arch in archs for name in names
    }


def test_no_kernel_spills(kernels: list[Kernel]) -> None:
    assert not [kernel for kernel in kernels if kernel.frame_bytes]


def test_registers_that_are_moved_are_there(kernels: list[Kernel]) -> None:
    """Blocks whose warpgroups take registers begin with all that a block of their size can have.

    With fewer, the warpgroups that multiply would wait for ever for what the others cannot give.
    """
    movers = [k for k in kernels if k.arch == 90 and re.search("conv_wgmma.*Li256E", k.name)]
    if not movers:
        pytest.skip("this build has no kernels for sm_90a")
    assert len(movers) == 5
    for kernel in movers:
        assert kernel.registers == REGISTERS_OF_SM // kernel.threads // 8 * 8, kernel


def test_a_block_of_every_kernel_fits_a_multiprocessor(kernels: list[Kernel]) -> None:
    for kernel in kernels:
        assert 0 < kernel.threads <= 1024, f"{kernel.name} lacks __launch_bounds__"
        # Registers are handed out to warps in lots of 256.
        per_warp = -(-kernel.registers * 32 // 256) * 256
        assert 0 < per_warp * kernel.threads // 32 <= REGISTERS_OF_SM, kernel
        assert kernel.shared_bytes <= STATIC_SHARED_BYTES, kernel
