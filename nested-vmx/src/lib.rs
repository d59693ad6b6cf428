#![no_std]
#![doc = include_str!("../README.md")]

pub mod capability;
pub mod control;
pub mod cpuid;
pub mod cr;
pub mod exit;
pub mod field;
pub mod io;
pub mod msr;
pub mod state;
