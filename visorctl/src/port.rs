//! What a control port can do; `ticket::port` says what it means.

/// The two ports.
pub(crate) trait Port {
    /// Selects an index, until the next call.
    fn select(&mut self, index: u32);
    /// Reads the value at the selected index.
    fn read(&mut self) -> u32;
    /// Writes to the selected index.
    fn write(&mut self, value: u32);
}
