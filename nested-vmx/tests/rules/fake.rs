//! A VMCS that is a table.

use std::collections::BTreeMap;

use nested_vmx::field::{Field, Vmcs, Width};

/// The fields that were written. Reading another one fails the test: nothing may rely on what
/// VMCLEAR happened to leave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FakeVmcs {
    fields: BTreeMap<u32, u64>,
}

impl FakeVmcs {
    /// The same, with `value` in `field`.
    pub(crate) fn with<T: Width>(mut self, field: Field<T>, value: T::Value) -> Self {
        self.write(field, value);
        self
    }
}

impl Vmcs for FakeVmcs {
    fn read_raw(&self, encoding: u32) -> u64 {
        *self
            .fields
            .get(&encoding)
            .unwrap_or_else(|| panic!("nothing was written to field {encoding:#x}"))
    }

    fn write_raw(&mut self, encoding: u32, value: u64) {
        let _ = self.fields.insert(encoding, value);
    }
}
