//! Why a host cannot be loaded.

use core::fmt;

/// Why a host cannot be loaded; shown as one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadError {
    /// The handoff is no multiboot2 structure; the offset of the first tag that is wrong.
    Handoff(usize),
    /// The handoff names no module.
    NoKernel,
    /// The handoff names more modules than there are places for.
    Modules,
    /// A module overlaps the loader area: its number.
    ModuleInArea(usize),
    /// The first module is compressed.
    Compressed,
    /// The first module is of no kind that can be started.
    UnknownImage,
    /// The file ends before what its headers promise.
    Truncated,
    /// The bzImage is of an older boot protocol: major version in the high byte.
    OldProtocol(u16),
    /// The bzImage's header contradicts itself.
    LinuxHeader,
    /// More modules than the one initrd that Linux takes; how many.
    ExtraModules(usize),
    /// The command line is longer than the kernel takes: its length and the limit.
    CommandLine(usize, u32),
    /// The ELF image is no x86 executable with segments to load.
    Elf,
    /// More segments than there are places for.
    Segments,
    /// The kernel must lie where the machine has no free RAM: first byte and length.
    NoRoomForKernel(u64, u64),
    /// No free RAM for a module that must be moved: its number and length.
    NoRoomForModule(usize, u64),
    /// No conventional memory for the service that replaces the BIOS's memory map.
    NoRoomForMap,
    /// The entry point is outside the image.
    Entry(u64),
    /// The multiboot header asks for features by flags that cannot be met.
    HeaderFlags(u32),
    /// The multiboot2 header has a required tag that cannot be met: its type.
    HeaderTag(u16),
    /// The multiboot2 header requires information that is not there: its tag type.
    Information(u32),
    /// The boot tables exceed the room for them.
    ScratchFull,
    /// More moves than there are places for.
    Steps,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Handoff(at) => write!(f, "handoff: malformed at byte {at:#x}"),
            Self::NoKernel => f.write_str("no host kernel: give it as the first module"),
            Self::Modules => f.write_str("too many modules"),
            Self::ModuleInArea(number) => write!(f, "module {number}: lies in the loader's memory"),
            Self::Compressed => f.write_str("host kernel: still compressed, unpack the file first"),
            Self::UnknownImage => f.write_str("host kernel: neither a bzImage nor multiboot"),
            Self::Truncated => f.write_str("host kernel: the file is truncated or corrupt"),
            Self::OldProtocol(version) => {
                let [major, minor] = version.to_be_bytes();
                write!(f, "host kernel: Linux boot protocol {major}.{minor:02}, 2.10 is needed")
            }
            Self::LinuxHeader => f.write_str("host kernel: corrupt bzImage header"),
            Self::ExtraModules(count) => {
                write!(f, "a Linux host takes one initrd, {count} modules follow the kernel")
            }
            Self::CommandLine(len, max) => {
                write!(f, "host command line: {len} bytes, the kernel takes {max}")
            }
            Self::Elf => f.write_str("host kernel: not an x86 ELF executable"),
            Self::Segments => f.write_str("host kernel: too many ELF segments"),
            Self::NoRoomForKernel(at, len) => {
                write!(f, "host kernel: no free RAM for {len:#x} bytes at {at:#x}")
            }
            Self::NoRoomForModule(number, len) => {
                write!(f, "module {number}: no free RAM to move its {len:#x} bytes to")
            }
            Self::NoRoomForMap => {
                f.write_str("no free RAM below 640 KiB for the BIOS's memory map")
            }
            Self::Entry(at) => write!(f, "host kernel: entry point {at:#x} is outside the image"),
            Self::HeaderFlags(flags) => {
                write!(f, "host kernel: multiboot header flags {flags:#x} cannot be met")
            }
            Self::HeaderTag(tag) => {
                write!(f, "host kernel: multiboot2 header tag {tag} cannot be met")
            }
            Self::Information(tag) => {
                write!(f, "host kernel: requires multiboot2 tag {tag}, which is not there")
            }
            Self::ScratchFull => f.write_str("the boot tables exceed the loader area"),
            Self::Steps => f.write_str("host kernel: too many pieces to move"),
        }
    }
}
