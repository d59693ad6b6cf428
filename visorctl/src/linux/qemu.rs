//! The machine around the VM.

/// QEMU's arguments, one a line, for an image that begins at `start`, in `memory` bytes, with so many
/// processors. The files are in the working folder.
///
/// Nothing here is trusted: with other arguments the host gets another machine, and the VM stops or goes
/// without a device.
pub(super) fn arguments(start: u32, memory: u64, processors: u8) -> String {
    let words = format!(
        "-no-user-config -nodefaults -display none -no-reboot -serial stdio -accel kvm -cpu host -smp {processors} \
         -machine microvm,acpi=off,pic=on,pit=on,rtc=on,isa-serial=on,auto-kernel-cmdline=off,\
         x-option-roms=off -m {}M -bios stub.rom \
         -device loader,file=image.bin,addr={start:#x},force-raw=on",
        memory >> 20
    );
    words.split_whitespace().map(|word| format!("{word}\n")).collect()
}
