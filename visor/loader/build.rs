//! Links the loader by its own script, without any C runtime.
//!
//! The blob that the visor carries is the flat form of the linked file. In `visor/`:
//!
//! ```sh
//! cargo build --release -p loader
//! objcopy -O binary target/x86_64-unknown-linux-gnu/release/loader loader.bin
//! ```

fn main() {
    let directory = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    for argument in [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        &format!("-Wl,-T,{directory}/loader.ld"),
        "-Wl,-z,noexecstack",
        "-Wl,--gc-sections",
        "-Wl,--build-id=none",
        "-Wl,--no-dynamic-linker",
    ] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
    println!("cargo:rerun-if-changed=loader.ld");
}
