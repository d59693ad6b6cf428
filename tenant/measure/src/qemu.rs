//! The machine around the VM.

use crate::{Machine, Order};

/// Where the first virtio device of QEMU's `microvm` has its registers, as long as there is no ACPI.
pub(crate) const DEVICES: u64 = 0xfeb0_0000;
/// The line of its interrupt. Each further device has the next.
const LINE: u64 = 5;

/// Words for the kernel that tell of so many virtio devices.
pub(crate) fn words(devices: u8) -> String {
    let word = |number| {
        let (at, line) = (DEVICES + number * 0x200, LINE + number);
        format!("virtio_mmio.device=512@{at:#x}:{line} ")
    };
    (0..u64::from(devices)).map(word).collect()
}

/// QEMU's arguments, one a line, for the VM of `order`, whose image begins at `start`. The files are in the
/// working folder. Virtio devices come on top, on the buses virtio-mmio-bus.0 and so on. A VM that may not be
/// started anew ends with its first reset.
///
/// Nothing here is trusted: with other arguments the host gets another machine, and the VM stops or goes
/// without a device.
pub(crate) fn arguments(start: u32, order: &Order) -> String {
    let (memory, processors) = (order.memory, order.processors);
    let resets = if order.restarts == 0 { "-no-reboot" } else { "" };
    let machine = match order.machine {
        // It insists on a firmware, too, which nothing runs.
        Machine::Q35 => {
            "q35,acpi=off,hpet=off,i8042=off,sata=off,smbus=off,smm=off,vmport=off \
             -device loader,file=stub.rom,addr=0x100000,force-raw=on"
        }
        Machine::Qemu | Machine::Xen => {
            "microvm,acpi=off,pic=on,pit=on,rtc=on,isa-serial=on,auto-kernel-cmdline=off,\
             x-option-roms=off -global virtio-mmio.force-legacy=false"
        }
    };
    let words = format!(
        "-no-user-config -nodefaults -display none {resets} -serial stdio -accel kvm -cpu host -smp {processors} \
         -machine {machine} -m {}M -bios stub.rom \
         -device loader,file=image.bin,addr={start:#x},force-raw=on",
        memory >> 20
    );
    words.split_whitespace().map(|word| format!("{word}\n")).collect()
}
