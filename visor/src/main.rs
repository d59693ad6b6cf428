#![no_std]
#![no_main]
#![doc = include_str!("../README.md")]
#![cfg_attr(feature = "without-vmx", expect(dead_code, reason = "nothing begins what needs VMX"))]

mod apic;
mod cpu;
mod events;
mod guest_state;
mod host;
mod host_memory;
mod io;
mod iommu;
mod keys;
mod launch;
mod machine;
mod memory;
mod nested;
mod paging;
mod percpu;
#[cfg_attr(feature = "without-vmx", path = "../without-vmx/processor.rs")]
mod processor;
mod random;
mod reset;
mod scrub;
mod segments;
mod serial;
mod shootdown;
mod smp;
mod status;
mod stop;
mod submit;
mod table;
mod tables;
#[cfg_attr(feature = "serial-tpm", path = "../serial-tpm/tis.rs")]
mod tis;
mod tpm;
mod txt;
mod vectors;
mod vmcs;

use core::arch::global_asm;

global_asm!(
    include_str!("entry.s"),
    start = sym launch::start,
    application = sym launch::application,
    page_tables = sym smp::PAGE_TABLES,
    stacks = sym smp::STACKS,
    arrivals = sym smp::ARRIVALS,
    expected = sym smp::EXPECTED,
    stride = const percpu::SIZE,
);
global_asm!(
    include_str!("exit.s"),
    on_exit = sym host::on_exit,
    on_late_nmi = sym host::on_late_nmi,
    on_exception = sym stop::on_exception,
    on_refused = sym host::on_refused,
    entry_failed = sym stop::entry_failed,
    stopping = sym stop::STOPPING,
    index = const percpu::INDEX,
    stopped = const percpu::STOPPED,
    nmi_arrived = const percpu::NMI_ARRIVED,
    launch = const percpu::LAUNCH,
);
global_asm!(include_str!("library.s"));
