//! `iommu/refused…`: firmware's tables that leave memory open to a device, or make no sense, and a unit that cannot
//! do what the visor needs. The visor says so, and has no IOMMU then; the host runs as if there was none.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use super::iommu::powered_off;
use super::{Rig, Test};
use crate::machine::{self, Image, Loader, Payload};
use crate::paths;

/// Processor time of QEMU for one boot, ten times what the longest takes.
const LIMIT: Duration = Duration::from_secs(60);
/// Something that does DMA.
const DEVICE: &str = "-m 1024 -device edu,dma_mask=0xffffffffffffffff";
const UNIT: &str = "-device intel-iommu,intremap=on";
/// What the visor says once a unit is started.
const STARTED: &str = "visor: [info] VT-d unit *: devices reach only what the host reaches";

/// A machine, the table that firmware finds there besides its own, and what the visor says of that.
struct Case {
    machine: &'static str,
    table: Option<Vec<u8>>,
    lack: &'static str,
}

/// A unit (DRHD) whose registers are at `base`.
fn unit(base: u64) -> Vec<u8> {
    const REST: u8 = 1;
    [&[0, 0, 16, 0, REST, 0, 0, 0][..], &base.to_le_bytes()].concat()
}

/// What follows ACPI's header in a table with these structures.
fn table(structures: &[Vec<u8>]) -> Option<Vec<u8>> {
    const WIDTH: u8 = 39;
    let mut bytes = vec![0; 12];
    if let [width, ..] = bytes.as_mut_slice() {
        *width = WIDTH - 1;
    }
    bytes.extend(structures.concat());
    Some(bytes)
}

/// Boots each of `cases` with a host that only uses the devices.
fn run(rig: &Rig<'_>, cases: &[Case]) -> Result<()> {
    for case in cases {
        let dir = rig.dir.join("");
        paths::emptied(&dir)?;
        let mut machine = format!("-smp 2 {DEVICE} {}", case.machine);
        if let Some(table) = &case.table {
            fs::write(dir.join("table"), table).context("cannot write a table")?;
            machine += " -acpitable sig=DMAR,data=table";
        }
        let host = Image::new(rig.kit.guests()?.dma, "open works");
        let kernel = Image::new(rig.kit.without_vmx()?, "");
        let payload = Payload::Multiboot { kernel, modules: vec![host] };
        let loading = machine::loading(Loader::Direct, &payload, &dir)?;
        let lack = format!("visor: [warn] no IOMMU keeps devices from memory: {}", case.lack);
        let lines: &[&str] = &[&lack, "dma: edu at * moves 2048 bytes", "dma: PASS works"];
        let never = &[STARTED, "dma: FAIL *"];
        let _ = powered_off(rig, (&machine, &loading), LIMIT, (lines, never))
            .with_context(|| format!("the table with which {}", case.lack))?;
    }
    Ok(())
}

/// Machines on which a device has no unit.
fn without_unit() -> Vec<Case> {
    let case = |machine, lack| Case { machine, table: None, lack };
    vec![
        // Firmware knows the first bus as the unit's no more.
        case(
            "-device intel-iommu,intremap=on -machine default-bus-bypass-iommu=on",
            "DMAR: no unit for the device 00:00.0",
        ),
        // A bus that no bridge leads to.
        case(
            "-device intel-iommu,intremap=on -device pxb-pcie,id=other,bus_nr=0x40,bypass_iommu=on \
             -device pcie-root-port,id=behind,bus=other,chassis=9 \
             -device edu,bus=behind,dma_mask=0xffffffffffffffff",
            "DMAR: no unit for the device 40:00.0",
        ),
    ]
}

/// Tables that name no unit that the visor could use.
fn broken() -> Vec<Case> {
    let case = |table, lack| Case { machine: "", table, lack };
    let cut = table(&[unit(0xfed9_0000), vec![1, 0, 9, 0]]);
    vec![
        Case {
            machine: UNIT,
            table: table(&[unit(0xfed9_0000)]),
            lack: "the machine has 2 tables DMAR",
        },
        Case {
            machine: "-device intel-iommu,intremap=on,dma-translation=off",
            table: None,
            lack: "VT-d unit 0xfed90000: lacks second-stage tables of 3 or 4 levels",
        },
        case(table(&[unit(0xfed9_0000)]), "VT-d unit 0xfed90000: lacks working registers"),
        // The registers of an I/O APIC.
        case(table(&[unit(0xfec0_0000)]), "VT-d unit 0xfec00000: lacks working registers"),
        case(table(&[unit(0x100_0000)]), "VT-d unit 0x1000000: in RAM"),
        case(table(&[unit(0x1_0000_0000)]), "VT-d unit 0x100000000: above 4 GiB"),
        case(table(&[]), "DMAR: it lists no unit"),
        case(cut, "DMAR: the structure at 0x40 is cut short"),
        case(
            table(&[unit(0xfed9_0000), unit(0xfed9_0000)]),
            "DMAR: the unit at 0x40 has the registers of another",
        ),
    ]
}

/// The tests of this file.
pub(super) fn tests() -> Vec<Test> {
    vec![
        Test::new("iommu/refused-uncovered", 5, |rig| run(rig, &without_unit())),
        Test::new("iommu/refused-tables", 15, |rig| run(rig, &broken())),
    ]
}
