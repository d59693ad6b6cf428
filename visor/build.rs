//! Links the visor by its own script, without any C runtime.

fn main() {
    let directory = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    for argument in [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        &format!("-Wl,-T,{directory}/visor.ld"),
        "-Wl,-z,noexecstack",
        "-Wl,-z,max-page-size=0x1000",
        "-Wl,--gc-sections",
        "-Wl,--build-id=none",
        "-Wl,--no-dynamic-linker",
    ] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
    println!("cargo:rerun-if-changed=visor.ld");
    println!("cargo:rerun-if-env-changed=VISOR_LOADER");
    if std::env::var_os("VISOR_LOADER").is_none() {
        println!("cargo:error=VISOR_LOADER is not set: build with `cargo xtask build`");
    }
}
