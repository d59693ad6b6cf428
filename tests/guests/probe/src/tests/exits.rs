//! `exits [count]`: TSC ticks of each operation that may exit, as a mean over `count`.

use super::{Arguments, Machine};
use crate::fault::catch;
use crate::report::Outcome;
use crate::{console, cpu};

const EFER: u32 = 0xc000_0080;
const FEATURE_CONTROL: u32 = 0x3a;
const APIC_BASE: u32 = 0x1b;
const PAT: u32 = 0x277;
const UNUSED_PORT: u16 = 0x80;

struct Operation {
    name: &'static str,
    run: fn(),
}

const OPERATIONS: &[Operation] = &[
    Operation { name: "nothing", run: || {} },
    Operation {
        name: "cpuid",
        run: || {
            let _ = cpu::cpuid(0, 0);
        },
    },
    Operation {
        name: "rdtsc",
        run: || {
            let _ = cpu::rdtsc();
        },
    },
    Operation {
        name: "rdmsr-efer",
        run: || {
            let _ = cpu::rdmsr(EFER);
        },
    },
    Operation {
        name: "rdmsr-feature-control",
        run: || {
            let _ = cpu::rdmsr(FEATURE_CONTROL);
        },
    },
    Operation {
        name: "rdmsr-apic-base",
        run: || {
            let _ = cpu::rdmsr(APIC_BASE);
        },
    },
    Operation { name: "rdwrmsr-pat", run: || cpu::wrmsr(PAT, cpu::rdmsr(PAT)) },
    Operation { name: "mov-cr0", run: || cpu::set_cr0(cpu::cr0()) },
    Operation { name: "mov-cr3", run: || cpu::set_cr3(cpu::cr3()) },
    Operation { name: "mov-cr4", run: || cpu::set_cr4(cpu::cr4()) },
    Operation {
        name: "in-control",
        run: || {
            let _ = cpu::in32(control::PORT);
        },
    },
    Operation { name: "out-port80", run: || cpu::out8(UNUSED_PORT, 0) },
    Operation { name: "wbinvd", run: cpu::write_back_caches },
];

pub(super) fn run(_: &Machine, arguments: &Arguments) -> Outcome {
    let count = arguments.number(1000).max(1);
    for operation in OPERATIONS {
        if let Err(fault) = catch(operation.run) {
            let name = operation.name;
            console::line(format_args!("exits {name} vector {}", fault.vector));
            continue;
        }
        measure(operation.name, count, operation.run);
    }
    let osxsave = cpu::cpuid(1, 0)[2] & 1 << 26 != 0;
    if osxsave {
        cpu::set_cr4(cpu::cr4() | 1 << 18);
        measure("xsetbv", count, || cpu::xsetbv(0, cpu::xgetbv(0)));
        cpu::set_cr4(cpu::cr4() & !(1 << 18));
    }
    Ok(())
}

fn measure(name: &str, count: u64, run: fn()) {
    let start = cpu::rdtsc();
    for _ in 0..count {
        run();
    }
    let ticks = cpu::rdtsc() - start;
    console::line(format_args!("exits {name} {}", ticks / count));
}
