//! A virtual machine monitor on KVM's raw interface.
//!
//! Its arguments name tests, which run one after the other; `all` stands for every one that needs
//! nothing special. Each ends with one line `vmm: PASS name` or `vmm: FAIL name: why`. Other words
//! are jobs of their own: `cost`, `leave-running` and `linux`.

mod code;
mod kvm;
mod memory;
mod mode;
mod tests;
mod vm;

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let mut failed = false;
    for (name, test) in tests::selected(&words) {
        match test() {
            Ok(()) => println!("vmm: PASS {name}"),
            Err(why) => {
                failed = true;
                println!("vmm: FAIL {name}: {why}");
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
