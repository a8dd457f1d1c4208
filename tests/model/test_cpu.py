"""What decides how a CPU multiplies, on machines that this one stands in for."""

import pytest
import torch

from src.model import cpu

MACHINES = {  # what the machine is, and what multiplies there
    "EPYC with AVX-512": ("AVX512", "AuthenticAMD", True, "oneDNN"),
    "EPYC with AVX2": ("AVX2", "AuthenticAMD", True, "MKL"),
    "Xeon": ("AVX512", "GenuineIntel", True, "MKL"),
    "Apple silicon, Linux on ARM": ("DEFAULT", "", False, "torch's default library"),
}


@pytest.fixture
def machine(monkeypatch):
    """Makes this machine another one: its vector unit, its vendor and whether torch has MKL there."""

    def pretend(capability, vendor, mkl):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
        monkeypatch.setattr(cpu, "about", lambda field: vendor if field == "vendor_id" else "")
        monkeypatch.setattr(cpu, "has_onednn", lambda: True)
        cpu.onednn_is_faster.cache_clear()

    yield pretend
    cpu.onednn_is_faster.cache_clear()


@pytest.mark.parametrize("name", MACHINES)
def test_the_machine_decides_what_multiplies(name, machine):
    *what, library = MACHINES[name]
    machine(*what)
    assert cpu.library() == library
    rows = torch.ones(2, 3)
    assert cpu.onednn_applies(rows) == (library == "oneDNN")
    assert not cpu.onednn_applies(rows.double())


def test_the_processor_has_a_name(monkeypatch):
    assert cpu.model_name()
    monkeypatch.setattr(cpu, "about", lambda _: "")  # as on macOS
    assert cpu.model_name()


def test_another_c_library_keeps_memory_its_own_way(monkeypatch):
    """macOS's has no mallopt."""
    monkeypatch.setattr(cpu.ctypes, "CDLL", lambda _: object())
    cpu.keep_freed_memory()
