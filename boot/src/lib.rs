#![no_std]
//! Scaffold.
