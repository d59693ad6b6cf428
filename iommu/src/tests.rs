//! Units of the specification's, driven by this crate, and devices that try everything.

mod changes;
mod interrupts;
mod join;
mod start;
mod world;
