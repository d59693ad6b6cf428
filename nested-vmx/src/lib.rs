#![no_std]
#![doc = include_str!("../README.md")]

pub mod advertise;
pub mod bitmap;
pub mod capability;
pub mod check;
pub mod control;
pub mod cpuid;
pub mod cr;
pub mod disclosure;
pub mod exit;
pub mod field;
pub mod guard;
pub mod io;
pub mod leave;
pub mod merge;
pub mod msr;
pub mod operand;
pub mod operation;
pub mod power;
pub mod speculation;
pub mod state;
mod unroll;
pub mod vcpu;
pub mod vmcs12;
pub mod xstate;
