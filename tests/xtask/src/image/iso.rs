//! CD images that boot a payload by isolinux or GRUB 2.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::machine::{Image, Payload};
use crate::tool::run;

const ISOLINUX: &str = "/usr/lib/ISOLINUX/isolinux.bin";
const SYSLINUX: &str = "/usr/lib/syslinux/modules/bios";

/// GRUB's own modules that its images need; the rest would only cost loading time.
const GRUB_MODULES: [&str; 10] = [
    "echo",
    "iso9660",
    "linux",
    "multiboot",
    "multiboot2",
    "normal",
    "search",
    "serial",
    "test",
    "gzio",
];

/// Which GRUB commands load a multiboot payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// `multiboot` and `module`.
    Multiboot1,
    /// `multiboot2` and `module2`.
    Multiboot2,
}

/// Which firmware a GRUB image is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Firmware {
    /// PC BIOS, El Torito without emulation.
    Bios,
    /// UEFI, x86-64.
    Efi,
}

/// What GRUB needs to write to a chipset.
const GRUB_HARDWARE: [&str; 3] = ["biosdisk", "memrw", "setpci"];

/// The files of a payload with the names that they get on the CD.
struct Named<'a> {
    files: Vec<(String, &'a Path)>,
}

impl<'a> Named<'a> {
    fn new(payload: &'a Payload) -> Self {
        let paths: Vec<&Path> = match payload {
            Payload::Linux { kernel, initrd } => {
                let files = [Some(kernel.file.as_path()), initrd.as_deref()];
                files.into_iter().flatten().collect()
            }
            Payload::Multiboot { kernel, modules } => {
                let images = std::iter::once(kernel).chain(modules);
                images.map(|image| image.file.as_path()).collect()
            }
        };
        let name = |(at, path)| (format!("/image{at}"), path);
        Self { files: paths.into_iter().enumerate().map(name).collect() }
    }
}

/// Where a boot loader's messages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Messages {
    /// To the screen.
    Screen,
    /// To the serial line, too: its name first, before it loads anything.
    Serial,
}

/// Makes an image in `dir` that boots `payload` by isolinux.
pub(crate) fn isolinux(payload: &Payload, dir: &Path, messages: Messages) -> Result<PathBuf> {
    let config = dir.join("isolinux.cfg");
    let serial = match messages {
        Messages::Screen => "",
        Messages::Serial => "serial 0 115200\n",
    };
    write(&config, &format!("{serial}{}", isolinux_config(payload)))?;
    let mut files = vec![
        ("/isolinux.cfg".to_owned(), config.clone()),
        ("/isolinux.bin".to_owned(), PathBuf::from(ISOLINUX)),
    ];
    for module in ["ldlinux.c32", "libcom32.c32", "mboot.c32"] {
        files.push((format!("/{module}"), Path::new(SYSLINUX).join(module)));
    }
    let boot = "-b isolinux.bin -c boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table";
    image(payload, dir, files, boot)
}

/// Makes an image in `dir` that boots `payload` by GRUB 2.
pub(crate) fn grub(
    payload: &Payload,
    dir: &Path,
    protocol: Protocol,
    firmware: Firmware,
) -> Result<PathBuf> {
    let config = grub_config(payload, protocol);
    match firmware {
        Firmware::Bios => grub_bios(payload, dir, &config, &["biosdisk"]),
        Firmware::Efi => {
            let efi = ("/efi.img".to_owned(), efi_partition(dir)?);
            let files = vec![grub_file(dir, &config)?, efi];
            image(payload, dir, files, "-e efi.img -c boot.cat -no-emul-boot")
        }
    }
}

/// Makes an image in `dir` that boots `payload` by GRUB 2, BIOS and multiboot2, after GRUB has executed `first`, which
/// may touch hardware.
pub(crate) fn grub_after(first: &str, payload: &Payload, dir: &Path) -> Result<PathBuf> {
    let config = format!("{first}{}", grub_config(payload, Protocol::Multiboot2));
    grub_bios(payload, dir, &config, &GRUB_HARDWARE)
}

fn grub_bios(payload: &Payload, dir: &Path, config: &str, modules: &[&str]) -> Result<PathBuf> {
    let core = dir.join("core.img");
    grub_core(&core, "i386-pc-eltorito", modules)?;
    let files = vec![grub_file(dir, config)?, ("/core.img".to_owned(), core)];
    let boot = "-b core.img -c boot.cat -no-emul-boot -boot-load-size 4 \
                -boot-info-table --grub2-boot-info";
    image(payload, dir, files, boot)
}

/// GRUB's configuration, and what it is called on the CD.
fn grub_file(dir: &Path, config: &str) -> Result<(String, PathBuf)> {
    let path = dir.join("grub.cfg");
    write(&path, config)?;
    Ok(("/boot/grub/grub.cfg".to_owned(), path))
}

/// A FAT image that holds GRUB where UEFI looks for a boot loader.
fn efi_partition(dir: &Path) -> Result<PathBuf> {
    let program = dir.join("bootx64.efi");
    grub_core(&program, "x86_64-efi", &["part_gpt", "fat", "efi_gop"])?;
    let fat = dir.join("efi.img");
    let kib = "2880";
    run(Command::new("mformat").args(["-C", "-f", kib, "-i"]).arg(&fat).arg("::"))?;
    run(Command::new("mmd").arg("-i").arg(&fat).args(["::/EFI", "::/EFI/BOOT"]))?;
    let copy = "::/EFI/BOOT/BOOTX64.EFI";
    run(Command::new("mcopy").arg("-i").arg(&fat).arg(&program).arg(copy))?;
    Ok(fat)
}

/// GRUB's core with `modules` and the common ones; it looks for its configuration on the CD.
fn grub_core(out: &Path, format: &str, modules: &[&str]) -> Result<()> {
    let early = out.with_extension("early.cfg");
    let find = "search --no-floppy --set=root --file /boot/grub/grub.cfg\n\
                set prefix=($root)/boot/grub\n";
    write(&early, find)?;
    let mut command = Command::new("grub-mkimage");
    let _ = command.args(["-O", format, "-p", "/boot/grub", "-c"]).arg(early);
    let _ = command.arg("-o").arg(out).args(GRUB_MODULES).args(modules);
    run(&mut command)
}

/// Runs xorriso on `files` and those of the payload.
fn image(
    payload: &Payload,
    dir: &Path,
    files: Vec<(String, PathBuf)>,
    boot: &str,
) -> Result<PathBuf> {
    let iso = dir.join("boot.iso");
    let mut command = Command::new("xorriso");
    let _ = command.args(["-as", "mkisofs", "-quiet", "-R", "-o"]).arg(&iso);
    let _ = command.args(boot.split_whitespace()).arg("-graft-points");
    let payload = Named::new(payload).files.into_iter();
    let payload = payload.map(|(name, path)| (name, path.to_path_buf()));
    for (name, path) in files.into_iter().chain(payload) {
        let mut graft = OsString::from(name);
        graft.push("=");
        graft.push(path);
        let _ = command.arg(graft);
    }
    run(&mut command)?;
    Ok(iso)
}

fn isolinux_config(payload: &Payload) -> String {
    let lines = match payload {
        Payload::Linux { kernel, initrd } => {
            let initrd = initrd.as_ref().map_or("", |_| "initrd=/image1 ");
            format!(" linux /image0\n append {initrd}{}\n", kernel.words)
        }
        Payload::Multiboot { kernel, modules } => {
            let images = std::iter::once(kernel).chain(modules).enumerate();
            let parts: Vec<String> = images.map(|(at, image)| part(at, image)).collect();
            format!(" kernel mboot.c32\n append {}\n", parts.join(" --- "))
        }
    };
    format!("default go\nprompt 0\ntimeout 0\nlabel go\n{lines}")
}

fn grub_config(payload: &Payload, protocol: Protocol) -> String {
    let (boot, module) = match protocol {
        Protocol::Multiboot1 => ("multiboot", "module"),
        Protocol::Multiboot2 => ("multiboot2", "module2"),
    };
    let mut lines = String::from("serial --unit=0 --speed=115200\nterminal_output serial\n");
    match payload {
        Payload::Linux { kernel, initrd } => {
            lines.push_str(&format!("linux {}\n", quoted(0, kernel)));
            lines.push_str(initrd.as_ref().map_or("", |_| "initrd /image1\n"));
        }
        Payload::Multiboot { kernel, modules } => {
            lines.push_str(&format!("{boot} {}\n", quoted(0, kernel)));
            for (at, image) in modules.iter().enumerate() {
                lines.push_str(&format!("{module} {}\n", quoted(at + 1, image)));
            }
        }
    }
    lines.push_str("boot\n");
    lines
}

fn part(at: usize, image: &Image) -> String {
    format!("/image{at} {}", image.words).trim_end().to_owned()
}

/// As [`part`], with the words quoted one by one so that GRUB's shell leaves them alone.
fn quoted(at: usize, image: &Image) -> String {
    let words = image.words.split_whitespace().map(|word| format!(" '{word}'"));
    format!("/image{at}{}", words.collect::<String>())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload() -> Payload {
        Payload::Multiboot {
            kernel: Image::new("visor.elf", "log=debug"),
            modules: vec![Image::new("bzImage", "console=ttyS0 a=b;c"), Image::new("i", "")],
        }
    }

    #[test]
    fn isolinux_separates_modules_by_dashes() {
        let text = isolinux_config(&payload());
        let line = " append /image0 log=debug --- /image1 console=ttyS0 a=b;c --- /image2";
        assert_eq!(text.lines().last(), Some(line));
    }

    #[test]
    fn grub_loads_every_module_by_the_chosen_protocol_and_quotes_its_words() {
        let text = grub_config(&payload(), Protocol::Multiboot2);
        assert!(text.contains("multiboot2 /image0 'log=debug'\n"));
        assert!(text.contains("module2 /image1 'console=ttyS0' 'a=b;c'\nmodule2 /image2\n"));
        let text = grub_config(&payload(), Protocol::Multiboot1);
        assert!(text.contains("\nmodule /image2\n"));
    }

    #[test]
    fn linux_without_an_initrd_names_none() {
        let kernel = Image::new("bzImage", "quiet");
        let payload = Payload::Linux { kernel, initrd: None };
        assert!(isolinux_config(&payload).ends_with(" append quiet\n"));
        assert!(!grub_config(&payload, Protocol::Multiboot1).contains("initrd"));
    }
}
