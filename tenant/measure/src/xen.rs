//! The same VM for Xen: an HVM guest whose "firmware" is an ELF file with everything in it.
//!
//! Xen's toolstack has the processor begin where the file says, in protected mode with flat segments, with
//! EBX at a page that tells of the machine (xen/tools/libs/guest/xg_dom_x86.c, `vcpu_hvm`). That page is the
//! host's word, and not in the manifest: the VM does not look at it, and would find zeros.

use std::path::Path;

use nested_vmx::control::EntryControls;
use nested_vmx::field::{self as f, Segment, Vmcs};
use nested_vmx::guard::{Registers, start};
use nested_vmx::merge::HostRegisters;
use nested_vmx::vmcs12::Vmcs12;
use sha2::{Digest, Sha256};

use crate::layout::PAGE_LEN;
use crate::pci::Bus;
use crate::{Image, Order, rom};

/// Where the stub lies: the toolstack loads an image to one run of memory, and below 1 MiB there are holes.
pub(crate) const STUB: u32 = 0x10_0000;
/// `xl` insists on a firmware for the firmware. Nothing runs it.
pub(crate) const FIRMWARE: &[u8] = b"This is no firmware.\n";

/// QEMU has a PC of i440FX's kind here, with a bridge and its functions in slots 0 and 1, the platform device in slot 2 and a
/// display in slot 3, if they are there. Xen has a pin for each slot (xen/include/asm-x86/hvm/irq.h,
/// `hvm_pci_intx_gsi`).
pub(crate) const BUS: Bus =
    Bus { first: 4, pin: |slot| 16 + (slot * 4 + slot / 8) % 32, memory: &[] };

/// How far ids of local APICs are apart (xen/arch/x86/hvm/vlapic.c, `vlapic_reset`).
pub(crate) const APIC_IDS_APART: u8 = 2;

/// Sizes of an ELF file's header and of its program headers (System V ABI, chapters 4 and 5).
const HEADER: u16 = 52;
const PROGRAM_HEADER: u16 = 32;

fn word(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn entry() -> u32 {
    STUB | u32::from(rom::FLAT_AT)
}

/// The file: two segments, the stub and the rest.
pub(crate) fn elf(image: &Image) -> Vec<u8> {
    let mut file = b"\x7fELF\x01\x01\x01".to_vec();
    file.resize(16, 0);
    let (executable, i386, version) = (2, 3, 1);
    for half in [executable, i386] {
        file.extend(u16::to_le_bytes(half));
    }
    for value in [version, entry(), HEADER.into(), 0, 0] {
        file.extend(value.to_le_bytes());
    }
    for half in [HEADER, PROGRAM_HEADER, 2, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let mut offset = word(PAGE_LEN);
    let parts = [(STUB, &image.stub), (image.layout.start(), &image.content)];
    for (place, content) in parts {
        let (load, all_rights, length) = (1, 7, word(content.len()));
        for value in [load, offset, place, place, length, length, all_rights, word(PAGE_LEN)] {
            file.extend(value.to_le_bytes());
        }
        offset += length.next_multiple_of(word(PAGE_LEN));
    }
    for (_, content) in parts {
        file.resize(file.len().next_multiple_of(PAGE_LEN), 0);
        file.extend(content);
    }
    file
}

/// What `xl` is told, for an image in the folder `place`. Nothing here is trusted.
pub(crate) fn configuration(place: &Path, order: &Order) -> String {
    let (place, memory, processors) = (place.display(), order.memory >> 20, order.processors);
    format!(
        r#"name="linux"
type="hvm"
memory={memory}
vcpus={processors}
firmware_override="{place}/image.elf"
bios="seabios"
bios_path_override="{place}/firmware.bin"
serial="pty"
acpi=0
xen_platform_pci=0
vga="none"
vnc=0
usb=0
on_reboot="destroy"
on_crash="destroy"
"#
    )
}

/// The general-purpose registers at the beginning: RBX alone has something in it.
struct Beginning {
    rbx: u64,
}

impl Registers for Beginning {
    fn get(&self, number: u8) -> u64 {
        if number == 3 { self.rbx } else { 0 }
    }

    fn set(&mut self, _: u8, _: u64) {}
}

/// The hash of the state in which the processor begins. The toolstack puts the firmware behind the image, a
/// page here, and the page that EBX tells of behind that.
pub(crate) fn first_state(image: &Image) -> [u8; 32] {
    const CODE: u32 = 0xc09b;
    const DATA: u32 = 0xc093;
    const BUSY_TSS: u32 = 0x8b;
    const UNUSABLE: u32 = 1 << 16;
    let mut vmcs = Vmcs12::EMPTY;
    for segment in Segment::ALL {
        let (rights, limit) = match segment {
            Segment::Cs => (CODE, u32::MAX),
            Segment::Ds | Segment::Es | Segment::Ss => (DATA, u32::MAX),
            Segment::Tr => (BUSY_TSS, 0x67),
            Segment::Fs | Segment::Gs | Segment::Ldtr => (UNUSABLE, 0),
        };
        vmcs.write(segment.fields().rights, rights);
        vmcs.write(segment.fields().limit, limit);
    }
    let loaded = EntryControls::LOAD_DEBUG | EntryControls::LOAD_PAT | EntryControls::LOAD_EFER;
    vmcs.write(f::ENTRY_CONTROLS, loaded.bits());
    vmcs.write(f::GUEST_PAT, 0x0007_0406_0007_0406);
    vmcs.write(f::GUEST_CR0, 0x11);
    vmcs.write(f::GUEST_RIP, entry().into());
    vmcs.write(f::GUEST_RFLAGS, 2);
    vmcs.write(f::GUEST_DR7, 0x400);
    let end = image.layout.start() + word(image.content.len());
    let page = word(PAGE_LEN);
    let registers = Beginning { rbx: u64::from(end.next_multiple_of(page) + page) };
    let mut hash = Sha256::new();
    let feed = |value: u64| hash.update(value.to_le_bytes());
    start::state(&vmcs, &HostRegisters::UNUSED, &registers, feed);
    hash.finalize().into()
}

#[cfg(test)]
mod tests;
